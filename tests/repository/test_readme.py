"""The README's commands are those that the program has, its links lead somewhere, and the demo's fast form works."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from dino_path.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])


def readme_commands() -> list[list[str]]:
    """Words after `dino-path` of every command line in the README's code blocks."""
    lines = re.findall(r"^(?: {4}|)(?:pip install uv && )?uv run dino-path (.+)$", README, flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_the_readme_opens_with_the_two_commands_that_do_all_the_set_up() -> None:
    assert "    pip install uv && uv run dino-path demo\n" in README
    assert "    pip install uv && uv run pytest\n" in README
    assert [command[0] for command in readme_commands()] == [
        "demo", "tile", "views", "pretrain", "export", "baseline", "evaluate", "embed", "report",
    ]  # fmt: skip


@pytest.mark.parametrize("words", readme_commands(), ids=lambda words: words[0])
def test_every_command_in_the_readme_exists_with_its_options(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
    assert missing == []


@pytest.mark.slow
def test_the_demo_walks_the_whole_road_in_its_fast_form(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    environment = {**os.environ, "WANDB_SILENT": "true"}
    command = [sys.executable, "-m", "dino_path", "demo", "--fast", "--out", str(out)]
    first = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    for row in ("mean-colour", "untrained-dino", " dino ", "supervised"):
        assert row in first.stdout
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "dino" / "model.safetensors").is_file()
    assert len(list(out.glob("features/*/features_*/*.h5"))) == 7
    results = out / "run" / "eval" / "results.json"
    rows = json.loads(results.read_text())["rows"]
    checkpoint = (out / "run" / "checkpoints" / "step_00000006.pt").stat().st_mtime_ns

    second = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert second.returncode == 0, second.stderr[-3000:]
    assert (out / "run" / "checkpoints" / "step_00000006.pt").stat().st_mtime_ns == checkpoint, "trained again"
    assert json.loads(results.read_text())["rows"] == rows
