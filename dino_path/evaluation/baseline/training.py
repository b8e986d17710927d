"""A supervised network, trained end to end on the training images, for comparison with every frozen extractor.

Shape suffixes: B images of a batch, C classes (after images: channels), N images.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dino_path.atomic import atomic_write
from dino_path.config import BaselineConfig
from dino_path.errors import CheckpointError, DataError
from dino_path.evaluation.baseline.files import BaselineFolder
from dino_path.evaluation.baseline.model_folder import write_baseline_model
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.images import AUGMENTATION, SquareImages, augment, image_edge_px
from dino_path.evaluation.measures.confusion import confusion_matrix, summarise
from dino_path.evaluation.measures.metrics import Metrics, measure
from dino_path.model.backbone import build_backbone, count_parameters
from dino_path.model.pretrained import load_start
from dino_path.model.torch_file import UNREADABLE, load_torch_file
from dino_path.preprocessing import Preprocessing, Triple
from dino_path.progress import Meter, meter
from dino_path.records.baseline import BaselineRecord, EpochRecord, ValidationRecord, counted_from_1
from dino_path.records.deciding_settings import deciding_settings
from dino_path.records.environment import shared_environment
from dino_path.records.labelled import DataRecord, MetricsRecord
from dino_path.settings import as_plain

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 60.0
IMAGES_FOR_MEAN = 512
WARMUP_SHARE = 0.2  # of the steps in which the one-cycle schedule rises
# The settings of the oldest baselines: they make it another experiment, and so do younger ones that are not at their
# default (`deciding_settings`).
FIRST_SETTINGS = (
    "backbone", "weights", "num_epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "validation_fraction",
    "patience", "input_px",
)  # fmt: skip


@dataclass(frozen=True)
class BaselineResult:
    """A trained baseline, measured on the test images.

    Attributes:
        out: its folder; also a model folder of the trained backbone.
        scores: (N, C) class probabilities of the test images, in the order of the set.
        history: one record per epoch; `best_epoch`, counted from 1, is the one whose weights were kept.
    """

    out: Path
    metrics: Metrics
    scores: NDArray[np.float64]
    best_epoch: int
    history: tuple[EpochRecord, ...]


class Classifier(nn.Module):
    """Backbone, and a linear layer on its pooled features."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(int(backbone.num_features), num_classes)  # type: ignore[arg-type]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BC: Tensor = self.classifier(self.backbone(images_BCHW))
        return logits_BC


def train_baseline(
    labelled: LabelledSet,
    config: BaselineConfig,
    *,
    num_bootstrap: int,
    seed: int,
    out: Path,
    device: torch.device,
    num_workers: int,
) -> BaselineResult:
    """Train on the training part, choose the epoch on a validation part of it, test once. Killed, it continues.

    Validation images are the data's own "val" split, else whole patients (slides, images) of the training part.

    Args:
        num_bootstrap: resamples behind the intervals of the test metrics.
        num_workers: threads that decode images.

    Raises:
        DataError: a class has too few training units, or `out` holds another experiment.
        CheckpointError: the weights to start from cannot be obtained.
        TileStoreError: an image cannot be read.
    """
    folder = BaselineFolder(out)
    experiment = _experiment(labelled, config, seed)
    if folder.is_finished():
        return _read_finished(folder, labelled, experiment, num_bootstrap, seed)
    fit, validation = labelled.fit_and_validation(config.validation_fraction, seed=seed)
    images = SquareImages(labelled.source, config.input_px or image_edge_px(labelled.source), num_workers=num_workers)
    training = Training.start(labelled, config, images, fit, validation, seed=seed, device=device)
    training.restore(folder.checkpoint_file, experiment)
    training.run(folder.checkpoint_file, experiment)

    training.model.load_state_dict(training.best_weights)
    test = labelled.part("test")
    scores_NC = torch.softmax(training.logits(test), dim=1).double().numpy()
    metrics = _measure(labelled, scores_NC, num_bootstrap, seed)
    folder.write_predictions(labelled, test, scores_NC)
    write_baseline_model(
        out,
        training.model.backbone,
        config.backbone,
        Preprocessing(training.mean, training.std, images.edge_px, labelled.source.mpp, image_edge_px(labelled.source)),
    )
    folder.write_result(_record(labelled, training, metrics, experiment))
    folder.checkpoint_file.unlink(missing_ok=True)
    return BaselineResult(out, metrics, scores_NC, training.best_epoch, tuple(training.history))


