"""The plan of a run: its length, time, memory, disk, files, and what to ask SLURM for."""

from __future__ import annotations

import logging
import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dino_path.cluster.resources import resources_of
from dino_path.config import Config
from dino_path.distributed import World, usable_cores
from dino_path.errors import ConfigError
from dino_path.model.checkpoint import Start
from dino_path.plan.counted import StepCount, count_step
from dino_path.plan.estimated import step_on_cpu, step_on_gpu, views_of_core
from dino_path.plan.figure import Figure
from dino_path.plan.measured import Measured, disk_bytes_per_s, measure_steps, measure_views
from dino_path.plan.request import ClusterLine, cluster_lines
from dino_path.run import RunFolder
from dino_path.tiles.images import ImageFiles
from dino_path.tiles.source import TileSource, open_tiles
from dino_path.tiles.store import TileStore
from dino_path.training.advice import advice
from dino_path.training.checkpoints import newest_readable
from dino_path.training.continuation import start_from_other_run
from dino_path.training.distill_settings import check_distillation
from dino_path.training.global_batch import keep_global_batch
from dino_path.training.guide import LiveGuide, open_guide
from dino_path.training.learner import Learner
from dino_path.training.loop import check_view_sizes, num_view_workers
from dino_path.training.networks import resolve_precision
from dino_path.training.other_run import check_start
from dino_path.training.same_run import refuse_other_run
from dino_path.training.schedules import Schedules, run_schedules
from dino_path.training.unreadable import tiles_as_begun

logger = logging.getLogger(__name__)

GB = 1e9
# What the main process holds beside networks and views: Python, torch, timm; with CUDA its libraries too. The first was
# measured on Linux with torch 2.15, the second is a guess on the safe side. A worker's own memory was measured.
HOST_BYTES, HOST_BYTES_WITH_CUDA, WORKER_BYTES = 0.8e9, 4.0e9, 0.25e9
GPU_CONTEXT_BYTES, GPU_CACHE_SHARE = 0.6e9, 0.1  # usual, not measured by us: context and libraries; allocator's cache
AHEAD = 2  # batches that each worker keeps ready
RECORD_BYTES, LOG_LINE_BYTES, OFFLINE_BYTES = 900, 160, 1_500  # of one record: metrics.jsonl, log.txt, W&B offline
IMAGE_LINE_BYTES = 60  # of images.csv, which lists a folder of images
SMALL_FILES_BYTES = 100_000  # config.yaml, environment.json, log.txt's first lines, W&B's own files
START_S, START_SPREAD = 30.0, 3.0  # of a start that was not measured
DISK_BYTES_PER_S = 0.3e9  # where it was not measured


@dataclass(frozen=True)
class PlannedFile:
    """What the run writes: bytes at its end, and the most on the way."""

    path: str
    num_bytes: int
    most_bytes: int
    note: str


