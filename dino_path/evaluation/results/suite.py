"""Many labelled sets and protocols in one call: each set in its folder, features once, and one table of all of them.

OUT/suite.json, suite.csv, suite.md   the table: sets x models, mean over sets, mean rank, differences
    SET/...                           what `evaluate` writes for each protocol, and features/
    SET/primary.npz                   the primary metric of each model with its resamples; the set is done

A set that is done with the same data, settings, models and baseline is not evaluated again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_path.atomic import atomic_write
from dino_path.checksum import has_checksum, is_intact, seal
from dino_path.config import COMPARISON_SPECS, SuiteConfig
from dino_path.distributed import World
from dino_path.evaluation.measures.across_sets import mean_difference, mean_over_sets, mean_ranks
from dino_path.evaluation.measures.intervals import LeftOut, Score
from dino_path.evaluation.measures.sample import Sample
from dino_path.evaluation.protocols.cache import load_models
from dino_path.evaluation.results.earlier import NOT_DECISIVE
from dino_path.evaluation.results.suite_kinds import Leading
from dino_path.evaluation.results.suite_plan import Plan, PlannedSet
from dino_path.evaluation.results.suite_text import suite_markdown
from dino_path.evaluation.results.suite_warnings import suite_notes, suite_warnings
from dino_path.records.environment import shared_environment
from dino_path.records.feature_kinds import is_comparison, split_kind
from dino_path.records.labelled import ScoreRecord
from dino_path.records.suite import (
    Role,
    SuiteDifferenceRecord,
    SuiteModelRecord,
    SuiteRecord,
    SuiteSetRecord,
    verdict,
    write_suite,
)
from dino_path.settings import as_plain
from dino_path.sharing import shared_name

logger = logging.getLogger(__name__)

NULLS = tuple(spec for spec in COMPARISON_SPECS if spec != "timm:")
PRIMARY_FILE = "primary.npz"


@dataclass(frozen=True)
class Model:
    """One row of a table: a model of the command line."""

    spec: str
    digest: str

    @property
    def role(self) -> Role:
        if split_kind(self.spec)[1].startswith(NULLS):
            return "null"
        return "other" if is_comparison(self.spec) else "own"


def evaluate_suite(
    suite: SuiteConfig, plan: Plan, specs: Sequence[str], *, device: torch.device, out: Path, num_workers: int
) -> SuiteRecord:
    """Evaluate the models on all planned sets; write each set's files, suite.json, suite.csv and suite.md to `out`.

    Args:
        specs: models, as `features.extractor.load_extractor` reads them.
        num_workers: processes that read and decode images.

    Raises:
        CheckpointError: a model cannot be loaded.
        DataError, TileStoreError: as the protocols do.
    """
    models = {name: Model(spec, one.digest) for name, (spec, one) in load_models(specs, device).items()}
    leading: dict[str, Leading] = {}
    for number, planned in enumerate(plan.sets, 1):
        experiment = _experiment(planned, list(models.values()))
        done = _read_leading(out / planned.name, planned, experiment)
        logger.info("set %d of %d, %s%s", number, len(plan.sets), planned.name, ": done before" if done else "")
        leading[planned.name] = done or _evaluate_set(out / planned.name, planned, experiment, device, num_workers)
    record = _record(suite, plan, models, leading)
    write_suite(out, record)
    with atomic_write(out / "suite.csv") as stream:
        csv.writer(stream, lineterminator="\n").writerows(_csv_rows(record))
    with atomic_write(out / "suite.md") as stream:
        stream.write(suite_markdown(record))
    return record


def extract_suite(plan: Plan, *, world: World, num_workers: int) -> None:
    """Extract this process's share of the features of all sets, and wait for the others."""
    for planned in plan.sets:
        for kind, work in planned.works.items():
            kind.extract(work, world, num_workers)


# --- one set --------------------------------------------------------------------------------------------------------


