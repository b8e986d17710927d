"""A step on a simulated GPU (benchmarks/gpu/imagined.py) shows what would fail or wait on a real one."""

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
    as_it_is, colour, elementwise, _ = mb_a_tile("--kinds", "ours", "colour", "elementwise", "distilled")
    assert colour == as_it_is
    assert 0.7 * as_it_is < elementwise < 0.85 * as_it_is


def test_no_step_of_all_terms_mixes_devices_or_waits() -> None:
    """iBOT with Sinkhorn-Knopp and KoLeo, and images that blocks drop."""
    settings = ("--objective", "dinov2", "--drop-path-rate", "0.4", "--drop-path-schedule", "constant")
    assert len(mb_a_tile("--kinds", "ours", *settings)) == 1


def mb_a_tile(*settings: str) -> list[float]:
    """Memory that grows with the batch, of each kind; none waits, or the script would fail."""
    command = [sys.executable, str(SCRIPT), "--archs", "vit_tiny", "--batches", "2", "4", "--prototypes", "512"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| vit_tiny")]
    assert all(re.fullmatch(r"0 \|", row[-1]) for row in rows)
    return [float(row[4]) for row in rows]