@dataclass(frozen=True)
class Plan:
    """The forecast of a run.

    Attributes:
        device: `cpu` or `cuda`: what the figures are for.
        steps_done: of a run that has begun; time and files are for the remaining steps.
        figures: by name; `time` first.
        cluster: settings for the request to SLURM.
        warnings: what does not fit or looks wrong; `notes`: what the figures leave out.
    """

    store: str
    num_tiles: int
    num_slides: int | None
    num_processes: int
    device: str
    num_parameters: int
    num_steps: int
    steps_done: int
    tiles_per_step: int
    tiles_seen: int
    times_each_tile: float
    figures: dict[str, Figure]
    files: tuple[PlannedFile, ...]
    schedules: tuple[str, ...]
    cluster: tuple[ClusterLine, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def make_plan(config: Config, *, num_processes: int | None, budget_s: float | None, began_s: float) -> Plan:
    """Read the tiles, count one step, measure a few steps if this machine has the hardware, and add up.

    Args:
        num_processes: None: as many as `submit pretrain` would start.
        budget_s: seconds for the steps that are measured; None: nothing is measured.
        began_s: `time.perf_counter()` when the command began, from which the start of a run is measured.

    Raises:
        DinoPathError: `pretrain` would refuse the settings, or a step does not fit into the GPU.
    """
    run = RunFolder(config.out) if config.out is not None else None
    config = config.model_copy(update={"out": config.out or Path("RUN")})  # a name to look at: nothing is written
    assert config.store is not None
    assert config.training is not None
    tiles = open_tiles(config.store, split=config.slides.split, exclude=config.slides.exclude)
    if run is not None:
        tiles = tiles_as_begun(run, tiles, config.store)
    check_start(config)
    check_distillation(config)
    check_view_sizes(config)
    has_gpu = torch.cuda.is_available()
    wanted = config.training.device
    device = wanted if wanted != "auto" else "cuda" if has_gpu else "cpu"
    world = World(0, 1, 0, torch.device("cuda", 0) if device == "cuda" and has_gpu else torch.device("cpu"))
    resources = resources_of("pretrain", config.cluster)
    if num_processes is None:
        num_processes = config.cluster.nodes * max(resources.num_gpus, 1)
    steps_done = 0
    if run is not None and run.checkpoint_files():
        config = keep_global_batch(config, num_processes)
        steps_done = _steps_done(run, config, tiles, num_processes)
    training = config.training
    assert training is not None

    guide = open_guide(config, tiles, world)
    is_measured = budget_s is not None and (device == "cpu" or has_gpu)
    learner: Learner | None = None
    starts: tuple[Start, ...] = ()
    starts_from_other = training.continue_from is not None and not steps_done
    if is_measured or (starts_from_other and num_processes == 1):
        logger.info("building %s", config.model.backbone)
        has_state = bool(training.continue_from or steps_done)
        model = config.model.model_copy(update={"weights": None}) if has_state else config.model
        learner = Learner(model, config.objective, config.optim, training, world, guide)
        if starts_from_other and num_processes == 1:
            position = start_from_other_run(learner, config, tiles)
            starts, steps_done = position.starts, position.step
    schedules = run_schedules(config, starts, num_tiles=len(tiles), world_size=num_processes)
    clock = schedules.clock
    measured = None
    if is_measured and learner is not None and budget_s is not None:
        ready_s = time.perf_counter() - began_s
        logger.info("measuring a few steps on %s, %.0f s", world.device, budget_s)
        measured = _measured(config, tiles, learner, schedules, budget_s)
        del learner
    precision = resolve_precision(training, torch.device(device))
    logger.info("counting the operations and memory of a step")
    count = count_step(
        config, schedules.at(clock.num_steps - 1), precision=precision, is_gpu=device == "cuda",
        guide=open_guide(config, tiles, World(0, 1, 0, torch.device("cpu"))) if world.device.type == "cuda" else guide,
    )  # fmt: skip
    return _added_up(
        config, tiles, schedules, count, measured, num_processes=num_processes, device=device, precision=precision,
        steps_done=steps_done, ready_s=ready_s if measured else START_S, is_measuring=budget_s is not None, guide=guide,
    )  # fmt: skip


def _steps_done(run: RunFolder, config: Config, tiles: TileSource, num_processes: int) -> int:
    """Updates of the run that has begun.

    Raises:
        CheckpointError: its checkpoints cannot be read, or are of other settings or tiles.
    """
    assert config.training is not None
    path, checkpoint = newest_readable(run.checkpoints, run.checkpoint_files())
    size = config.training.batch_size_per_gpu * config.training.accumulate_steps * num_processes
    refuse_other_run(path, checkpoint, config, tiles, global_batch_size=size, guide=None)
    return checkpoint.step


def _measured(config: Config, tiles: TileSource, learner: Learner, schedules: Schedules, budget_s: float) -> Measured:
    assert config.training is not None
    try:
        return measure_steps(config, tiles, learner, schedules, budget_s=budget_s)
    except torch.OutOfMemoryError as error:
        size = config.training.batch_size_per_gpu
        half = (
            f"training.batch_size_per_gpu={size // 2} training.accumulate_steps={2 * config.training.accumulate_steps}"
        )
        raise ConfigError(
            f"training.batch_size_per_gpu={size}",
            f"a step does not fit into this GPU ({' '.join(str(error).split())[:120]}).",
            "A micro-batch must fit. `--estimate` estimates how much it needs.",
            f"Set {half}, or training.activation_checkpointing=elementwise (or true).",
        ) from None


def _added_up(
    config: Config,
    tiles: TileSource,
    schedules: Schedules,
    count: StepCount,
    measured: Measured | None,
    *,
    num_processes: int,
    device: str,
    precision: str,
    steps_done: int,
    ready_s: float,
    is_measuring: bool,
    guide: LiveGuide | None,
) -> Plan:
    training, clock, is_gpu = config.training, schedules.clock, device == "cuda"
    assert training is not None
    resources = resources_of("pretrain", config.cluster)
    tiles_each = training.batch_size_per_gpu * training.accumulate_steps
    num_workers = num_view_workers(training)
    num_cores = resources.cpus if is_gpu and measured is None else usable_cores()
    if training.num_workers is None and measured is None:
        num_workers = min(num_cores - 1, 8)
    core_views = measure_views(config, tiles) if is_measuring else views_of_core(config.views)
    compute = step_on_gpu(count.flops, config.cluster) if is_gpu else step_on_cpu(count.flops, precision, num_cores)
    step = measured.step if measured is not None else _with_views(compute, core_views, tiles_each, num_workers)
    steps_left = max(clock.num_steps - steps_done, 0)

    # What is written, and when.
    saves = _num_saves(config, steps_done, clock.num_steps)
    num_records = -(-steps_left // config.monitor.log_every_steps)
    files = _files(config, tiles, count, saves, num_records, guide)
    place = config.out or Path()
    disk_rate = disk_bytes_per_s(place) if is_measuring else DISK_BYTES_PER_S
    record_s = measured.record_s if measured is not None else 0.05
    beside_s = saves * count.checkpoint_bytes / disk_rate + num_records * record_s
    start_s = ready_s + measured.first_s if measured is not None else ready_s
    time_left = step.scaled(steps_left, "s", offset=beside_s + start_s)
    if measured is None:
        spread = (START_SPREAD - 1) * START_S
        time_left = replace(
            time_left, how=f"{step.how}; and {START_S:.0f} s to start (assumed)", high=time_left.most() + spread
        )

    figures = {
        "time": time_left,
        "step": step,
        "tiles_per_s": step.inverse(tiles_each * num_processes, "tiles/s"),
        "views_per_s": step.inverse(tiles_each * num_processes * (2 + config.views.num_local), "views/s"),
        "views_of_one_core": core_views,
        "operations": Figure(count.flops / tiles_each / GB, "GFLOP/tile", "counted: student, teacher and heads"),
    }
    figures |= _memory(config, count, measured, num_processes, num_workers, is_gpu=is_gpu)
    figures["disk"] = Figure(
        sum(one.most_bytes for one in files) / GB, "GB",
        f"counted: the most at once; {sum(one.num_bytes for one in files) / GB:.2g} GB at the end",
    )  # fmt: skip

    lines = cluster_lines(
        config, num_gpus=resources.num_gpus if is_gpu else 0, num_workers=num_workers, is_gpu=is_gpu,
        num_cores=num_cores, node_bytes=GB * figures["node_memory"].most(), time_s=time_left.most(),
    )  # fmt: skip
    return Plan(
        store=str(config.store),
        num_tiles=len(tiles),
        num_slides=len(tiles.slides) if isinstance(tiles, TileStore) else None,
        num_processes=num_processes,
        device=device,
        num_parameters=count.num_parameters,
        num_steps=clock.num_steps,
        steps_done=steps_done,
        tiles_per_step=clock.global_batch_size,
        tiles_seen=clock.tiles_seen(clock.num_steps),
        times_each_tile=clock.epoch(clock.num_steps),
        figures=figures,
        files=files,
        schedules=tuple(schedules.lines()),
        cluster=lines,
        warnings=tuple(_warnings(config, figures, measured, core_views, num_workers, is_gpu=is_gpu, compute=compute)),
        notes=(
            *(f"advice: {one}" for one in advice(config, clock, num_tiles=len(tiles))),
            *_notes(config, measured, num_processes, is_gpu=is_gpu, saves=saves),
        ),
    )


def _with_views(compute: Figure, core: Figure, num_tiles: int, num_workers: int) -> Figure:
    """Seconds of a step: workers make views beside the arithmetic; without any the process itself does, before it."""
    assert compute.low is not None
    assert compute.high is not None
    slow, fast = core.low or core.value, core.high or core.value
    views = [num_tiles / rate / max(num_workers, 1) for rate in (core.value, fast, slow)]
    together = sum if num_workers == 0 else max
    value, low, high = (
        together((one, other)) for one, other in zip((compute.value, compute.low, compute.high), views, strict=True)
    )
    limit = "; the CPU's views are the limit" if num_workers and views[0] > compute.value else ""
    return Figure(value, "s", compute.how + limit, low, high)


def _num_saves(config: Config, done: int, num_steps: int) -> int:
    """Checkpoints that are still to be written."""
    assert config.training is not None
    every = {config.training.checkpoint_every_steps}
    if config.monitor.keep_best and config.monitor.knn_data is not None:
        every.add(config.monitor.knn_every_steps)
    steps = {step for period in every for step in range(done - done % period + period, num_steps + 1, period)}
    return len(steps | ({num_steps} if num_steps > done else set()))


def _files(
    config: Config, tiles: TileSource, count: StepCount, saves: int, num_records: int, guide: LiveGuide | None
) -> tuple[PlannedFile, ...]:
    assert config.training is not None
    keep, size = config.training.keep_checkpoints, count.checkpoint_bytes
    best = 1 if config.monitor.keep_best and saves > keep else 0
    at_end, most = min(saves, keep) + best, min(saves, keep + 1) + best
    note = f"{saves} are written; the newest {min(saves, keep)} stay{', and the best' if best else ''}"
    numbers = num_records * (RECORD_BYTES + LOG_LINE_BYTES) + SMALL_FILES_BYTES
    found = [
        PlannedFile("checkpoints/", at_end * size, most * size, f"{note}; {size / GB:.3g} GB each (counted)"),
        PlannedFile("metrics.jsonl, log.txt, config.yaml, ...", numbers, numbers, f"{num_records} records (estimate)"),
    ]
    if isinstance(tiles, ImageFiles):
        listed = IMAGE_LINE_BYTES * len(tiles)
        found.append(PlannedFile("images.csv", listed, listed, f"{len(tiles):,} images (estimate)"))
    if config.wandb.mode != "disabled":
        offline = num_records * OFFLINE_BYTES + SMALL_FILES_BYTES
        found.append(PlannedFile("wandb/", offline, offline, f"wandb.mode={config.wandb.mode} (estimate)"))
    if config.objective.distill.cached and guide is not None:
        facts = guide.facts
        of_tile = 4 * facts.num_features + 2 * facts.num_features * (facts.num_patches or 0)
        of_all = len(tiles) * of_tile
        found.append(PlannedFile("guide_features/", of_all, of_all, f"of {len(tiles):,} tiles (counted)"))
    return tuple(found)


def _memory(
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


def _warnings(
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


def _notes(config: Config, measured: Measured | None, num_processes: int, *, is_gpu: bool, saves: int) -> list[str]:
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
