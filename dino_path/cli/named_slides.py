"""The options that give slides and patients pseudonyms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Pseudonymise = Annotated[
    Path | None,
    typer.Option(metavar="MAPPING", help="give slides and patients pseudonyms; this CSV says whom they stand for"),
]
Key = Annotated[Path | None, typer.Option(help="file of the secret key of the pseudonyms; default: MAPPING.key")]
