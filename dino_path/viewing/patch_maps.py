"""Patch maps of a ViT: the principal components of its patch tokens as colours, and its attention.

Shape suffixes: T tiles, P patches of a tile, D width of a token, C the three components, H and W edges in px.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.errors import CheckpointError, ConfigError
from dino_path.features.attention import (
    MASS,
    faded,
    look,
    mass_mask,
    of_point,
    painted,
    seen_image,
)
from dino_path.features.extractor import Extractor, Forward
from dino_path.features.patch_tokens import token_shape
from dino_path.model.attention import LastAttention, vit_with_cls
from dino_path.model.tokens import refuse_no_patch_tokens
from dino_path.slides.slide import RgbImage
from dino_path.tiles.store import TileStore
from dino_path.viewing.pngs import data_url

BATCH_SIZE = 32
SAMPLE_TILES = 128  # spread over the store, from which the components are found
EXTREME_PERCENT = 1.0  # of the sample's patches that are darker or brighter than any colour
MOST_PATCHES = 48  # along an edge: the attention of 48 x 48 patches takes 21 MB a head
FIELDS = (1, 2, 3, 4)  # edges of what attention is shown of, in tiles


@dataclass(frozen=True)
class TokenColours:
    """How patch tokens become colours: the same for all slides of a store.

    Attributes:
        mean, components: (D,) and (3, D), of a sample of patches, the component with the largest variance first.
        low, high: (3,), what becomes 0 and 255.
        variance: (3,), share of the sample's variance that each component holds, 0 to 1.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    variance: NDArray[np.float32]

    @classmethod
    def of(cls, tokens_ND: NDArray[np.float32]) -> TokenColours:
        """The first three principal components; the sign is that which makes the largest loading positive."""
        mean_D = tokens_ND.mean(axis=0)
        centred_ND = tokens_ND - mean_D
        values, vectors = np.linalg.eigh((centred_ND.T @ centred_ND / len(tokens_ND)).astype(np.float64))
        components_CD = vectors[:, ::-1][:, :3].T.astype(np.float32)
        largest = np.take_along_axis(components_CD, np.abs(components_CD).argmax(axis=1)[:, None], axis=1)
        components_CD = components_CD * np.sign(largest)
        scores_NC = centred_ND @ components_CD.T
        low_C, high_C = np.percentile(scores_NC, (EXTREME_PERCENT, 100 - EXTREME_PERCENT), axis=0).astype(np.float32)
        variance_C = (values[::-1][:3] / max(values.sum(), np.finfo(float).tiny)).astype(np.float32)
        return cls(mean_D, components_CD, low_C, high_C, variance_C)

    def paint(self, tokens_PD: NDArray[np.float32], grid: tuple[int, int]) -> RgbImage:
        """(rows, columns, 3) uint8: red, green and blue are the first, second and third component."""
        scores_PC = (tokens_PD - self.mean) @ self.components.T
        span_C = np.maximum(self.high - self.low, np.finfo(np.float32).tiny)
        colours_PC = np.rint(255 * np.clip((scores_PC - self.low) / span_C, 0, 1))
        return np.asarray(colours_PC, np.uint8).reshape(*grid, 3)


