"""Features straight from slides: no tile is written, files have the slides' names, and what was done stays."""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from feature_samples import CPU, Images, write_model_folder
from slide_files import GLASS, tissue_image, write_slide_file
from tiny import ALONE
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from dino_path.cli import app
from dino_path.cli.program import EXIT_SOME_FAILED
from dino_path.errors import SlideError, TileStoreError
from dino_path.features.extractor import Extractor, Forward, extract_features, load_extractor
from dino_path.features.files import read_feature_file
from dino_path.preprocessing import Preprocessing
from dino_path.tiles.store import TileStore


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The command line configures logging; afterwards it is as it was."""
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


JOB = "20x_64px_0px_overlap"
SETTINGS = ("tiles.size_px=64", "tiles.mask_mpp=4", "tiles.min_area_um2=500")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides, of which one lies in a subfolder and has dots in its name, and a slide of glass."""
    folder = tmp_path_factory.mktemp("slides")
    write_slide_file(folder / "a.tif", [tissue_image()])
    write_slide_file(folder / "sub" / "b.1.tif", [tissue_image(800, 600)])
    noise = np.random.default_rng(0).integers(-2, 3, (300, 300, 1))
    write_slide_file(folder / "glass.tif", [(np.array(GLASS) + noise).astype(np.uint8)])
    return folder


def embed(model: Path, *words: Path | str, out: Path) -> Result:
    arguments = ["embed", str(model), *map(str, words), *SETTINGS, "--out", str(out), "--device", "cpu"]
    return CliRunner().invoke(app, [*arguments, "--workers", "0"])


def test_slides_become_feature_files_named_by_their_file_and_no_tile_is_written(
    model_folder: Path, slides: Path, tmp_path: Path
) -> None:
    result = embed(model_folder, slides, "--layout", "trident,clam", out=tmp_path)
    assert (result.exit_code, result.exception) == (0, None)
    assert "2 slides embedded, 0 already there, 1 without tiles, 0 failed" in result.output
    assert "empty    glass: " in result.output
    names = sorted(file.name for file in (tmp_path / JOB / "features_tiny").iterdir())
    assert names == ["a.h5", "b.1.h5"]
    assert sorted(file.name for file in (tmp_path / JOB / "patches").iterdir()) == ["a_patches.h5", "b.1_patches.h5"]
    assert sorted(file.name for file in (tmp_path / "clam_tiny" / "pt_files").iterdir()) == ["a.pt", "b.1.pt"]
    assert [*tmp_path.rglob("*.tar")] == []

    store = TileStore.open(tmp_path / JOB / "store")
    expected = extract_features(load_extractor(str(model_folder), device=CPU), store, batch_size=7, device=CPU)
    written = [read_feature_file(tmp_path / JOB / "features_tiny" / name) for name in names]
    np.testing.assert_allclose(np.concatenate([one.features for one in written]), expected, rtol=1e-4, atol=1e-5)
    assert [one.coords_attributes["name"] for one in written] == ["a", "b.1"]
    coords = np.concatenate([one.coords for one in written if one.coords is not None])
    assert coords.tolist() == np.stack([store.x_level0, store.y_level0], axis=1).tolist()


def test_a_second_call_with_one_more_slide_does_that_slide_alone(
    model_folder: Path, slides: Path, tmp_path: Path
) -> None:
    assert "1 slides embedded" in embed(model_folder, slides / "a.tif", out=tmp_path).output
    file = tmp_path / JOB / "features_tiny" / "a.h5"
    before = file.stat().st_mtime_ns
    result = embed(model_folder, slides / "a.tif", slides / "sub" / "b.1.tif", out=tmp_path)
    assert "1 slides embedded, 1 already there" in result.output
    assert file.stat().st_mtime_ns == before


