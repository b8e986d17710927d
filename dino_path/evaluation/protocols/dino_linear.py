"""DINO's linear protocol: one linear layer, trained by SGD on random crops of the training images.

Source: Caron et al. 2021, linear evaluation of frozen features; facebookresearch/dino `eval_linear.py` at 7c446df:

- features: [CLS] after the final norm of the last 4 blocks for ViT-S (and narrower here); for ViT-B (and wider here)
  that of the last block with the mean of its patch tokens; for networks without blocks the pooled output;
- training images: RandomResizedCrop (8 to 100 % of the area, aspect 3/4 to 4/3) and horizontal flip;
- weights N(0, 0.01), bias 0; SGD, momentum 0.9, no weight decay, lr 0.001 x batch / 256, cosine to 0 over 100 epochs,
  one step of the schedule an epoch.

Where we differ: crops are made once, `evaluation.linear_crops` of each image, and the epochs go round them (100 is the
published way, a new crop in every epoch; fewer make up to 100 times fewer forward passes). The published number is the
best epoch on the test images; ours is the last epoch, so test images choose nothing, and validation images neither. The
batch is 128, one process's; the published commands ran eight. Test images are the whole prepared square, as in every
protocol here, not the central 224 of 256 px. Small sets take few updates (100 epochs of 1000 images are 800): the
accuracy on training crops, which is reported, tells whether the layer has learned.

Shape suffixes: N training images, R crops of each, B of a batch, Q test images, D features, C classes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dino_path.config import EvaluationConfig
from dino_path.errors import ConfigError
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import Division
from dino_path.evaluation.labelled.images import image_edge_px
from dino_path.evaluation.protocols.cache import FeatureCache, Features, Images
from dino_path.features.extractor import Extractor
from dino_path.features.images import stain_normalised
from dino_path.tiles.source import TileSource

NUM_EPOCHS, BATCH_SIZE, LR_AT_256, MOMENTUM, WEIGHT_STD = 100, 128, 0.001, 0.9, 0.01
NUM_BLOCKS, WIDE = 4, 768  # features of a block from which on one block and its mean patch are taken
AREA, ASPECT, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10


@dataclass(frozen=True)
class LinearLayer:
    """Result of the training: class probabilities (Q, C) of the test images, and how well it fits its own crops."""

    scores: NDArray[np.float64]
    train_loss: float
    train_accuracy: float


def dino_linear(
    extractor: Extractor, split: LabelledSet, division: Division, config: EvaluationConfig, cache: FeatureCache
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Class scores of the test images of one split of a division, and the protocol's settings, as plain values.

    Raises:
        ConfigError: a ViT without a [CLS] token. Else as `FeatureCache.features`.
    """
    tokens, of_crops, of_images = dino_linear_images(extractor, division, config)
    train, test = split.part("train"), split.part("test")
    place = np.searchsorted(cropped_images(division), train)
    layer = train_linear_layer(
        cache.features(tokens, of_crops), place, split.labels[train], cache.features(tokens, of_images)[test],
        num_classes=len(split.classes), num_crops=config.linear_crops, seed=config.seed,
    )  # fmt: skip
    return layer.scores, {
        "features": tokens.module.description if isinstance(tokens.module, BlockTokens) else "pooled output",
        "num_features": tokens.num_features,
        "crops_of_each_image": config.linear_crops,
        "num_epochs": NUM_EPOCHS,
        "batch_size": BATCH_SIZE,
        "num_updates": NUM_EPOCHS * math.ceil(train.size / BATCH_SIZE),
        "lr_at_256": LR_AT_256,
        "epoch_reported": "the last",
        "train_loss": layer.train_loss,
        "train_accuracy": layer.train_accuracy,
    }


def cropped_images(division: Division) -> NDArray[np.int64]:
    """Numbers of the images that some split trains on, ascending: in a cross-validation all, cropped once for it."""
    return np.unique(np.concatenate([split.part("train") for split in division.splits]))


def dino_linear_images(
    extractor: Extractor, division: Division, config: EvaluationConfig
) -> tuple[Extractor, Images, Images]:
    """The extractor of the protocol's features, the crops of the training images, and the unchanged images.

    Raises:
        ConfigError: a ViT without a [CLS] token.
    """
    tokens = block_tokens(extractor)
    labelled, cropped = division.labelled, cropped_images(division)
    edge_px = config.input_px or extractor.preprocessing.input_px or image_edge_px(labelled.source)
    # Whole images are stain normalised, and crops cut from them: the extractor must not do it again.
    source = stain_normalised(labelled.source, extractor.preprocessing.stain_normalisation)
    crops = RandomCrops(source, cropped, edge_px, config.linear_crops, seed=config.seed)
    content = hashlib.sha256(labelled.content[cropped].tobytes() + crops.digest.encode()).hexdigest()
    tokens = replace(tokens, preprocessing=replace(tokens.preprocessing, stain_normalisation=None))
    return tokens, Images(crops, content, "features of crops"), replace(Images.of(labelled), source=source)


