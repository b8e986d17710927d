"""Where a run's numbers go: metrics.jsonl always, Weights & Biases and TensorBoard beside it. Rank 0 only."""

from __future__ import annotations

import logging
import os
import uuid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dino_path.atomic import atomic_write
from dino_path.config import Config
from dino_path.errors import TileStoreError
from dino_path.model.sizes import patch_grid
from dino_path.records.metrics import StepRecord, cut_metrics, metrics_line
from dino_path.run import RunFolder
from dino_path.settings import as_plain
from dino_path.sharing import shared_settings
from dino_path.tiles.source import TileSource
from dino_path.views.sheet import write_sheet

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

NUM_SHOWN = 6  # tiles on the sheet of views


class Records:
    """An open log of one run; use as a context manager. A resume appends without repeating a step."""

    def __init__(self, run: RunFolder, config: Config, *, start_step: int) -> None:
        for line in (before := cut_metrics(run.metrics_file, start_step)).unreadable:
            logger.warning("%s: %s; it is skipped, and the run continues", run.metrics_file, line)
        if before.is_cut_off:
            logger.warning("%s: its last line is incomplete; it is skipped, and the run continues", run.metrics_file)
        self._stream = run.metrics_file.open("a", encoding="utf-8")
        self._run, self._start_step, self._sends_images = run, start_step, config.wandb.log_images
        self._tensorboard = _start_tensorboard(run, start_step) if config.monitor.tensorboard else None
        self._wandb = _start_wandb(run, config)

    def write(self, record: StepRecord) -> None:
        """Append one record."""
        self._stream.write(metrics_line(record))
        self._stream.flush()
        if self._tensorboard is not None:
            for name, value in record.numbers().items():
                if name != "step":
                    self._tensorboard.add_scalar(name, value, record.step)
            self._tensorboard.flush()
        if self._wandb is not None:
            values: dict[str, Any] = {name: value for name, value in record if name != "step" and value is not None}
            try:
                if record.knn_accuracy is not None and self._sends_images and self._run.neighbours_file.exists():
                    import wandb

                    values["neighbours"] = wandb.Image(str(self._run.neighbours_file))
                self._wandb.log(values, step=record.step)
            except _wandb_errors() as error:
                logger.warning("W&B stopped (%s); training and metrics.jsonl continue.", error)
                self._wandb = None

    def show_views(self, config: Config, tiles: TileSource) -> None:
        """Write views of the first tiles to RUN/figures/views.png and send it, where `wandb.log_images` is set."""
        if self._wandb is None or not config.wandb.log_images or self._start_step > 0:
            return
        import wandb

        assert config.training is not None
        file, ibot, patch_px = self._run.figures / "views.png", config.objective.ibot, None
        if ibot.weight > 0:
            rows, _ = patch_grid(config.model.backbone, config.model.backbone_arguments, config.views.global_px)
            patch_px = config.views.global_px // rows
        try:
            write_sheet(
                file, tiles, {config.views.recipe: config.views}, balance=config.training.balance,
                num_tiles=min(NUM_SHOWN, len(tiles)), seed=config.training.seed, masks=ibot.masks, patch_px=patch_px,
            )  # fmt: skip
            self._wandb.log({"views": wandb.Image(str(file))}, step=0)
        except TileStoreError as error:
            logger.warning("No sheet of views: %s %s", error.thing, error.found)
        except _wandb_errors() as error:
            logger.warning("W&B did not accept the sheet of views (%s).", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            try:
                self._wandb.finish(exit_code=0 if kind is None else 1)
            except _wandb_errors() as failure:
                logger.warning("W&B did not close its run (%s).", failure)


def _start_tensorboard(run: RunFolder, start_step: int) -> SummaryWriter:
    """A new event file; TensorBoard then ignores repeated steps in earlier files."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.tensorboard), purge_step=start_step)


def _start_wandb(run: RunFolder, config: Config) -> Any | None:
    """A W&B run under the id that this run folder keeps; None when off, or when W&B cannot start."""
    if config.wandb.mode == "disabled":
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    if not run.wandb_id_file.exists():
        with atomic_write(run.wandb_id_file) as stream:
            stream.write(uuid.uuid4().hex[:8])
    try:
        return wandb.init(
            id=run.wandb_id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            mode=config.wandb.mode,
            project=config.wandb.project,
            entity=config.wandb.entity,
            name=config.wandb.name,
            dir=run.path,
            config=shared_settings(as_plain(config)),
            settings=wandb.Settings(  # nothing of this machine: no host, user, program, git, packages, hardware
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                disable_job_creation=True,
                host="",
                program="",
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
    except _wandb_errors() as error:
        logger.warning("W&B did not start (%s); the run continues with metrics.jsonl only.", error)
        return None


def _wandb_errors() -> tuple[type[BaseException], ...]:
    """Errors of W&B when its service, disk or network fails, or from its own code: none of them may end training."""
    import wandb
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError  # its service was killed, as on preemption

    abandoned = (HandleAbandonedError, MailboxClosedError)
    usual = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
    return (wandb.Error, *abandoned, *usual)
