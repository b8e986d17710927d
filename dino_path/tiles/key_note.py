"""With which key the slides of a store were given pseudonyms: a store holds the names of one key, or none."""

from __future__ import annotations

from dino_path.errors import TileStoreError
from dino_path.records.pseudonyms import PSEUDONYMS, PseudonymsRecord
from dino_path.tiles.layout import StoreFolder


def refuse_other_key(folder: StoreFolder, key_check: str | None) -> None:
    """Check that a store's slides were named as this call names them.

    Args:
        key_check: of the call's key (`slides.pseudonyms.key_check`), "" of one that is yet to be made; None: the call
            gives no pseudonyms.

    Raises:
        TileStoreError: other names than the store's.
    """
    there = PSEUDONYMS.read(folder.pseudonyms_file).key_check if folder.pseudonyms_file.exists() else None
    if there == key_check:
        return
    if key_check is None:
        raise TileStoreError(
            str(folder.path),
            "its slides have pseudonyms, and this call would give them their own names.",
            "A store holds names of one kind.",
            "Add --pseudonymise MAPPING with the mapping and the key as before, or use another --out.",
        )
    if there is not None:
        raise TileStoreError(
            str(folder.path),
            "the pseudonyms of its slides were made with another key.",
            "Within a store a slide has one name.",
            "Name the mapping and the key that it was made with, or use another --out.",
        )
    if folder.record_files() or folder.expected_file.exists():
        raise TileStoreError(
            str(folder.path),
            "its slides have their own names, and this call would give them pseudonyms.",
            "A store holds names of one kind.",
            "Use another --out; what is in this store cannot be renamed.",
        )


def note_key(folder: StoreFolder, key_check: str | None) -> None:
    """As `refuse_other_key`; the first call with pseudonyms notes its key in `STORE/pseudonyms.json`."""
    refuse_other_key(folder, key_check)
    if key_check is not None and not folder.pseudonyms_file.exists():
        PSEUDONYMS.write(folder.pseudonyms_file, PseudonymsRecord(key_check=key_check))
