"""The plan of a suite: each set's data, settings and baseline, checked before torch is imported."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_path.config import EvaluationConfig, SuiteConfig, SuiteSet
from dino_path.errors import DataError, DinoPathError
from dino_path.evaluation.baseline.files import BaselineFolder
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import divide
from dino_path.evaluation.results.suite_kinds import Described, Kind, Work, by_kind
from dino_path.settings import setting_text

LAYOUT = re.compile(r"[a-z0-9-]+")


@dataclass(frozen=True)
class PlannedSet:
    """One set, read and checked.

    Attributes:
        works: what each kind of evaluation has to do.
        described: the data, as the kind of the primary protocol describes them.
        baseline_digests: of the supervised networks, one for each split; empty where they are missing.
        supervised_missing: the command that would train the supervised network, from the folder --root.
    """

    name: str
    config: SuiteSet
    evaluation: EvaluationConfig
    works: Mapping[Kind, Work]
    described: Described
    baseline_digests: tuple[str, ...]
    supervised_missing: str | None


@dataclass(frozen=True)
class Plan:
    """The sets that are there, and why the others are left out."""

    sets: tuple[PlannedSet, ...]
    left_out: Mapping[str, str]


def plan_suite(
    suite: SuiteConfig, specs: Sequence[str], *, root: Path, baselines: Path | None, out: Path, skip_missing: bool
) -> Plan:
    """Read and check the data of all sets.

    Args:
        root: what paths in the suite file are relative to.
        baselines: instead of the suite's.
        out: folder of the suite; each set has a folder in it.
        skip_missing: leave out the sets whose folder or file is not there.

    Raises:
        DataError: sets are missing or cannot be evaluated, all of them in one message; or none is left.
    """
    if baselines is None and suite.baselines is not None:
        baselines = root / suite.baselines
    planned: list[PlannedSet] = []
    missing = _of_each_set(
        suite,
        lambda name: planned.append(_plan_set(name, suite, specs, root, baselines, out)),
        root=root,
        skip_missing=skip_missing,
    )
    return Plan(tuple(planned), missing)


def look_at_suite(suite: SuiteConfig, *, root: Path, skip_missing: bool) -> None:
    """Check the sets' listings before a job waits in the queue; no image is opened.

    Raises:
        DataError: as `plan_suite`, as far as folders and tables tell.
    """

    def look(name: str) -> None:
        spec, evaluation = _given(name, suite, root)
        for one in dict.fromkeys(kind.list for kind in by_kind(suite.sets[name].protocols)):
            one(spec, evaluation)

    _of_each_set(suite, look, root=root, skip_missing=skip_missing)


def _of_each_set(suite: SuiteConfig, do: Callable[[str], None], *, root: Path, skip_missing: bool) -> Mapping[str, str]:
    """Do something with each set that is there, and return why the others are not."""
    missing, faults = dict[str, str](), dict[str, str]()
    for name, config in suite.sets.items():
        place = resolved(config.data, root)[1]
        if not place.exists():
            missing[name] = f"{shown(config.data)} does not exist"
    if missing and not skip_missing:
        faults |= {
            name: f"{why} (looked for {resolved(suite.sets[name].data, root)[1]})" for name, why in missing.items()
        }
    for name in suite.sets:
        if name in missing:
            continue
        try:
            do(name)
        except DinoPathError as error:
            faults[name] = f"{error.thing}: {error.found} {error.needed} {error.remedy}"
    if faults:
        lines = "\n".join(f"    - {name}: {' '.join(fault.split())}" for name, fault in faults.items())
        raise DataError(
            suite.title,
            f"{len(faults)} of {len(suite.sets)} sets cannot be evaluated:\n{lines}",
            "Every set of the suite must exist and be complete.",
            "Check --root and the paths in the suite file"
            + ("; --skip-missing leaves out sets that do not exist." if not skip_missing and missing else "."),
        )
    if len(missing) == len(suite.sets):
        raise DataError(
            suite.title,
            f"none of its {len(suite.sets)} sets exists: {', '.join(missing)}.",
            "At least one set is needed.",
            "Check --root and the paths in the suite file.",
        )
    return missing


def resolved(data: str, root: Path) -> tuple[str, Path]:
    """The --data of a set whose path is relative to `root`, and the path in it: `pcam:P` -> (`pcam:ROOT/P`, ROOT/P)."""
    name, colon, rest = data.partition(":")
    if colon and LAYOUT.fullmatch(name):
        return f"{name}:{root / rest}", root / rest
    return str(root / data), root / data


def shown(data: str) -> str:
    """The --data of a set as a page may show it: of a path that is not relative only the last name."""
    path = resolved(data, Path())[1]
    return data.replace(str(path), f"PATH/{path.name}") if path.is_absolute() else data


def _given(name: str, suite: SuiteConfig, root: Path) -> tuple[str, EvaluationConfig]:
    """--data and settings of a set, with paths as seen from here."""
    evaluation = suite.evaluation_of(name)
    if evaluation.regions is not None:
        evaluation = evaluation.model_copy(update={"regions": root / evaluation.regions})
    return resolved(suite.sets[name].data, root)[0], evaluation


def _plan_set(
    name: str, suite: SuiteConfig, specs: Sequence[str], root: Path, baselines: Path | None, out: Path
) -> PlannedSet:
    config = suite.sets[name]
    spec, evaluation = _given(name, suite, root)
    loaded: dict[Callable[..., Any], Any] = {}
    kinds = by_kind(config.protocols)
    for kind in kinds:
        if kind.load not in loaded:
            loaded[kind.load] = kind.load(spec, evaluation)
    labelled = next((data for data in loaded.values() if isinstance(data, LabelledSet)), None)
    baseline, digests = _baseline(baselines, name, labelled, evaluation)
    works = {
        kind: Work(
            specs=specs, data=loaded[kind.load], protocols=protocols, fractions=config.fractions, evaluation=evaluation,
            out=out / name, baseline=baseline, primary=config.primary if config.primary.protocol in protocols else None,
        )
        for kind, protocols in kinds.items()
    }  # fmt: skip
    for kind, work in works.items():
        kind.look(work)
    leading = next(kind for kind, work in works.items() if work.primary is not None)
    is_trained = baseline is not None or not leading.has_supervised
    return PlannedSet(
        name,
        config,
        evaluation,
        works,
        leading.describe(works[leading].data, evaluation),
        digests,
        None if is_trained else baseline_command(name, config, suite.evaluation_of(name)),
    )


def _baseline(
    baselines: Path | None, name: str, labelled: LabelledSet | None, evaluation: EvaluationConfig
) -> tuple[Path | None, tuple[str, ...]]:
    """The folder of the set's baseline, and what identifies its networks; None where there is no such folder.

    Raises:
        DataError: the folder is not of a finished baseline of this split.
    """
    if baselines is None or labelled is None or not (baselines / name).is_dir():
        return None, ()
    division = divide(labelled, evaluation)
    folders = [BaselineFolder(path) for path in division.folders(baselines / name)]
    for folder, split in zip(folders, division.splits, strict=True):
        folder.read_scores(split)
    return baselines / name, tuple(folder.read_result().experiment for folder in folders)


def baseline_command(name: str, config: SuiteSet, evaluation: EvaluationConfig) -> str:
    """The command that trains the supervised network of a set, in the folder --root."""
    given = evaluation.model_dump(mode="json", exclude_defaults=True)
    settings = [f"evaluation.{key}={setting_text(value)}" for key, value in given.items()]
    return shlex.join(["dino-path", "baseline", "--data", shown(config.data), "--out", f"baselines/{name}", *settings])
