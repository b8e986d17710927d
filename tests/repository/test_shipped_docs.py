"""docs/configs.md says what the headers of configs/ say, and what is counted."""

import re
from pathlib import Path

from dino_path.shipped import shipped_configs
from dino_path.shipped_docs import counted_text, render

PAGE = Path(__file__).parents[2] / "docs" / "configs.md"
REMEDY = "run: python -m dino_path.shipped_docs docs/configs.md"


def counted_on_the_page() -> dict[str, str]:
    """By the config's name; counting all again takes a minute."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        match = re.search(r"^\| counted \| (.*) \|$", section, re.MULTILINE)
        assert match is not None, section
        found[section.splitlines()[0]] = match[1]
    return found


def test_every_shipped_config_has_its_section_as_its_header_says() -> None:
    counted = counted_on_the_page()
    assert [*counted] == [one.name for one in shipped_configs()], REMEDY
    assert PAGE.read_text(encoding="utf-8") == render(lambda one: counted[one.name]), REMEDY


def test_what_is_counted_is_so_still() -> None:
    smallest = next(one for one in shipped_configs() if one.name == "demo")
    assert counted_text(smallest) == counted_on_the_page()["demo"], REMEDY