def _evaluate_set(
    folder: Path, planned: PlannedSet, experiment: str, device: torch.device, num_workers: int
) -> Leading:
    found = None
    for kind, work in planned.works.items():
        found = kind.run(work, device, num_workers) or found
    assert found is not None
    _write_leading(folder, found, experiment)
    return found


def _experiment(planned: PlannedSet, models: Sequence[Model]) -> str:
    """Changes with whatever changes a number of the set."""
    settings = {key: value for key, value in as_plain(planned.evaluation).items() if key not in NOT_DECISIVE}
    config = planned.config
    parts = [
        [kind.describe(work.data, planned.evaluation).identity for kind, work in planned.works.items()],
        settings,
        config.protocols,
        config.fractions if "fractions" in config.protocols else None,
        as_plain(config.primary),
        [[model.spec, model.digest] for model in models],
        planned.baseline_digests,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write_leading(folder: Path, leading: Leading, experiment: str) -> None:
    samples = list(leading.samples.values())
    with atomic_write(folder / PRIMARY_FILE, "w+b") as stream:
        np.savez_compressed(
            stream,
            experiment=np.array(experiment),
            models=np.array(list(leading.samples)),
            supervised=np.array(leading.supervised or ""),
            lowest=np.array(leading.lowest),
            interval=np.array(leading.interval),
            value=np.array([sample.value for sample in samples]),
            draws=np.stack([sample.draws for sample in samples]),
            units=np.stack([sample.left_out.units for sample in samples]),
            images=np.stack([sample.left_out.images for sample in samples]),
            freedom=np.array([sample.left_out.freedom for sample in samples]),
        )
        seal(stream)


def _read_leading(folder: Path, planned: PlannedSet, experiment: str) -> Leading | None:
    """The results of a finished evaluation of the same experiment; None if there is none."""
    file = folder / PRIMARY_FILE
    if not file.is_file() or not all((folder / kind.file).is_file() for kind in planned.works):
        return None
    try:
        if has_checksum(file) and not is_intact(file):  # earlier versions wrote none
            raise ValueError("its checksum is wrong")
        with np.load(file, allow_pickle=False) as kept:
            if str(kept["experiment"]) != experiment:
                return None
            parts = zip(*(kept[key] for key in ("value", "draws", "units", "images", "freedom")), strict=True)
            samples = [
                Sample(float(v), draws, LeftOut(units, images, float(f))) for v, draws, units, images, f in parts
            ]
            return Leading(
                dict(zip(map(str, kept["models"]), samples, strict=True)),
                str(kept["supervised"]) or None,
                float(kept["lowest"]),
                str(kept["interval"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s: damaged (%s), evaluating the set again", file, error)
        return None


# --- all sets -------------------------------------------------------------------------------------------------------


def _record(suite: SuiteConfig, plan: Plan, models: Mapping[str, Model], leading: Mapping[str, Leading]) -> SuiteRecord:
    supervised = " / ".join(sorted({one.supervised for one in leading.values() if one.supervised}))
    samples = {name: _by_column(one, supervised) for name, one in leading.items()}
    roles: dict[str, Role] = {name: model.role for name, model in models.items()}
    if supervised:
        roles[supervised] = "supervised"
    pairs = compared(roles)
    on_all = [name for name in roles if all(name in of_set for of_set in samples.values())]
    columns = {name: [of_set[name] for of_set in samples.values()] for name in on_all}
    lowest = min(one.lowest for one in leading.values())
    ranks = mean_ranks(columns)
    sets = tuple(_set_record(planned, leading[planned.name], samples[planned.name], pairs) for planned in plan.sets)
    can_be_supervised = [
        planned.name
        for planned in plan.sets
        if planned.supervised_missing is not None or leading[planned.name].supervised
    ]
    differences = []
    for model, other in pairs:
        of_sets = [samples[name] for name in (can_be_supervised if roles[other] == "supervised" else samples)]
        if all(model in of_set and other in of_set for of_set in of_sets):
            mean = mean_difference([of[model] for of in of_sets], [of[other] for of in of_sets], lowest=lowest)
            differences.append(_difference_record(model, other, mean, sets))
    described = {
        name: SuiteModelRecord(
            role=role,
            spec=shared_name(models[name].spec, num_parts=2) if name in models else None,
            digest=models[name].digest if name in models else None,
            mean=_score(mean_over_sets(columns[name], lowest=lowest)) if name in columns else None,
            rank=_score(ranks[name]) if name in columns else None,
        )
        for name, role in roles.items()
    }
    return SuiteRecord(
        title=suite.title,
        sets=sets,
        left_out=dict(plan.left_out),
        models=described,
        differences=tuple(differences),
        warnings=suite_warnings(plan, described, sets),
        notes=suite_notes(described, sets, len(differences)),
        config=suite.model_dump(mode="json", exclude_unset=True),
        environment=shared_environment(),
    )


def compared(roles: Mapping[str, Role]) -> list[tuple[str, str]]:
    """Pairs of models to compare: the user's minus every control, minus later models, minus the supervised network.

    Where all are controls, the first stands for mine.
    """
    names = [name for name, role in roles.items() if role != "supervised"]
    own = [name for name in names if roles[name] == "own"] or names[:1]
    return [
        (name, other)
        for name in own
        for other in roles
        if other != name and (other not in own or names.index(other) > names.index(name))
    ]


def _by_column(leading: Leading, supervised: str) -> dict[str, Sample]:
    """The samples by column of the table; the supervised networks of all sets share one."""
    return {supervised if name == leading.supervised else name: sample for name, sample in leading.samples.items()}


def _set_record(
    planned: PlannedSet, leading: Leading, samples: Mapping[str, Sample], pairs: Sequence[tuple[str, str]]
) -> SuiteSetRecord:
    differences: dict[str, dict[str, ScoreRecord]] = {}
    for model, other in pairs:
        if model in samples and other in samples:
            difference = (samples[model] - samples[other]).difference(lowest=leading.lowest)
            differences.setdefault(model, {})[other] = _score(difference)
    return SuiteSetRecord(
        name=planned.name,
        data=planned.described.name,
        about=planned.config.about,
        protocols=planned.config.protocols,
        protocol=planned.config.primary.protocol,
        metric=planned.config.primary.metric,
        interval=leading.interval,
        split_rule=planned.described.split_rule,
        num_tested=planned.described.num_tested,
        supervised_missing=planned.supervised_missing,
        scores={name: _score(sample.score(lowest=leading.lowest)) for name, sample in samples.items()},
        differences=differences,
    )


def _difference_record(model: str, other: str, mean: Score, sets: Sequence[SuiteSetRecord]) -> SuiteDifferenceRecord:
    of_sets = [one.differences[model][other] for one in sets if other in one.differences.get(model, {})]
    return SuiteDifferenceRecord(
        model=model,
        other=other,
        mean=_score(mean),
        num_above=sum(verdict(one) == "better" for one in of_sets),
        num_below=sum(verdict(one) == "worse" for one in of_sets),
    )


def _score(score: Score) -> ScoreRecord:
    return ScoreRecord(**score.record())


def _csv_rows(record: SuiteRecord) -> Iterator[Sequence[Any]]:
    """One line per set and model; then the means and mean ranks."""
    yield "set", "protocol", "metric", "model", "role", "value", "low", "high"
    for one in record.sets:
        for model, score in one.scores.items():
            yield one.name, one.protocol, one.metric, model, record.models[model].role, *_decimals(score)
    for what in ("mean", "rank"):
        for model, described in record.models.items():
            if (known := getattr(described, what)) is not None:
                yield (
                    "all sets",
                    "",
                    "mean" if what == "mean" else "mean rank",
                    model,
                    described.role,
                    *_decimals(known),
                )


def _decimals(score: ScoreRecord) -> list[str]:
    return ["" if end is None else f"{end:.6f}" for end in (score.value, score.low, score.high)]
