"""Fixtures of the unit tests. What is heavy is imported inside: most tests of slides and tiles do without torch."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def reload_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the export's reload scripts in this process: a fresh one takes seconds to import torch."""
    from dino_path.exporting import formats, reload

    def answer(script: str, path: Path, *arguments: str) -> object:
        printed = io.StringIO()
        monkeypatch.setattr(sys, "argv", ["-c", str(path.resolve()), *arguments])
        with contextlib.redirect_stdout(printed):
            exec(script, {})
        return json.loads(printed.getvalue().strip().splitlines()[-1])

    for module in (reload, formats):
        monkeypatch.setattr(module, "ask_fresh_process", answer)
