"""docs/architecture.md speaks of files and names that there are, and of every room."""

import re
from pathlib import Path

import pytest
from test_import_map import FLOOR, ROOMS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:dino_path|tests|docs)/[\w/.]*)`", PAGE)))
# A name in backticks that is said to be in a file: `build_terms` in `dino_path/training/objective/total.py`.
NAMES = sorted(set(re.findall(r"`([A-Za-z_]+)`(?: as)? in `(dino_path/[\w/.]+\.py)`", PAGE)))


@pytest.mark.parametrize("path", PATHS)
def test_every_path_on_the_page_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("name", "path"), NAMES)
def test_every_name_is_in_the_file_that_the_page_says(name: str, path: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))


def test_the_picture_shows_every_room_and_the_page_is_linked() -> None:
    picture = PAGE.split("```")[1]
    assert [room for room in ROOMS if room not in picture] == []
    assert len(PATHS) > 25
    assert len(NAMES) > 5
    assert "docs/architecture.md" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_every_record_has_its_line() -> None:
    helpers = {"__init__", "format", "deciding_settings", "labelled", "feature_kinds"}
    modules = {file.stem for file in (ROOT / "dino_path" / "records").glob("*.py")} - helpers
    assert {name for name in modules if f"dino_path/records/{name}.py" not in PAGE} == set()
    assert "records" in FLOOR
