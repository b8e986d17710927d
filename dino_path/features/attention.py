"""Pictures of a ViT's attention: one sheet per image with maps of [CLS], the heaviest patches, and points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.atomic import atomic_write
from dino_path.errors import ConfigError
from dino_path.features.extractor import Extractor
from dino_path.features.images import prepare_image
from dino_path.model.attention import LastAttention, last_attention, vit_with_cls
from dino_path.slides.region import read_scaled
from dino_path.slides.slide import RgbImage, Slide
from dino_path.tiles.images import ImageFiles
from dino_path.views.normalisation import normalise_stain

Point = tuple[float, float]  # (x, y), as parts of the edges
Region = tuple[int, int, int]  # of a slide: left, top, edge, level-0 px
Weights = NDArray[np.float32]  # (rows, columns) of patches

PANEL_PX, CAPTION_PX, GAP_PX = 224, 22, 4
LARGEST_PX = 2048  # of an image for attention: a ViT with patches of 16 px has 16,384 tokens then
# The reference points where none are given: the middle and the middles of the four quarters.
POINTS: tuple[Point, ...] = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
MASS = 0.6  # Caron et al. 2021, section 4.2.2
EVEN_BELOW = 1.5  # times even attention: a map whose largest weight is smaller says nothing, and is not drawn
STRENGTH = (
    0.85  # of the colours where the weight is largest; none where it is even or less, so that tissue stays visible
)
FADED = 0.75  # how much of white lies over patches that hold little of the attention
COLOURS = cv2.COLORMAP_VIRIDIS  # green to yellow: neither is a colour of H&E
CROSS_COLOUR = (0, 255, 0)


@dataclass(frozen=True)
class Sheet:
    """One picture that was drawn.

    Attributes:
        edge_px: of the image that the model saw.
        seen_mpp: microns per pixel of it; None: not known.
    """

    file: Path
    edge_px: int
    seen_mpp: float | None


def draw_attention(
    extractor: Extractor,
    paths: Sequence[Path],
    out: Path,
    *,
    edge_px: int | None,
    points: Sequence[Point] = POINTS,
    mass: float = MASS,
) -> list[Sheet]:
    """One PNG per image in `out`, named by number and file: see `attention_sheet`.

    Args:
        edge_px: of the image that the model sees; None: the model's own. Larger ones give finer maps.
        points: from which attention is shown too.
        mass: share of the attention that the patches of the middle row hold.

    Raises:
        CheckpointError: the model is no ViT with a [CLS] token.
        ConfigError: the model does not take images of `edge_px`.
        TileStoreError: an image cannot be read.
    """
    vit_with_cls(extractor.backbone, extractor.name)
    images, sheets = ImageFiles(paths), []
    edge_px = edge_px or extractor.preprocessing.input_px
    assert edge_px is not None, "a ViT has an input edge"
    for number, path in enumerate(images.paths):
        file = out / f"{number:03d}_{path.stem}.png"
        _write_sheet(file, extractor, images.read_image(number), edge_px, points, mass)
        sheets.append(Sheet(file, edge_px, None))
    return sheets


def draw_region_attention(
    extractor: Extractor,
    slide: Slide,
    regions: Sequence[Region],
    out: Path,
    *,
    edge_px: int | None,
    points: Sequence[Point] = POINTS,
    mass: float = MASS,
) -> list[Sheet]:
    """One PNG per square region of a slide, named by slide and place; otherwise as `draw_attention`.

    Args:
        edge_px: None: what shows the region at the um/px of the training, in whole patches; the model's own where that
            is not known.

    Raises:
        SlideError: a region cannot be read.
        ConfigError: a region lies outside the slide, or would need an image of more than LARGEST_PX.
    """
    sheets = []
    for left, top, edge in regions:
        if not (-edge < left < slide.width_level0 and -edge < top < slide.height_level0):
            raise ConfigError(
                f"--region {left},{top},{edge}",
                f"is outside {slide.name}, which has {slide.width_level0:,} x {slide.height_level0:,} px.",
                "A square of the slide is needed.",
                "Correct --region: left, top and edge in level-0 px.",
            )
        wanted_px = edge_px or region_px(extractor, edge, slide.mpp)
        if wanted_px > LARGEST_PX:
            raise ConfigError(
                f"--region {left},{top},{edge}",
                f"at the um/px of the training it has {wanted_px:,} x {wanted_px:,} px.",
                f"At most {LARGEST_PX:,} px are shown to a model at once.",
                "Give a smaller region, or a coarser picture of it with --px.",
            )
        image_HWC = read_scaled(slide, (left, top), (edge, edge), (wanted_px, wanted_px))
        file = out / f"{slide.path.stem}_{left}_{top}_{edge}.png"
        _write_sheet(file, extractor, image_HWC, wanted_px, points, mass)
        sheets.append(Sheet(file, wanted_px, slide.mpp * edge / wanted_px))
    return sheets


def region_px(extractor: Extractor, edge_level0: float, slide_mpp: float) -> int:
    """Edge of the image that shows a region at the um/px of the training, in whole patches.

    Raises:
        CheckpointError: the model is no ViT with a [CLS] token.
    """
    vit, trained = vit_with_cls(extractor.backbone, extractor.name), extractor.preprocessing
    if trained.seen_mpp is None:
        assert trained.input_px is not None, "a ViT has an input edge"
        return trained.input_px
    patch_px = int(vit.patch_embed.patch_size[0])
    return max(1, round(edge_level0 * slide_mpp / trained.seen_mpp / patch_px)) * patch_px


def _write_sheet(
    file: Path, extractor: Extractor, image_HWC: RgbImage, edge_px: int, points: Sequence[Point], mass: float
) -> None:
    seen = seen_image(extractor, image_HWC, edge_px)
    sheet = attention_sheet(seen, look(extractor, seen), points, mass)
    encoded = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1]
    with atomic_write(file, "wb") as stream:
        stream.write(encoded.tobytes())


def cls_attention_picture(extractor: Extractor, image_HWC: RgbImage) -> RgbImage:
    """The image under its mean [CLS] attention, with a caption: (height, width, 3) uint8 RGB.

    Raises:
        CheckpointError: the model is no ViT with a [CLS] token.
    """
    edge_px = extractor.preprocessing.input_px
    assert edge_px is not None, "a ViT has an input edge"
    seen = seen_image(extractor, image_HWC, edge_px)
    return _overlay(seen, look(extractor, seen).of_cls()[0].mean(dim=0).cpu().numpy(), "[CLS], mean")


def attention_sheet(
    image_HWC: RgbImage, attention: LastAttention, points: Sequence[Point] = POINTS, mass: float = MASS
) -> RgbImage:
    """The picture of one image: three rows of panels with captions, (height, width, 3) uint8 RGB.

    Above: the image, and where [CLS] looks, mean and each head. Patches with even attention or less show the plain
    image; above it the colours cover it the more, the larger the weight. Each map has its own scale: its caption gives
    the largest weight as a multiple of even attention (1: as much as every patch would get). A map that is even all
    over is left plain, and its caption says so. In the middle: the fewest patches that hold `mass` of that attention;
    the others are faded. Below: where the patches at `points` look, mean of the heads.
    """
    heads_AHW = attention.of_cls()[0].cpu().numpy()
    named = [("mean", heads_AHW.mean(axis=0)), *((f"head {number}", head) for number, head in enumerate(heads_AHW))]
    above = [_panel(image_HWC, "image"), *(_overlay(image_HWC, weights, f"[CLS], {name}") for name, weights in named)]
    middle = [
        _panel(image_HWC, f"{mass:.0%} of attention"),
        *(_massive(image_HWC, one, mass, name) for name, one in named),
    ]
    below = [_panel(_crossed(image_HWC, points), "points"), *_points(image_HWC, attention, points)]
    num_columns = max(len(above), len(below))
    return np.concatenate([_row(panels, num_columns) for panels in (above, middle, below)])


def seen_image(extractor: Extractor, image_HWC: RgbImage, edge_px: int) -> RgbImage:
    """The image as the model sees it but for mean and std: stain normalised, resized, cut square."""
    return prepare_image(normalise_stain(image_HWC, extractor.preprocessing.stain_normalisation), edge_px)


def look(extractor: Extractor, image_HWC: RgbImage) -> LastAttention:
    """The model's attention in one image, as returned by `seen_image`.

    Raises:
        CheckpointError: the model is no ViT with a [CLS] token.
        ConfigError: it does not take images of this edge.
    """
    device = next(extractor.module.parameters()).device
    image_CHW = torch.from_numpy(image_HWC.copy()).to(device).permute(2, 0, 1).float() / 255
    triples = extractor.preprocessing.mean, extractor.preprocessing.std
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in triples)
    try:
        return last_attention(extractor.backbone, ((image_CHW - mean) / std)[None], name=extractor.name)
    except (AssertionError, RuntimeError) as error:  # timm asserts that the edge fits the model
        raise ConfigError(
            f"--px {image_HWC.shape[0]}",
            f"{extractor.name} does not take images of this edge ({' '.join(str(error).split())[:200]}).",
            "A multiple of the model's patch size is needed.",
            f"Leave --px out to use the model's own ({extractor.preprocessing.input_px}).",
        ) from None


def mass_mask(weights: Weights, mass: float) -> NDArray[np.bool_]:
    """(rows, columns) bool: the smallest set of patches with `mass` of the total weight (Caron et al. 2021, 4.2.2).

    Args:
        mass: above 0, up to 1.
    """
    falling = np.argsort(-weights, axis=None, kind="stable")
    held = np.cumsum(weights.ravel()[falling], dtype=np.float64)
    count = int(np.searchsorted(held, mass * held[-1] * (1 - 1e-6))) + 1
    mask = np.zeros(weights.size, np.bool_)
    mask[falling[:count]] = True
    return mask.reshape(weights.shape)


def painted(weights: Weights) -> tuple[NDArray[np.uint8], float]:
    """The colours of a map, (rows, columns, 4) uint8 RGBA, and its largest weight as a multiple of even attention.

    Nothing is coloured where the largest is below EVEN_BELOW.
    """
    relative = weights * weights.size  # even attention is one share for each of all tokens; the prefix tokens are few
    largest = float(relative.max())
    if largest < EVEN_BELOW:
        return np.zeros((*weights.shape, 4), np.uint8), largest
    share = np.clip((relative - 1) / (largest - 1), 0, 1).astype(np.float32)
    # The upper half of the colours: the lower one is as dark as nuclei.
    colours = cv2.applyColorMap(np.rint(127 + 128 * share).astype(np.uint8), COLOURS)
    alpha = np.rint(255 * STRENGTH * share).astype(np.uint8)
    return np.dstack([cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), alpha]), largest


def faded(weights: Weights, mass: float) -> NDArray[np.uint8]:
    """(rows, columns, 4) uint8 RGBA: white over all but the fewest patches that hold `mass` of the attention."""
    colours = np.full((*weights.shape, 4), 255, np.uint8)
    colours[..., 3] = np.where(mass_mask(weights, mass), 0, round(255 * FADED))
    return colours


def _points(image_HWC: RgbImage, attention: LastAttention, points: Sequence[Point]) -> Iterator[RgbImage]:
    for x, y in points:
        weights = of_point(attention, (x, y)).mean(axis=0)
        yield _overlay(_crossed(image_HWC, [(x, y)]), weights, f"from {x:.3g}, {y:.3g}")


def of_point(attention: LastAttention, point: Point) -> NDArray[np.float32]:
    """(A, rows, columns): attention of the patch at this point of the image, per head."""
    rows, columns = attention.grid
    row, column = min(int(point[1] * rows), rows - 1), min(int(point[0] * columns), columns - 1)
    weights: NDArray[np.float32] = attention.of_patch(row, column)[0].float().cpu().numpy()
    return weights


def _overlay(image_HWC: RgbImage, weights: Weights, caption: str) -> RgbImage:
    colours, largest = painted(weights)
    told = f"max {largest:.1f}x" if largest >= EVEN_BELOW else "even: nothing stands out"
    return _panel(_under(image_HWC, colours), f"{caption}, {told}")


def _massive(image_HWC: RgbImage, weights: Weights, mass: float, name: str) -> RgbImage:
    share = float(mass_mask(weights, mass).mean())
    return _panel(_under(image_HWC, faded(weights, mass)), f"{name}, on {share:.0%} of patches")


def _under(image_HWC: RgbImage, colours_HW4: NDArray[np.uint8]) -> RgbImage:
    """The image under colours that are drawn as squares: a patch has one weight."""
    height, width = image_HWC.shape[:2]
    large = cv2.resize(colours_HW4, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.float32)
    alpha = large[..., 3:] / 255
    return np.rint(image_HWC * (1 - alpha) + large[..., :3] * alpha).astype(np.uint8)


def _crossed(image_HWC: RgbImage, points: Sequence[tuple[float, float]]) -> RgbImage:
    marked, (height, width) = image_HWC.copy(), image_HWC.shape[:2]
    for x, y in points:
        centre, size = (int(x * width), int(y * height)), max(8, width // 16)
        cv2.drawMarker(marked, centre, CROSS_COLOUR, cv2.MARKER_CROSS, size, max(1, width // 112))
    return marked


def _panel(image_HWC: RgbImage, caption: str) -> RgbImage:
    """The image at the size of a panel, its caption below, a gap around."""
    small = cv2.resize(image_HWC, (PANEL_PX, PANEL_PX), interpolation=cv2.INTER_AREA)
    panel: RgbImage = np.full((PANEL_PX + CAPTION_PX, PANEL_PX + GAP_PX, 3), 255, np.uint8)
    panel[:PANEL_PX, :PANEL_PX] = small
    cv2.putText(panel, caption, (2, PANEL_PX + 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return panel


def _row(panels: list[RgbImage], num_columns: int) -> RgbImage:
    blank = np.full_like(panels[0], 255)
    return np.concatenate([*panels, *[blank] * (num_columns - len(panels))], axis=1)
