"""docs/config.md says what config.py says."""

from pathlib import Path

from dino_path.config import Config
from dino_path.config_docs import default_text, render, section_of, type_text

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_the_rendered_config() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m dino_path.config_docs docs/config.md"


def test_every_setting_says_what_it_means() -> None:
    fields = dict(Config.model_fields)
    for key, field in Config.model_fields.items():
        section = section_of(field)
        if section is not None:
            assert section.__doc__, key
            del fields[key]
            fields |= {f"{key}.{name}": inner for name, inner in section.model_fields.items()}
    assert [key for key, field in fields.items() if not field.description] == []


def test_types_and_defaults_are_written_as_in_yaml() -> None:
    assert type_text(tuple[float, float]) == "[float, float]"
    assert type_text(tuple[str, ...] | None) == "list of text or null"
    assert default_text(10_000.0) == "10000"
    assert default_text(1e-6) == "1e-06"
    assert default_text(None) == "null"
