"""A contact sheet of a few tiles under each recipe, with exactly the views of training's first batch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dino_path.atomic import atomic_write
from dino_path.config import MasksConfig, ViewsConfig
from dino_path.tiles.source import TileSource
from dino_path.views.batches import ViewBatches
from dino_path.views.masks import MaskDrawer
from dino_path.views.parameters import ViewParameters
from dino_path.views.rendering import render_view

WIDTH_PX, MARGIN_PX, GAP_PX, FRAME_PX = 1600, 30, 10, 4
TITLE_PX, HEADING_PX, TEXT_PX, LINE_PX = 32, 24, 14, 19  # heights of letters, and of a line of small ones
WHITE, INK, PALE = (255, 255, 255), (25, 25, 30), (110, 110, 118)
HIDDEN, GRID = (128, 128, 128), (190, 190, 190)
MOST_COLUMNS = 8  # of local views; more of them go into further lines
Colour = tuple[int, int, int]
# Far from the pink and violet of tissue, and from each other.
GLOBAL_COLOURS: tuple[Colour, ...] = ((0, 75, 255), (255, 115, 0))
LOCAL_COLOURS: tuple[Colour, ...] = (
    (0, 140, 60), (0, 175, 205), (225, 175, 0), (125, 75, 0), (215, 0, 0), (0, 0, 0), (120, 190, 0), (90, 105, 130),
)  # fmt: skip


def recipes_to_show(configured: ViewsConfig) -> dict[str, ViewsConfig]:
    """The named recipes, and the configured one if its views differ."""
    configured = configured.model_copy(update={"colour_on_device": False})  # where they are made changes none
    recipes = {"histology": ViewsConfig(recipe="histology"), "dino": ViewsConfig(recipe="dino")}
    if configured not in recipes.values():
        named = recipes[configured.recipe].model_dump()
        changed = [f"{key}={value}" for key, value in configured.model_dump().items() if value != named[key]]
        recipes[f"as configured: {configured.recipe}, {', '.join(changed)}"] = configured
    return recipes


def write_sheet(
    path: Path,
    source: TileSource,
    recipes: dict[str, ViewsConfig],
    *,
    balance: Literal["slide", "patient"] | None,
    num_tiles: int,
    seed: int,
    masks: MasksConfig,
    patch_px: int | None,
) -> None:
    """Write a PNG, 1600 px wide: a block for each recipe, in it the first `num_tiles` tiles of the stream.

    Args:
        masks: are drawn as for a batch of `num_tiles` tiles.
        patch_px: edge of the backbone's patches, in pixels of a view; None: no masks.

    Raises:
        ConfigError: `balance` asks for slides that are not known.
        TileStoreError: a tile cannot be read.
    """
    at = f" at {source.mpp:g} um/px" if source.mpp else ""
    blocks = [
        _text(f"Views of {num_tiles} of {len(source):,} tiles{at}", TITLE_PX),
        _text(f"The first tiles that training with seed {seed} sees, and exactly the views that it makes. Frames on"
        f" a tile show where each view was cut; all views are at the same scale.",
              TEXT_PX, PALE),
    ]  # fmt: skip
    if patch_px is not None:
        blocks.append(_text(_masks_summary(masks), TEXT_PX, PALE))
    for name, config in recipes.items():
        blocks += [_text("", HEADING_PX), _text(name, HEADING_PX), _text(_summary(config), TEXT_PX, PALE)]
        edge = config.global_px // patch_px if patch_px else 0  # in patches
        drawer = MaskDrawer(masks, (edge, edge), seed=seed, global_batch_size=num_tiles) if edge else None
        batches = ViewBatches(
            source, config, balance=balance, seed=seed, batch_size_per_gpu=num_tiles, rank=0, world_size=1,
            accumulate_steps=1, masks=drawer,
        )  # fmt: skip
        blocks += _rows(batches)
    content = _below(blocks)
    sheet = Image.new("RGB", (WIDTH_PX, content.height + 2 * MARGIN_PX), WHITE)
    sheet.paste(content, (MARGIN_PX, MARGIN_PX))
    with atomic_write(path, "wb") as stream:
        sheet.save(stream, format="png")


def _rows(batches: ViewBatches) -> Iterator[Image.Image]:
    """The tiles of the first batch."""
    source, masks = batches.source, batches.masks
    epochs, tiles = batches.order(np.arange(batches.batch_size))
    hidden = masks.draw(0, 0, epochs, tiles).hidden.numpy().reshape(2, -1, *masks.grid) if masks else None
    for place, (epoch, tile) in enumerate(zip(epochs.tolist(), tiles.tolist(), strict=True)):
        pixels = batches.tile_image(tile)
        views = batches.tile_parameters(epoch, tile, pixels)
        lines = [source.name(tile), f"seed {batches.seed}   epoch {epoch}"]
        yield _row(pixels, views, None if hidden is None else hidden[:, place], lines, batches.config, source.mpp)


def _row(
    tile: NDArray[np.uint8],
    views: Sequence[ViewParameters],
    hidden: NDArray[np.bool_] | None,
    lines: list[str],
    config: ViewsConfig,
    mpp: float | None,
) -> Image.Image:
    """The tile with its crops, the global views, and the local ones in as many columns as they need.

    Beside each global view it stands once more, as the student sees it, where `hidden` (2, rows, columns) is given.
    """
    num_lines = max(1, round(config.global_px / config.local_px))
    num_columns = min(-(-config.num_local // num_lines), MOST_COLUMNS)
    num_large = 3 if hidden is None else 5
    # One scale for all views fills the width. The tile is as large as a global view, whatever its own size.
    frames, gaps = 2 * FRAME_PX * (num_large + num_columns), GAP_PX * (num_large - 1 + num_columns)
    scale = (WIDTH_PX - 2 * MARGIN_PX - frames - gaps) / (num_large * config.global_px + num_columns * config.local_px)
    edge = int(scale * config.global_px)
    cards = [_card(_marked(tile, views, edge), PALE, lines)]
    for number, view in enumerate(views):
        pixels = Image.fromarray(render_view(tile, view))
        size = int(scale * view.size_px)
        picture = pixels.resize((size, size), Image.Resampling.BICUBIC)
        cards.append(_card(picture, _colour(number), _caption(number, view, tile, mpp, size + 2 * FRAME_PX)))
        if hidden is not None and number < 2:
            cards.append(_card(_covered(picture, hidden[number]), _colour(number), _seen(number, hidden[number])))
    local = cards[num_large:]
    lines_of_local = [_beside(local[start : start + num_columns]) for start in range(0, len(local), num_columns or 1)]
    return _beside([*cards[:num_large], _below(lines_of_local)] if local else cards)


def _covered(picture: Image.Image, hidden: NDArray[np.bool_]) -> Image.Image:
    """The view with its grid of patches, grey where the student does not see it."""
    covered = picture.copy()
    draw = ImageDraw.Draw(covered)
    for row, column in np.ndindex(*hidden.shape):
        left, right = (edge * covered.width // hidden.shape[1] for edge in (column, column + 1))
        top, bottom = (edge * covered.height // hidden.shape[0] for edge in (row, row + 1))
        draw.rectangle((left, top, right, bottom), fill=HIDDEN if hidden[row, column] else None, outline=GRID)
    return covered


def _seen(number: int, hidden: NDArray[np.bool_]) -> list[str]:
    """How much of a global view the student sees."""
    if not hidden.any():
        return [f"student's global {number + 1}", "whole"]
    return [f"student's global {number + 1}", f"{hidden.sum()} of {hidden.size} patches hidden ({hidden.mean():.0%})"]


def _colour(number: int) -> Colour:
    return GLOBAL_COLOURS[number] if number < 2 else LOCAL_COLOURS[(number - 2) % len(LOCAL_COLOURS)]


def _marked(tile: NDArray[np.uint8], views: Sequence[ViewParameters], edge_px: int) -> Image.Image:
    """The tile, its longer edge `edge_px`, with a frame around what each view was cut from; local ones are numbered."""
    scale = edge_px / max(tile.shape[:2])
    size = (round(tile.shape[1] * scale), round(tile.shape[0] * scale))
    picture = Image.new("RGB", (edge_px, edge_px), WHITE)
    picture.paste(Image.fromarray(tile).resize(size, Image.Resampling.BICUBIC))
    draw = ImageDraw.Draw(picture)
    for number, view in enumerate(views):
        left, top = scale * view.x, scale * view.y
        right, bottom = scale * (view.x + view.width) - 1, scale * (view.y + view.height) - 1
        draw.rectangle((left, top, right, bottom), outline=_colour(number), width=4 if number < 2 else 2)
    for number, view in enumerate(views[2:], start=2):  # over all frames
        left, top = scale * view.x, scale * view.y
        draw.rectangle((left, top, left + 15, top + 15), fill=_colour(number))
        draw.text((left + 8, top + 8), str(number - 1), WHITE, _font(TEXT_PX - 1), anchor="mm")
    return picture


def _caption(number: int, view: ViewParameters, tile: NDArray[np.uint8], mpp: float | None, width_px: int) -> list[str]:
    """Caption of a view: the crop's share and resolution, and for global views the operations."""
    share = view.width * view.height / (tile.shape[0] * tile.shape[1])
    pixel = math.sqrt(view.width * view.height) / view.size_px  # edge of the view's pixels, in pixels of the tile
    resolution = f"{pixel * mpp:.2f} um/px" if mpp else f"x {1 / pixel:.2f}"
    if number >= 2:
        return _filled([f"{number - 1}", f"{share:.0%}", resolution], width_px)
    done = {
        "stain": view.stain_scale is not None,
        "colour": view.colour_order is not None,
        "grey": view.is_grey,
        f"blur {view.blur_sigma_px or 0:.1f} px": view.blur_sigma_px is not None,
        "solarized": view.is_solarized,
    }
    operations = ", ".join(name for name, is_done in done.items() if is_done)
    shown = _filled([f"global {number + 1}", f"{share:.0%} of the tile", resolution], width_px)
    return [*shown, operations or "colours as they were"]


