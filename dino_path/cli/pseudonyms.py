"""Tables between a hospital's ids and the pseudonyms of its slides and patients."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dino_path.cli.help import Command
from dino_path.cli.program import AsJson, app, log_to
from dino_path.cli.terminal import say, say_json
from dino_path.disk import refuse_unwritable_file
from dino_path.errors import ConfigError


@app.command(
    cls=Command,
    epilog="""
    dino-path pseudonyms labels.csv --mapping private/mapping.csv --out labels-pseudonyms.csv
    dino-path pseudonyms predictions.csv --mapping private/mapping.csv --out private/predictions.csv --back
    """,
)
def pseudonyms(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="CSV or TSV with ids of slides or patients")],
    mapping: Annotated[Path, typer.Option(help="what 'dino-path tile --pseudonymise' wrote")],
    out: Annotated[Path, typer.Option(help="CSV to write")],
    back: Annotated[bool, typer.Option("--back", help="from pseudonyms to ids; its owner alone may read OUT")] = False,
    drop: Annotated[list[str] | None, typer.Option(help="a column to leave out; may be given again")] = None,
    as_json: AsJson = False,
) -> None:
    """Put pseudonyms into a table of labels.

    Its slides and patients are told by their columns (slide_id, path, patient_id and the like). A slide or patient that
    the mapping does not know is refused. The other columns are copied.
    """
    log_to(None)
    from dino_path.records.pseudonyms import read_mapping
    from dino_path.slides.pseudonyms import refuse_readable
    from dino_path.slides.translated_tables import from_pseudonyms, to_pseudonyms

    if mapping.exists():
        refuse_readable(mapping)
    entries = read_mapping(mapping)
    if out.resolve() in (table.resolve(), mapping.resolve()):
        raise ConfigError(
            f"--out {out}", "is a file that is read.", "A new file is needed.", "Name another file as --out."
        )
    refuse_unwritable_file(out)
    result = (from_pseudonyms if back else to_pseudonyms)(table, entries, out, drop=drop or ())
    if as_json:
        say_json({"table": out, **asdict(result)})
        return
    say(f"{result.num_rows:,} rows: {out}")
    say(f"translated: {', '.join(result.translated)}")
    if result.copied:
        say(f"copied as they are: {', '.join(result.copied)}" + ("" if back else " - look that they name nobody"))