def block_tokens(extractor: Extractor) -> Extractor:
    """The same network with the protocol's features; a network without blocks is unchanged.

    They are the same whatever kind of features the extractor gives.

    Raises:
        ConfigError: a ViT without a [CLS] token.
    """
    module = extractor.backbone
    if not hasattr(module, "get_intermediate_layers"):
        return extractor
    if getattr(module, "cls_token", None) is None:
        raise ConfigError(
            f"linear-dino of {extractor.name}",
            "this ViT has no [CLS] token.",
            "The protocol uses the [CLS] tokens of the last blocks.",
            "Use linear or linear-uni, which use the pooled features.",
        )
    width = int(module.num_features)  # type: ignore[arg-type]
    is_wide = width >= WIDE
    num_blocks = 1 if is_wide else min(NUM_BLOCKS, len(module.blocks))  # type: ignore[arg-type]
    tokens = BlockTokens(module, num_blocks, has_mean_patch=is_wide).eval()
    digest = hashlib.sha256(f"{extractor.digest} {tokens.description}".encode()).hexdigest()
    num_features = width * (num_blocks + is_wide)
    return replace(extractor, module=tokens, digest=digest, num_features=num_features)


class BlockTokens(nn.Module):
    """[CLS] of the last blocks of a timm ViT, after its final norm, and the last block's mean patch token if wanted."""

    def __init__(self, vit: nn.Module, num_blocks: int, *, has_mean_patch: bool) -> None:
        super().__init__()
        self.vit, self.num_blocks, self.has_mean_patch = vit, num_blocks, has_mean_patch
        self.description = f"[CLS] of the last {num_blocks} blocks" if num_blocks > 1 else "[CLS] of the last block"
        self.description += " and mean patch token" * has_mean_patch

    def forward(self, images_BCHW: Tensor) -> Tensor:
        layers = self.vit.get_intermediate_layers(  # type: ignore[operator]
            images_BCHW, self.num_blocks, return_prefix_tokens=True, norm=True
        )
        parts = [prefix[:, 0] for _, prefix in layers]
        if self.has_mean_patch:
            parts.append(layers[-1][0].mean(dim=1))
        return torch.cat(parts, dim=1)


class RandomCrops:
    """A tile source of R crops of each chosen image, flipped at random: number i x R + r is crop r of image i.

    A crop depends on (seed, image, r) alone.
    """

    def __init__(
        self, source: TileSource, indices: NDArray[np.int64], edge_px: int, num_crops: int, *, seed: int
    ) -> None:
        self.source, self.indices, self.edge_px, self.num_crops, self.seed = source, indices, edge_px, num_crops, seed
        self.mpp = None
        self.digest = f"random crops of {edge_px} px, {num_crops} of each, seed {seed}"

    def __len__(self) -> int:
        return len(self.indices) * self.num_crops

    def read_image(self, index: int) -> NDArray[np.uint8]:
        number, crop = divmod(index, self.num_crops)
        rng = np.random.default_rng([self.seed, number, crop])
        image_HWC = self.source.read_image(int(self.indices[number]))
        top, left, height, width = _random_box(image_HWC.shape[0], image_HWC.shape[1], rng)
        box_HWC = image_HWC[top : top + height, left : left + width]
        how = cv2.INTER_AREA if min(height, width) > self.edge_px else cv2.INTER_LINEAR
        crop_HWC = np.asarray(cv2.resize(box_HWC, (self.edge_px, self.edge_px), interpolation=how), np.uint8)
        return np.ascontiguousarray(crop_HWC[:, ::-1]) if rng.random() < 0.5 else crop_HWC

    def read_bytes(self, index: int) -> bytes:
        return self.read_image(index).tobytes()

    def name(self, index: int) -> str:
        return f"{self.source.name(int(self.indices[index // self.num_crops]))}, crop {index % self.num_crops}"


def train_linear_layer(
    crops_D: Features, place_N: NDArray[np.int64], labels_N: NDArray[np.int64], query_QD: Features, *, num_classes: int,
    num_crops: int, seed: int,
) -> LinearLayer:  # fmt: skip
    """Train on crop `epoch % num_crops` of every image, in another random order each epoch; the last weights predict.

    Args:
        crops_D: the crops of the cropped images, R of one after R of the other, (cropped x R, D).
        place_N: which of the cropped images each training image is.
    """
    num_images = len(labels_N)
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(crops_D.shape[1], num_classes)
    nn.init.normal_(layer.weight, std=WEIGHT_STD, generator=generator)
    nn.init.zeros_(layer.bias)
    batch_size = min(BATCH_SIZE, num_images)
    optimizer = torch.optim.SGD(layer.parameters(), LR_AT_256 * batch_size / 256, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_EPOCHS, eta_min=0)
    labels = torch.from_numpy(labels_N)
    loss_sum = num_right = 0.0
    for epoch in range(NUM_EPOCHS):
        loss_sum = num_right = 0.0
        for chosen in torch.randperm(num_images, generator=generator).split(batch_size):  # type: ignore[no-untyped-call]
            rows = place_N[chosen.numpy()] * num_crops + epoch % num_crops
            logits = layer(torch.from_numpy(np.array(crops_D[rows])))
            loss = nn.functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.item() * len(chosen)
            num_right += int((logits.argmax(dim=1) == labels[chosen]).sum())
        schedule.step()
    with torch.no_grad():
        scores_QC = layer(torch.from_numpy(np.array(query_QD))).double().softmax(dim=1)
    return LinearLayer(scores_QC.numpy(), loss_sum / num_images, num_right / num_images)


def _random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of torchvision's RandomResizedCrop; the centre where no draw fits."""
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            return top, int(rng.integers(width - box_width + 1)), box_height, box_width
    box_width, box_height = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
