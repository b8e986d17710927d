"""What to ask SLURM for: settings of the section `cluster`, with the reason of each."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from dino_path.config import Config
from dino_path.settings import with_settings

SPARE_MEMORY, SPARE_TIME, SPARE_S = 1.3, 1.25, 600.0
LEAST_GB = 4
DAY_S = 86400.0


@dataclass(frozen=True)
class ClusterLine:
    """One setting: `cluster.time`, its value as in YAML, and why."""

    key: str
    value: str
    why: str


def cluster_lines(
    config: Config,
    *,
    num_gpus: int,
    num_workers: int,
    is_gpu: bool,
    num_cores: int,
    node_bytes: float,
    time_s: float,
) -> tuple[ClusterLine, ...]:
    """The lines, which the config's section takes (else ConfigError).

    Args:
        num_gpus: of each node; 0: the run is for CPUs.
        num_cores: that the estimate is for, where there is no GPU.
        node_bytes: the most that all processes of a node hold.
        time_s: at the upper end of the range.
    """
    cluster = config.cluster
    asked = str(cluster.gpus_per_node) if num_gpus else "0"
    memory_gb = max(LEAST_GB, math.ceil(node_bytes * SPARE_MEMORY / 1e9))
    wanted_s = time_s * SPARE_TIME + SPARE_S
    limit_s = seconds_of(cluster.time)
    if wanted_s <= limit_s:
        time_text, why = slurm_time(wanted_s), "the upper end of the range, a quarter more and 10 minutes"
    else:
        starts = math.ceil(wanted_s / limit_s)
        time_text, why = cluster.time, f"as it is: the job queues itself again, about {starts} starts in all"
    cpus = max(num_workers, 1) if is_gpu else num_cores
    lines = (
        ClusterLine("cluster.nodes", str(cluster.nodes), "as it is"),
        ClusterLine("cluster.gpus_per_node", asked, "as it is" if num_gpus else "the plan is for a CPU"),
        ClusterLine(
            "cluster.cpus_per_gpu", str(cpus),
            f"of each process: {num_workers} worker(s)" if is_gpu else "of the process, as the plan has it",
        ),
        ClusterLine("cluster.memory_per_node", f"{memory_gb}G", "all processes of a node, and a third more"),
        ClusterLine("cluster.time", time_text, why),
    )  # fmt: skip
    with_settings(config, {line.key: line.value for line in lines})
    return lines


def slurm_time(seconds: float) -> str:
    """As SLURM writes it, rounded up to ten minutes: 2-12:00:00."""
    minutes = math.ceil(seconds / 600) * 10
    days, minutes = divmod(minutes, 24 * 60)
    clock = f"{minutes // 60:02d}:{minutes % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def seconds_of(text: str) -> float:
    """SLURM's times: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S; infinite for what has no end, or is none of these."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        return math.inf
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    units = (3600, 60, 1) if days is not None or len(numbers) == 3 else (60, 1)
    return int(days or 0) * DAY_S + sum(number * unit for number, unit in zip(numbers, units, strict=False))
