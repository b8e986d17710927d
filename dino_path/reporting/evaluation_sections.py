"""Evaluations in the form that the report's template needs: sentences, charts and cells."""

from __future__ import annotations

from collections.abc import Sequence

from dino_path.config import PROTOCOL_TITLES
from dino_path.reporting.charts import Interval, Series, Spec, common_axis, fraction_chart, interval_chart
from dino_path.reporting.evaluations import (
    AnyEvaluation,
    Evaluation,
    EvaluationRow,
    FewShot,
    FractionRow,
    Fractions,
    Plain,
    Score,
)

TRUE_PROBABILITIES = "if probabilities were true"


def evaluation_section(evaluation: AnyEvaluation) -> Plain:
    """Charts and tables of one evaluation; `kind` says which part of the template shows them."""
    if isinstance(evaluation, Fractions):
        return _fraction_section(evaluation)
    if isinstance(evaluation, FewShot):
        return _fewshot_section(evaluation)
    return _table_section(evaluation)


def protocol_title(protocol: str) -> str:
    return PROTOCOL_TITLES.get(protocol, protocol)


def _table_section(evaluation: Evaluation) -> Plain:
    protocols = [p for p in dict.fromkeys(row.protocol for row in evaluation.rows) if p != "end-to-end"]
    baselines = [row for row in evaluation.rows if row.kind == "baseline"]
    axis = axis_of(evaluation)
    panels = []
    for protocol in protocols:
        rows = [row for row in evaluation.rows if row.protocol == protocol] + baselines
        name = protocol_title(protocol)
        chart = score_chart(evaluation, rows, axis, title=f"Balanced accuracy, {name}, {evaluation.name}")
        panels.append({
            "title": name, "rows": rows, "chart": chart, "shown": _row_to_detail(rows),
            "reliability": _reliability_chart(rows, title=f"Right answers by probability, {name}, {evaluation.name}"),
        })  # fmt: skip
    classes = list(evaluation.data.classes)
    return {"kind": "table", "evaluation": evaluation, "panels": panels, "classes": classes}


def axis_of(evaluation: Evaluation) -> tuple[float, float]:
    """The axis range of an evaluation's charts: all balanced accuracies with their intervals, and chance."""
    scores = [row.scores["balanced_accuracy"] for row in evaluation.rows if "balanced_accuracy" in row.scores]
    ends = [end for score in scores for end in (score.low, score.value, score.high) if end is not None]
    return common_axis([*ends, evaluation.chance])


def score_chart(
    evaluation: Evaluation, rows: Sequence[EvaluationRow], axis: tuple[float, float], *, title: str
) -> Spec | None:
    """Balanced accuracies one below the other, with chance."""
    intervals = [_interval(row) for row in rows if "balanced_accuracy" in row.scores]
    return interval_chart(intervals, title=title, axis=axis, chance=evaluation.chance)


def _reliability_chart(rows: Sequence[EvaluationRow], *, title: str) -> Spec | None:
    """The share of correct predictions among images with about the same predicted probability, for each model.

    Bins in which no model has an image are left out; what true probabilities would give is a line of its own.
    """
    known = [row for row in rows if row.reliability]
    if not known:
        return None
    places = [place for place, bins in enumerate(zip(*(row.reliability for row in known), strict=True))
              if any(one.num_images for one in bins)]  # fmt: skip
    ends = [(known[0].reliability[place].low, known[0].reliability[place].high) for place in places]
    series = [Series(TRUE_PROBABILITIES, [((low + high) / 2, None, None) for low, high in ends])]
    for row in known:
        shares = [row.reliability[place].accuracy for place in places]
        series.append(Series(row.model, [None if share is None else (share, None, None) for share in shares]))
    labels = [f"{(low + high) / 2:.2f}" for low, high in ends]
    return fraction_chart(series, labels, title=title, chance=None)


