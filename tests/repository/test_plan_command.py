"""`dino-path plan`: refuses what pretrain refuses, writes nothing, and names the files that pretrain then writes."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import ALONE, TINY, tiny_config

from dino_path import cli
from dino_path.cli.plan import duration_text, size_text
from dino_path.training.loop import pretrain

Call = Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """What `dino-path plan` prints, in this process: on stdout, or of a refusal on stderr. There is no SLURM."""
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("PATH", "")

    def run(*words: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["dino-path", "plan", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capfd.readouterr()
        assert int(end.value.code or 0) == code, told.err
        return told.out if code == 0 else told.err

    yield run
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def planned(call: Call, *words: object) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(call(*words, "--json", "--quiet"))
    return made


def test_a_plan_is_measured_and_adds_up_and_writes_nothing(call: Call, tiles_folder: Path, tmp_path: Path) -> None:
    made = planned(
        call, f"store={tiles_folder}", f"out={tmp_path / 'run'}", *TINY, "training.num_steps=300", "--seconds", 2
    )
    figures = made["figures"]
    assert (made["num_steps"], made["tiles_per_step"], made["tiles_seen"], made["num_tiles"]) == (300, 4, 1200, 12)
    assert made["times_each_tile"] == 100
    assert "measured" in figures["step"]["how"]
    assert figures["step"]["low"] <= figures["step"]["value"] <= figures["step"]["high"]
    assert figures["tiles_per_s"]["value"] == pytest.approx(4 / figures["step"]["value"])
    assert figures["views_per_s"]["value"] == pytest.approx(4 * figures["tiles_per_s"]["value"])
    assert figures["time"]["value"] > 300 * figures["step"]["value"]
    assert 0.1 < figures["host_memory"]["value"] < 4
    assert {line["key"]: line["value"] for line in made["cluster"]}["cluster.gpus_per_node"] == "0"
    assert [*tmp_path.iterdir()] == []


def test_without_measuring_every_time_is_called_an_estimate(call: Call, tiles_folder: Path) -> None:
    words = [f"store={tiles_folder}", *TINY, "training.device=cuda", "cluster.gpus_per_node=h100:8", "--estimate"]
    told = call(*words)
    assert "32 tiles" in told  # 8 processes of 4
    assert "35% of the 989 TFLOP/s of an H100" in told
    assert "measured" not in told.split("written into")[0]
    assert "gpus_per_node: h100:8" in told


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["views.local_px=20"], "it does not take views of 20 px"),
        (["training.balance=slide"], "the tiles are image files"),
        (["model.arguments={embed_dimm: 32}"], "timm cannot build it"),
    ],
)
def test_what_pretrain_refuses_is_refused(call: Call, tiles_folder: Path, words: list[str], named: str) -> None:
    assert named in call(f"store={tiles_folder}", *TINY, *words, code=2)


def test_a_run_that_has_begun_is_planned_to_its_end_and_one_of_other_settings_is_refused(
    call: Call, tiles_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keep = ("training.checkpoint_every_steps=2", "training.keep_checkpoints=2")
    words = [f"store={tiles_folder}", f"out={run}", *TINY, *keep, "--estimate"]
    before = planned(call, *words)
    pretrain(tiny_config(tiles_folder, run, *keep), ALONE)
    files = {one["path"]: one for one in before["files"]}
    written = [file.stat().st_size for file in (run / "checkpoints").iterdir()]
    assert files["checkpoints/"]["note"].startswith("5 are written; the newest 2 stay, and the best")
    size = files["checkpoints/"]["num_bytes"] / 3
    assert len(written) in (2, 3)  # the best may be one of the newest
    assert written == pytest.approx([size] * len(written), rel=0.3)  # names and settings weigh in so small a file
    assert "finished" in call(*words)
    assert planned(call, *words)["finished"].endswith("step_00000010.pt")
    (run / "checkpoints/step_00000010.pt").unlink()
    rest = planned(call, *words)
    assert (rest["steps_done"], rest["num_steps"]) == (8, 10)
    assert "training.seed (0 -> 7)" in call(*words, "training.seed=7", code=2)


def test_times_and_sizes_have_units_that_suit_them() -> None:
    assert [duration_text(one) for one in (0.45, 95, 2040, 18_720, 267_840)] == [
        "0.45 s", "95 s", "34 min", "5.2 h", "3.1 days",
    ]  # fmt: skip
    assert [size_text(one) for one in (200, 704_000_000, 5_230_000_000)] == ["0.1 MB", "704 MB", "5.23 GB"]
