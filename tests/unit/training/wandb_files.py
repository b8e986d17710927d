"""Reading W&B's offline files back, with the message types of the installed wandb package.

A `.wandb` file is LevelDB's log format after a header of 7 bytes: blocks of 32 KiB; each piece of a record has a CRC-32
(4 bytes), a length (2), a kind (1: whole, 2: first, 3: middle, 4: last) and its payload.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, PIECE_HEADER, BLOCK = 7, 7, 32 * 1024
WHOLE, LAST = 1, 4


def records_in(file: Path) -> Iterator[Any]:
    """The protobuf records of one offline run, in order."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, parts = HEADER, b""
    while place + PIECE_HEADER <= len(data):
        left_in_block = BLOCK - place % BLOCK
        if left_in_block < PIECE_HEADER:
            place += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + PIECE_HEADER : place + PIECE_HEADER + length]
        place += PIECE_HEADER + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def history_of(file: Path) -> list[dict[str, Any]]:
    """What was logged, one dictionary per call, with `_step`."""
    rows = [record.history for record in records_in(file) if record.WhichOneof("record_type") == "history"]
    return [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item} for row in rows]


def run_of(file: Path) -> Any:
    """The record that describes the run: id, project and config."""
    return next(record.run for record in records_in(file) if record.WhichOneof("record_type") == "run")


def config_of(file: Path) -> dict[str, Any]:
    return {update.key: json.loads(update.value_json) for update in run_of(file).config.update}
