"""Pictures of what a ViT attends to: one sheet per image, [CLS] per head above, reference points below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.errors import ConfigError
from dino_path.features.extractor import Extractor
from dino_path.features.images import prepare_image, stain_normalised
from dino_path.model.attention import LastAttention, last_attention
from dino_path.run import atomic_write
from dino_path.slides.slide import RgbImage
from dino_path.tiles.images import ImageFiles

PANEL_PX, CAPTION_PX, GAP_PX = 224, 22, 4
# (x, y) of the reference points, as parts of the edge: the middle and the middles of the four quarters.
POINTS = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
EVEN_BELOW = 1.5  # times even attention: a map whose largest weight is smaller says nothing, and is not drawn
STRENGTH = (
    0.85  # of the colours where the weight is largest; none where it is even or less, so that tissue stays visible
)
COLOURS = cv2.COLORMAP_VIRIDIS  # green to yellow: neither is a colour of H&E
CROSS_COLOUR = (0, 255, 0)


def draw_attention(extractor: Extractor, paths: Sequence[Path], out: Path, *, edge_px: int | None) -> list[Path]:
    """One PNG per image in `out`, named by number and file: image, [CLS] (mean and each head), five reference points.

    Patches with even attention or less show the plain image; above it the colours cover it the more, the larger the
    weight. Each map has its own scale: its caption gives the largest weight as a multiple of even attention (1: as much
    as every patch would get). A map that is even all over is left plain, and its caption says so.

    Args:
        edge_px: of the image that the model sees; None: the model's own. Larger ones give finer maps.

    Raises:
        CheckpointError: the model is no ViT with a [CLS] token.
        ConfigError: the model does not take images of `edge_px`.
        TileStoreError: an image cannot be read.
    """
    images, files = ImageFiles(paths), []
    source = stain_normalised(images, extractor.preprocessing.stain_normalisation)
    edge_px = edge_px or extractor.preprocessing.input_px
    for number, path in enumerate(images.paths):
        image_HWC = prepare_image(source.read_image(number), edge_px)
        attention = _look(extractor, image_HWC)
        file = out / f"{number:03d}_{path.stem}.png"
        encoded = cv2.imencode(".png", cv2.cvtColor(attention_sheet(image_HWC, attention), cv2.COLOR_RGB2BGR))[1]
        with atomic_write(file, "wb") as stream:
            stream.write(encoded.tobytes())
        files.append(file)
    return files


def cls_attention_picture(extractor: Extractor, image_HWC: RgbImage) -> RgbImage:
    """The image under its mean [CLS] attention, with a caption: (height, width, 3) uint8 RGB.

    Raises:
        CheckpointError: the model is no ViT with a [CLS] token.
    """
    prepared_HWC = prepare_image(image_HWC, extractor.preprocessing.input_px)
    heads = _look(extractor, prepared_HWC).of_cls()[0].cpu().numpy()
    return _overlay(prepared_HWC, heads.mean(axis=0), "[CLS], mean")


def attention_sheet(image_HWC: RgbImage, attention: LastAttention) -> RgbImage:
    """The picture of one image: two rows of panels with captions, (height, width, 3) uint8 RGB."""
    heads = attention.of_cls()[0].cpu().numpy()
    above = [
        _panel(image_HWC, "image"),
        _overlay(image_HWC, heads.mean(axis=0), "[CLS], mean"),
        *(_overlay(image_HWC, head, f"[CLS], head {number}") for number, head in enumerate(heads)),
    ]
    below = [_panel(_crossed(image_HWC, POINTS), "points"), *_points(image_HWC, attention)]
    num_columns = max(len(above), len(below))
    return np.concatenate([_row(panels, num_columns) for panels in (above, below)])


def _look(extractor: Extractor, image_HWC: RgbImage) -> LastAttention:
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


def _points(image_HWC: RgbImage, attention: LastAttention) -> Iterator[RgbImage]:
    rows, columns = attention.grid
    for x, y in POINTS:
        weights = attention.of_patch(int(y * rows), int(x * columns))[0].mean(dim=0).cpu().numpy()
        yield _overlay(_crossed(image_HWC, [(x, y)]), weights, f"from {x:g}, {y:g}")


def _overlay(image_HWC: RgbImage, weights: NDArray[np.float32], caption: str) -> RgbImage:
    """The image under the weights, which are drawn as squares: a patch has one weight."""
    height, width = image_HWC.shape[:2]
    relative = weights * weights.size  # even attention is one share for each of all tokens; the prefix tokens are few
    largest = float(relative.max())
    if largest < EVEN_BELOW:
        return _panel(image_HWC, f"{caption}, even: nothing stands out")
    share = np.clip((relative - 1) / (largest - 1), 0, 1).astype(np.float32)
    share = cv2.resize(share, (width, height), interpolation=cv2.INTER_NEAREST)
    # The upper half of the colours: the lower one is as dark as nuclei.
    colours = cv2.applyColorMap(np.rint(127 + 128 * share).astype(np.uint8), COLOURS)
    alpha = STRENGTH * share[..., None]
    blended = image_HWC * (1 - alpha) + cv2.cvtColor(colours, cv2.COLOR_BGR2RGB) * alpha
    return _panel(np.rint(blended).astype(np.uint8), f"{caption}, max {largest:.1f}x")


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
