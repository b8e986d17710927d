"""Targets, losses and gradients of two processes are those of one, also where one of them has no masked patch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from terms_of_ranks import CASES, two_steps
from tiny import ALONE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out: Path = tmp_path_factory.mktemp("ranks")
    script, tests = Path(__file__).with_name("terms_of_ranks.py"), Path(__file__).parents[1]
    answer = subprocess.run(
        [sys.executable, str(script), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return [torch.load(file, weights_only=True) for file in sorted(out.glob("rank_*.pt"))]


@pytest.mark.parametrize(("method", "hidden"), CASES)
def test_two_processes_with_unequal_numbers_of_masked_patches_are_one(
    ranks: list[dict[str, Any]], method: str, hidden: str
) -> None:
    alone = two_steps(method, hidden, ALONE)
    assert len(alone) == (5 if method == "sinkhorn-knopp" else 7)
    assert all(value.isfinite().all() for value in alone.values())
    for rank in ranks:
        torch.testing.assert_close(rank[f"{method}, {hidden}"], alone, rtol=1e-10, atol=1e-13)


def test_every_process_gets_the_largest_numbers_of_all(ranks: list[dict[str, Any]]) -> None:
    assert [rank["largest"].tolist() for rank in ranks] == [[1.0, 0.0]] * 2
