"""A frozen model that turns images into feature vectors, whatever the model comes from.

Shape suffixes: N images of a source, B of a batch, H and W their edges in pixels, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dino_path.errors import CheckpointError, ConfigError
from dino_path.model.folder import Triple, build_untrained, load_backbone, read_model_folder
from dino_path.model.pretrained import TimmBackbone, load_timm_weights, untrained_timm_backbone
from dino_path.progress import meter
from dino_path.tiles.source import TileSource

UNTRAINED_SEED = 0
BATCHES_AHEAD = 3
GENERIC_FOLDER_NAMES = ("model", "export", "")


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its images; see `Extractor`."""

    mean: Triple
    std: Triple
    input_px: int | None
    mpp: float | None


@dataclass(frozen=True)
class Extractor:
    """A frozen model with the preprocessing that belongs to it.

    Attributes:
        name: what tables and file names call it.
        module: (B, 3, H, W) normalised float images -> (B, D); in eval mode, without gradients.
        mean, std: RGB, of images in [0, 1].
        input_px: edge of the square image that the module expects; None: any size, as it comes.
        mpp: microns per pixel of the tiles it was trained on; None: unknown.
        digest: SHA-256 of weights and preprocessing; equal digests give equal features.
    """

    name: str
    module: nn.Module
    mean: Triple
    std: Triple
    input_px: int | None
    mpp: float | None
    digest: str
    num_features: int


def load_extractor(spec: str, *, device: torch.device) -> Extractor:
    """The extractor that `spec` names.

    Args:
        spec: a model folder | `untrained:` + model folder (the same architecture, weights drawn with a fixed seed) |
            `timm:` + model name (timm's weights; those of a file with `@FILE` at its end) | `untrained:timm:` + model
            name | `mean-colour` (what colour alone can tell) | `colour-statistics` (colour and contrast, without any
            shape).

    Raises:
        CheckpointError: nothing that can be loaded stands behind `spec`.
    """
    if spec in CONTROLS:
        black, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        preprocessing = Preprocessing(black, one, input_px=None, mpp=None)
        return _freeze(spec, CONTROLS[spec](), spec, preprocessing, device)
    if spec.startswith("timm:"):
        name = spec.removeprefix("timm:")
        plain, _, file = name.partition("@")
        shown = f"{plain} ({Path(file).stem})" if file else plain
        return _from_timm(shown, load_timm_weights(name), device)
    if spec.startswith("untrained:timm:"):
        name = spec.removeprefix("untrained:timm:")
        return _from_timm(f"untrained-{name}", untrained_timm_backbone(name, seed=UNTRAINED_SEED), device)
    path = Path(spec.removeprefix("untrained:"))
    folder = read_model_folder(path)
    if spec.startswith("untrained:"):
        name, module = f"untrained-{_folder_name(path)}", build_untrained(folder, seed=UNTRAINED_SEED)
    else:
        name, module = _folder_name(path), load_backbone(folder)
    identity = json.dumps([folder.architecture, folder.arguments], sort_keys=True)
    preprocessing = Preprocessing(folder.mean, folder.std, folder.input_px, folder.mpp)
    return _freeze(name, module, identity, preprocessing, device)


class MeanColour(nn.Module):
    """Mean red, green and blue, and a one: (B, 3, H, W) -> (B, 4). What colour alone can tell.

    The one keeps brightness in play where neighbours are found by cosine: without it, dark and pale would be alike.
    """

    num_features = 4

    def forward(self, images_BCHW: Tensor) -> Tensor:
        mean_B3 = images_BCHW.mean(dim=(2, 3))
        return torch.cat([mean_B3, torch.ones_like(mean_B3[:, :1])], dim=1)


class ColourStatistics(nn.Module):
    """MeanColour and the standard deviations: (B, 3, H, W) -> (B, 7). Colour and contrast, without any shape."""

    num_features = 7

    def forward(self, images_BCHW: Tensor) -> Tensor:
        std_B3, mean_B3 = torch.std_mean(images_BCHW, dim=(2, 3), correction=0)
        return torch.cat([mean_B3, std_B3, torch.ones_like(mean_B3[:, :1])], dim=1)


CONTROLS: dict[str, type[nn.Module]] = {"mean-colour": MeanColour, "colour-statistics": ColourStatistics}


def extract_features(
    extractor: Extractor,
    source: TileSource,
    *,
    batch_size: int,
    input_px: int | None = None,
    device: torch.device,
    num_workers: int = 0,
    what: str = "features",
) -> NDArray[np.float32]:
    """Features (N, D) of all images, in the order of the source, in fp32.

    Args:
        input_px: edge of the image that the model sees; None: the extractor's own.
        num_workers: threads that read and decode ahead of the model (OpenCV works outside Python's lock).
        what: name of the work in the progress display.

    Raises:
        CheckpointError: the model gives numbers that are not finite.
        ConfigError: the model does not take images of `input_px`.
        TileStoreError: an image cannot be read.
    """
    features_ND = np.empty((len(source), extractor.num_features), np.float32)
    start = 0
    with meter(what, len(source), "images") as counter:
        for features_BD in iterate_features(
            extractor, source, batch_size=batch_size, input_px=input_px, device=device, num_workers=num_workers
        ):
            features_ND[start : start + len(features_BD)] = features_BD
            start += len(features_BD)
            counter.advance(len(features_BD))
    return features_ND


