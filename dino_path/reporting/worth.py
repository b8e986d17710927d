"""The quality of the features in one sentence: compared with the untrained network, with colour, and with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dino_path.config import PROTOCOL_TITLES
from dino_path.reporting.evaluations import AnyEvaluation, Evaluation, EvaluationRow, Score

# Which protocol speaks where several ran. The order was fixed beforehand: the best is not picked.
PROTOCOLS = ("linear", "logistic", "linear-uni", "linear-dino", "knn", "knn-uni")
NOT_EVALUATED = (
    "The quality of the features is unknown: no evaluation was found. `dino-path evaluate table MODEL mean-colour"
    " untrained:MODEL --data DATA --baseline BASELINE` measures it."
)

Grade = Literal["good", "unclear", "bad"]


@dataclass(frozen=True)
class Worth:
    """The sentence on one model on one labelled set, and how it is shown.

    Attributes:
        model, data: what the sentence is on.
        grade: `good`: better than both controls. `bad`: not better than one of them. `unclear`: one is missing.
    """

    sentence: str
    grade: Grade
    model: str
    data: str


def worth_of(evaluations: Sequence[AnyEvaluation]) -> list[Worth]:
    """One sentence for each labelled set and each of the user's models, in order; empty without evaluations."""
    found = []
    for evaluation in evaluations:
        if isinstance(evaluation, Evaluation):
            found += [_worth(evaluation, row) for row in main_rows(evaluation) if row.kind == "own"]
    return found


def summary_of(found: Sequence[Worth]) -> Worth | None:
    """One sentence on several models and labelled sets; None where there are not several."""
    if len(found) < 2:
        return None
    good = [one for one in found if one.grade == "good"]
    named = ": " + ", ".join(f"{one.model} on {one.data}" for one in good) if good else ""
    sentence = (
        f"{len(good) or 'None'} of {len(found)} results is better than both the same network untrained and colour alone"
        if len(good) < 2
        else f"{len(good)} of {len(found)} results are better than both the same network untrained and colour alone"
    )
    return Worth(f"{sentence}{named}.", "good" if len(good) == len(found) else "unclear" if good else "bad", "", "")


def main_rows(evaluation: Evaluation) -> list[EvaluationRow]:
    """Rows with a balanced accuracy of the protocol that speaks for the evaluation, and of the supervised network."""
    protocol = next((name for name in PROTOCOLS if any(row.protocol == name for row in evaluation.rows)), None)
    rows = [row for row in evaluation.rows if row.protocol in (protocol, "end-to-end")]
    return [row for row in rows if "balanced_accuracy" in row.scores]


def _worth(evaluation: Evaluation, row: EvaluationRow) -> Worth:
    score = row.scores["balanced_accuracy"]
    untrained = _strongest(row, [other for other in row.differences if other.startswith("untrained")])
    colour = _strongest(row, [other for other in row.differences if "colour" in other])
    supervised = _strongest(row, [other for other in row.differences if other in evaluation.baselines])
    compared = [
        _compared(untrained, "the same network untrained", "`untrained:MODEL`"),
        _compared(colour, "colour alone", "`mean-colour`"),
        _compared(supervised, "a network trained with these labels", "`--baseline`"),
    ]
    groups = evaluation.data.num_groups or {}
    number = groups.get("test") or (sum(groups.values()) if evaluation.data.cross_validation else 0)
    tested = f" ({number} test {evaluation.data.grouped_by}s)" if number else ""
    chance = f", chance {1 / len(evaluation.data.classes):.3f}"
    interval = "" if score.low is None else f" ({score.low:.3f} to {score.high:.3f}{chance})"
    sentence = (
        f"On {evaluation.name}{tested}, the frozen features of {row.model} reach a balanced accuracy of"
        f" {score.value:.3f}{interval} by {PROTOCOL_TITLES.get(row.protocol, row.protocol)}: {', '.join(compared)}."
    )
    return Worth(sentence, _grade([untrained, colour]), row.model, evaluation.name)


def _strongest(row: EvaluationRow, others: Sequence[str]) -> Score | None:
    """The difference to the one of them that comes closest; None where none was compared."""
    return min((row.differences[other] for other in others), key=lambda score: score.value, default=None)


def _compared(difference: Score | None, what: str, how: str) -> str:
    if difference is None:
        return f"not compared with {what} ({how})"
    number = f"{difference.value:+.3f}".replace("-", "−")
    if difference.low is None:
        return f"too few patients to compare with {what} ({number})"
    if not difference.excludes_zero:
        return f"no clear difference from {what} ({number})"
    return f"{'better' if difference.value > 0 else 'worse'} than {what} ({number})"


def _grade(controls: Sequence[Score | None]) -> Grade:
    if any(one is not None and not (one.excludes_zero and one.value > 0) for one in controls):
        return "bad"
    return "unclear" if None in controls else "good"
