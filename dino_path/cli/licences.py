"""Under which licences the packages stand that dino-path needs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from dino_path.cli.help import Command
from dino_path.cli.program import AsJson, Quiet, app, log_to
from dino_path.cli.terminal import say, say_json, say_table

FOOTNOTE = (
    "From the packages' metadata: what a wheel bundles (OpenSlide, FFmpeg, CUDA) has licence files beside it, in its"
    " .dist-info folder."
)


@app.command(
    cls=Command,
    epilog="""
    dino-path licences
    dino-path licences --json
    """,
)
def licences(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the licences of all that dino-path needs.

    Marks copyleft, proprietary and unknown ones. Extras are listed where they are installed.
    """
    log_to(None, is_quiet=quiet)
    from dino_path.licences import licences as find_licences

    found = find_licences()
    if as_json:
        say_json([asdict(one) for one in found])
        return
    say_table(
        ("package", "version", "note", "licence"), [(one.name, one.version, one.note, one.licence) for one in found]
    )
    counts = Counter(one.note for one in found)
    noted = [f"{counts[note]} {note}" for note in sorted(counts) if note]
    say(f"{len(found)} packages{': ' if noted else ''}{', '.join(noted)}")
    say(FOOTNOTE)