def _summary(config: ViewsConfig) -> str:
    """The settings that one sees, in one line."""
    blur = ", ".join(f"{probability:g}" for probability in config.blur_prob)
    return (
        f"2 x {config.global_px} px of {_extent(config.global_scale, config.global_um)},"
        f" {config.num_local} x {config.local_px} px of {_extent(config.local_scale, config.local_um)};"
        f" {'all rotations and flips' if config.dihedral else 'left-right flips'};"
        f" probabilities: stain {config.stain_prob:g}, colour {config.colour_prob:g}, grey {config.grey_prob:g},"
        f" blur {blur}, solarisation {config.solarize_prob:g}"
    )


def _masks_summary(masks: MasksConfig) -> str:
    """Caption of the hidden patches."""
    shape = {"blocks": "in blocks", "patches": "patch by patch"}[masks.shape]
    return (
        f"Grey is hidden from the student, {shape}: in {masks.view_fraction:.0%} of the global views, of each a share"
        f" between {masks.ratio[0]:.0%} and {masks.ratio[1]:.0%}."
    )


def _extent(scale: tuple[float, float], size_um: tuple[float, float] | None) -> str:
    if size_um is not None:
        return f"{size_um[0]:g} to {size_um[1]:g} um"
    return f"{scale[0]:.0%} to {scale[1]:.0%} of the tile"


