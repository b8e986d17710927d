"""Features belong to the content that they were made of: what was replaced under its name is embedded again."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from feature_samples import CPU
from slide_files import GLASS, tissue_image, write_slide_file
from test_embed_slides import JOB, embed

from dino_path.errors import DataError
from dino_path.features.embed_images import embed_images
from dino_path.features.extractor import Extractor, load_extractor
from dino_path.features.files import read_feature_file
from dino_path.tiles.images import ImageFiles, image_files


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The command line configures logging; afterwards it is as it was."""
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def repainted() -> np.ndarray:
    """The same tissue, so the same corners of tiles, in other colours."""
    return np.ascontiguousarray(tissue_image()[..., [0, 2, 1]])


def test_features_of_a_replaced_slide_are_made_anew_in_both_layouts(tmp_path: Path) -> None:
    slide, out = write_slide_file(tmp_path / "slides/a.tif", [tissue_image()]), tmp_path / "out"
    words = ("tiles.mpp=0.5", "--layout", "trident,clam")
    embed(Path("mean-colour"), slide, *words, out=out)
    files = (out / JOB / "features_mean-colour/a.h5", out / "clam_mean-colour/h5_files/a.h5")
    before = [read_feature_file(file) for file in files]
    assert "0 slides embedded, 1 already there" in embed(Path("mean-colour"), slide, *words, out=out).output
    write_slide_file(slide, [repainted()])
    assert "1 slides embedded, 0 already there" in embed(Path("mean-colour"), slide, *words, out=out).output
    for file, old in zip(files, before, strict=True):
        new = read_feature_file(file)
        np.testing.assert_array_equal(new.coords, old.coords)
        np.testing.assert_allclose(new.features, old.features[:, [0, 2, 1, 3]], atol=1e-6)
    assert "0 slides embedded, 1 already there" in embed(Path("mean-colour"), slide, *words, out=out).output


@pytest.mark.parametrize("becomes", ["glass", "no slide"])
def test_features_of_a_slide_that_became_unusable_do_not_stay(tmp_path: Path, becomes: str) -> None:
    slide, out = write_slide_file(tmp_path / "slides/a.tif", [tissue_image()]), tmp_path / "out"
    write_slide_file(tmp_path / "slides/b.tif", [tissue_image(800, 600)])
    embed(Path("mean-colour"), slide.parent, "tiles.mpp=0.5", out=out)
    if becomes == "glass":
        noise = np.random.default_rng(0).integers(-2, 3, (300, 300, 1))
        write_slide_file(slide, [(np.array(GLASS) + noise).astype(np.uint8)])
    else:
        slide.write_bytes(b"half a download")
    embed(Path("mean-colour"), slide.parent / "a.tif", slide.parent / "b.tif", "tiles.mpp=0.5", out=out)
    assert [file.name for file in (out / JOB / "features_mean-colour").iterdir()] == ["b.h5"]


def test_features_of_an_older_version_are_told_by_their_tiles(tmp_path: Path) -> None:
    slide, out = write_slide_file(tmp_path / "slides/a.tif", [tissue_image()]), tmp_path / "out"
    embed(Path("mean-colour"), slide, "tiles.mpp=0.5", out=out)
    with h5py.File(out / JOB / "features_mean-colour/a.h5", "r+") as h5:
        del h5["features"].attrs["slide_digest"]
    assert "0 slides embedded, 1 already there" in embed(Path("mean-colour"), slide, "tiles.mpp=0.5", out=out).output


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images without compression: other pixels leave the size of the file."""
    for number in range(3):
        paint(tmp_path / f"images/{number}.bmp", number)
    return tmp_path / "images"


def paint(file: Path, seed: int) -> None:
    file.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(file), np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def features_of(extractor: Extractor, images: Path, out: Path) -> Path:
    return embed_images(extractor, ImageFiles(image_files(images)), out, root=images, batch_size=2, device=CPU)


def test_a_replaced_image_is_embedded_anew_alone(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extractor = load_extractor("colour-statistics", device=CPU)
    before = read_feature_file(features_of(extractor, images, tmp_path / "out")).features
    look = (images / "1.bmp").stat()
    paint(images / "1.bmp", 9)
    os.utime(images / "1.bmp", ns=(look.st_atime_ns, look.st_mtime_ns))  # the date of the old one, too
    after = read_feature_file(features_of(extractor, images, tmp_path / "out")).features
    assert (after != before).any(axis=1).tolist() == [False, True, False]
    np.testing.assert_allclose(
        after, read_feature_file(features_of(extractor, images, tmp_path / "fresh")).features, atol=1e-6
    )
    assert "1 of 3 images were replaced (first: 1.bmp)" in caplog.text


def test_unchanged_images_are_not_read_again(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = load_extractor("mean-colour", device=CPU)
    written = features_of(extractor, images, tmp_path / "out").stat().st_mtime_ns
    monkeypatch.setattr("dino_path.identity.content_digest", lambda _: pytest.fail("it was read"))
    assert features_of(extractor, images, tmp_path / "out").stat().st_mtime_ns == written


def test_images_of_other_names_and_other_models_are_refused(images: Path, tmp_path: Path) -> None:
    features_of(load_extractor("mean-colour", device=CPU), images, tmp_path / "out")
    with pytest.raises(DataError, match="another model"):
        features_of(load_extractor("colour-statistics", device=CPU), images, tmp_path / "out")
    (images / "1.bmp").rename(images / "one.bmp")
    with pytest.raises(DataError, match="other tiles"):
        features_of(load_extractor("mean-colour", device=CPU), images, tmp_path / "out")