@dataclass
class Training:
    """The state of one training; `restore` and `_save` carry all of it."""

    config: BaselineConfig
    images: SquareImages
    labels: Tensor
    num_classes: int
    fit: NDArray[np.int64]
    validation: NDArray[np.int64]
    seed: int
    device: torch.device
    mean: Triple
    std: Triple
    model: Classifier
    optimizer: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.OneCycleLR
    history: list[EpochRecord]
    best_epoch: int
    best_weights: dict[str, Tensor]

    @classmethod
    def start(
        cls, labelled: LabelledSet, config: BaselineConfig, images: SquareImages, fit: NDArray[np.int64],
        validation: NDArray[np.int64], *, seed: int, device: torch.device,
    ) -> Training:  # fmt: skip
        """Epoch 0, with weights drawn from `seed` or given by `config.weights`."""
        mean, std = _mean_and_std(images, fit)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if config.weights is None:
                backbone = build_backbone(config.backbone, {})
            else:
                start = load_start(config.backbone, config.weights, {})
                backbone, mean, std = start.module, start.preprocessing.mean, start.preprocessing.std
            model = Classifier(backbone, len(labelled.classes))
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
        total_steps = config.num_epochs * len(_cut(fit, config.batch_size)) + 1
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=config.lr,
            total_steps=total_steps,
            pct_start=max(WARMUP_SHARE, 2 / total_steps),  # a rise of no step would divide by zero
        )
        return cls(
            config=config, images=images, labels=torch.from_numpy(labelled.labels), num_classes=len(labelled.classes),
            fit=fit, validation=validation, seed=seed, device=device, mean=mean, std=std, model=model,
            optimizer=optimizer, schedule=schedule, history=[], best_epoch=0, best_weights={},
        )  # fmt: skip

    def run(self, checkpoint: Path, experiment: str) -> None:
        """Train until the last epoch, or until validation has not gained for `patience` epochs."""
        epoch_images = sum(map(len, _cut(self.fit, self.config.batch_size)))
        saved_s = time.monotonic()
        with meter("baseline", self.config.num_epochs * epoch_images, "images") as counter:
            counter.advance(len(self.history) * epoch_images, "continued" if self.history else "")
            while len(self.history) < self.config.num_epochs and not self.has_stalled():
                self.run_epoch(counter)
                if time.monotonic() - saved_s >= CHECKPOINT_EVERY_S:
                    self._save(checkpoint, experiment)
                    saved_s = time.monotonic()
        best = self.history[self.best_epoch - 1]
        logger.info(
            "baseline: %d epochs, best is epoch %d (validation accuracy %.3f, balanced %.3f)",
            len(self.history), best.epoch, best.validation_accuracy, best.validation_balanced_accuracy,
        )  # fmt: skip

    def has_stalled(self) -> bool:
        return len(self.history) - self.best_epoch >= self.config.patience

    def run_epoch(self, counter: Meter) -> None:
        """One pass over the fit images in a new order, then validation; the best weights so far are kept."""
        epoch = len(self.history) + 1
        order = np.random.default_rng([self.seed, epoch - 1]).permutation(self.fit)
        draws = torch.Generator().manual_seed(int(np.random.default_rng([self.seed, epoch - 1, 1]).integers(2**62)))
        batches = _cut(order, self.config.batch_size)
        last = f"val accuracy {self.history[-1].validation_accuracy:.3f}" if self.history else ""
        self.model.train()
        losses = []
        for numbers, batch in zip(batches, self.images.batches(batches), strict=True):
            losses.append(self._step(self._normalise(augment(self._as_float(batch), draws)), self.labels[numbers]))
            counter.advance(len(numbers), f"epoch {epoch}  {last}")
        record = self._validate(epoch, float(torch.stack(losses).mean()))
        self.history.append(record)
        logger.info(
            "epoch %d  loss %.3f  val accuracy %.3f  balanced %.3f",
            epoch, record.loss, record.validation_accuracy, record.validation_balanced_accuracy,
        )  # fmt: skip
        if not self.best_weights or _is_better(record, self.history[self.best_epoch - 1]):
            self.best_epoch = epoch
            self.best_weights = copy.deepcopy(self.model.state_dict())

    def logits(self, numbers: NDArray[np.int64]) -> Tensor:
        """Logits (N, C) of images without augmentation, fp32, on the CPU."""
        self.model.eval()
        orders = [numbers[start : start + 2 * self.config.batch_size]
                  for start in range(0, len(numbers), 2 * self.config.batch_size)]  # fmt: skip
        with torch.inference_mode():
            parts = [self._forward(self._normalise(self._as_float(batch))) for batch in self.images.batches(orders)]
        return torch.cat([part.cpu() for part in parts])

    def restore(self, checkpoint: Path, experiment: str) -> None:
        """Continue from a checkpoint, if there is one.

        Raises:
            DataError: it belongs to another experiment.
            CheckpointError: it is damaged.
        """
        if not checkpoint.is_file():
            return
        try:
            state = load_torch_file(checkpoint, self.device)
            is_ours = state["experiment"] == experiment
        except UNREADABLE as error:
            raise CheckpointError(
                str(checkpoint),
                f"cannot be read ({' '.join(str(error).split())[:200]}).",
                "A readable checkpoint is needed to continue.",
                "Delete it to start this baseline again.",
            ) from None
        if not is_ours:
            raise _other_experiment(checkpoint.parent)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        history, self.best_epoch = counted_from_1(state["history"], state["best_epoch"])
        self.history, self.best_weights = [EpochRecord(**record) for record in history], state["best_weights"]
        logger.info("baseline: continuing after epoch %d", len(self.history))

    def _save(self, checkpoint: Path, experiment: str) -> None:
        # The schedule's function object is no plain value; its name is set again when the schedule is built.
        schedule = {key: value for key, value in self.schedule.state_dict().items() if _is_plain(value)}
        state = {
            "experiment": experiment,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": schedule,
            "history": [record.model_dump() for record in self.history],
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
        }
        with atomic_write(checkpoint, "wb") as stream:
            torch.save(state, stream)

    def _step(self, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        logits_BC = self._forward(images_BCHW)
        loss = F.cross_entropy(logits_BC, labels_B.to(self.device), label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def _forward(self, images_BCHW: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits_BC: Tensor = self.model(images_BCHW)
        return logits_BC.float()

    def _as_float(self, images_BHWC: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1]; the uint8 rows are already in channels_last order."""
        return images_BHWC.to(self.device).permute(0, 3, 1, 2).float() / 255

    def _normalise(self, images_BCHW: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return ((images_BCHW - mean) / std).contiguous(memory_format=torch.channels_last)

    def _validate(self, epoch: int, loss: float) -> EpochRecord:
        logits_NC, labels_N = self.logits(self.validation), self.labels[self.validation]
        confusion = confusion_matrix(labels_N.numpy(), logits_NC.argmax(dim=1).numpy(), self.num_classes)
        summary = summarise(confusion)
        return EpochRecord(
            epoch=epoch,
            loss=loss,
            validation_accuracy=float(summary["accuracy"]),
            validation_balanced_accuracy=float(summary["balanced_accuracy"]),
            validation_log_loss=float(F.cross_entropy(logits_NC, labels_N)),
        )


def _is_better(record: EpochRecord, best: EpochRecord) -> bool:
    """Higher balanced accuracy; at equal ones, lower log-loss."""
    return (record.validation_balanced_accuracy, -record.validation_log_loss) > (
        best.validation_balanced_accuracy,
        -best.validation_log_loss,
    )


def _cut(order: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Batches of an epoch; a last batch of one is left out (batch norm has no variance there)."""
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def _mean_and_std(images: SquareImages, fit: NDArray[np.int64]) -> tuple[Triple, Triple]:
    """Mean and standard deviation per channel of up to IMAGES_FOR_MEAN fit images, in [0, 1]."""
    chosen = fit[np.linspace(0, len(fit) - 1, min(len(fit), IMAGES_FOR_MEAN)).astype(int)]
    pixels = next(images.batches([chosen])).reshape(-1, 3).double() / 255
    mean, std = pixels.mean(dim=0).tolist(), pixels.std(dim=0).clamp_min(1e-3).tolist()
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, str, list, Mapping, type(None)))


def _record(labelled: LabelledSet, training: Training, metrics: Metrics, experiment: str) -> BaselineRecord:
    """All that one needs to read the numbers and to repeat them."""
    is_given = labelled.part("val").size > 0
    carved = f"{training.config.validation_fraction:g} of the training {labelled.unit_name}, stratified by class"
    return BaselineRecord(
        experiment=experiment,
        metrics=MetricsRecord.model_validate(metrics.record(labelled.classes)),
        data=DataRecord.model_validate(labelled.record()),
        validation=ValidationRecord(
            rule="as given with the data" if is_given else carved,
            num_fit_images=len(training.fit),
            num_validation_images=len(training.validation),
        ),
        config=as_plain(training.config),
        seed=training.seed,
        input_px=training.images.edge_px,
        augmentation=AUGMENTATION,
        num_parameters=count_parameters(training.model),
        best_epoch=training.best_epoch,
        history=tuple(training.history),
        environment=shared_environment(),
    )


def _experiment(labelled: LabelledSet, config: BaselineConfig, seed: int) -> str:
    """Changes when anything does that makes another baseline."""
    settings = deciding_settings(config, first=FIRST_SETTINGS)
    what: list[Any] = [labelled.split_digest, labelled.content_digest, settings, seed]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _measure(labelled: LabelledSet, scores_NC: NDArray[np.float64], num_bootstrap: int, seed: int) -> Metrics:
    labels_N, predicted_N = labelled.labels[labelled.part("test")], scores_NC.argmax(axis=1).astype(np.int64)
    return measure(labels_N, predicted_N, scores_NC, labelled.test_units(), num_bootstrap=num_bootstrap, seed=seed)


def _read_finished(
    folder: BaselineFolder, labelled: LabelledSet, experiment: str, num_bootstrap: int, seed: int
) -> BaselineResult:
    record = folder.read_result()
    if record.experiment != experiment:
        raise _other_experiment(folder.path)
    logger.info("baseline: %s is already finished", folder.path)
    scores_NC = folder.read_scores(labelled)
    metrics = _measure(labelled, scores_NC, num_bootstrap, seed)
    return BaselineResult(folder.path, metrics, scores_NC, record.best_epoch, record.history)


def _other_experiment(out: Path) -> DataError:
    return DataError(
        str(out),
        "holds a baseline of other data, another split, other settings or another seed.",
        "A folder holds one experiment.",
        "Give another --out, or delete this folder.",
    )
