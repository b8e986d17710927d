"""The memory of a run: of the GPU, of a process, of a node, and what workers share."""

from __future__ import annotations

from dataclasses import replace

from dino_path.cluster.resources import resources_of
from dino_path.config import Config
from dino_path.plan.counted import StepCount
from dino_path.plan.figure import GB, Figure
from dino_path.plan.measured import Measured

# What the main process holds beside networks and views: Python, torch, timm; with CUDA its libraries too. The first was
# measured on Linux with torch 2.15, the second is a guess on the safe side. A worker's own memory was measured.
HOST_BYTES, HOST_BYTES_WITH_CUDA, WORKER_BYTES = 0.8e9, 4.0e9, 0.25e9
GPU_CONTEXT_BYTES, GPU_CACHE_SHARE = 0.6e9, 0.1  # usual, not measured by us: context and libraries; allocator's cache
AHEAD = 2  # batches that each worker keeps ready


def memory_figures(
    config: Config, count: StepCount, measured: Measured | None, num_processes: int, num_workers: int, *, is_gpu: bool
) -> dict[str, Figure]:
    """Of the GPU, of a process, of all processes of a node with their workers, and of what workers share."""
    assert config.training is not None
    views, batch_size = config.views, config.training.batch_size_per_gpu
    batch_bytes = batch_size * 3 * (2 * views.global_px**2 + views.num_local * views.local_px**2)
    shared_bytes = num_workers * AHEAD * batch_bytes
    found = {"gpu_memory": _gpu_memory(count, measured)} if is_gpu else {}
    found["host_memory"] = host = _host_memory(count, measured, batch_size, is_gpu=is_gpu, batch_bytes=batch_bytes)
    worker_bytes = measured.worker_bytes if measured is not None else None
    of_worker = f"{(worker_bytes or WORKER_BYTES) / GB:.2g} GB ({'measured' if worker_bytes else 'assumed'})"
    here = min(num_processes, max(resources_of("pretrain", config.cluster).num_gpus, 1))
    beside = here * (num_workers * (worker_bytes or WORKER_BYTES) + shared_bytes) / GB
    node = host.scaled(here, "GB", offset=beside)
    each = f", each with {num_workers} worker(s) of {of_worker}" if num_workers else ""
    found["node_memory"] = replace(node, how=f"{here} such process(es){each}")
    how = f"counted: {AHEAD} batches of each worker in /dev/shm"
    found["shared_memory"] = Figure(here * shared_bytes / GB, "GB", how)
    return found


def _gpu_memory(count: StepCount, measured: Measured | None) -> Figure:
    if measured is not None and measured.device_bytes is not None:
        return Figure(measured.device_bytes / GB, "GB", "measured: what torch's allocator took, without the context")
    low = count.peak_bytes + GPU_CONTEXT_BYTES
    return Figure(
        (low + GPU_CACHE_SHARE * count.peak_bytes) / GB, "GB",
        f"counted: {count.peak_bytes / GB:.3g} GB of tensors; with a usual context and cache (estimate)",
        low / GB, (low + 2 * GPU_CACHE_SHARE * count.peak_bytes) / GB,
    )  # fmt: skip


def _host_memory(
    count: StepCount, measured: Measured | None, batch_size: int, *, is_gpu: bool, batch_bytes: int
) -> Figure:
    """GB of the main process."""
    if measured is not None:
        further = 0.0 if is_gpu else (batch_size - measured.largest) * count.tile_bytes / GB
        how = "measured" + (f" with {measured.largest} tiles, and counted for {batch_size}" if further else "")
        value = measured.host_bytes / GB + further
        return Figure(value, "GB", how, value - further / 10, value + further / 3)
    value = (HOST_BYTES_WITH_CUDA + 3 * batch_bytes if is_gpu else HOST_BYTES + count.peak_bytes) / GB
    how = "estimate: libraries and a few batches" if is_gpu else "estimate: libraries (0.8 GB) and the counted peak"
    return Figure(value, "GB", how, 0.7 * value, 1.3 * value)
