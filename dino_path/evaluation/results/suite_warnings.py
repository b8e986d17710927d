"""Notes for reading a suite's table, as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dino_path.evaluation.results.suite_plan import Plan
from dino_path.evaluation.results.writing import SUPERVISED
from dino_path.records.feature_kinds import split_kind
from dino_path.records.suite import SuiteModelRecord, SuiteSetRecord


def suite_warnings(
    plan: Plan, models: Mapping[str, SuiteModelRecord], sets: Sequence[SuiteSetRecord]
) -> tuple[str, ...]:
    """Missing controls of the table, and intervals that are too narrow."""
    nulls = [split_kind(model.spec)[1] for model in models.values() if model.role == "null" and model.spec is not None]
    warnings = [f"{name} is left out: {why}" for name, why in plan.left_out.items()]
    if not any(spec.startswith("untrained:") for spec in nulls):
        warnings.append(
            "there is no untrained network among the models, so nothing shows what the architecture alone achieves:"
            " add `untrained:MODEL`"
        )
    if all(spec.startswith("untrained:") for spec in nulls):
        warnings.append(
            "there are no colour controls among the models, so nothing shows what stain alone achieves: add"
            " `mean-colour` and `colour-statistics`"
        )
    missing = {one.name: one.supervised_missing for one in sets if one.supervised_missing is not None}
    if missing:
        command = next(iter(missing.values()))
        warnings.append(
            f"{SUPERVISED} is missing for {', '.join(missing)}, so nothing shows what labels alone achieve there. In"
            f" the folder --root, `{command}` trains it (one command for each set); then give --baselines"
            f" ROOT/baselines"
        )
    if ungrouped := [planned.name for planned in plan.sets if not planned.described.has_groups]:
        warnings.append(
            f"{', '.join(ungrouped)}: patients are unknown, so intervals are over images, which is too narrow if a"
            f" patient has several, and a drawn split may have a patient on both sides"
        )
    warnings += _weak_nulls(plan, models, sets)
    if without := [one.name for one in sets if any(score.low is None for score in one.scores.values())]:
        warnings.append(f"{', '.join(without)}: too few groups for an interval, so the mean and the rank have none")
    return tuple(warnings)


def _weak_nulls(plan: Plan, models: Mapping[str, SuiteModelRecord], sets: Sequence[SuiteSetRecord]) -> Iterator[str]:
    """A control that always predicts one class makes every model look good beside it."""
    for planned, one in zip(plan.sets, sets, strict=True):
        num_classes = planned.described.num_classes
        if one.metric != "balanced_accuracy" or num_classes is None:
            continue
        weak = [
            name for name, score in one.scores.items()
            if models[name].role == "null" and score.low is not None and score.low <= 1 / num_classes
        ]  # fmt: skip
        if weak:
            yield (
                f"{one.name}: {', '.join(weak)} by {one.protocol}: no better than always predicting one class"
                f" ({1 / num_classes:.3f}), so this is a weak control: look at the set's other protocols"
            )


def suite_notes(
    models: Mapping[str, SuiteModelRecord], sets: Sequence[SuiteSetRecord], num_differences: int
) -> tuple[str, ...]:
    """How the numbers are made."""
    ranked = sum(model.rank is not None for model in models.values())
    notes = [
        "in brackets: 95 % intervals over the tested groups (patients, slides or images) of each set; they say"
        " nothing about other sets",
        f"mean: the plain mean over the {len(sets)} sets. Its interval is the bootstrap of the groups within each set, "
        "or Student's t of their jackknife variances below 100 degrees of freedom",
        f"mean rank: the rank among the {ranked} models that were tested on all sets (1 is the best), averaged over"
        f" the sets. Its interval is the paired bootstrap of the groups within each set, for the mean rank expected"
        f" with the same number of other groups; it draws the ranks of nearly equal models together",
        "differences are paired: the same images and the same resamples for both. `better` and `worse`: the interval "
        f"excludes 0. Each interval has 95 % coverage by itself: of {num_differences} true differences of 0, about "
        f"{0.05 * num_differences:.2g} exclude it by chance",
        "null: an untrained network or colour control; a trained model that does not beat them was not worth training",
    ]
    for name, model in models.items():
        on = sum(name in one.scores for one in sets)
        if model.role == "supervised" and on < len(sets):
            notes.append(
                f"{name}: on {on} of {len(sets)} sets, without mean and rank; a mean difference to it is over the"
                f" sets that can have it, and only if all of them do"
            )
    if len({one.metric for one in sets}) > 1:
        notes.append("the mean is over different metrics: read the mean rank")
    notes += [
        f"{one.name}: {one.data}, {one.num_tested:,} tested; split: {one.split_rule}; {one.interval}; "
        f"all of {', '.join(one.protocols)} in {one.name}/" + (f". {one.about}" if one.about else "")
        for one in sets
    ]
    return tuple(notes)
