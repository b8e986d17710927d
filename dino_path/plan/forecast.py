"""The plan of a run: its length, time, memory, disk, files, and what to ask SLURM for."""

from __future__ import annotations

import logging
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
from dino_path.plan.figure import GB, Figure
from dino_path.plan.measured import Measured, disk_bytes_per_s, measure_steps, measure_views
from dino_path.plan.memory import memory_figures
from dino_path.plan.remarks import plan_notes, plan_warnings
from dino_path.plan.request import ClusterLine, cluster_lines
from dino_path.plan.storage import PlannedFile, num_saves, planned_files
from dino_path.run import RunFolder
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

START_S, START_SPREAD = 30.0, 3.0  # of a start that was not measured
DISK_BYTES_PER_S = 0.3e9  # where it was not measured


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
    saves = num_saves(config, steps_done, clock.num_steps)
    num_records = -(-steps_left // config.monitor.log_every_steps)
    files = planned_files(config, tiles, count, saves, num_records, guide)
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
    figures |= memory_figures(config, count, measured, num_processes, num_workers, is_gpu=is_gpu)
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
        warnings=tuple(
            plan_warnings(config, figures, measured, core_views, num_workers, is_gpu=is_gpu, compute=compute)
        ),
        notes=(
            *(f"advice: {one}" for one in advice(config, clock, num_tiles=len(tiles))),
            *plan_notes(config, measured, num_processes, is_gpu=is_gpu, saves=saves),
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
