"""Evaluations of the same data become one section with one axis; those of other data get different names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dino_path.records.examples import ExamplesRecord
from dino_path.reporting.evaluations import AnyEvaluation, Evaluation, EvaluationRow, Score, Signature


def sections_of(found: Sequence[AnyEvaluation]) -> list[AnyEvaluation]:
    """The sections of the report: tables of the same images and split are combined; names are unique."""
    groups: dict[str, list[AnyEvaluation]] = {}
    for number, evaluation in enumerate(found):
        groups.setdefault(_data_key(evaluation) or str(number), []).append(evaluation)
    merged = [group[0] if len(group) == 1 else _merged([e for e in group if isinstance(e, Evaluation)])
              for group in groups.values()]  # fmt: skip
    names = Counter((type(evaluation), evaluation.name) for evaluation in merged)
    return [
        evaluation if names[type(evaluation), evaluation.name] == 1
        else replace(evaluation, name=f"{evaluation.name} ({evaluation.origin})")
        for evaluation in merged
    ]  # fmt: skip


def _data_key(evaluation: AnyEvaluation) -> str | None:
    """Equal for tables of the same images, labels and splits; None where the file does not say."""
    if not isinstance(evaluation, Evaluation) or not evaluation.data.content_digest:
        return None
    data = evaluation.data
    splits = [one.split_digest for one in data.cross_validation.splits] if data.cross_validation is not None else []
    return json.dumps([data.content_digest, data.classes, data.split_digest, splits])


def _merged(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Equal rows are shown once; equal names of different models are distinguished by their origin."""
    differing = _names_that_differ(evaluations)
    evaluations = [_renamed(one, {name: f"{name} ({one.origin})" for name in differing}) for one in evaluations]
    rows: dict[tuple[str, str], EvaluationRow] = {}
    for row in (row for evaluation in evaluations for row in evaluation.rows):
        before = rows.get((row.model, row.protocol), row)
        rows[row.model, row.protocol] = replace(before, differences={**before.differences, **row.differences})
    signatures = {one.model: one for evaluation in evaluations for one in evaluation.signatures}
    notes = dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes)
    in_order = sorted(rows.values(), key=lambda row: ("own", "other", "baseline").index(row.kind))
    examples = {json.dumps(sorted(one.models)): one for evaluation in evaluations for one in evaluation.examples}
    return replace(
        evaluations[0], rows=in_order, signatures=tuple(signatures.values()), notes=tuple(notes),
        examples=tuple(examples.values()),
    )  # fmt: skip


def _names_that_differ(evaluations: Iterable[Evaluation]) -> list[str]:
    """Names under which two evaluations found different numbers."""
    seen: dict[tuple[str, str], Mapping[str, Score]] = {}
    names: dict[str, None] = {}
    for row in (row for evaluation in evaluations for row in evaluation.rows):
        if seen.setdefault((row.model, row.protocol), row.scores) != row.scores:
            names[row.model] = None
    return list(names)


def _renamed(evaluation: Evaluation, names: Mapping[str, str]) -> Evaluation:
    def row_of(row: EvaluationRow) -> EvaluationRow:
        differences = {names.get(other, other): score for other, score in row.differences.items()}
        return replace(row, model=names.get(row.model, row.model), differences=differences)

    def signature_of(one: Signature) -> Signature:
        return replace(one, model=names.get(one.model, one.model))

    def examples_of(one: ExamplesRecord) -> ExamplesRecord:
        models = {names.get(name, name): entry for name, entry in one.models.items()}
        slides = tuple(
            slide.model_copy(update={"accuracy": {names.get(name, name): v for name, v in slide.accuracy.items()}})
            for slide in one.slides
        )
        return one.model_copy(update={"models": models, "slides": slides})

    return replace(
        evaluation,
        examples=tuple(map(examples_of, evaluation.examples)),
        rows=tuple(map(row_of, evaluation.rows)),
        signatures=tuple(map(signature_of, evaluation.signatures)),
    )
