"""Synthetic H&E slides for the demo and the tests: real pyramidal JPEG-tiled TIFFs with a known region map.

The stain (vectors, strengths, white point) changes from slide to slide by more than the classes differ in mean
density, so colour alone does not tell the classes apart; structure does. Nothing here is copied from a real slide.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from dino_path.atomic import atomic_write, write_json
from dino_path.processes import WorkerContext, become_worker, ending_workers
from dino_path.progress import meter
from dino_path.slides.textures import CLASSES, PAINTERS, smooth_noise

MPP = 0.5
MAP_PX = 16  # the region map is made at 1/16 of level 0
TILE_PX = 256
BACKGROUND = -1
_RUIFROK_H = np.array([0.65, 0.70, 0.29])
_RUIFROK_E = np.array([0.07, 0.99, 0.11])
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class SyntheticSlide:
    """What one slide is made from; equal values give an equal file."""

    slide_id: str
    split: str
    seed: int
    edge_px: int
    """Edge of the square slide at level 0 (0.5 um per pixel); a multiple of 256."""
    has_pen: bool = True
    has_blur: bool = True


def make_slides(folder: Path, slides: Sequence[SyntheticSlide], *, num_workers: int) -> Path:
    """Write `slides` below `folder` and return the slides CSV (path, slide_id, patient_id, split).

    Beside each slide lies its ground truth: `regions/<slide_id>.geojson`, polygons in level-0 pixels as QuPath
    exports them. Files that are there already are kept.
    """
    (folder / "regions").mkdir(parents=True, exist_ok=True)
    wanted = [slide for slide in slides if not (folder / "regions" / f"{slide.slide_id}.geojson").exists()]
    with meter("painting synthetic slides", len(wanted), "slides") as counter:
        if num_workers > 1 and len(wanted) > 1:
            pool = ProcessPoolExecutor(
                num_workers, mp_context=WorkerContext(), initializer=become_worker, initargs=(os.getpid(),)
            )
            with pool, ending_workers():
                for _ in pool.map(write_slide, [folder] * len(wanted), wanted):
                    counter.advance()
        else:
            for slide in wanted:
                write_slide(folder, slide)
                counter.advance()
    table = folder / "slides.csv"
    with atomic_write(table) as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "slide_id", "patient_id", "split"])
        for slide in slides:
            writer.writerow([f"{slide.slide_id}.tif", slide.slide_id, f"patient_{slide.slide_id}", slide.split])
    return table


def write_slide(folder: Path, slide: SyntheticSlide) -> None:
    """Paint one slide and write `<slide_id>.tif`, then its ground truth."""
    rng = np.random.default_rng(slide.seed)
    region_map, regions = draw_regions(slide.edge_px, rng)
    image = paint_slide(slide.edge_px, region_map, regions, rng)
    spoilt = np.zeros(region_map.shape, bool)
    if slide.has_blur:
        blur_area(image, spoilt, rng)
    if slide.has_pen:
        draw_pen(image, spoilt, rng)
    with atomic_write(folder / f"{slide.slide_id}.tif", "wb") as stream:
        write_pyramid(stream, image)
    classes = np.where(region_map == BACKGROUND, BACKGROUND, np.asarray(regions)[np.maximum(region_map, 0)])
    classes[spoilt] = BACKGROUND
    write_json(folder / "regions" / f"{slide.slide_id}.geojson", regions_geojson(classes))


def draw_regions(edge_px: int, rng: np.random.Generator) -> tuple[NDArray[np.int32], list[int]]:
    """A map at 1/16 with the region number of every pixel (-1: background), and the class of each region."""
    size = edge_px // MAP_PX
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    warp = size / 40
    xs_w = xs + warp * smooth_noise(size, size, size / 10, rng)
    ys_w = ys + warp * smooth_noise(size, size, size / 10, rng)
    per_side = max(3, edge_px // 800)
    centres = (np.stack(np.meshgrid(np.arange(per_side), np.arange(per_side)), -1).reshape(-1, 2) + 0.5) / per_side
    centres = (centres + rng.uniform(-0.3, 0.3, centres.shape) / per_side) * size
    distance = (xs_w[..., None] - centres[:, 0]) ** 2 + (ys_w[..., None] - centres[:, 1]) ** 2
    region_map = distance.argmin(-1).astype(np.int32)
    radius = np.hypot((xs - size / 2) / (0.47 * size), (ys - size / 2) / (0.44 * size))
    region_map[radius + 0.05 * smooth_noise(size, size, size / 8, rng) > 1] = BACKGROUND
    repeats = -(-len(centres) // len(CLASSES))
    classes = np.tile(np.arange(len(CLASSES)), repeats)[: len(centres)]
    return region_map, rng.permutation(classes).tolist()


def paint_slide(edge_px: int, region_map: NDArray[np.int32], regions: Sequence[int], rng: np.random.Generator) -> Image:
    """The (edge_px, edge_px, 3) uint8 RGB slide: densities of all regions, seen through this slide's stain."""
    haematoxylin = np.zeros((edge_px, edge_px), np.float32)
    eosin = np.zeros((edge_px, edge_px), np.float32)
    for number, class_index in enumerate(regions):
        ys, xs = np.nonzero(region_map == number)
        if len(ys) == 0:
            continue
        y0, y1, x0, x1 = (MAP_PX * v for v in (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1))
        mask = region_map[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] == number
        inside = cv2.resize(mask.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_CUBIC) > 0.5
        maps = PAINTERS[CLASSES[class_index]](y1 - y0, x1 - x0, rng)
        # Much the same mean density in every class (0.31 to 0.37 of each stain, +-10 % by region).
        means = (0.31 + 0.01 * class_index, 0.37 - 0.01 * class_index)
        for surface, density, mean in zip((haematoxylin, eosin), maps, means, strict=True):
            surface[y0:y1, x0:x1][inside] = _with_mean(density, mean * rng.uniform(0.9, 1.1))[inside]
    return stain_image(haematoxylin, eosin, rng)


