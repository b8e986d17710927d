"""Checkpoints: complete or not there, readable without unpickling code, and never those of another run."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest
import torch
from leftovers import left_by_a_kill
from tiny import ALONE, differences, state_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules, write_tiles

from dino_path.config import Config
from dino_path.distributed import World
from dino_path.errors import CheckpointError
from dino_path.run import RunFolder
from dino_path.tiles.source import open_tiles
from dino_path.training.checkpoints import read_checkpoint, restore, save_checkpoint
from dino_path.training.learner import Learner
from dino_path.training.step import train_step


def trained_learner(config: Config, num_steps: int = 3) -> Learner:
    learner, batches, schedules = tiny_learner(config), tiny_batches(config), tiny_schedules(config)
    for step in range(num_steps):
        train_step(learner, [batches.batch(step)], schedules.at(step), step=step)
    return learner


def save(config: Config, learner: Learner, step: int) -> Path:
    assert config.store is not None
    assert config.out is not None
    return save_checkpoint(RunFolder(config.out), learner, config, open_tiles(config.store), step=step)


def resume(config: Config, world: World = ALONE) -> tuple[Learner, int]:
    assert config.store is not None
    assert config.out is not None
    learner = tiny_learner(config, world)
    return learner, restore(RunFolder(config.out), learner, config, open_tiles(config.store)).step


@pytest.fixture
def config(tiles_folder: Path, tmp_path: Path) -> Config:
    return tiny_config(tiles_folder, tmp_path / "run")


def test_restored_learner_equals_the_saved_one_to_the_bit(config: Config) -> None:
    learner = trained_learner(config)
    learner.num_skipped = 2
    save(config, learner, step=3)
    restored, step = resume(config)
    assert step == 3
    assert restored.num_skipped == 2
    assert differences(state_of(learner), state_of(restored)) == []
    assert any(name.endswith("exp_avg_sq") for name in state_of(restored))


def test_images_replaced_under_their_names_are_said_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tiles(tmp_path / "images", count=4)
    for file in folder.iterdir():  # without compression: other pixels leave the size of the file
        cv2.imwrite(str(file.with_suffix(".bmp")), cv2.imread(str(file)))
        file.unlink()
    config = tiny_config(folder, tmp_path / "run")
    save(config, tiny_learner(config), step=3)
    assert resume(config)[1] == 3
    assert "other contents" not in caplog.text
    cv2.imwrite(str(folder / "002.bmp"), 255 - cv2.imread(str(folder / "002.bmp")))
    assert resume(config)[1] == 3
    assert "has tiles of the same names" in caplog.text


def test_fresh_run_starts_at_step_zero(config: Config) -> None:
    learner, step = resume(config)
    assert step == 0
    assert differences(state_of(learner), state_of(tiny_learner(config))) == []


def test_checkpoints_hold_tensors_and_plain_values_only(config: Config) -> None:
    path = save(config, trained_learner(config), step=3)
    record = torch.load(path, weights_only=True)
    assert path.name == "step_00000003.pt"
    assert record["step"] == 3
    assert record["num_tiles"] == 12
    assert json.loads(json.dumps(record["config"])) == record["config"]
    assert record["config"]["optim"]["lr_warmup"] == "2 steps"


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond `num_bytes`, as if the disk were full then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("step", [3, 4])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_rubbish(config: Config, step: int) -> None:
    learner = trained_learner(config)
    path = save(config, learner, step=3)
    before = path.read_bytes()
    with room_for(len(before) // 2), pytest.raises(CheckpointError, match=r"cannot be written") as refusal:
        save(config, learner, step=step)
    assert "File too large" in refusal.value.found
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert resume(config)[1] == 3


def test_what_a_kill_left_half_written_is_removed_at_the_next_checkpoint(config: Config) -> None:
    path = save(config, tiny_learner(config), step=1)
    left_by_a_kill(path.with_name("step_00000002.pt"))
    path = save(config, tiny_learner(config), step=2)
    assert [file.name for file in sorted(path.parent.iterdir())] == ["step_00000001.pt", "step_00000002.pt"]


def test_only_the_newest_checkpoints_are_kept(config: Config) -> None:
    learner = tiny_learner(config)
    for step in range(1, 6):
        save(config, learner, step)
    assert config.out is not None
    assert [file.name[-4:-3] for file in RunFolder(config.out).checkpoint_files()] == ["3", "4", "5"]


@pytest.mark.parametrize("keep_bytes", [0, 1000, -1])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    config: Config, keep_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    learner = trained_learner(config)
    save(config, learner, step=2)
    damaged = save(config, learner, step=3)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2] if keep_bytes < 0 else whole[:keep_bytes])
    assert resume(config)[1] == 2
    assert str(damaged) in caplog.text
    assert "cannot be read as a checkpoint" in caplog.text


def test_a_single_wrong_byte_among_the_weights_is_noticed(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    learner = trained_learner(config)
    save(config, learner, step=2)
    damaged = save(config, learner, step=3)
    weights = learner.student.head.last_layer["weight_v"].detach().numpy().tobytes()
    content = bytearray(damaged.read_bytes())
    content[content.index(weights) + 100] ^= 0x40
    damaged.write_bytes(content)
    assert resume(config)[1] == 2
    assert "checksum" in caplog.text


def test_a_damaged_later_file_does_not_push_out_the_good_one(tiles_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", "training.keep_checkpoints=1")
    learner = tiny_learner(config)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step_00000008.pt").write_bytes(b"damaged")
    save(config, learner, step=5)
    assert resume(config)[1] == 5


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(config: Config) -> None:
    save(config, tiny_learner(config), step=1).write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints can be read"):
        resume(config)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("optim.base_lr=0.1", r"optim\.base_lr \(0\.003 -> 0\.1\)"),
        ("training.seed=5", r"training\.seed \(0 -> 5\)"),
        ("training.num_steps=20", r"training\.num_steps"),
        ("views.blur_prob=[0, 0, 0]", r"views\.blur_prob"),
        ("objective.dino.num_prototypes=32", r"objective\.dino\.num_prototypes"),
        ("training.batch_size_per_gpu=2", r"global batch size \(4 -> 2\)"),
        ("training.accumulate_steps=2", r"global batch size \(4 -> 8\)"),
    ],
)
def test_checkpoints_of_other_settings_are_refused_by_name(config: Config, setting: str, named: str) -> None:
    save(config, tiny_learner(config), step=1)
    assert config.store is not None
    assert config.out is not None
    with pytest.raises(CheckpointError, match=named):
        resume(tiny_config(config.store, config.out, setting))


def test_the_same_global_batch_may_be_divided_otherwise(config: Config) -> None:
    save(config, tiny_learner(config), step=1)
    assert config.store is not None
    assert config.out is not None
    divided = ("training.batch_size_per_gpu=1", "training.accumulate_steps=4")
    assert resume(tiny_config(config.store, config.out, *divided))[1] == 1


@pytest.mark.parametrize(
    "setting",
    [
        "training.num_workers=2",
        "training.checkpoint_every_steps=1",
        "monitor.log_every_steps=7",
        "wandb.mode=offline",
        "cluster.time=1:00:00",
    ],
)
def test_settings_that_change_no_number_may_change(config: Config, setting: str) -> None:
    save(config, tiny_learner(config), step=1)
    assert config.store is not None
    assert config.out is not None
    assert resume(tiny_config(config.store, config.out, setting))[1] == 1


@pytest.mark.parametrize("change", ["one more", "another of the same number"])
def test_checkpoints_of_another_set_of_tiles_are_refused(tmp_path: Path, change: str) -> None:
    config = tiny_config(write_tiles(tmp_path / "tiles", 5), tmp_path / "run")
    save(config, tiny_learner(config), step=1)
    target = tmp_path / "tiles" / ("005.png" if change == "one more" else "004.png")
    target.write_bytes((tmp_path / "tiles/001.png").read_bytes())
    with pytest.raises(CheckpointError, match="the tiles"):
        resume(config)


def test_a_checkpoint_from_before_a_setting_existed_goes_on_with_its_default(config: Config) -> None:
    file = save(config, tiny_learner(config), step=1)
    record = torch.load(file, weights_only=True)
    del record["config"]["optim"]["clip_scope"]
    torch.save(record, file)
    assert resume(config)[1] == 1
    record["config"]["optim"]["no_longer_known"] = 1
    torch.save(record, file)
    with pytest.raises(CheckpointError, match="another version of dino_path"):
        resume(config)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"version": 3}, r"has checkpoint version 3"),
        ({"version": "2"}, r"has checkpoint version '2'"),
        ({"step": "1"}, r"step: Input should be a valid integer"),
        ({"optimizer": None}, r"optimizer: Input should be a valid dictionary"),
        (
            {"teacher": {"backbone": {"cls_token": [1.0]}}},
            r"teacher\.backbone\.cls_token: Input should be an instance of Tensor",
        ),
        ({"colour": 1}, r"colour: Unexpected keyword argument"),
    ],
)
def test_what_a_checkpoint_must_hold_is_checked_on_reading(
    config: Config, change: dict[str, object], found: str
) -> None:
    file = save(config, tiny_learner(config), step=1)
    torch.save(torch.load(file, weights_only=True) | change, file)
    with pytest.raises(CheckpointError, match=found):
        read_checkpoint(file)


def test_a_checkpoint_that_lacks_a_part_is_refused_by_its_name(config: Config) -> None:
    file = save(config, tiny_learner(config), step=1)
    record = torch.load(file, weights_only=True)
    del record["num_skipped"]
    torch.save(record, file)
    with pytest.raises(CheckpointError, match="num_skipped: Field required"):
        read_checkpoint(file)


def test_a_checkpoint_of_version_1_is_lifted() -> None:
    """tests/integration/test_old_runs.py goes on from it."""
    file = Path(__file__).parents[2] / "fixtures/run_v1/run/checkpoints/step_00000003.pt"
    record, lifted = torch.load(file, weights_only=True), read_checkpoint(file)
    assert record["version"] == 1
    assert torch.equal(lifted.objective["dino"]["center"], record["center"])
    for network, parts in (("student", lifted.student), ("teacher", lifted.teacher)):
        assert parts.keys() == {"backbone", "head"}
        for part, weights in parts.items():
            assert weights.keys() == record[f"{network}_{part}"].keys()
    assert record["config"]["training"]["teacher_temp"] == lifted.config["objective"]["dino"]["teacher_temp"] == 0.05
    assert "teacher_temp" not in lifted.config["training"]


def test_another_number_of_processes_with_the_same_global_batch_goes_on_with_a_warning(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    save(config, tiny_learner(config), step=1)
    file = RunFolder(config.out).checkpoint_file(1)  # type: ignore[arg-type]
    record = torch.load(file, weights_only=True)
    record["world_size"] = 2
    torch.save(record, file)
    assert resume(config)[1] == 1
    assert "written by 2 process(es)" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"hello, I am text\n" * 100, b"\x80\x02N.", b"\x80\x02a", b"0", b"PK\x03\x04" + bytes(3000)]
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="checkpoint"):
        read_checkpoint(tmp_path / "model.pt")


def test_foreign_torch_files_are_refused_and_code_in_them_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of dino_path"):
        read_checkpoint(tmp_path / "foreign.pt")
    torch.save({"path": tmp_path, "module": torch.nn.Linear(2, 2)}, tmp_path / "pickled.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "pickled.pt")
