"""Two and four gloo processes are one training: the weights of one process with the same batch."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from many_ranks import (
    ACCUMULATED,
    CASES,
    GLOBAL_BATCH,
    NUM_STEPS,
    RUN_SETTINGS,
    SKIPPING,
    division,
    terms_of,
    train,
)
from runs import keep_only_step, metrics_of, state_in
from tiny import ALONE, differences, tiny_config, write_tiles

from dino_path.model.checkpoint import read_checkpoint
from dino_path.run import RunFolder
from dino_path.training.loop import pretrain

pytestmark = pytest.mark.slow
# The gradient is the mean of several means instead of one mean: in float64 only the last digits differ, and AdamW
# magnifies them where a gradient is almost zero.
TOLERANCE = 1e-8


@contextmanager
def doubles() -> Iterator[None]:
    """New tensors are in double precision."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def check_close(state: dict[str, Any], expected: dict[str, Any]) -> None:
    assert state.keys() == expected.keys()
    assert any(value.dtype == torch.float64 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(
            state[name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.fixture(scope="module")
def alone(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run of one process."""
    run = RunFolder(tmp_path_factory.mktemp("alone"))
    with doubles():
        pretrain(tiny_config(tiles_folder, run.path, *RUN_SETTINGS), ALONE)
    return run


@pytest.fixture(scope="module", params=[2, 4])
def out(
    request: pytest.FixtureRequest, tiles_folder: Path, alone: RunFolder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The files of so many processes, after all have succeeded."""
    folder: Path = tmp_path_factory.mktemp(f"{request.param}_ranks")
    shutil.copytree(alone.path, folder / "begun_by_one")
    keep_only_step(RunFolder(folder / "begun_by_one"), 2)
    write_tiles(folder / "few_tiles", 3)
    script, tests = Path(__file__).with_name("many_ranks.py"), Path(__file__).parents[1]
    answer = subprocess.run(
        [sys.executable, str(script), str(request.param), str(tiles_folder), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "Warning" not in answer.stderr
    return folder


@pytest.fixture(scope="module")
def ranks(out: Path) -> list[dict[str, Any]]:
    return [torch.load(file, weights_only=True) for file in sorted(out.glob("rank_*.pt"))]


@pytest.mark.parametrize("name", [name for name in CASES if "sharded" not in name])
def test_all_ranks_hold_the_same_student_teacher_center_and_optimizer(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks[1:]:
        assert differences(ranks[0][name]["state"], rank[name]["state"]) == []


def test_ranks_saw_disjoint_tiles_that_are_the_stream_together(ranks: list[dict[str, Any]]) -> None:
    per_rank = 3 * GLOBAL_BATCH // len(ranks)  # three steps: the first epoch of twelve tiles
    seen = [tile for rank in ranks for tile in rank["plain"]["tiles"][:per_rank]]
    assert sorted(seen) == [*range(12)]


@pytest.mark.parametrize("name", CASES)
def test_many_ranks_equal_one_process_with_the_same_global_batch(
    ranks: list[dict[str, Any]], tiles_folder: Path, name: str
) -> None:
    settings = [setting for setting in CASES[name] if "sharding" not in setting]
    tiles_each, divided = division(name, len(ranks), ALONE)
    with terms_of(name):
        _, one = train(tiles_folder, (*settings, *divided), ALONE, tiles_each=tiles_each)
    many = ranks[0][name]
    check_close(many["state"], one["state"])
    assert many["losses"] == pytest.approx(one["losses"], rel=TOLERANCE)
    assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-6)
    assert len(differences(one["start"], one["state"])) > len(one["start"]) // 2, "the steps must have moved something"


@pytest.mark.parametrize("name", SKIPPING)
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        assert rank[name]["skipping"]["is_skipped"]
        assert rank[name]["skipping"]["num_skipped"] == 1
    skipping = ranks[0][name]["skipping"]
    assert differences(skipping["before"], skipping["after_skip"]) == []
    assert "student.backbone.cls_token" in differences(skipping["before"], skipping["after"])


@pytest.mark.parametrize("name", ["replicated", "sharded"])
def test_a_run_of_many_processes_writes_one_folder_with_the_means_of_all(
    out: Path, ranks: list[dict[str, Any]], alone: RunFolder, name: str
) -> None:
    run = RunFolder(out / name)
    many, one = metrics_of(run), metrics_of(alone)
    assert [record["step"] for record in many] == [*range(NUM_STEPS)]
    assert [record["tiles_seen"] for record in many] == [4, 8, 12, 16]
    for field in (
        "loss", "dino_loss", "ibot_loss", "teacher_entropy", "kl", "ibot_entropy", "ibot_kl", "lr", "grad_norm",
        "grad_norm_head", "grad_norm_patch_head",
    ):  # fmt: skip
        assert [record[field] for record in many] == pytest.approx([record[field] for record in one], rel=1e-3)
    checkpoint = read_checkpoint(run.checkpoint_file(NUM_STEPS))
    assert checkpoint.world_size == len(ranks)
    check_close(state_in(run.checkpoint_file(NUM_STEPS)), state_in(alone.checkpoint_file(NUM_STEPS)))


def test_a_sharded_run_that_is_continued_ends_to_the_bit_as_one_that_never_stopped(out: Path) -> None:
    whole, continued = (RunFolder(out / name).checkpoint_file(NUM_STEPS) for name in ("sharded", "continued"))
    assert differences(state_in(whole), state_in(continued)) == []


def test_what_one_process_began_many_end_sharded(out: Path, alone: RunFolder) -> None:
    ended = RunFolder(out / "begun_by_one").checkpoint_file(NUM_STEPS)
    assert read_checkpoint(ended).world_size > 1
    check_close(state_in(ended), state_in(alone.checkpoint_file(NUM_STEPS)))


@pytest.mark.parametrize(
    ("name", "divided"), [("replicated", ("4", "1")), ("sharded", ("4", "1")), ("sharded", ("1", "4"))]
)
def test_what_many_processes_began_one_ends_with_the_same_global_batch(
    out: Path, tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, divided: tuple[str, str]
) -> None:
    shutil.copytree(out / name, tmp_path / "run")
    last = RunFolder(tmp_path / "run").checkpoint_file(NUM_STEPS)
    expected = state_in(last)
    keep_only_step(RunFolder(tmp_path / "run"), 2)
    sizes = (f"training.batch_size_per_gpu={divided[0]}", f"training.accumulate_steps={divided[1]}")
    with doubles():
        pretrain(tiny_config(tiles_folder, tmp_path / "run", *RUN_SETTINGS, *sizes), ALONE)
    assert "process(es), this run has 1" in caplog.text
    check_close(state_in(last), expected)


def test_ranks_that_take_more_tiles_in_a_step_than_there_are_end_together(out: Path) -> None:
    assert [record["tiles_seen"] for record in metrics_of(RunFolder(out / "few"))] == [4, 8, 12, 16]


def test_in_bf16_sharded_ranks_equal_ranks_that_hold_all(ranks: list[dict[str, Any]]) -> None:
    sharded, replicated = ranks[0]["bf16, sharded"], ranks[0]["bf16"]
    for name, value in replicated["state"].items():
        torch.testing.assert_close(
            sharded["state"][name], value, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert replicated["losses"] != pytest.approx(ranks[0]["plain"]["losses"], rel=1e-6), "it must have been in bf16"


def test_sharded_ranks_hold_everything_once_and_about_as_much_each(ranks: list[dict[str, Any]]) -> None:
    counts = [rank["sharded"]["num_numbers_here"] for rank in ranks]
    assert sum(counts) == ranks[0]["plain"]["num_numbers_here"]
    assert max(counts) < 1.1 * sum(counts) / len(ranks)


@pytest.mark.parametrize("name", [name for name in CASES if "patches" in name])
def test_some_rank_has_no_masked_patch_in_some_step_and_all_have_in_another(
    ranks: list[dict[str, Any]], name: str
) -> None:
    per_step = [torch.tensor(rank[name]["num_masked"]).view(NUM_STEPS, -1).sum(1).tolist() for rank in ranks]
    assert any(min(of_ranks) == 0 for of_ranks in zip(*per_step, strict=True))
    assert all(sum(of_ranks) > 0 for of_ranks in zip(*per_step, strict=True))


def test_accumulation_is_part_of_what_was_compared() -> None:
    assert {*ACCUMULATED} < {*CASES["sharded, accumulated"]}
