"""Whether a run beat the weights that it started from: the same tests of start, best and end, with paired intervals.

Shape suffixes: Q validation images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from dino_path.evaluation.measures.confusion import Ints
from dino_path.evaluation.measures.metrics import Metrics, measure, paired_difference
from dino_path.evaluation.protocols.running import RunningTest
from dino_path.model.backbone import build_backbone
from dino_path.model.checkpoint import Checkpoint, read_checkpoint
from dino_path.model.lora import merged
from dino_path.records.best import read_best
from dino_path.records.labelled import ScoreRecord
from dino_path.records.verdict import (
    TITLES,
    JudgedRecord,
    Protocol,
    VerdictRecord,
    read_verdict,
    signed,
    write_verdict,
)
from dino_path.run import RunFolder


def note_start(run: RunFolder, test: RunningTest, backbone: nn.Module, step: int) -> None:
    """Test the weights from which a run starts, and write the predictions for comparison with its end.

    Args:
        step: updates done by then, as the run counts them.
    """
    record = VerdictRecord(
        data=test.labelled.name,
        digest=test.digest,
        num_neighbours=len(test.fit),
        num_images=len(test.validation),
        start_step=step,
        start={protocol: tuple(predicted_Q.tolist()) for protocol, predicted_Q in test.answers(backbone).items()},
    )
    write_verdict(run, record)


def judge(run: RunFolder, test: RunningTest, end: Path) -> VerdictRecord | None:
    """Compare a run's last checkpoint, and its best one where that is another, with its start; write what is found.

    None where the start was not noted, or was asked other images or in another way.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    known, best = read_verdict(run), read_best(run)
    if known is None or known.digest != test.digest:
        return None
    start = {protocol: _metrics(test, np.array(classes)) for protocol, classes in known.start.items()}
    rows = [JudgedRecord(name="start", step=known.start_step, accuracy=_accuracy(start))]
    last, kept = read_checkpoint(end), None if best is None else run.checkpoint_file(best.step)
    if kept is not None and kept != end and kept.is_file():
        rows.append(_judged("best", read_checkpoint(kept), test, start))
    rows.append(_judged("end", last, test, start))
    found = {
        "interval": start["knn"].interval.replace("test ", "validation "),
        "rows": tuple(rows),
        "sentence": sentence(rows),
    }
    record = known.model_copy(update=found)
    write_verdict(run, record)
    return record


def sentence(rows: Sequence[JudgedRecord]) -> str:
    """The verdict from the differences: better or worse if an interval excludes 0 and none says the opposite."""
    return " ".join(
        f"{'The end' if row.name == 'end' else f'The best checkpoint (step {row.step})'} {_against_start(row)}:"
        f" {', '.join(f'{TITLES[protocol]} {signed(score)}' for protocol, score in row.minus_start.items())}."
        for row in reversed(rows)
        if row.minus_start
    )


def _against_start(row: JudgedRecord) -> str:
    gains = [TITLES[protocol] for protocol, score in row.minus_start.items() if (score.low or 0) > 0]
    losses = [TITLES[protocol] for protocol, score in row.minus_start.items() if (score.high or 0) < 0]
    if gains and losses:
        return f"beats its start by {' and '.join(gains)} and falls behind it by {' and '.join(losses)}"
    return "beats its start" if gains else "falls behind its start" if losses else "does not beat its start"


def _judged(
    name: Literal["best", "end"], checkpoint: Checkpoint, test: RunningTest, start: Mapping[Protocol, Metrics]
) -> JudgedRecord:
    model = test.config.model
    backbone = build_backbone(model.backbone, model.backbone_arguments)
    backbone.load_state_dict(merged(checkpoint.teacher["backbone"], model))
    answers = test.answers(backbone.to(test.device).eval())
    metrics = {protocol: _metrics(test, predicted_Q) for protocol, predicted_Q in answers.items()}
    differences = {protocol: paired_difference(metrics[protocol], start[protocol])["accuracy"] for protocol in metrics}
    return JudgedRecord(
        name=name,
        step=checkpoint.step,
        accuracy=_accuracy(metrics),
        minus_start={protocol: ScoreRecord(**score.record()) for protocol, score in differences.items()},
    )


def _metrics(test: RunningTest, predicted_Q: Ints) -> Metrics:
    """Of predicted classes; whatever needs class scores means nothing here."""
    scores_QC = np.eye(len(test.labelled.classes))[predicted_Q]
    evaluation = test.config.evaluation
    return measure(
        test.labels, predicted_Q, scores_QC, test.units, num_bootstrap=evaluation.num_bootstrap, seed=evaluation.seed
    )


def _accuracy(metrics: Mapping[Protocol, Metrics]) -> dict[Protocol, ScoreRecord]:
    return {protocol: ScoreRecord(**one.accuracy.record()) for protocol, one in metrics.items()}
