"""Fixtures of the unit tests. What is heavy is imported inside: most tests of slides and tiles do without torch."""

import contextlib
import io
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def reload_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the export's reload script in this process: a fresh one takes seconds to import torch."""
    import torch

    from dino_path.export import reload

    def answer(script: str, folder: Path, input_px: int) -> dict[str, object]:
        arguments = ["-c", str(folder), "2", "0", str(input_px), str(torch.get_num_threads())]
        printed = io.StringIO()
        monkeypatch.setattr(sys, "argv", arguments)
        with contextlib.redirect_stdout(printed):
            exec(script, {})
        return json.loads(printed.getvalue())

    monkeypatch.setattr(reload, "_reload", answer)
