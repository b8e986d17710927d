"""A setting that is new in dino_path makes nothing that was made before another."""

from pathlib import Path

import pytest
from pydantic import Field
from slide_files import tissue_image, write_slide_file

from dino_path.config import BaselineConfig, TilesConfig
from dino_path.errors import TileStoreError
from dino_path.evaluation.baseline import training as baseline
from dino_path.records.deciding_settings import deciding_settings
from dino_path.settings import as_plain
from dino_path.slides.find import SlideRow
from dino_path.tiles import layout
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import tile_slides


class TilesConfigToCome(TilesConfig):
    """The section with a setting that does not exist yet."""

    invented: int = Field(3, description="decides pixels")


MADE_WITH = {"mpp": 0.5, "size_px": 64, "mask_mpp": 4.0, "min_area_um2": 500}


@pytest.fixture
def row(tmp_path: Path) -> SlideRow:
    return SlideRow(write_slide_file(tmp_path / "a.tif", [tissue_image()]), "a")


def test_a_new_setting_with_its_default_changes_no_store_and_refuses_none(
    row: SlideRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile_slides([row], TilesConfig.model_validate(MADE_WITH), tmp_path / "store", num_workers=0)
    before = TileStore.open(tmp_path / "store").digest
    monkeypatch.setattr(layout, "TilesConfig", TilesConfigToCome)
    later = TilesConfigToCome.model_validate(MADE_WITH)
    summary = tile_slides([row], later, tmp_path / "store", num_workers=0)
    assert (summary.num_skipped, summary.num_done) == (1, 0)
    assert TileStore.open(tmp_path / "store").digest == before
    tile_slides([row], later, tmp_path / "made again", num_workers=0)
    assert TileStore.open(tmp_path / "made again").digest == before
    with pytest.raises(TileStoreError, match=r"tiles\.invented 3 there, 4 now"):
        tile_slides([row], later.model_copy(update={"invented": 4}), tmp_path / "store", num_workers=0)
    tile_slides([row], later.model_copy(update={"invented": 4}), tmp_path / "with 4", num_workers=0)
    assert TileStore.open(tmp_path / "with 4").digest != before


def test_other_limits_in_a_store_from_before_a_setting_give_the_digest_that_they_give_in_a_new_one(
    row: SlideRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lax = {**MADE_WITH, "max_black_fraction": 0.9}
    tile_slides([row], TilesConfig.model_validate(MADE_WITH), tmp_path / "store", num_workers=0)
    tile_slides([row], TilesConfig.model_validate(lax), tmp_path / "lax", num_workers=0)
    monkeypatch.setattr(layout, "TilesConfig", TilesConfigToCome)
    tile_slides([row], TilesConfigToCome.model_validate(lax), tmp_path / "store", num_workers=0)
    assert TileStore.open(tmp_path / "store").digest == TileStore.open(tmp_path / "lax").digest


def test_the_settings_of_today_are_in_the_digest_of_a_baseline_and_a_new_one_only_where_it_is_not_its_default() -> None:
    class BaselineConfigToCome(BaselineConfig):
        invented: int = 3

    plain = as_plain(BaselineConfig())
    assert deciding_settings(BaselineConfig(), first=baseline.FIRST_SETTINGS) == plain
    assert deciding_settings(BaselineConfigToCome(), first=baseline.FIRST_SETTINGS) == plain
    changed = deciding_settings(BaselineConfigToCome(invented=4), first=baseline.FIRST_SETTINGS)
    assert changed == {**plain, "invented": 4}


def test_what_was_done_before_a_setting_is_not_always_its_default() -> None:
    class Later(BaselineConfig):
        mode: str = "new"

    decide = {"first": (), "before": {"mode": "old"}}
    assert deciding_settings(Later(mode="old"), **decide) == {}
    assert deciding_settings(Later(), **decide) == {"mode": "new"}
