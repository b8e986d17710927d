"""Whether a run has learned anything, by its loss and its features."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dino_path.records.metrics import StepRecord
from dino_path.reporting.evaluations import AnyEvaluation, Evaluation
from dino_path.reporting.sources import Run

NUM_LAST_RECORDS = 5
# Of ln K. A teacher that prefers nothing gives ln K; the demo, a run that learned little, ended 60 % below it.
NO_LEARNING_SHARE = 0.01


def no_learning(run: Run, ln_k: float | None) -> str | None:
    """A sentence for a run whose DINO loss stays at ln K; None for others, and if it cannot be determined.

    Args:
        ln_k: of the run's prototypes.
    """
    gaps = [gap for record in run.metrics[-NUM_LAST_RECORDS:] if (gap := _above_ln_k(record, ln_k)) is not None]
    # Balanced targets (Sinkhorn-Knopp) may cost more than ln K while a student learns: that says nothing.
    if ln_k is None or not gaps or abs(sum(gaps) / len(gaps)) > NO_LEARNING_SHARE * ln_k:
        return None
    sentence = (
        f"{run.name} has learned nothing: at its end DINO's loss is {ln_k + sum(gaps) / len(gaps):.3f}, which is ln K"
        f" ({ln_k:.3f}) within 1 %, the loss of a teacher that cannot distinguish tiles."
    )
    return sentence + (f" Advised at its start: {'; '.join(run.log.advice)}." if run.log.advice else "")


def _above_ln_k(record: StepRecord, ln_k: float | None) -> float | None:
    """The DINO loss less ln K; of records before there were terms, the loss is DINO's."""
    gap = record.number("loss_minus_ln_k")
    if gap is not None:
        return gap
    if record.number("teacher_entropy") is None or record.loss is None or ln_k is None:
        return None
    return record.loss - ln_k


def as_untrained(evaluation: AnyEvaluation) -> Iterator[str]:
    """A sentence for each of the user's models that no protocol finds better than its untrained network."""
    if not isinstance(evaluation, Evaluation):
        return
    gains: dict[tuple[str, str], list[bool]] = {}
    for row in evaluation.rows:
        for other, difference in row.differences.items():
            if row.kind == "own" and other.startswith("untrained") and difference.low is not None:
                is_better = difference.excludes_zero and difference.value > 0
                gains.setdefault((row.model, other), []).append(is_better)
    for (model, other), are_better in gains.items():
        if not any(are_better):
            yield (
                f"{evaluation.name}: in this test, training did not improve {model}: it is not better than {other},"
                f" the same network with random weights."
            )


def ln_of(num_prototypes: object) -> float | None:
    return math.log(num_prototypes) if isinstance(num_prototypes, int) and num_prototypes > 1 else None
