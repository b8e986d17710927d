"""`dino-path init`: configs to start from that load, agree with the shipped ones, and overwrite nothing."""

import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from dino_path.cli import app, check_command, start
from dino_path.errors import ConfigError
from dino_path.settings import as_plain, load_config

# What differs from the shipped config that a start is made after, and why.
AFTER = {
    "laptop": ("resnet10t_cpu_15min", {"training.precision"}),  # not every laptop has bf16
    "gpu": ("vits16_1gpu", {"cluster.cpus_per_gpu", "cluster.time", "cluster.array_tasks"}),  # it has no such section
    "cluster": ("vits16_8gpu", {"cluster.time", "cluster.stages"}),  # stages without a GPU need fewer cores
}
OWN = {"store", "out", "wandb.mode"}


def dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        deeper = isinstance(value, dict) and prefix + key not in ("model.arguments", "cluster.stages")
        found |= dotted(value, f"{prefix}{key}.") if deeper else {prefix + key: value}
    return found


@pytest.mark.parametrize("place", get_args(start.Place))
def test_the_config_loads_and_differs_from_the_shipped_one_only_where_it_says(place: str, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--for", place])
    assert answer.exit_code == 0, answer.output
    file = tmp_path / "new" / "pretrain.yaml"
    name, differing = AFTER[place]
    ours = dotted(as_plain(load_config(file, needs=("store", "out", "tiles", "training"))))
    theirs = dotted(as_plain(load_config(Path(name))))
    assert {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)} - OWN == differing
    text = file.read_text(encoding="utf-8")
    assert f"the shipped config {name}" in " ".join(text.replace("#", "").split())
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("place", get_args(start.Place))
def test_what_the_comments_offer_are_settings_too(place: str, tmp_path: Path) -> None:
    """Every `# key: value` is switched on, with the lines below it."""
    CliRunner().invoke(app, ["init", str(tmp_path), "--for", place])
    lines = (tmp_path / "pretrain.yaml").read_text(encoding="utf-8").splitlines()
    offered = [line for line in lines if switched_on(line)]
    assert offered
    text = "\n".join(line.replace("# ", "", 1) if line in offered else line for line in lines)
    (tmp_path / "all.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "all.yaml") != load_config(tmp_path / "pretrain.yaml")


def switched_on(line: str) -> bool:
    """Whether a line is a setting behind a `#`: `  # qos: normal`, `# monitor:`, `  #   - module load cuda`."""
    body = line.strip().removeprefix("# ").split("  #")[0].strip()
    is_setting = body.startswith("- ") or (":" in body and body.split(":")[0].isidentifier())
    return line.strip().startswith("# ") and is_setting


@pytest.mark.parametrize("place", get_args(start.Place))
def test_the_next_commands_are_commands(place: start.Place) -> None:
    for line in start.NEXT[place]:
        words = shlex.split(line.split("  #")[0])
        if "dino-path" in words:
            check_command(words[words.index("dino-path") + 1 :])


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text("mine")
    answer = CliRunner().invoke(app, ["init", str(tmp_path), "--for", "gpu"])
    assert isinstance(answer.exception, ConfigError)
    assert "is there already" in answer.exception.found
    assert (tmp_path / "pretrain.yaml").read_text() == "mine"


def test_without_a_terminal_the_choices_are_named(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["init", str(tmp_path / "new")])
    assert isinstance(answer.exception, ConfigError)
    assert "laptop, gpu, cluster" in answer.exception.needed
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("typed", "backbone"), [("laptop", "resnet10t"), ("GPU ", "vit_small_patch16_224")])
def test_in_a_terminal_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, backbone: str) -> None:
    monkeypatch.setattr(start.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(start.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(start.typer, "prompt", lambda _: typed)
    start.init(tmp_path, None)
    assert load_config(tmp_path / "pretrain.yaml").model.backbone == backbone
    monkeypatch.setattr(start.typer, "prompt", lambda _: "mainframe")
    with pytest.raises(ConfigError, match="mainframe: is none of the choices"):
        start.init(tmp_path / "other", None)