class PatchMaps:
    """Runs one model for the viewer, one request at a time.

    Attributes:
        no_tokens, no_attention: why there is none of it; empty where there is.
        fields: edges, in tiles, of the squares that attention can be shown of.
        num_heads: of the last block; 0 without attention.
    """

    def __init__(self, extractor: Extractor, store: TileStore, device: torch.device) -> None:
        """Find what this model can show, and the colours of its tokens from a sample of the store's tiles."""
        self.extractor, self._store, self._lock = extractor, store, threading.Lock()
        self._forward = Forward(extractor, device)
        self.no_tokens = self.no_attention = ""
        self.fields: tuple[int, ...] = ()
        self.num_heads = 0
        try:
            refuse_no_patch_tokens(extractor.backbone, extractor.name, "the colours of patches")
            self._grid = token_shape(extractor, device).grid
            self.colours = TokenColours.of(self._sample())
        except CheckpointError as error:  # a control, or a network without patches: the page says why
            self.no_tokens = f"{error.thing}: {error.found}"
        try:
            vit = vit_with_cls(extractor.backbone, extractor.name)
        except CheckpointError as error:
            self.no_attention = f"{error.thing}: {error.found} {error.remedy}"
            return
        edge_px = extractor.preprocessing.input_px
        assert edge_px is not None, "a ViT has an input edge"
        patches = edge_px // int(vit.patch_embed.patch_size[0])
        self.fields = tuple(one for one in FIELDS if one == 1 or one * patches <= MOST_PATCHES)
        self.num_heads = int(vit.blocks[-1].attn.num_heads)
        self._refuse_other_sizes()

    def _refuse_other_sizes(self) -> None:
        """Leave only the field of one tile to a model that takes no other edge than its own."""
        edge_px = self.extractor.preprocessing.input_px
        assert edge_px is not None
        if len(self.fields) > 1:
            try:
                look(self.extractor, np.zeros((2 * edge_px, 2 * edge_px, 3), np.uint8))
            except ConfigError:
                self.fields = (1,)

    def colours_of(self, tile: int) -> RgbImage:
        """The patch tokens of a tile of the store as colours, (rows, columns, 3) uint8.

        Raises:
            TileStoreError: it cannot be read.
        """
        return self.colours.paint(self._tokens([tile])[0], self._grid)

    def attention_of(self, tile: int) -> NDArray[np.uint8]:
        """What [CLS] attends to in a tile of the store, mean of the heads, as colours: (rows, columns, 4) uint8 RGBA.

        Raises:
            TileStoreError: it cannot be read.
        """
        edge_px = self.extractor.preprocessing.input_px
        assert edge_px is not None, "a ViT has an input edge"
        image_HWC = seen_image(self.extractor, self._store.read_image(tile), edge_px)
        with self._lock:
            return painted(look(self.extractor, image_HWC).of_cls()[0].mean(dim=0).float().cpu().numpy())[0]

    def attention(self, image_HWC: RgbImage, field: int, point: tuple[float, float]) -> list[dict[str, Any]]:
        """Maps of one square as the page draws them: of [CLS] and of the patch at `point`, mean and each head.

        Args:
            field: edge of the square, in tiles.
            point: (x, y), as parts of its edges.

        Returns:
            Per map its `of` (`cls` or `point`), `head` (0: mean), `largest` weight in multiples of even attention,
            `weights` and `mass` as PNG with one px per patch, and `mass_share`, of the patches that hold MASS of it.
        """
        edge_px = self.extractor.preprocessing.input_px
        assert edge_px is not None
        with self._lock:
            attention = look(self.extractor, seen_image(self.extractor, image_HWC, field * edge_px))
            return _maps(attention, point)

    def _sample(self) -> NDArray[np.float32]:
        """Tokens (T * P, D) of tiles from all over the store."""
        count = min(SAMPLE_TILES, len(self._store))
        tiles = np.linspace(0, len(self._store) - 1, count).round().astype(int)
        parts = [self._tokens(tiles[start : start + BATCH_SIZE].tolist()) for start in range(0, count, BATCH_SIZE)]
        return np.concatenate([part.reshape(-1, part.shape[2]) for part in parts])

    def _tokens(self, tiles: Sequence[int]) -> NDArray[np.float32]:
        """(T, P, D) of these tiles of the store."""
        edge_px = self.extractor.preprocessing.input_px
        assert edge_px is not None, "a model with patch tokens has an input edge"
        images_THWC = np.stack([seen_image(self.extractor, self._store.read_image(tile), edge_px) for tile in tiles])
        with self._lock:
            _, tokens_TPD = self._forward.features_and_patches(torch.from_numpy(images_THWC))
        return tokens_TPD.astype(np.float32)


def _maps(attention: LastAttention, point: tuple[float, float]) -> list[dict[str, Any]]:
    maps = []
    for of, heads_AHW in (("cls", attention.of_cls()[0].float().cpu().numpy()), ("point", of_point(attention, point))):
        for head, weights in enumerate([heads_AHW.mean(axis=0), *heads_AHW]):
            colours, largest = painted(weights)
            maps.append(
                {
                    "of": of,
                    "head": head,
                    "largest": round(largest, 2),
                    "weights": data_url(colours),
                    "mass": data_url(faded(weights, MASS)),
                    "mass_share": round(float(mass_mask(weights, MASS).mean()), 4),
                }
            )
    return maps
