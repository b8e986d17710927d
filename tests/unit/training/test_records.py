"""metrics.jsonl always, W&B beside it: the same numbers, one run id, and no training lost to W&B."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import metrics_of
from tiny import ALONE, tiny_config

from dino_path.records.metrics import StepRecord, read_metrics
from dino_path.run import RunFolder
from dino_path.training.loop import pretrain
from dino_path.training.records import Records

FIRST = StepRecord(
    step=0, loss=1.5, feature_std=1, rankme=1, grad_norm=1, lr=0, weight_decay=0, momentum=1, epoch=0, tiles_seen=1,
    tiles_per_s=1, data_wait=0, eta_s=1, peak_memory_gb=1, num_skipped=0, collapse=None,
)  # fmt: skip


@pytest.fixture
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B as on a machine that has never seen it: no settings of the person who runs the tests, nothing left behind."""
    import wandb

    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


@pytest.mark.usefixtures("wandb_home")
def test_wandb_holds_the_numbers_of_metrics_jsonl_under_one_id_across_a_resume(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb
    from wandb_files import config_of, history_of, run_of

    run = RunFolder(tmp_path / "run")
    config = tiny_config(
        tiles_folder, run.path, "wandb.mode=offline", "wandb.project=histology", "training.num_steps=6",
        "training.checkpoint_every_steps=2",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        records_write = Records.write

        def write_until_killed(records: Records, record: StepRecord) -> None:
            if record.step == 3:
                raise KeyboardInterrupt
            records_write(records, record)

        patch.setattr(Records, "write", write_until_killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, ALONE)
    run_id = run.wandb_id_file.read_text()
    pretrain(config, ALONE)
    wandb.teardown()  # its service still writes when a run has finished; with the service gone the files are whole

    files = sorted(run.path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    assert [run_of(file).run_id for file in files] == [run_id, run_id]
    assert run_of(files[0]).project == "histology"
    assert config_of(files[0])["optim"]["lr_warmup"] == "2 steps"
    first, second = history_of(files[0]), history_of(files[1])
    assert [row["_step"] for row in first] == [0, 1, 2]
    assert [row["_step"] for row in second] == [2, 3, 4, 5]
    metrics = metrics_of(run)
    assert [record["step"] for record in metrics] == [*range(6)]
    for row, record in zip([*first[:2], *second], metrics, strict=True):
        for name in ("loss", "teacher_entropy", "rankme", "lr", "num_skipped"):
            assert row[name] == record[name]
        assert "collapse" not in row, "what is None is left out"
    assert not list(run.path.glob("wandb/*/files/media/**/*.png")), "no pixels without wandb.log_images"


@pytest.mark.usefixtures("wandb_home")
def test_training_goes_on_when_wandb_does_not_start(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def refuse(**settings: object) -> None:
        raise wandb.errors.CommError("the service is away")

    monkeypatch.setattr(wandb, "init", refuse)
    pretrain(tiny_config(tiles_folder, tmp_path / "run", "wandb.mode=online", "training.num_steps=2"), ALONE)
    assert len(metrics_of(RunFolder(tmp_path / "run"))) == 2
    assert "W&B did not start (the service is away)" in caplog.text


class DyingWandb:
    """A W&B run whose second record and whose end fail."""

    def __init__(self, error: Exception) -> None:
        self.error, self.num_logged = error, 0

    def log(self, values: dict[str, object], step: int) -> None:
        self.num_logged += 1
        if self.num_logged == 2:
            raise self.error

    def finish(self, exit_code: int) -> None:
        raise RuntimeError("socket closed")


@pytest.mark.usefixtures("wandb_home")
@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("disk full"), KeyError("disk full")])
def test_training_goes_on_when_wandb_dies_on_the_way(
    tiles_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    import wandb

    dying = DyingWandb(error)
    monkeypatch.setattr(wandb, "init", lambda **settings: dying)
    pretrain(tiny_config(tiles_folder, tmp_path / "run", "wandb.mode=offline", "training.num_steps=4"), ALONE)
    assert [record["step"] for record in metrics_of(RunFolder(tmp_path / "run"))] == [0, 1, 2, 3]
    assert dying.num_logged == 2, "once it has failed it is left alone"
    assert caplog.text.count(f"W&B stopped ({error})") == 1


@pytest.mark.usefixtures("wandb_home")
def test_a_wandb_run_that_does_not_close_is_no_failure(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **settings: DyingWandb(OSError()))
    with Records(RunFolder(tmp_path), tiny_config(tiles_folder, tmp_path, "wandb.mode=offline"), start_step=0) as out:
        out.write(FIRST)
    assert "W&B did not close its run (socket closed)" in caplog.text


def test_disabled_wandb_leaves_no_trace(tiles_folder: Path, tmp_path: Path) -> None:
    with Records(RunFolder(tmp_path), tiny_config(tiles_folder, tmp_path), start_step=0) as out:
        out.write(FIRST)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert read_metrics(tmp_path / "metrics.jsonl").records == (FIRST,)