def _fraction_section(evaluation: Fractions) -> Plain:
    """One chart and one table for each protocol; the supervised network stands in each."""
    fractions = sorted({row.fraction for row in evaluation.rows}, reverse=True)
    models = list(dict.fromkeys(row.model for row in evaluation.rows if row.protocol != "end-to-end"))
    supervised = {row.fraction: row for row in evaluation.rows if row.protocol == "end-to-end"}
    # The second colour is that of the supervised network in all charts.
    names = [models[0], evaluation.baseline, *models[1:]] if supervised else models
    # As the file gives them: each is the first model less the second.
    differences = [(row.model, other) for row in evaluation.rows for other in row.differences]
    pairs = sorted(dict.fromkeys(differences), key=lambda pair: pair[1] == evaluation.baseline)
    panels = []
    for protocol in dict.fromkeys(row.protocol for row in evaluation.rows if row.protocol != "end-to-end"):
        found = {(row.model, row.fraction): row for row in evaluation.rows if row.protocol == protocol}
        found |= {(evaluation.baseline, fraction): row for fraction, row in supervised.items()}
        title = protocol_title(protocol)
        panels.append({
            "title": title,
            "chart": _fraction_chart(names, fractions, found, evaluation, f"{title}, {evaluation.name}"),
            "rows": [_fraction_cells(fraction, models, evaluation, found, pairs) for fraction in fractions],
        })  # fmt: skip
    return {"kind": "fractions", "evaluation": evaluation, "models": models, "names": names, "panels": panels,
            "pairs": [f"{model} − {other}" for model, other in pairs]}  # fmt: skip


def _fraction_chart(
    names: Sequence[str], fractions: Sequence[float], found: dict[tuple[str, float], FractionRow],
    evaluation: Fractions, title: str,
) -> Spec | None:  # fmt: skip
    labels = [_percent(fraction) for fraction in reversed(fractions)]
    series = [
        Series(name, [
            None if (row := found.get((name, fraction))) is None else (row.score.value, row.score.low, row.score.high)
            for fraction in reversed(fractions)
        ])
        for name in names
    ]  # fmt: skip
    return fraction_chart(
        series, labels, title=f"Balanced accuracy over the share of labels, {title}", chance=1 / evaluation.num_classes
    )


def _fraction_cells(
    fraction: float, models: Sequence[str], evaluation: Fractions, found: dict[tuple[str, float], FractionRow],
    pairs: Sequence[tuple[str, str]],
) -> Plain:  # fmt: skip
    supervised = found.get((evaluation.baseline, fraction))
    return {
        "fraction": _percent(fraction),
        "scores": [found[model, fraction].score if (model, fraction) in found else None for model in models],
        "supervised": supervised.score if supervised else None,
        "missing": evaluation.missing.get(fraction, "missing"),
        "differences": [
            found[model, fraction].differences.get(other) if (model, fraction) in found else None
            for model, other in pairs
        ],
    }


def _fewshot_section(evaluation: FewShot) -> Plain:
    shots = sorted({number for scores in evaluation.models.values() for number in scores})
    return {"kind": "fewshot", "evaluation": evaluation, "shots": shots}


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def format_score(score: Score, *, signed: bool = False) -> str:
    """`0.912 (0.884 to 0.935)`."""
    form = "+.3f" if signed else ".3f"
    if score.low is None or score.high is None:
        return f"{score.value:{form}}".replace("-", "−")
    return f"{score.value:{form}} ({score.low:{form}} to {score.high:{form}})".replace("-", "−")


def _interval(row: EvaluationRow) -> Interval:
    score = row.scores["balanced_accuracy"]
    kind = row.kind
    return Interval(row.model, score.value, score.low, score.high, kind)  # type: ignore[arg-type]


def _row_to_detail(rows: Sequence[EvaluationRow]) -> EvaluationRow | None:
    """The row whose confusion matrix is shown: the best of our own models, else the first."""
    own = [row for row in rows if row.kind == "own" and "balanced_accuracy" in row.scores and row.confusion]
    if own:
        return max(own, key=lambda row: row.scores["balanced_accuracy"].value)
    return next((row for row in rows if row.confusion), None)
