"""What does not fit or looks wrong, and what the figures of a plan leave out."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch

from dino_path.config import Config
from dino_path.plan.figure import GB, Figure
from dino_path.plan.measured import Measured


def plan_warnings(
    config: Config,
    figures: dict[str, Figure],
    measured: Measured | None,
    core_views: Figure,
    num_workers: int,
    *,
    is_gpu: bool,
    compute: Figure,
) -> list[str]:
    """What does not fit into this machine or the section `cluster`."""
    assert config.training is not None
    found = []
    is_here = measured is not None
    place = next(one for one in (config.out or Path()).absolute().parents if one.exists())
    free = shutil.disk_usage(place).free / GB
    if config.out is not None and figures["disk"].value > free:
        found.append(f"disk: {figures['disk'].value:.3g} GB are needed at {place}, and {free:.3g} GB are free")
    shared = Path("/dev/shm")
    if is_here and num_workers and shared.is_dir():
        size = shutil.disk_usage(shared).free / GB
        if figures["shared_memory"].value > size:
            found.append(
                f"shared memory: the workers need {figures['shared_memory'].value:.2g} GB in /dev/shm, which has"
                f" {size:.2g} GB: enlarge it (docker run --shm-size), or lower training.num_workers"
            )
    free_memory = _free_memory()
    if is_here and free_memory is not None and figures["node_memory"].most() * GB > free_memory:
        found.append(
            f"memory: {figures['node_memory'].most():.3g} GB are needed, and {free_memory / GB:.3g} GB are free here:"
            " lower training.batch_size_per_gpu and raise training.accumulate_steps"
        )
    if is_gpu and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / GB
        if figures["gpu_memory"].value > total:
            found.append(
                f"GPU memory: {figures['gpu_memory'].value:.3g} GB are needed, and this GPU has {total:.3g} GB: lower"
                " training.batch_size_per_gpu and raise training.accumulate_steps, or set"
                " training.activation_checkpointing=elementwise"
            )
    tiles_each = config.training.batch_size_per_gpu * config.training.accumulate_steps
    if measured is not None and measured.wait > 0.1 and num_workers:
        found.append(
            f"views: {measured.wait:.0%} of the time is spent waiting for views: raise training.num_workers"
            f" ({num_workers} now), or set views.colour_on_device=true"
        )
    if measured is None and num_workers and num_workers * core_views.value < tiles_each / compute.value:
        could, makes = tiles_each / compute.value, num_workers * core_views.value
        needed = math.ceil(could / core_views.value)
        found.append(
            f"views: {num_workers} worker(s) make {makes:,.0f} tiles/s, and the {'GPU' if is_gpu else 'CPU'} could take"
            f" {could:,.0f}: training.num_workers={needed}, or views.colour_on_device=true"
        )
    return found


def _free_memory() -> int | None:
    """Bytes of available memory as /proc/meminfo gives them; None if it cannot be read."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    return 1024 * int(text.split("MemAvailable:")[1].split()[0])


def plan_notes(config: Config, measured: Measured | None, num_processes: int, *, is_gpu: bool, saves: int) -> list[str]:
    """What the figures leave out."""
    training, found = config.training, []
    assert training is not None
    if measured is not None:
        found.append("the range comes from the measured steps: it does not include other users of this machine later")
    if is_gpu and measured is None:
        found.append(
            "this machine has no GPU: times and GPU memory are estimates. Run this on a GPU node to measure them"
        )
    if num_processes > 1:
        found.append("the time that processes wait for each other is not included (docs/scaling.md)")
    if training.accumulate_steps == 1 and training.sharding is not None:
        found.append("training.sharding: memory is counted without it; the run will need less")
    if training.compile:
        found.append("training.compile: neither the minutes of compiling at the start nor the later gain is included")
    if config.monitor.knn_data is not None:
        found.append("the time does not include the running k-NN (monitor.knn_data)")
    if config.objective.distill.cached and config.objective.distill.weight > 0:
        found.append("the time does not include computing the teacher model's features (objective.distill.cached)")
    if training.continue_from is not None and num_processes > 1:
        found.append("training.continue_from was not read: steps are counted from 0")
    return found
