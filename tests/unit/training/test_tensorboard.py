"""monitor.tensorboard: the numbers of metrics.jsonl as TensorBoard reads them, each step once across a resume."""

from pathlib import Path

import pytest
from runs import metrics_of
from tiny import ALONE, tiny_config

from dino_path.api import inputs
from dino_path.cli.inputs import check_stage_inputs
from dino_path.errors import ConfigError
from dino_path.records.metrics import StepRecord
from dino_path.run import RunFolder
from dino_path.training.loop import pretrain
from dino_path.training.records import Records


def test_tensorboard_reads_the_numbers_of_metrics_jsonl_once_across_a_resume(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    config = tiny_config(
        tiles_folder, run.path, "monitor.tensorboard=true", "training.num_steps=6", "training.checkpoint_every_steps=2"
    )
    with monkeypatch.context() as patch:
        records_write = Records.write

        def write_and_be_killed(records: Records, record: StepRecord) -> None:
            records_write(records, record)
            if record.step == 3:  # written, and not in a checkpoint: it is taken again
                raise KeyboardInterrupt

        patch.setattr(Records, "write", write_and_be_killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, ALONE)
    pretrain(config, ALONE)

    assert len(list(run.tensorboard.glob("events.out.tfevents.*"))) == 2
    scalars, metrics = scalars_of(run.tensorboard), metrics_of(run)
    assert [record["step"] for record in metrics] == [*range(6)]
    assert scalars["num_skipped"] == [(step, 0) for step in range(6)]
    for name in scalars:
        expected = [(record["step"], record[name]) for record in metrics if record[name] is not None]
        assert [step for step, _ in scalars[name]] == [step for step, _ in expected]
        assert [value for _, value in scalars[name]] == pytest.approx([value for _, value in expected], rel=1e-6)
    assert {"loss", "teacher_entropy", "rankme", "lr", "tiles_per_s"} <= scalars.keys()
    assert not {"step", "collapse", "format_version"} & scalars.keys()


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader makes of the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(each.step, each.value) for each in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_nothing_is_written_for_tensorboard_unasked(tiles_folder: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(tiles_folder, tmp_path / "run", "training.num_steps=1"), ALONE)
    assert not RunFolder(tmp_path / "run").tensorboard.exists()


def test_a_run_that_tensorboard_is_missing_for_is_refused(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "find_spec", lambda name: None)
    config = tiny_config(tiles_folder, tmp_path / "run", "monitor.tensorboard=true")
    for refuse in (inputs.check_pretraining, lambda config: check_stage_inputs("pretrain", {}, config)):
        with pytest.raises(ConfigError, match=r"dino-path\[tensorboard\]"):
            refuse(config)
