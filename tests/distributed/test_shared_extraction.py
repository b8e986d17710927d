"""Two gloo processes extract features together, and one of them evaluates: the numbers of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import free_port
from tiny import tile_image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 images."""
    import cv2

    folder = tmp_path_factory.mktemp("data")
    for number in range(24):
        file = folder / ("pale" if number % 2 else "dark") / f"{number:02d}.png"
        file.parent.mkdir(exist_ok=True)
        image = tile_image(number, 32) * (1.0 if number % 2 else 0.6)
        assert cv2.imwrite(str(file), image.astype(np.uint8))
    return folder


def evaluate(data: Path, out: Path, num_processes: int) -> dict[str, Any]:
    out.parent.mkdir()
    script, tests = Path(__file__).with_name("two_extractors.py"), Path(__file__).parents[1]
    shared = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(num_processes),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(data), str(out)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]
    answers = [rank.communicate(timeout=240) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * num_processes, "\n".join(err for _, err in answers)
    assert " mean-colour " in answers[0][0]
    assert [out for out, _ in answers[1:]] == [""] * (num_processes - 1)
    record: dict[str, Any] = json.loads((out / "results.json").read_text())
    return record


def test_two_processes_share_the_images_and_give_the_numbers_of_one(data: Path, tmp_path: Path) -> None:
    one = evaluate(data, tmp_path / "one" / "eval", 1)
    two = evaluate(data, tmp_path / "two" / "eval", 2)
    assert [row["metrics"] for row in two["rows"]] == [row["metrics"] for row in one["rows"]]
    made = [[int(line) for line in (tmp_path / "two" / f"rank_{rank}.txt").read_text().split()] for rank in range(2)]
    # 24 images and the crops of 16 training images, in pieces of 5: 5 5 5 5 4, and 5 5 5 1.
    assert made == [[5, 5, 4, 5, 5], [5, 5, 5, 1]]
    files = [sorted(path.name for path in (tmp_path / n / "eval" / "features").iterdir()) for n in ("one", "two")]
    assert files[0] == files[1]
    for name in files[0]:
        arrays = [np.load(tmp_path / n / "eval" / "features" / name) for n in ("one", "two")]
        assert np.array_equal(*arrays)
