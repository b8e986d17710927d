"""Who we are among the processes, read from torchrun's or SLURM's variables."""

import pickle

import pytest
import torch

from dino_path.distributed import World, choose_device, meeting_point, open_world
from dino_path.errors import DinoPathError, LaunchError
from dino_path.launch import first_host, world_shape
from dino_path.rendezvous import MeetingPoint

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
        ({**TORCHRUN, "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 where 8 process(es) run on this machine."),
        ({**TORCHRUN, "LOCAL_RANK": "8"}, "LOCAL_RANK=8 where 8 process(es) run on this machine."),
        ({**TORCHRUN, "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=2 where 2 process(es)"),
        ({**SRUN, "SLURM_LOCALID": "-1"}, "SLURM_LOCALID=-1 where 16 process(es)"),
    ],
)
def test_half_set_and_nonsensical_variables_are_refused(environment: dict[str, str], found: str) -> None:
    with pytest.raises(LaunchError) as refusal:
        world_shape(environment)
    assert found in refusal.value.found
    assert "torchrun" in refusal.value.remedy or "Unset" in refusal.value.remedy


MET = {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}
OF_SRUN = {"SLURM_STEP_NODELIST": "node[07-12]", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}


def test_processes_meet_where_master_addr_and_port_say() -> None:
    assert meeting_point(MET, 2) == MeetingPoint("10.0.0.7", 29500, "start 0", is_served=False)
    assert str(meeting_point({**MET, **OF_SRUN}, 2)) == "10.0.0.7:29500"
    torchrun = {**MET, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "3"}
    assert meeting_point(torchrun, 2) == MeetingPoint("10.0.0.7", 29500, "start 3", is_served=True)


def test_processes_of_srun_meet_on_their_first_node_at_a_port_of_their_job_step_and_restart() -> None:
    point = meeting_point(OF_SRUN, 2)
    assert str(point) == "node07:14711"
    for other in ({"SLURM_JOB_ID": "4712"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}):
        assert meeting_point({**OF_SRUN, **other}, 2).port != point.port


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"), ("node1,node4", "node1"), ("node[07-12,15],gpu3", "node07"), ("gpu-3,node[1-2]", "gpu-3"),
        ("a[1-2]-ib", "a1-ib"), ("r2n[11,13]", "r2n11"), ("login.hpc.edu", "login.hpc.edu"),
    ],
)  # fmt: skip
def test_the_first_host_of_slurms_lists(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, "a world of 2 processes, and no MASTER_ADDR and no MASTER_PORT."),
        ({"MASTER_ADDR": "here"}, "and no MASTER_PORT."),
        ({"MASTER_PORT": "29500", **OF_SRUN}, "and no MASTER_ADDR."),
        ({**MET, "MASTER_ADDR": ""}, "and no MASTER_ADDR."),
        ({**MET, "MASTER_PORT": "http"}, "MASTER_PORT='http'."),
        ({**MET, "MASTER_PORT": "0"}, "MASTER_PORT=0."),
        ({**MET, "MASTER_PORT": "65536"}, "MASTER_PORT=65536."),
    ],
)
def test_meeting_points_that_are_none_are_refused(environment: dict[str, str], found: str) -> None:
    with pytest.raises(LaunchError) as refusal:
        meeting_point(environment, 2)
    assert found in refusal.value.found


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
    with pytest.raises(LaunchError, match="no MASTER_ADDR"), open_world("cpu"):
        pass


def test_refusals_survive_the_way_from_a_worker_process() -> None:
    error = LaunchError("thing", "found.", "needed.", "remedy.")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, LaunchError)
    assert str(copy) == str(error) == "thing: found.\n  needed.\n  remedy."
    assert issubclass(LaunchError, DinoPathError)
