"""Masks from frozen patch vectors: a linear layer and k-NN, which learn from the share of each class in a patch.

A patch's target is the share of its pixels that each class has. The cross-entropy of a patch's logits to it is the mean
cross-entropy of its pixels, were each given the patch's logits:

    -1/P sum_pixels log p(class of the pixel) = -sum_c share_c log p_c

So the fit sees every pixel's class, and is convex; it needs one row per patch, not one per pixel, and memory is bounded
by the number of patches. What it gives on the grid of patches is brought to pixels bilinearly, and the largest wins.

- `linear`: multinomial logistic regression on standardised vectors, full-batch L-BFGS; loss + strength / 2 |W|^2, the
  strength of lowest cross-entropy on validation images.
- `knn`: votes exp(cosine / T) of the k most similar patches for the shares of their classes; k and T as `knn` has them.

Shape suffixes: N patches, Q queries, K neighbours, D width, R rows and C columns of patches, S classes, H and W pixels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dino_path.config import EvaluationConfig
from dino_path.errors import TileStoreError
from dino_path.evaluation.labelled.datasets import VALIDATION_FRACTION, LabelledSet
from dino_path.evaluation.labelled.masks import Mask, MaskedSet
from dino_path.evaluation.measures.confusion import Ints
from dino_path.evaluation.protocols.knn import NeighbourIndex
from dino_path.features.images import read_batches, stain_normalised
from dino_path.features.windows import WindowModel, scaled_shape
from dino_path.progress import meter
from dino_path.slides.slide import RgbImage

logger = logging.getLogger(__name__)

DenseProtocol = Literal["linear", "knn"]
PROTOCOLS: tuple[DenseProtocol, ...] = ("linear", "knn")
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of the L2 penalty, strong to weak
MAX_ITERATIONS = 300
GRADIENT_TOLERANCE = 1e-5  # largest entry, of a mean cross-entropy in fp32
QUERIES_PER_CHUNK = 4096
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Patches:
    """Vectors (N, D) of patches, and the share (N, S) of each class in their pixels; rows of shares sum to 1."""

    vectors: Floats
    shares: Floats

    def __add__(self, other: Patches) -> Patches:
        return Patches(np.concatenate([self.vectors, other.vectors]), np.concatenate([self.shares, other.shares]))


@dataclass(frozen=True)
class DenseProbe:
    """The classifiers fitted on the training images of one split.

    Attributes:
        strength: of the linear layer's penalty, chosen on validation images.
        trials: cross-entropy on validation patches by strength.
        num_iterations: of the last fit; MAX_ITERATIONS where it stopped before it converged.
        num_patches: that the linear layer saw, and that k-NN looks among.
    """

    linear: _Linear
    strength: float
    trials: dict[float, float]
    num_iterations: int
    neighbours: NeighbourIndex
    neighbour_shares: Floats
    k: int
    temperature: float
    num_patches: dict[DenseProtocol, int]

    def scores(self, patches_RCD: Floats) -> dict[DenseProtocol, Floats]:
        """Logits of the linear layer and shares of the votes, (R, C, S) each."""
        grid, queries_QD = patches_RCD.shape[:2], patches_RCD.reshape(-1, patches_RCD.shape[2])
        votes_QS = np.concatenate(
            [
                vote(similarity_QK, self.neighbour_shares[neighbour_QK], self.temperature)
                for _, similarity_QK, neighbour_QK in self.neighbours.search(
                    queries_QD, self.k, chunk=QUERIES_PER_CHUNK
                )
            ]
        )
        return {
            "linear": self.linear.logits(queries_QD).reshape(*grid, -1),
            "knn": votes_QS.reshape(*grid, -1),
        }


def fit_probe(
    model: WindowModel, masked: MaskedSet, split: LabelledSet, config: EvaluationConfig, *, device: torch.device,
    num_workers: int,
) -> DenseProbe:  # fmt: skip
    """Learn from the training images of a split; validation images, the data's own or carved out, choose the strength.

    Carved ones are trained on at last, as those that were carved from. Equal seeds take equal patches of every model
    with the same grid.

    Raises:
        DataError: too few training patients (slides, images) for validation.
        TileStoreError: an image cannot be read.
    """
    fit, validation = split.fit_and_validation(VALIDATION_FRACTION, seed=config.seed)
    quota = math.ceil(config.segmentation_fit_tokens / (len(fit) + len(validation)))
    images = read_images(
        model, masked, np.concatenate([fit, validation]), num_workers, f"patches of {model.extractor.name}"
    )
    samples = [
        _some_patches(model, masked, image, index, quota, seed=config.seed) for index, image in images
    ]  # fmt: skip
    to_fit, to_validate = _joined(samples[: len(fit)]), _joined(samples[len(fit) :])
    del samples
    trials, last = {}, None
    for strength in STRENGTHS:  # the path from strong to weak is quicker than fits from zero
        last, _ = fit_linear(to_fit, strength, device=device, start=last)
        trials[strength] = last.cross_entropy(to_validate)
    strength = min(trials, key=lambda one: trials[one])
    train = to_fit + to_validate if not split.part("val").size else to_fit
    linear, num_iterations = fit_linear(train, strength, device=device)
    if num_iterations >= MAX_ITERATIONS:
        logger.warning("%s: the linear layer stopped after %d iterations", model.extractor.name, num_iterations)
    rng = np.random.default_rng([config.seed, 1])
    chosen = np.sort(rng.permutation(len(train.vectors))[: config.segmentation_knn_tokens])
    return DenseProbe(
        linear=linear,
        strength=strength,
        trials=trials,
        num_iterations=num_iterations,
        neighbours=NeighbourIndex(train.vectors[chosen], "flat"),
        neighbour_shares=train.shares[chosen],
        k=min(config.knn_k, len(chosen)),
        temperature=config.knn_temperature,
        num_patches={"linear": len(train.vectors), "knn": len(chosen)},
    )


def fit_linear(
    patches: Patches, strength: float, *, device: torch.device, start: _Linear | None = None
) -> tuple[_Linear, int]:
    """The linear layer of one L2 strength, and how many iterations it took.

    Args:
        start: begin there; None: at zero.
    """
    mean_D, std_D = _mean_and_std(patches.vectors)
    inputs_ND = torch.from_numpy((patches.vectors - mean_D) / std_D).to(device)
    shares_NS = torch.from_numpy(patches.shares).to(device)
    layer = nn.Linear(inputs_ND.shape[1], shares_NS.shape[1]).to(device)
    with torch.no_grad():
        layer.weight.zero_() if start is None else layer.weight.copy_(start.layer.weight)
        layer.bias.zero_() if start is None else layer.bias.copy_(start.layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=MAX_ITERATIONS, max_eval=2 * MAX_ITERATIONS, tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(inputs_ND), shares_NS) + strength / 2 * (layer.weight**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    (state,) = optimizer.state.values()
    return _Linear(layer.requires_grad_(False), mean_D, std_D), int(state["n_iter"])


def vote(similarity_QK: Floats, shares_QKS: Floats, temperature: float) -> Floats:
    """Shares (Q, S) of the votes: a neighbour gives exp(similarity / temperature) to its classes, by their shares."""
    weight_QK = np.exp((similarity_QK - similarity_QK.max(axis=1, keepdims=True)) / temperature)
    votes_QS: Floats = np.einsum("qk,qks->qs", weight_QK, shares_QKS) / weight_QK.sum(axis=1, keepdims=True)
    return votes_QS


def class_shares(mask_HW: Mask, num_classes: int, *, patch_px: int, scale: float) -> Floats:
    """The share (R, C, S) of each class in the known pixels of each patch; NaN where none is known.

    Args:
        patch_px, scale: of the model: a patch is `patch_px` / `scale` pixels of the mask wide.
    """
    height, width = scaled_shape(mask_HW.shape, scale)
    rows, columns = -(-height // patch_px), -(-width // patch_px)
    padded = np.zeros((rows * patch_px, columns * patch_px), np.float32)
    pixels_RCS = np.empty((rows, columns, num_classes), np.float32)
    for number in range(num_classes):
        of_class = (mask_HW == number).astype(np.float32)
        if scale != 1:
            kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            of_class = np.asarray(cv2.resize(of_class, (width, height), interpolation=kind), np.float32)
        padded[:height, :width] = of_class
        pixels_RCS[..., number] = padded.reshape(rows, patch_px, columns, patch_px).sum(axis=(1, 3))
    with np.errstate(invalid="ignore"):
        shares_RCS: Floats = pixels_RCS / pixels_RCS.sum(axis=2, keepdims=True)
    return shares_RCS


def mask_of(scores_RCS: Floats, shape: tuple[int, int], *, patch_px: int, scale: float) -> Mask:
    """The class (H, W) of largest score in each pixel of an image of `shape`, the scores taken bilinearly between the
    centres of patches.
    """
    wanted = [
        max(round(cells * patch_px / scale), edge) for cells, edge in zip(scores_RCS.shape[:2], shape, strict=True)
    ]
    scores_1SRC = torch.from_numpy(np.ascontiguousarray(scores_RCS.transpose(2, 0, 1)))[None]
    scores_SHW = F.interpolate(scores_1SRC, size=tuple(wanted), mode="bilinear", align_corners=False)[0]
    mask: Mask = scores_SHW[:, : shape[0], : shape[1]].argmax(dim=0).to(torch.uint8).numpy()
    return mask


def best_mask(mask_HW: Mask, num_classes: int, *, patch_px: int, scale: float) -> Mask:
    """Masks from the true shares of the patches: hardly any model can do better on this grid."""
    shares_RCS = class_shares(mask_HW, num_classes, patch_px=patch_px, scale=scale)
    shape = mask_HW.shape[0], mask_HW.shape[1]
    return mask_of(np.nan_to_num(shares_RCS), shape, patch_px=patch_px, scale=scale)


def read_images(
    model: WindowModel, masked: MaskedSet, indices: Ints, num_workers: int, what: str
) -> Iterator[tuple[int, RgbImage]]:
    """The number and the whole image of each of `indices`, stain normalised as the model wants it, read ahead.

    Raises:
        TileStoreError: an image cannot be read.
    """
    source = stain_normalised(masked.labelled.source, model.extractor.preprocessing.stain_normalisation)
    batches = read_batches(source, [np.array([index]) for index in indices], None, num_workers=num_workers)
    with meter(what, len(indices), "images") as counter:
        for index, batch in zip(indices.tolist(), batches, strict=True):
            if isinstance(batch, TileStoreError):
                raise batch
            yield index, batch[0].numpy()
            counter.advance()


@dataclass(frozen=True)
class _Linear:
    """A linear layer on vectors standardised by `mean` and `std` (D,)."""

    layer: nn.Linear
    mean: Floats
    std: Floats

    def logits(self, vectors_QD: Floats) -> Floats:
        device = self.layer.weight.device
        chunks = np.array_split(vectors_QD, max(1, len(vectors_QD) // QUERIES_PER_CHUNK))
        parts = [self.layer(torch.from_numpy((one - self.mean) / self.std).to(device)).cpu().numpy() for one in chunks]
        return np.concatenate(parts)

    def cross_entropy(self, patches: Patches) -> float:
        logits_NS = torch.from_numpy(self.logits(patches.vectors))
        return float(F.cross_entropy(logits_NS, torch.from_numpy(patches.shares)))


def _some_patches(
    model: WindowModel, masked: MaskedSet, image: RgbImage, index: int, quota: int, *, seed: int
) -> Patches:
    """Up to `quota` patches of an image that hold a known pixel, drawn evenly."""
    mask_HW = masked.read_mask(index, (image.shape[0], image.shape[1]))
    num_classes = len(masked.classes)
    shares_NS = class_shares(mask_HW, num_classes, patch_px=model.patch_px, scale=model.scale).reshape(-1, num_classes)
    known = np.flatnonzero(~np.isnan(shares_NS[:, 0]))
    chosen = np.sort(np.random.default_rng([seed, 0, index]).permutation(known)[:quota])
    vectors_RCD = model.patches(image)
    return Patches(vectors_RCD.reshape(-1, vectors_RCD.shape[2])[chosen], shares_NS[chosen])


def _joined(parts: list[Patches]) -> Patches:
    return Patches(np.concatenate([one.vectors for one in parts]), np.concatenate([one.shares for one in parts]))


def _mean_and_std(vectors_ND: Floats) -> tuple[Floats, Floats]:
    """(D,) each; constant features get a standard deviation of 1."""
    mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    std_D = vectors_ND.std(axis=0, dtype=np.float64)
    return mean_D.astype(np.float32), np.where(std_D > 1e-6, std_D, 1.0).astype(np.float32)
