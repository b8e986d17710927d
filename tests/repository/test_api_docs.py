"""docs/api.md is what the docstrings say, names all that is public, and a user's type checker sees the types."""

import subprocess
import sys
from pathlib import Path

import pytest

import dino_path
from dino_path.api_docs import render

REPOSITORY = Path(__file__).parents[2]
SCRIPT = '''\
"""A user's script."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

import dino_path

tiling: dino_path.Tiling = dino_path.tile("slides", out=Path("tiles"), tiles={"mpp": 0.5})
store: dino_path.TileStore = tiling.tiles()
tile: NDArray[np.uint8] = store[0]
part: dino_path.TileStore = store[:10]
loader = DataLoader(store.dataset("regions"), batch_size=8)
run: dino_path.Pretraining = dino_path.pretrain("tiles", "run", training={"num_steps": 10})
dino_path.export(run.run, "model", format=["timm", "onnx"])
features: dino_path.Features = dino_path.load("model").embed([tile, "a.png"])
values: NDArray[np.float32] = features.values
answer: dino_path.Evaluation = dino_path.evaluate("knn", ["model"], data="labelled")
try:
    dino_path.load("nothing", precision="fp16")
except dino_path.errors.CheckpointError as error:
    print(error.remedy)
'''
MISTAKES = {
    "dino_path.load(3)": 'incompatible type "int"',
    'dino_path.tile("slides", out="tiles", tils={})': 'Unexpected keyword argument "tils"',
    'dino_path.evaluate("knnn", "model", data="labelled")': "incompatible type \"Literal['knnn']\"",
    "dino_path.lode": 'has no attribute "lode"',
}


def test_the_page_is_up_to_date() -> None:
    page = (REPOSITORY / "docs/api.md").read_text(encoding="utf-8")
    assert page == render(), "python -m dino_path.api_docs docs/api.md"


def test_the_page_names_all_that_is_public() -> None:
    page = render()
    for name in {*dino_path.__all__} - {"errors"}:
        assert f"### {name}\n" in page or f"- `{name}`: " in page, name
    assert "None\n" not in page
    assert page.count("```") % 2 == 0


@pytest.mark.slow
def test_a_users_type_checker_sees_the_types(tmp_path: Path) -> None:
    """Twenty seconds without mypy's cache of this checkout, two with it; `uv run mypy` afterwards finds it filled."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "\n".join(MISTAKES) + "\n")
    answer = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", REPOSITORY / "pyproject.toml",
         "--cache-dir", REPOSITORY / ".mypy_cache", script],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = [line for line in answer.stdout.splitlines() if ": error: " in line]
    first = SCRIPT.count("\n") + 1
    assert len(found) == len(MISTAKES), answer.stdout + answer.stderr
    for number, (line, message) in enumerate(zip(found, MISTAKES.values(), strict=True), first):
        assert f"{script.name}:{number}: " in line  # the folder is that of the run which filled the cache
        assert message in line
