"""The contact sheet shows what training sees: its first tiles, and its very views."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_batches, tiny_config, write_tiles

from dino_path.config import MasksConfig, ViewsConfig
from dino_path.tiles.source import open_tiles
from dino_path.views import sheet
from dino_path.views.masks import MaskDrawer
from dino_path.views.sheet import recipes_to_show, write_sheet


def write(
    path: Path, tiles: Path, *configs: ViewsConfig, num_tiles: int = 2, seed: int = 0, patch_px: int | None = None
) -> np.ndarray:
    recipes = {f"recipe {number}": config for number, config in enumerate(configs)}
    write_sheet(
        path, open_tiles(tiles), recipes, balance=None, num_tiles=num_tiles, seed=seed, masks=MasksConfig(),
        patch_px=patch_px,
    )  # fmt: skip
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_both_recipes_are_shown_and_a_third_block_only_for_what_differs_from_them() -> None:
    assert [*recipes_to_show(ViewsConfig())] == [*recipes_to_show(ViewsConfig(recipe="dino"))] == ["histology", "dino"]
    configured = ViewsConfig(recipe="dino", hue=0.0, num_local=4)
    name, config = [*recipes_to_show(configured).items()][2]
    assert name == "as configured: dino, num_local=4, hue=0.0"
    assert config == configured
    assert len(recipes_to_show(ViewsConfig(colour_on_device=True))) == 2


def test_the_pictures_are_the_views_of_the_first_batch(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = tiny_batches(tiny_config(tiles_folder, tmp_path, "training.seed=5"))
    shown: list[np.ndarray] = []
    render = sheet.render_view
    monkeypatch.setattr(sheet, "render_view", lambda *arguments: shown.append(render(*arguments)) or shown[-1])
    write(tmp_path / "sheet.png", tiles_folder, batches.config, num_tiles=4, seed=5)
    batch = batches.batch(0)
    for number, view in enumerate(shown):
        tile, place = divmod(number, 4)  # two global views and two local ones of each tile
        expected = batch.global_views if place < 2 else batch.local_views
        assert np.array_equal(view, expected[(place % 2) * 4 + tile].numpy())


def test_frames_on_the_tile_have_the_colours_of_the_views_frames(tiles_folder: Path, tmp_path: Path) -> None:
    pixels = write(tmp_path / "sheet.png", tiles_folder, ViewsConfig(num_local=2), num_tiles=1)
    assert pixels.shape[1:] == (1600, 3)
    half = sheet.MARGIN_PX + (1600 - 2 * sheet.MARGIN_PX) // 4  # the tile ends before, the views begin after
    for colour in (*sheet.GLOBAL_COLOURS, *sheet.LOCAL_COLOURS[:2]):
        places = np.argwhere((pixels == colour).all(axis=2))[:, 1]
        assert places.min() < half < places.max()


@pytest.mark.parametrize(
    "config", [{"num_local": 0}, {"num_local": 11}, {"num_local": 300}, {"local_px": 224, "num_local": 1}]
)
def test_any_number_and_size_of_views_fits_the_width(
    store_path: Path, tmp_path: Path, config: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    beside = sheet._beside
    monkeypatch.setattr(sheet, "_beside", lambda cards: widths.append(beside(cards).width) or beside(cards))
    pixels = write(tmp_path / "sheet.png", store_path, ViewsConfig.model_validate(config))
    assert pixels.shape[1:] == (1600, 3)
    assert 1600 - 2 * sheet.MARGIN_PX - 20 <= max(widths) <= 1600 - 2 * sheet.MARGIN_PX


def test_beside_each_global_view_stands_what_the_student_sees_of_it(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_batches(tiny_config(tiles_folder, tmp_path, "training.seed=5")).config
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    cover = sheet._covered

    def covered(view: Image.Image, hidden: np.ndarray) -> Image.Image:
        picture = cover(view, hidden)
        pairs.append((np.asarray(view), np.asarray(picture), hidden))
        return picture

    monkeypatch.setattr(sheet, "_covered", covered)
    with_masks = write(tmp_path / "masks.png", tiles_folder, config, num_tiles=4, seed=5, patch_px=8)
    assert (
        with_masks.shape[1] == write(tmp_path / "plain.png", tiles_folder, config, num_tiles=4, seed=5).shape[1] == 1600
    )
    assert len(pairs) == 2 * 4
    drawer = MaskDrawer(MasksConfig(), (4, 4), seed=5, global_batch_size=4)
    epochs, tiles = tiny_batches(tiny_config(tiles_folder, tmp_path, "training.seed=5")).order(np.arange(4))
    expected = drawer.draw(0, 0, epochs, tiles).hidden.numpy().reshape(2, 4, 4, 4)
    assert expected.any()
    for number, (plain, picture, hidden) in enumerate(pairs):
        tile, view = divmod(number, 2)
        assert np.array_equal(hidden, expected[view, tile])
        centres = ((np.arange(4) + 0.5) * len(plain) / 4).astype(int)
        grey = (picture[np.ix_(centres, centres)] == sheet.HIDDEN).all(axis=2)
        assert np.array_equal(grey, hidden)
        seen = picture[np.ix_(centres, centres)][~hidden]
        assert np.array_equal(seen, plain[np.ix_(centres, centres)][~hidden])


def test_captions_take_more_lines_in_narrow_frames() -> None:
    words = ["global 1", "47% of the tile", "0.39 um/px"]
    assert sheet._filled(words, 1000) == ["global 1   47% of the tile   0.39 um/px"]
    assert sheet._filled(words, 215) == ["global 1   47% of the tile", "0.39 um/px"]
    assert sheet._filled(words, 10) == words


def test_images_that_are_no_squares_and_long_names_are_shown_too(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path / "/".join(["a folder with a long name"] * 4), 2)
    cv2.imwrite(str(folder / "wide.png"), np.full((40, 90, 3), 200, np.uint8))
    write(tmp_path / "sheet.png", tmp_path / "a folder with a long name", ViewsConfig(), num_tiles=3)


def test_the_same_call_gives_the_same_file_and_another_seed_another(store_path: Path, tmp_path: Path) -> None:
    for name, seed in (("one.png", 0), ("two.png", 0), ("other.png", 1)):
        write(tmp_path / name, store_path, ViewsConfig(), seed=seed)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()