def test_a_slide_that_cannot_be_read_is_listed_and_costs_no_other(
    model_folder: Path, slides: Path, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.svs"
    torn.write_bytes(b"no slide")
    result = embed(model_folder, slides / "a.tif", torn, out=tmp_path / "out")
    assert result.exit_code == EXIT_SOME_FAILED
    assert "failed   torn: " in result.output
    assert "1 slides embedded, 0 already there, 0 without tiles, 1 failed" in result.output


def test_slides_are_tiled_at_the_models_mpp_and_at_no_other_unless_allowed(
    model_folder: Path, slides: Path, tmp_path: Path
) -> None:
    refused = embed(model_folder, slides / "a.tif", "tiles.mpp=1", out=tmp_path)
    assert isinstance(refused.exception, TileStoreError)
    assert "the slides: tiles are at 1 um/px, and tiny was trained at 0.5 um/px" in str(refused.exception)
    assert [*tmp_path.iterdir()] == []
    allowed = embed(model_folder, slides / "a.tif", "tiles.mpp=1", "--allow-other-mpp", out=tmp_path)
    assert (allowed.exit_code, allowed.exception) == (0, None)
    assert (tmp_path / "10x_64px_0px_overlap" / "features_tiny" / "a.h5").exists()


def test_a_model_that_does_not_know_its_mpp_asks_for_one(slides: Path, tmp_path: Path) -> None:
    model = write_model_folder(tmp_path / "models" / "tiny", mpp=None)
    refused = embed(model, slides / "a.tif", out=tmp_path / "out")
    assert "tiles.mpp" in str(refused.exception)
    given = embed(model, slides / "a.tif", "tiles.mpp=0.5", out=tmp_path / "out")
    assert (given.exit_code, given.exception) == (0, None)


def test_two_slides_of_one_name_are_refused_before_any_is_read(
    model_folder: Path, slides: Path, tmp_path: Path
) -> None:
    other = write_slide_file(tmp_path / "slides" / "a.tif", [tissue_image(400, 400)])
    refused = embed(model_folder, slides / "a.tif", other, out=tmp_path / "out")
    assert isinstance(refused.exception, SlideError)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_tiff_tiles_is_a_folder_of_images(model_folder: Path, tmp_path: Path) -> None:
    import cv2

    tile = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (tmp_path / "TUM").mkdir()
    cv2.imwrite(str(tmp_path / "TUM" / "1.tif"), tile)
    arguments = ["embed", str(model_folder), str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--workers", "0"])
    assert (result.exit_code, result.exception) == (0, None)
    with h5py.File(tmp_path / "out" / "features.h5") as h5:
        assert h5["features"].shape == (1, 24)


def test_what_cannot_be_looked_at_is_listed_and_the_rest_is_tiled_and_embedded(
    model_folder: Path, slides: Path, tmp_path: Path
) -> None:
    """Dead links stand for folders without permission: a test that runs as root may read them all."""
    import cv2

    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), np.zeros((32, 32, 3), np.uint8))
    (images / "b.png").symlink_to("/not_mounted/b.png")
    arguments = ["embed", str(model_folder), str(images), "--out", str(tmp_path / "e"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--workers", "0"])
    assert result.exit_code == EXIT_SOME_FAILED
    assert "1 images -> " in result.output
    assert f"failed   {images / 'b.png'}: a link to /not_mounted/b.png, which is not there" in result.output

    slides = shutil.copytree(slides, tmp_path / "slides")
    (slides / "colleague").symlink_to("/not_mounted/colleague")
    (slides / "lost.tif").symlink_to("/not_mounted/lost.tif")
    command = ["tile", str(slides), "--out", str(tmp_path / "s"), "tiles.mpp=0.5", *SETTINGS, "--workers", "0"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == EXIT_SOME_FAILED
    assert f"failed  {slides / 'colleague'}: a link to /not_mounted/colleague, which is not there" in result.output
    assert re.search(r"failed +lost .*no such file", result.output)
    assert "1 failed: " in result.output
    assert "; 1 folder(s) could not be read" in result.output


class SmallMemory(nn.Module):
    """A model that runs out of memory beyond three images, and notes how many it was given."""

    num_features = 1

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self.given.append(len(images_BCHW))
        if len(images_BCHW) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images_BCHW.mean(dim=(1, 2, 3))[:, None]


def test_batches_that_do_not_fit_into_the_memory_are_halved_until_they_do(noise_images: Images) -> None:
    module = SmallMemory()
    extractor = Extractor("small", module, Preprocessing((0.0,) * 3, (1.0,) * 3, None), "", num_features=1)  # type: ignore[arg-type]
    forward = Forward(extractor, ALONE.device)
    images = torch.from_numpy(np.stack(noise_images.images))
    features = forward(images)
    np.testing.assert_allclose(features[:, 0], [image.mean() / 255 for image in noise_images.images], rtol=1e-5)
    assert module.given == [7, 3, 3, 1]
    assert forward.most_images == 3
    forward(images)
    assert module.given == [7, 3, 3, 1, 3, 3, 1]


def test_bf16_features_are_near_those_of_fp32_and_have_another_digest(model_folder: Path, noise_images: Images) -> None:
    exact = load_extractor(str(model_folder), device=CPU)
    half = exact.at("bf16")
    assert half.digest != exact.digest == exact.at("fp32").digest
    one, other = (extract_features(model, noise_images, batch_size=4, device=CPU) for model in (exact, half))
    assert other.dtype == np.float32
    assert 0 < np.abs(one - other).max() < 0.05 * np.abs(one).max()
