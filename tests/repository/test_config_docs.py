"""docs/config.md says what the config says."""

from collections.abc import Iterator
from pathlib import Path

from dino_path.config import Config, Section
from dino_path.config_docs import default_text, render, section_of, type_text

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_the_rendered_config() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m dino_path.config_docs docs/config.md"


def sections(section: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """A section, and all that it holds, with the dotted name that stands before their settings."""
    yield prefix, section
    for name, field in section.model_fields.items():
        if (inner := section_of(field)) is not None:
            yield from sections(inner, f"{prefix}{name}.")


def test_every_setting_says_what_it_means() -> None:
    assert [key for key, section in sections(Config) if not section.__doc__] == []
    fields = {f"{key}{name}": field for key, of in sections(Config) for name, field in of.model_fields.items()}
    assert [key for key, field in fields.items() if section_of(field) is None and not field.description] == []
    assert "objective.dino.student_temp" in fields


def test_types_and_defaults_are_written_as_in_yaml() -> None:
    assert type_text(tuple[float, float]) == "[float, float]"
    assert type_text(tuple[str, ...] | None) == "list of text or null"
    assert default_text(10_000.0) == "10000"
    assert default_text(1e-6) == "1e-06"
    assert default_text(None) == "null"
