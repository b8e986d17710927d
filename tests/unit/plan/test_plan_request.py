"""What SLURM is asked for, and what a step takes on hardware that is not here."""

import math

import pytest

from dino_path.config import ClusterConfig, ViewsConfig
from dino_path.plan.estimated import gpu_of, step_on_gpu, views_of_core
from dino_path.plan.request import cluster_lines, seconds_of, slurm_time
from dino_path.settings import load_config


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800), ("10:30", 630), ("24:00:00", 86400), ("2-12", 216000), ("2-12:30", 217800),
        ("1-00:00:05", 86405), ("UNLIMITED", math.inf),
    ],
)  # fmt: skip
def test_slurms_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_times_are_written_as_slurm_reads_them_and_never_too_short() -> None:
    assert slurm_time(1) == "00:10:00"
    assert slurm_time(86400) == "1-00:00:00"
    for seconds in (59.0, 3601.0, 90_000.0, 1e6):
        assert seconds <= seconds_of(slurm_time(seconds)) < seconds + 600


def test_the_lines_leave_room_and_are_settings() -> None:
    config = load_config(None, ["training.num_steps=1", "cluster.gpus_per_node=a100:4", "cluster.time=1-00:00:00"])
    lines = cluster_lines(
        config, num_gpus=4, num_workers=12, is_gpu=True, num_cores=8, node_bytes=40e9, time_s=36_000
    )  # fmt: skip
    asked = {line.key: line.value for line in lines}
    assert asked == {
        "cluster.nodes": "1", "cluster.gpus_per_node": "a100:4", "cluster.cpus_per_gpu": "12",
        "cluster.memory_per_node": "52G", "cluster.time": "12:40:00",
    }  # fmt: skip


def test_a_run_that_outlasts_the_limit_keeps_it_and_is_told_how_often_it_starts() -> None:
    config = load_config(None, ["training.num_steps=1", "cluster.time=24:00:00"])
    lines = cluster_lines(config, num_gpus=0, num_workers=0, is_gpu=False, num_cores=2, node_bytes=1e9, time_s=3e5)
    last = lines[-1]
    assert (last.value, "about 5 starts" in last.why) == ("24:00:00", True)
    assert {line.key: line.value for line in lines}["cluster.gpus_per_node"] == "0"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"gpus_per_node": "a100:2"}, "a100"),
        ({"constraint": "h200&nvlink"}, "h200"),
        ({"stages": {"gpu": {"gpus": "l40s:1"}}, "gpus_per_node": "v100:1"}, "l40s"),
        ({"gpus_per_node": 8}, None),
        ({"gpus_per_node": "a100x:2"}, None),
    ],
)
def test_the_kind_of_gpu_is_read_from_the_section(settings: dict[str, object], name: str | None) -> None:
    assert gpu_of(ClusterConfig.model_validate(settings)) == name


def test_a_step_on_a_gpu_is_its_operations_over_a_share_of_the_peak() -> None:
    step = step_on_gpu(9.89e12, ClusterConfig(gpus_per_node="h100:1"))
    assert (step.low, step.high) == pytest.approx((0.01 / 0.35, 0.1))
    assert "estimate" in step.how
    assert "H100" in step.how


def test_the_views_of_a_core_follow_their_pixels() -> None:
    published = views_of_core(ViewsConfig())
    assert published.value == pytest.approx(315)
    assert views_of_core(ViewsConfig(num_local=0)).value == pytest.approx(315 * (2 * 224**2 + 8 * 96**2) / (2 * 224**2))
