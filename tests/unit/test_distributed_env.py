"""Who we are among the processes, read from torchrun's or SLURM's variables."""

import pickle

import pytest
import torch

from dino_path.distributed import World, choose_device, open_world, world_shape
from dino_path.errors import DinoPathError, LaunchError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "2"}


@pytest.mark.parametrize(
    ("environment", "shape"),
    [
        ({}, (0, 1, 0)),
        (TORCHRUN, (3, 8, 1)),
        (SRUN, (5, 16, 2)),
        ({**SRUN, **TORCHRUN}, (3, 8, 1)),
        ({"SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"}, (0, 1, 0)),  # an sbatch script that starts no step
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, (0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (0, 1, 0)),
    ],
)
def test_torchrun_comes_before_slurm_and_without_either_one_is_alone(
    environment: dict[str, str], shape: tuple[int, int, int]
) -> None:
    assert world_shape(environment) == shape


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"RANK": "0"}, "RANK set, but not WORLD_SIZE, LOCAL_RANK."),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "WORLD_SIZE, LOCAL_RANK set, but not RANK."),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "but not SLURM_LOCALID."),
        ({**TORCHRUN, "RANK": "first"}, "RANK='first'."),
        ({**TORCHRUN, "WORLD_SIZE": ""}, "WORLD_SIZE=''."),
        ({**TORCHRUN, "RANK": "8"}, "rank 8 in a world of 8."),
        ({**TORCHRUN, "RANK": "-1"}, "rank -1 in a world of 8."),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "rank 0 in a world of 0."),
    ],
)
def test_half_set_and_nonsensical_variables_are_refused(environment: dict[str, str], found: str) -> None:
    with pytest.raises(LaunchError) as refusal:
        world_shape(environment)
    assert found in refusal.value.found
    assert "torchrun" in refusal.value.remedy or "Unset" in refusal.value.remedy


def test_device_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 0) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    assert choose_device("cpu", 1) == torch.device("cpu")


@pytest.mark.parametrize(("num_devices", "local_rank"), [(0, 0), (2, 2)])
def test_cuda_that_is_not_there_is_refused_and_not_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, num_devices: int, local_rank: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    with pytest.raises(LaunchError, match=f"local rank {local_rank} and sees {num_devices} CUDA devices"):
        choose_device("cuda", local_rank)


def test_a_world_of_one_opens_without_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(name, raising=False)
    with open_world("cpu") as world:
        assert world == World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
        assert not torch.distributed.is_initialized()
        world.barrier()
        assert world.sum_(torch.tensor(3.0)) == 3


def test_a_world_without_a_meeting_point_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(LaunchError, match="MASTER_ADDR is not set"), open_world("cpu"):
        pass


def test_refusals_survive_the_way_from_a_worker_process() -> None:
    error = LaunchError("thing", "found.", "needed.", "remedy.")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, LaunchError)
    assert str(copy) == str(error) == "thing: found.\n  needed.\n  remedy."
    assert issubclass(LaunchError, DinoPathError)
