"""Loading extractors, and what they give."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import timm
import torch
from feature_samples import CPU, Images, write_model_folder
from timm.data import create_transform, resolve_model_data_config

from dino_path.errors import CheckpointError, ConfigError
from dino_path.features.extractor import extract_features, load_extractor
from dino_path.features.images import prepare_image
from dino_path.preprocessing import Preprocessing
from dino_path.views.normalisation import normalise_stain


def test_features_are_those_of_timm_with_timms_own_transform(model_folder: Path, noise_images: Images) -> None:
    from PIL import Image

    model = timm.create_model(f"local-dir:{model_folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model) | {"crop_pct": 1.0}, is_training=False)
    batch = torch.stack([transform(Image.fromarray(image)) for image in noise_images.images])
    with torch.inference_mode():
        expected = model(batch).numpy()
    features = extract_features(load_extractor(str(model_folder), device=CPU), noise_images, batch_size=3, device=CPU)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (7, 0), (2, 2), (100, 1)])
def test_features_do_not_depend_on_batches_or_processes(
    model_folder: Path, noise_images: Images, batch_size: int, num_workers: int
) -> None:
    extractor = load_extractor(str(model_folder), device=CPU)
    one_by_one = extract_features(extractor, noise_images, batch_size=1, device=CPU)
    features = extract_features(extractor, noise_images, batch_size=batch_size, num_workers=num_workers, device=CPU)
    np.testing.assert_allclose(features, one_by_one, rtol=1e-4, atol=1e-5)


def test_the_folder_brings_its_preprocessing_and_resolution(model_folder: Path) -> None:
    extractor = load_extractor(str(model_folder), device=CPU)
    assert (extractor.name, extractor.num_features) == ("tiny", 24)
    assert extractor.preprocessing == Preprocessing((0.7, 0.5, 0.6), (0.2, 0.25, 0.3), 32, mpp=0.5)
    assert not extractor.module.training
    assert not any(parameter.requires_grad for parameter in extractor.module.parameters())


def test_a_folder_called_model_takes_the_name_of_its_parent(tmp_path: Path) -> None:
    assert load_extractor(str(write_model_folder(tmp_path / "vits16" / "model")), device=CPU).name == "vits16"


def test_untrained_draws_the_same_weights_each_time_and_leaves_the_random_state_alone(model_folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = load_extractor(f"untrained:{model_folder}", device=CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    second = load_extractor(f"untrained:{model_folder}", device=CPU)
    trained = load_extractor(str(model_folder), device=CPU)
    assert first.digest == second.digest != trained.digest
    assert (first.name, first.preprocessing) == ("untrained-tiny", trained.preprocessing)


def test_untrained_timm_models_need_no_download() -> None:
    extractor = load_extractor("untrained:timm:resnet18", device=CPU)
    assert (extractor.name, extractor.num_features, extractor.preprocessing.input_px) == (
        "untrained-resnet18",
        512,
        224,
    )


def test_the_digest_follows_weights_and_preprocessing(model_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    same = load_extractor(str(copy), device=CPU).digest
    assert same == load_extractor(str(model_folder), device=CPU).digest
    config = json.loads((copy / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.7, 0.5, 0.61]
    (copy / "config.json").write_text(json.dumps(config))
    assert load_extractor(str(copy), device=CPU).digest != same
    other_weights = write_model_folder(tmp_path / "other", seed=8)
    assert load_extractor(str(other_weights), device=CPU).digest != same


def test_mean_colour_takes_images_of_any_size_as_they_come() -> None:
    red = np.zeros((10, 20, 3), np.uint8)
    red[:, :10, 0] = 255
    grey = np.full((7, 7, 3), 51, np.uint8)
    features = extract_features(
        load_extractor("mean-colour", device=CPU), Images([red, grey]), batch_size=2, device=CPU
    )
    np.testing.assert_allclose(features, [[0.5, 0, 0, 1], [0.2, 0.2, 0.2, 1]], atol=1e-6)


def test_colour_statistics_add_the_contrast_of_each_channel() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, :10, 0] = 255
    extractor = load_extractor("colour-statistics", device=CPU)
    features = extract_features(extractor, Images([image]), batch_size=1, device=CPU)
    np.testing.assert_allclose(features, [[0.5, 0, 0, 0.5, 0, 0, 1]], atol=1e-6)


def test_images_are_resized_by_their_shorter_side_and_cropped_in_the_middle() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 200
    prepared = prepare_image(image, 10)
    assert prepared.shape == (10, 10, 3)
    assert (prepared == 200).all()
    assert prepare_image(image, 20).shape == (20, 20, 3)
    assert prepare_image(image, 60).shape == (60, 60, 3)
    assert prepare_image(image, None) is image


def test_shrinking_averages_and_does_not_skip_pixels() -> None:
    checkerboard = np.indices((64, 64)).sum(axis=0) % 2 * 255
    prepared = prepare_image(np.repeat(checkerboard[..., None], 3, axis=2).astype(np.uint8), 16)
    assert np.abs(prepared.astype(int) - 128).max() <= 1


def test_an_edge_that_the_model_does_not_take_is_refused_before_any_image_is_read(
    model_folder: Path, noise_images: Images
) -> None:
    extractor = load_extractor(str(model_folder), device=CPU)
    with pytest.raises(ConfigError, match=r"evaluation.input_px=30"):
        extract_features(extractor, noise_images, batch_size=4, input_px=30, device=CPU)
    assert noise_images.reads == []
    assert extract_features(extractor, noise_images, batch_size=4, input_px=40, device=CPU).shape == (7, 24)


def test_features_that_are_not_finite_are_refused(model_folder: Path, noise_images: Images) -> None:
    extractor = load_extractor(str(model_folder), device=CPU)
    with torch.no_grad():
        next(extractor.module.parameters()).fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        extract_features(extractor, noise_images, batch_size=4, device=CPU)


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _drop_mean(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["pretrained_cfg"]["mean"]
    (folder / "config.json").write_text(json.dumps(config))


def _other_depth(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))


def _unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architecture"] = "vit_teeny"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_weights, "pickled weights"),
        (_cut_weights, "cannot be read"),
        (_break_json, "is damaged"),
        (_drop_mean, "pretrained_cfg.mean"),
        (_other_depth, "do not fit"),
        (_unknown_architecture, "no such model"),
    ],
)
def test_damaged_model_folders_are_refused_with_their_reason(
    model_folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(model_folder, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_extractor(str(folder), device=CPU)


def test_runs_and_checkpoints_are_sent_to_export(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = run / "checkpoints" / "step_00000010.pt"
    checkpoint.write_bytes(b"")
    for spec in (run, checkpoint):
        with pytest.raises(CheckpointError, match="dino-path export"):
            load_extractor(str(spec), device=CPU)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_extractor(str(tmp_path / "nothing"), device=CPU)
    with pytest.raises(CheckpointError, match=r"no config.json"):
        load_extractor(str(tmp_path), device=CPU)


def test_timm_weights_that_cannot_be_had_are_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **keywords: object) -> None:
        raise OSError("the Hub cannot be reached")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(CheckpointError, match=r"timm:resnet18.a1_in1k: timm cannot provide .*cannot be reached"):
        load_extractor("timm:resnet18.a1_in1k", device=CPU)


def test_unknown_timm_models_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(CheckpointError, match="resnet50"):
        load_extractor("timm:resnet5O", device=CPU)


def test_timm_weights_come_from_a_file_with_their_classifier_left_out(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=7)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    extractor = load_extractor(f"timm:resnet10t@{tmp_path / 'weights.pth'}", device=CPU)
    images = torch.rand(2, 3, 32, 32)
    features = network.eval().forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(extractor.module(images), features)
    with pytest.raises(CheckpointError, match="no such file"):
        load_extractor(f"timm:resnet10t@{tmp_path / 'nothing.pth'}", device=CPU)


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_features_are_made_of_the_colours_of_the_training(
    model_folder: Path, tmp_path: Path, method: Literal["reinhard", "macenko"]
) -> None:
    random = np.random.default_rng(1)
    pink = [random.normal((190, 110, 170), 25, (48, 48, 3)).clip(0, 255).astype(np.uint8) for _ in range(3)]
    plain = load_extractor(str(model_folder), device=CPU)
    copy = tmp_path / "normalised"
    shutil.copytree(model_folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "stain_normalisation": method}))
    extractor = load_extractor(str(copy), device=CPU)
    expected = extract_features(plain, Images([normalise_stain(one, method) for one in pink]), batch_size=2, device=CPU)
    found = extract_features(extractor, Images(pink), batch_size=2, device=CPU)
    np.testing.assert_array_equal(found, expected)
    assert not np.allclose(found, extract_features(plain, Images(pink), batch_size=2, device=CPU))
    assert extractor.digest != plain.digest, "features of other colours are not to be taken for these"