# --- putting pictures together ------------------------------------------------------------------------------------


@cache
def _font(height_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height_px)


def _text(text: str, height_px: int, colour: Colour = INK) -> Image.Image:
    width = WIDTH_PX - 2 * MARGIN_PX
    lines = textwrap.wrap(text, int(1.9 * width / height_px)) or [""]  # a letter is about half as wide as high
    picture = Image.new("RGB", (width, round(1.4 * height_px * len(lines))), WHITE)
    ImageDraw.Draw(picture).text((0, 0), "\n".join(lines), colour, _font(height_px))
    return picture


def _card(picture: Image.Image, colour: Colour, lines: Sequence[str]) -> Image.Image:
    """The picture in a frame of this colour, with lines of text below."""
    width, height = picture.width + 2 * FRAME_PX, picture.height + 2 * FRAME_PX
    card = Image.new("RGB", (width, height + LINE_PX * len(lines)), WHITE)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, width - 1, height - 1), outline=colour, width=FRAME_PX - 1)
    card.paste(picture, (FRAME_PX, FRAME_PX))
    for number, line in enumerate(lines):
        text = _shortened(line, width)
        draw.text((0, height + LINE_PX * number + 1), text, INK if number == 0 else PALE, _font(TEXT_PX))
    return card


def _filled(words: Sequence[str], width_px: int) -> list[str]:
    """Lines of words, as many in each as there is room for."""
    lines: list[str] = []
    for word in words:
        if lines and _font(TEXT_PX).getlength(longer := f"{lines[-1]}   {word}") <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _shortened(text: str, width_px: int) -> str:
    """The text's end, as much as there is room for: a path's name, a tile's place."""
    font, start = _font(TEXT_PX), 0
    while font.getlength(shown := text if start == 0 else f"...{text[start:]}") > width_px:
        start += 1
    return shown


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    row = Image.new(
        "RGB", (sum(one.width + GAP_PX for one in pictures) - GAP_PX, max(one.height for one in pictures)), WHITE
    )
    left = 0
    for one in pictures:
        row.paste(one, (left, 0))
        left += one.width + GAP_PX
    return row


def _below(pictures: Sequence[Image.Image]) -> Image.Image:
    column = Image.new(
        "RGB", (max(one.width for one in pictures), sum(one.height + GAP_PX for one in pictures) - GAP_PX), WHITE
    )
    top = 0
    for one in pictures:
        column.paste(one, (0, top))
        top += one.height + GAP_PX
    return column
