"""A frozen model, from any source, that turns images into feature vectors.

Shape suffixes: N images of a source, B of a batch, H and W their edges in pixels, D features.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dino_path.errors import CheckpointError, ConfigError, TileStoreError
from dino_path.features.images import read_batches, stain_normalised
from dino_path.features.specs import CONTROL_NAMES
from dino_path.model.frozen import FrozenModel, frozen_model, load_frozen
from dino_path.model.tokens import features_and_patches, kind_of, patch_map, plain_backbone
from dino_path.preprocessing import Preprocessing
from dino_path.progress import meter
from dino_path.records.feature_kinds import FeatureKind, split_kind
from dino_path.tiles.source import TileSource

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Extractor:
    """A frozen model with the preprocessing that belongs to it.

    Attributes:
        name: what tables and file names call it.
        module: (B, 3, H, W) normalised float images -> (B, D); in eval mode, without gradients.
        digest: SHA-256 of weights, preprocessing and precision; equal digests give equal features.
        precision: in which the module runs (torch.autocast); features are fp32 numbers whatever it is.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    digest: str
    num_features: int
    precision: Precision = "fp32"

    @property
    def kind(self) -> FeatureKind | None:
        """Which vector it gives; None: as the network pools them."""
        return kind_of(self.module)

    @property
    def backbone(self) -> nn.Module:
        """The timm model, without the wrapper that selects token features."""
        return plain_backbone(self.module)

    def at(self, precision: Precision) -> Extractor:
        """The same model, run at another precision: another digest, for its features differ."""
        if precision == self.precision:
            return self
        digest = hashlib.sha256(f"{self.digest} {precision}".encode()).hexdigest()
        return replace(self, precision=precision, digest=digest)


def load_extractor(spec: str, *, device: torch.device) -> Extractor:
    """The extractor that `spec` names, at fp32.

    Args:
        spec: as `load_frozen` takes it | `mean-colour` (what colour alone can tell) | `colour-statistics` (colour and
            contrast, without any shape).

    Raises:
        CheckpointError: nothing that can be loaded stands behind `spec`, or it has no features of this kind.
    """
    kind, control = split_kind(spec)
    if control in CONTROLS:
        black, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        preprocessing = Preprocessing(black, one, input_px=None)
        return _extractor(frozen_model(control, CONTROLS[control](), preprocessing, control, kind=kind), device)
    return _extractor(load_frozen(spec), device)


