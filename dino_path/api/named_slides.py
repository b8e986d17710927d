"""Slides of a call, under their own names or under pseudonyms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dino_path.disk import refuse_unwritable_file
from dino_path.errors import ConfigError

if TYPE_CHECKING:
    from dino_path.config import SlidesConfig
    from dino_path.slides.find import SlideSearch
    from dino_path.slides.pseudonyms import PseudonymFiles
    from dino_path.tiles.layout import StoreFolder


def pseudonym_files(mapping: Path | None, key: Path | None, out: Path) -> PseudonymFiles | None:
    """Where the mapping and the key lie; None: the slides keep their names.

    Raises:
        ConfigError: they lie inside `out`, or others may read them; a key without a mapping.
    """
    if mapping is None:
        if key is not None:
            raise ConfigError(
                f"--key {key}", "goes with --pseudonymise.", "A mapping is needed too.", "Add --pseudonymise MAPPING."
            )
        return None
    from dino_path.slides.pseudonyms import PseudonymFiles

    files = PseudonymFiles(mapping, key or mapping.with_name(f"{mapping.name}.key"))
    files.refuse_unsafe(out)
    refuse_unwritable_file(files.mapping)
    return files


def search_named(
    inputs: Sequence[str], config: SlidesConfig, files: PseudonymFiles | None, store: StoreFolder
) -> tuple[SlideSearch, str | None]:
    """The slides, under the names that the store has them by, and what tells the key of their pseudonyms from others.

    Raises:
        DinoPathError: as `search_slides` and `pseudonymise`; or the store has names of another kind or key.
    """
    from dino_path.slides.find import search_slides
    from dino_path.tiles.key_note import refuse_other_key

    refuse_other_key(store, None if files is None else files.key_check())
    paths = [Path(name) for name in inputs]
    if files is None:
        return search_slides(paths, config.exclude, masks=config.masks), None
    from dino_path.slides.pseudonyms import kept_private, pseudonymise
    from dino_path.walk import Unreadable

    with kept_private(files) as note:
        search = search_slides(paths, config.exclude, masks=config.masks)
        for lost in search.unreadable:
            note(f"could not be looked at: {lost}")
    rows, key_check = pseudonymise(search.rows, files)
    unreadable = tuple(Unreadable(Path("a folder or link"), f"see {files.notes.name}") for _ in search.unreadable)
    return replace(search, rows=rows, unreadable=unreadable), key_check
