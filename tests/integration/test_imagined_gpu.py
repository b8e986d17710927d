"""A step on a GPU that is imagined (benchmarks/gpu/imagined.py): what would fail or wait on a real one is seen here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "imagined.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a library is preloaded"),
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]


def test_no_step_mixes_devices_or_waits_and_recomputing_spares_memory() -> None:
    command = [sys.executable, str(SCRIPT), "--archs", "vit_tiny", "--batches", "8", "16"]
    done = subprocess.run(
        [*command, "--prototypes", "512", "--kinds", "ours", "colour", "elementwise", "distilled"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| vit_tiny")]
    assert len(rows) == 4
    as_it_is, colour, elementwise, _ = (float(row[4]) for row in rows)
    assert colour == as_it_is
    assert 0.7 * as_it_is < elementwise < 0.85 * as_it_is
    assert all(re.fullmatch(r"0 \|", row[-1]) for row in rows)