class MeanColour(nn.Module):
    """Mean red, green and blue, and a constant one: (B, 3, H, W) -> (B, 4). A control that sees only colour.

    The constant makes cosine similarity depend on brightness: without it, dark and pale tiles would be equal.
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


CONTROLS: dict[str, type[nn.Module]] = dict(zip(CONTROL_NAMES, (MeanColour, ColourStatistics), strict=True))


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
        num_workers: processes that read and decode ahead of the model.
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
    preprocessing = extractor.preprocessing
    source = stain_normalised(source, preprocessing.stain_normalisation)
    edge_px = preprocessing.input_px if input_px is None else input_px
    if edge_px is not None and edge_px != preprocessing.input_px:
        _check_input_px(extractor, edge_px, device)
    batches = batches_of(np.arange(len(source), dtype=np.int64), batch_size)
    forward = Forward(extractor, device)
    images = read_batches(source, batches, edge_px, num_workers=num_workers, pin_memory=device.type == "cuda")
    for numbers, batch in zip(batches, images, strict=True):
        if isinstance(batch, TileStoreError):
            raise batch
        features_BD = forward(batch)
        refuse_not_finite(extractor, source, numbers, features_BD)
        yield features_BD


def batches_of(numbers: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """The numbers in order, `batch_size` at a time; the last may be fewer."""
    return [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]


class Forward:
    """Runs batches through an extractor on a device; in halves from the first that did not fit into its memory.

    Attributes:
        most_images: at a time; None: whole batches, as they come.
    """

    def __init__(self, extractor: Extractor, device: torch.device) -> None:
        self.most_images: int | None = None
        self._extractor, self._device = extractor, device
        triples = extractor.preprocessing.mean, extractor.preprocessing.std
        values = (torch.tensor(triple, device=device).view(1, 3, 1, 1) for triple in triples)
        self._mean, self._std = values

    def __call__(self, images: Tensor | list[Tensor]) -> NDArray[np.float32]:
        """Features (B, D) of (B, H, W, C) uint8 images, or of images that differ in size (one by one)."""
        if isinstance(images, list):
            return np.concatenate([self(image[None]) for image in images])
        (features_BD,) = self._in_parts(images, self._features)
        return features_BD.numpy()

    def features_and_patches(self, images_BHWC: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Features (B, D) and patch tokens (B, patches, D of a token) of one pass."""
        features_BD, tokens = self._in_parts(images_BHWC, self._features_and_patches)
        return features_BD.numpy(), tokens.numpy()

    def patch_map(self, images_BHWC: Tensor) -> NDArray[np.float32]:
        """The last layer on its grid, (B, rows, columns, D)."""
        (map_BRCD,) = self._in_parts(images_BHWC, self._patch_map)
        return map_BRCD.numpy()

    def _in_parts(self, images: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """What `run` gives of all images, on the CPU."""
        parts: list[tuple[Tensor, ...]] = []
        start = 0
        while start < len(images):
            part_BHWC = images[start : start + (self.most_images or len(images))]
            try:
                parts.append(run(part_BHWC))
            except torch.OutOfMemoryError:
                if len(part_BHWC) == 1:
                    raise
                self.most_images = len(part_BHWC) // 2
                torch.cuda.empty_cache()
                logger.warning(
                    "%d images at a time do not fit into the memory of %s: using %d from now on",
                    len(part_BHWC), self._device, self.most_images,
                )  # fmt: skip
                continue
            start += len(part_BHWC)
        return [torch.cat(same) for same in zip(*parts, strict=True)]

    @torch.inference_mode()
    def _features(self, images_BHWC: Tensor) -> tuple[Tensor]:
        with self._autocast():
            features_BD: Tensor = self._extractor.module(self._normalised(images_BHWC))
        return (features_BD.float().cpu(),)

    @torch.inference_mode()
    def _features_and_patches(self, images_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        with self._autocast():
            features_BD, tokens = features_and_patches(self._extractor.module, self._normalised(images_BHWC))
        return features_BD.float().cpu(), tokens.half().cpu()

    @torch.inference_mode()
    def _patch_map(self, images_BHWC: Tensor) -> tuple[Tensor]:
        with self._autocast():
            map_BRCD = patch_map(self._extractor.module, self._normalised(images_BHWC))
        return (map_BRCD.float().cpu(),)

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST[self._extractor.precision]
        return torch.autocast(self._device.type, dtype, enabled=dtype is not None)

    def _normalised(self, images_BHWC: Tensor) -> Tensor:
        images_BCHW = images_BHWC.to(self._device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        return (images_BCHW - self._mean) / self._std


def refuse_not_finite(
    extractor: Extractor,
    source: TileSource,
    numbers: NDArray[np.int64],
    features: NDArray[np.float32] | NDArray[np.float16],
    what: str = "features",
) -> None:
    """Check the features (B, ...) of these images.

    Raises:
        CheckpointError: some are no numbers.
    """
    is_good = np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if not is_good.all():
        raise CheckpointError(
            extractor.name,
            f"its {what} of {source.name(int(numbers[np.argmin(is_good)]))} are not finite.",
            f"A model with finite weights is needed, and a precision that can hold its {what}.",
            "Use bf16 or fp32 instead of fp16; otherwise export an earlier checkpoint: metrics.jsonl shows where the"
            " loss became non-finite.",
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
            f"Leave it out to use the model's own ({extractor.preprocessing.input_px}).",
        ) from None


def _extractor(model: FrozenModel, device: torch.device) -> Extractor:
    num_features = model.module.num_features
    assert isinstance(num_features, int)
    return Extractor(
        name=model.name,
        module=model.module.to(device),
        preprocessing=model.preprocessing,
        digest=model.digest,
        num_features=num_features,
    )