def iterate_features(
    extractor: Extractor,
    source: TileSource,
    *,
    batch_size: int,
    input_px: int | None = None,
    device: torch.device,
    num_workers: int = 0,
) -> Iterator[NDArray[np.float32]]:
    """Features (B, D), batch by batch, and no progress display; otherwise as `extract_features`."""
    edge_px = extractor.input_px if input_px is None else input_px
    if edge_px is not None and edge_px != extractor.input_px:
        _check_input_px(extractor, edge_px, device)
    start = 0
    for images in _image_batches(source, edge_px, batch_size, num_workers):
        features_BD = _forward(extractor, images, device)
        if not np.isfinite(features_BD).all():
            raise _not_finite(extractor, source, start, features_BD)
        yield features_BD
        start += len(images)


def prepare_image(image_HWC: NDArray[np.uint8], input_px: int | None) -> NDArray[np.uint8]:
    """The (input_px, input_px, 3) centre of the image after its shorter side became `input_px`.

    The geometry is timm's evaluation transform with `crop_pct` 1: tissue at the rim of a tile counts as much as in
    its middle. Shrinking averages over areas, enlarging is bicubic. None: the image as it is.
    """
    if input_px is None:
        return image_HWC
    height, width = image_HWC.shape[:2]
    shorter = min(height, width)
    if shorter != input_px:
        width, height = width * input_px // shorter, height * input_px // shorter
        interpolation = cv2.INTER_AREA if shorter > input_px else cv2.INTER_CUBIC
        image_HWC = np.asarray(cv2.resize(image_HWC, (width, height), interpolation=interpolation), np.uint8)
    top, left = round((height - input_px) / 2), round((width - input_px) / 2)
    return image_HWC[top : top + input_px, left : left + input_px]


def _image_batches(
    source: TileSource, input_px: int | None, batch_size: int, num_workers: int
) -> Iterator[list[NDArray[np.uint8]]]:
    """Prepared images, `batch_size` at a time, in order; a few batches are decoded ahead by threads."""

    def load(index: int) -> NDArray[np.uint8]:
        return prepare_image(source.read_image(index), input_px)

    batches = [range(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
    if num_workers == 0:
        for batch in batches:
            yield [load(index) for index in batch]
        return
    waiting: deque[list[Future[NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for batch in batches:
                waiting.append([pool.submit(load, index) for index in batch])
                if len(waiting) > BATCHES_AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@torch.inference_mode()
def _forward(extractor: Extractor, images: list[NDArray[np.uint8]], device: torch.device) -> NDArray[np.float32]:
    """Features (B, D) of images that may differ in size (then one by one)."""
    if len({image.shape for image in images}) > 1:
        return np.concatenate([_forward(extractor, [image], device) for image in images])
    batch_BHWC = torch.from_numpy(np.stack(images)).to(device)
    images_BCHW = batch_BHWC.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (extractor.mean, extractor.std))
    features_BD: Tensor = extractor.module((images_BCHW - mean) / std)
    return features_BD.float().cpu().numpy()


def _not_finite(
    extractor: Extractor, source: TileSource, start: int, features_BD: NDArray[np.float32]
) -> CheckpointError:
    first = start + int(np.argmax(~np.isfinite(features_BD).all(axis=1)))
    return CheckpointError(
        extractor.name,
        f"its features of {source.name(first)} are not finite.",
        "A model with finite weights is needed.",
        "Export an earlier checkpoint; the run's metrics.jsonl shows where the loss broke.",
    )


@torch.inference_mode()
def _check_input_px(extractor: Extractor, input_px: int, device: torch.device) -> None:
    try:
        extractor.module(torch.zeros(1, 3, input_px, input_px, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"evaluation.input_px={input_px}",
            f"{extractor.name} does not take images of this edge ({' '.join(str(error).split())[:200]}).",
            "The edge must fit the model: for a ViT a multiple of its patch size.",
            f"Leave it out to use the model's own ({extractor.input_px}).",
        ) from None


def _from_timm(name: str, backbone: TimmBackbone, device: torch.device) -> Extractor:
    preprocessing = Preprocessing(backbone.mean, backbone.std, backbone.input_px, mpp=None)
    return _freeze(name, backbone.module, name, preprocessing, device)


def _freeze(
    name: str, module: nn.Module, identity: str, preprocessing: Preprocessing, device: torch.device
) -> Extractor:
    module.requires_grad_(False).eval()
    num_features = module.num_features
    assert isinstance(num_features, int)
    return Extractor(
        name=name,
        module=module.to(device),
        mean=preprocessing.mean,
        std=preprocessing.std,
        input_px=preprocessing.input_px,
        mpp=preprocessing.mpp,
        digest=_digest(module, identity, preprocessing),
        num_features=num_features,
    )


def _digest(module: nn.Module, identity: str, preprocessing: Preprocessing) -> str:
    """SHA-256 of architecture, weights and preprocessing: the key under which features may be kept."""
    what = [identity, preprocessing.mean, preprocessing.std, preprocessing.input_px]
    total = hashlib.sha256(json.dumps(what).encode())
    for key, tensor in sorted(module.state_dict().items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return total.hexdigest()


def _folder_name(path: Path) -> str:
    """The folder's own name, or its parent's where that says more (`runs/vits16/model` -> `vits16`)."""
    path = path.resolve()
    return path.parent.name if path.name in GENERIC_FOLDER_NAMES else path.name