def _with_mean(density: NDArray[np.float32], mean: float) -> NDArray[np.float32]:
    """Scale the map to the mean density that is wanted; beyond a factor of 2.5 lift it instead."""
    density = density * np.float32(min(mean / float(density.mean()), 2.5))
    return density + np.float32(max(mean - float(density.mean()), 0.0))


def stain_image(haematoxylin: NDArray[np.float32], eosin: NDArray[np.float32], rng: np.random.Generator) -> Image:
    """Beer-Lambert: RGB from densities, with stain vectors, strengths and white point drawn for this slide."""
    vectors = []
    for base, spread, strength in ((_RUIFROK_H, 0.10, (0.9, 2.3)), (_RUIFROK_E, 0.10, (0.7, 2.2))):
        vector = np.clip(base + rng.normal(0, spread, 3), 0.02, None)
        vectors.append(vector / np.linalg.norm(vector) * rng.uniform(*strength))
    white = rng.uniform(236, 250, 3)
    stains = cv2.merge([haematoxylin, eosin])
    stains = cv2.GaussianBlur(stains, (0, 0), 0.8)  # the microscope's own softness
    transmitted = cv2.exp(cv2.transform(stains, -np.stack(vectors, axis=1)))
    grain = rng.standard_normal((512, 512, 3)).astype(np.float32) * 2.0
    repeats = -(-transmitted.shape[0] // 512)
    noise = np.tile(grain, (repeats, repeats, 1))[: transmitted.shape[0], : transmitted.shape[1]]
    image: Image = np.clip(transmitted * white.astype(np.float32) + noise, 0, 255).astype(np.uint8)
    return image


def blur_area(image: Image, spoilt: NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Put one ellipse of the slide out of focus, in place, and note it in `spoilt` (at 1/16)."""
    edge = image.shape[0]
    half = edge // 10
    x, y = rng.integers(edge // 4, 3 * edge // 4, 2)
    box = np.s_[y - half : y + half, x - half : x + half]
    weight = np.zeros((2 * half, 2 * half), np.float32)
    cv2.ellipse(weight, (half, half), (half - 24, half * 3 // 4), 0, 0, 360, 1.0, -1)
    weight = cv2.GaussianBlur(weight, (0, 0), 8)[..., None]
    blurred = cv2.GaussianBlur(image[box], (0, 0), 7)
    image[box] = (weight * blurred + (1 - weight) * image[box]).astype(np.uint8)
    cv2.ellipse(
        spoilt.view(np.uint8), (x // MAP_PX, y // MAP_PX), (half // MAP_PX, half // MAP_PX), 0, 0, 360, 1, -1
    )  # fmt: skip


def draw_pen(image: Image, spoilt: NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Draw one felt-tip stroke across the tissue's edge, in place, and note it in `spoilt` (at 1/16)."""
    edge = image.shape[0]
    inks = ((20, 70, 190), (20, 140, 80), (30, 30, 35))
    ink = np.array(inks[int(rng.integers(len(inks)))], np.float32)
    start = rng.uniform(0.05, 0.2, 2) * edge
    steps = np.cumsum(np.vstack([start, rng.normal([0.05, 0.02], 0.015, (6, 2)) * edge]), axis=0)
    points = steps.round().astype(np.int32).reshape(-1, 1, 2)
    weight = np.zeros(image.shape[:2], np.uint8)
    cv2.polylines(weight, [points], False, 1, edge // 60, cv2.LINE_8)
    stroke = weight.astype(bool)
    image[stroke] = (0.8 * ink + 0.2 * image[stroke]).astype(np.uint8)
    near = cv2.resize(weight, spoilt.shape[::-1], interpolation=cv2.INTER_AREA) > 0
    spoilt |= cv2.dilate(near.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def write_pyramid(stream: object, image: Image) -> None:
    """Write an (H, W, 3) uint8 RGB image as a pyramidal, JPEG-tiled TIFF (levels 1, 1/4, 1/16) with mpp in its tags."""
    with tifffile.TiffWriter(stream) as tiff:
        for level in range(3):
            factor = 4**level
            size = (image.shape[1] // factor, image.shape[0] // factor)
            pixels = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
            per_cm = 1e4 / (MPP * factor)
            tiff.write(
                _jpeg_tiles(pixels),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=0 if level == 0 else 1,
                software="dino_path synthetic slide",
                metadata=None,
            )


def _jpeg_tiles(image: Image) -> Iterator[bytes]:
    """The image's 256 px tiles, row by row, as JPEG 4:2:0; the last ones padded with their edge pixels."""
    height, width = image.shape[:2]
    options = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            tile = image[y : y + TILE_PX, x : x + TILE_PX]
            missing = (TILE_PX - tile.shape[0], TILE_PX - tile.shape[1])
            padded = cv2.copyMakeBorder(tile, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)
            encoded = cv2.imencode(".jpg", cv2.cvtColor(padded, cv2.COLOR_RGB2BGR), options)[1]
            yield encoded.tobytes()


def regions_geojson(classes: NDArray[np.int_]) -> dict[str, object]:
    """A QuPath FeatureCollection, one Polygon (with holes) per connected region, in level-0 pixels."""
    features = []
    for index, name in enumerate(CLASSES):
        mask = (classes == index).astype(np.uint8)
        contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        for number, contour in enumerate(contours):
            if hierarchy[0][number][3] >= 0 or len(contour) < 3:
                continue
            holes = [c for c, h in zip(contours, hierarchy[0], strict=True) if h[3] == number and len(c) >= 3]
            rings = [(MAP_PX * (ring.reshape(-1, 2) + 0.5)).tolist() for ring in (contour, *holes)]
            features.append(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]},
                    "properties": {"objectType": "annotation", "classification": {"name": name}},
                }
            )
    collection = {"type": "FeatureCollection", "features": features}
    return json.loads(json.dumps(collection))  # type: ignore[no-any-return]
