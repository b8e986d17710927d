"""metrics.jsonl: a typed line, a version in each, and no damaged line that costs more than itself."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import state_in
from tiny import ALONE, tiny_config

from dino_path.errors import DataError, NewerFormat
from dino_path.records.metrics import StepRecord, cut_metrics, metrics_line, read_metrics
from dino_path.run import RunFolder
from dino_path.training.loop import pretrain
from dino_path.training.records import Records

FIXTURES = Path(__file__).parents[2] / "fixtures"
DAMAGED = {
    "no JSON": "not json\n",
    "cut short by a full disk": '{"step": 3, "lo\n',
    "zeros after a crash": "\0" * 40 + "\n",
    "no object": "[3]\n",
    "no step": json.dumps({"loss": 3.0}) + "\n",
}


def line(step: int, **values: Any) -> StepRecord:
    fixed: dict[str, Any] = dict.fromkeys(("loss", "feature_std", "rankme", "grad_norm", "collapse"))
    schedules = dict.fromkeys(("lr", "weight_decay", "momentum"), 0.1)
    clock = dict.fromkeys(("epoch", "tiles_seen", "tiles_per_s", "data_wait", "eta_s", "peak_memory_gb"), 2)
    return StepRecord.model_validate({"step": step, "num_skipped": 0, **fixed, **schedules, **clock, **values})


def written(file: Path, *lines: str) -> Path:
    file.write_text("".join(lines))
    return file


def steps(file: Path) -> list[int]:
    return [record.step for record in read_metrics(file).records]


def test_a_line_comes_back_as_it_went_with_the_numbers_of_the_terms(tmp_path: Path) -> None:
    record = line(7, loss=0.1 + 0.2, koleo_loss=1e-17, kl=None)
    file = written(tmp_path / "metrics.jsonl", metrics_line(record))
    assert json.loads(file.read_text())["format_version"] == 1
    (found,) = read_metrics(file).records
    assert found == record
    assert found.number("koleo_loss") == 1e-17
    assert (found.number("kl"), found.number("collapse"), found.number("nowhere")) == (None, None, None)
    assert found.numbers().keys() >= {"step", "loss", "lr", "koleo_loss"}
    assert found.numbers().keys().isdisjoint({"kl", "collapse", "rankme", "knn_accuracy", "format_version"})


def test_lines_of_earlier_versions_are_read(tmp_path: Path) -> None:
    found = read_metrics(FIXTURES / "run_v1" / "run" / "metrics.jsonl")
    assert ([record.step for record in found.records], found.unreadable) == ([0, 1, 2], ())
    first = found.records[0]
    assert (first.num_steps, first.num_unreadable, first.knn_accuracy) == (None, None, None)
    assert first.number("teacher_entropy") == 0.05437629669904709


def test_a_line_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    newer = json.dumps({"format_version": 2, "step": 1}) + "\n"
    with pytest.raises(NewerFormat, match=r"written by a newer dino_path \(metrics, format 2\)"):
        read_metrics(written(tmp_path / "metrics.jsonl", metrics_line(line(0)), newer))


def test_records_are_cut_at_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    file = written(tmp_path / "metrics.jsonl", *(metrics_line(line(step)) for step in range(8)), '{"step": 8, "lo')
    found = read_metrics(file)
    assert (len(found.records), found.unreadable, found.is_cut_off) == (8, (), True)
    cut_metrics(file, 5)
    assert steps(file) == [0, 1, 2, 3, 4]
    assert file.read_text().endswith("}\n")
    cut_metrics(file, 0)
    assert file.read_text() == ""


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert cut_metrics(tmp_path / "metrics.jsonl", 3).records == ()
    assert [*tmp_path.iterdir()] == []
    with pytest.raises(DataError, match="is damaged"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_line_costs_only_itself(damage: str, place: int, tmp_path: Path) -> None:
    lines = [metrics_line(line(0)), metrics_line(line(1))]
    lines.insert(place, damage)
    found = read_metrics(written(tmp_path / "metrics.jsonl", *lines))
    assert [record.step for record in found.records] == [0, 1]
    (told,) = found.unreadable
    assert told.startswith(f"line {place + 1} is ")


def test_a_run_with_damaged_lines_goes_on_and_says_which(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", "training.num_steps=6", "training.checkpoint_every_steps=3")
    run, undisturbed = RunFolder(tmp_path / "run"), state_in(pretrain(config, ALONE))
    whole = run.metrics_file.read_text().splitlines(keepends=True)
    run.checkpoint_file(6).unlink()
    run.metrics_file.write_bytes("".join([whole[0], "\0\0\xff\n", *whole[2:5]]).encode("latin-1") + b'{"step"')
    with caplog.at_level(logging.WARNING):
        resumed = state_in(pretrain(config, ALONE))
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())
    assert steps(run.metrics_file) == [0, 2, 3, 4, 5]
    assert "line 2 is not JSON; it is skipped, and the run continues" in caplog.text
    assert "its last line is incomplete; it is skipped, and the run continues" in caplog.text


def test_pandas_users_find_a_column_for_each_number(tiles_folder: Path, tmp_path: Path) -> None:
    with Records(RunFolder(tmp_path), tiny_config(tiles_folder, tmp_path), start_step=0) as out:
        for step in range(2):
            out.write(line(step, kl=0.5))
    rows = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.keys() for row in rows] == [rows[0].keys()] * 2
    assert [(row["step"], row["kl"]) for row in rows] == [(0, 0.5), (1, 0.5)]
