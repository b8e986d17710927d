"""Features of other kinds than the model's own, and patch tokens beside them."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from feature_samples import CPU, Images, write_model_folder, write_store
from leftovers import left_by_a_kill
from tiny import ALONE

from dino_path.errors import CheckpointError, ConfigError, DataError
from dino_path.evaluation.protocols.dino_linear import block_tokens
from dino_path.features import patch_tokens
from dino_path.features.embed import embed_store
from dino_path.features.extractor import extract_features, load_extractor
from dino_path.features.files import read_feature_file
from dino_path.tiles.store import TileStore

TOKENS = "20x_40px_0px_overlap/tokens_tiny/a.h5"
FEATURES = "20x_40px_0px_overlap/features_tiny/a.h5"


@pytest.fixture
def store(tmp_path: Path) -> TileStore:
    return write_store(tmp_path / "store", {"a": 5, "b": 2, "c": 0})


def folder_of_kind(folder: Path, out: Path, features: str) -> Path:
    shutil.copytree(folder, out)
    tree = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({"format_version": 2, **tree, "features": features}))
    return out


def test_a_folder_gives_its_kind_and_a_name_before_it_another(
    model_folder: Path, tmp_path: Path, noise_images: Images
) -> None:
    both = folder_of_kind(model_folder, tmp_path / "tiny", "cls+mean")
    specs = [str(model_folder), f"cls:{model_folder}", f"mean:{model_folder}", f"cls+mean:{model_folder}", str(both)]
    extractors = [load_extractor(spec, device=CPU) for spec in specs]
    assert [one.name for one in extractors] == ["tiny", "tiny", "tiny-mean", "tiny-cls+mean", "tiny"]
    assert [one.kind for one in extractors] == ["cls", "cls", "mean", "cls+mean", "cls+mean"]
    cls, same, mean, joined, of_folder = (
        extract_features(one, noise_images, batch_size=7, device=CPU) for one in extractors
    )
    assert joined.shape == (7, 48) == (7, extractors[3].num_features)
    np.testing.assert_allclose(np.concatenate([cls, mean], axis=1), joined, rtol=1e-4, atol=1e-5)
    assert np.array_equal(cls, same)
    assert np.array_equal(joined, of_folder)
    digests = [one.digest for one in extractors]
    assert digests[0] == digests[1]
    assert digests[3] == digests[4]
    assert len({*digests}) == 3
    untrained = load_extractor(f"untrained:{both}", device=CPU)
    assert (untrained.kind, untrained.name) == ("cls+mean", "untrained-tiny"), "a control gives what its model gives"


def test_protocols_and_pictures_that_take_tokens_themselves_see_the_same_network(model_folder: Path) -> None:
    own, both = (load_extractor(f"{kind}{model_folder}", device=CPU) for kind in ("", "cls+mean:"))
    taken = [block_tokens(one) for one in (own, both)]
    assert taken[0].num_features == taken[1].num_features == 48
    images = torch.zeros(1, 3, 32, 32)
    assert torch.equal(taken[0].module(images), taken[1].module(images))
    assert type(own.backbone) is type(both.backbone)


def test_what_has_no_patch_tokens_has_one_kind() -> None:
    for spec in ("mean:mean-colour", "cls:untrained:timm:resnet18"):
        with pytest.raises(CheckpointError, match="it has no patch tokens"):
            load_extractor(spec, device=CPU)


def test_patch_tokens_are_in_a_file_beside_the_features(model_folder: Path, store: TileStore, tmp_path: Path) -> None:
    extractor = load_extractor(str(model_folder), device=CPU)
    embed_store(extractor, store, tmp_path / "plain", batch_size=2, world=ALONE)
    summary = embed_store(extractor, store, tmp_path / "out", batch_size=2, world=ALONE, with_tokens=True)
    assert f"patch tokens: {summary.token_folder}" in summary.text()
    plain, features = (read_feature_file(tmp_path / out / FEATURES) for out in ("plain", "out"))
    assert np.array_equal(features.features, plain.features)
    with h5py.File(tmp_path / "out" / FEATURES) as h5:
        assert {*h5} == {"features", "coords"}, "readers of features read all that is in the file"
    with h5py.File(tmp_path / "out" / TOKENS) as h5:
        tokens, attributes = h5["tokens"][()], dict(h5["tokens"].attrs)
        assert np.array_equal(h5["coords"][()], features.coords)
    assert (tokens.shape, tokens.dtype) == ((5, 16, 24), np.float16)
    assert (attributes["grid"].tolist(), attributes["patch_px"], attributes["encoder"]) == ([4, 4], 8.0, "tiny")
    mean = load_extractor(f"mean:{model_folder}", device=CPU)
    expected = extract_features(mean, store, batch_size=7, device=CPU)[:5]
    np.testing.assert_allclose(tokens.astype(np.float32).mean(axis=1), expected, atol=2e-3)
    record = json.loads((tmp_path / "out" / "embed_tiny.json").read_text())
    assert (record["features"], record["token_grid"]) == ("cls", [4, 4])


def test_called_again_it_makes_the_tokens_that_are_missing_and_keeps_the_others(
    model_folder: Path, store: TileStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extractor = load_extractor(str(model_folder), device=CPU)
    assert embed_store(extractor, store, tmp_path, batch_size=4, world=ALONE).written == ("a", "b")
    caplog.set_level("INFO", "dino_path")
    assert embed_store(extractor, store, tmp_path, batch_size=4, world=ALONE, with_tokens=True).written == ("a", "b")
    assert "patch tokens of 7 tiles, 4 x 4 x 24 in fp16: 5.38e-06 GB" in caplog.text
    (tmp_path / TOKENS).unlink()
    torn = left_by_a_kill(tmp_path / TOKENS)
    again = embed_store(extractor, store, tmp_path, batch_size=4, world=ALONE, with_tokens=True)
    assert (again.written, again.kept, torn.exists()) == (("a",), ("b",), False)
    assert embed_store(extractor, store, tmp_path, batch_size=4, world=ALONE).kept == ("a", "b")
    other = load_extractor(str(write_model_folder(tmp_path / "other" / "tiny", seed=1)), device=CPU)
    (tmp_path / FEATURES).unlink()
    with pytest.raises(DataError, match=r"tokens_tiny/a\.h5: holds features of another model"):
        embed_store(other, store, tmp_path, batch_size=4, world=ALONE, with_tokens=True)


def test_tokens_that_the_disk_cannot_hold_and_models_without_them_are_refused_before_the_work(
    model_folder: Path, store: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr(patch_tokens.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(ConfigError, match=r"--tokens in .*: 5e-06 GB are free") as refusal:
        embed_store(
            load_extractor(str(model_folder), device=CPU), store, out, batch_size=2, world=ALONE, with_tokens=True
        )
    assert "patch tokens of 7 tiles, 4 x 4 x 24 in fp16: 5.38e-06 GB are needed" in refusal.value.needed
    cnn = load_extractor("untrained:timm:resnet18", device=CPU)
    with pytest.raises(CheckpointError, match="it has no patch tokens, but --tokens are requested"):
        embed_store(cnn, store, out, batch_size=2, world=ALONE, with_tokens=True)
    assert not out.exists()


def test_a_slide_whose_tiles_cannot_be_read_leaves_no_tokens(
    model_folder: Path, store: TileStore, tmp_path: Path
) -> None:
    archive = tmp_path / "store" / "tiles" / "a.tar"
    archive.write_bytes(b"\0" * archive.stat().st_size)
    extractor = load_extractor(str(model_folder), device=CPU)
    summary = embed_store(extractor, store, tmp_path / "out", batch_size=2, world=ALONE, with_tokens=True)
    assert ([slide for slide, _ in summary.failed], summary.written) == (["a"], ("b",))
    assert [file.name for file in (tmp_path / "out" / TOKENS).parent.iterdir()] == ["b.h5"]
