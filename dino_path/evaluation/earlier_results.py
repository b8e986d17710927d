"""Where results go, and what is there already: an evaluation replaces results only when it holds all that they do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.datasets import LabelledSet
from dino_path.run import RunFolder
from dino_path.settings import as_plain

Stem = Literal["results", "fractions", "fewshot"]
STEMS: tuple[Stem, ...] = ("results", "fractions", "fewshot")
END_TO_END = "end-to-end"
# They say where inputs lie, how fast it goes, or what is compared here by itself.
NOT_DECISIVE = ("batch_size", "regions", "protocols")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation is going to find out.

    Attributes:
        stem: of its files.
        specs: of its models.
        protocols: that it runs; empty where the stem says it.
        fractions: of the labels; empty where all are used.
        has_baseline: whether the supervised network stands beside them.
    """

    stem: Stem
    specs: Sequence[str]
    protocols: Sequence[str]
    fractions: Sequence[float]
    has_baseline: bool


def results_folder(specs: Sequence[str], labelled: LabelledSet, what: str) -> Path:
    """Where results go when no folder is named: `eval/<data>-<what>` of the run of the first model, else here.

    Args:
        what: protocol, or `fractions`.
    """
    runs = [RunFolder(Path(spec).parent) for spec in specs if Path(spec).is_dir()]
    root = next((run.evaluation for run in runs if run.config_file.is_file()), Path("eval"))
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in labelled.name)
    return root / f"{name}-{what}"


def refuse_to_lose(out: Path, evaluation: Evaluation, labelled: LabelledSet, config: EvaluationConfig) -> None:
    """Check that no result in `out` would be lost.

    Raises:
        DataError: there are results of other data, settings, models or protocols, which the new ones do not hold.
    """
    for stem in STEMS:
        file = out / f"{stem}.json"
        record = _read(file)
        if record is None:
            continue
        lost = _other_data(record, labelled)
        if stem == evaluation.stem:
            lost += [*_other_settings(record, config), *_left_out(record, evaluation)]
        if lost:
            raise DataError(
                str(file),
                f"holds results that would be lost: {'; '.join(lost)}.",
                "Results are replaced only by those of the same data and settings, and of the same models and more.",
                "Leave --out out or name another, or evaluate all of it together: features are kept, so it is quick.",
            )


def _read(file: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(
            str(file),
            f"cannot be read ({' '.join(str(error).split())[:160]}).",
            "Results that are there must be known before others may replace them.",
            "Delete it, or name another --out.",
        ) from None
    return record if isinstance(record, dict) else {}


def _other_data(record: dict[str, Any], labelled: LabelledSet) -> list[str]:
    data = record.get("data", {})
    if data.get("split_digest") == labelled.split_digest:
        return []
    return [f"they are of other images, labels or another split ({data.get('name')}; {data.get('split_rule')})"]


def _other_settings(record: dict[str, Any], config: EvaluationConfig) -> list[str]:
    old, new = record.get("config", {}), as_plain(config)
    return [
        f"evaluation.{key} was {old[key]}, now {new[key]}"
        for key in new
        if key in old and key not in NOT_DECISIVE and old[key] != new[key]
    ]


def _left_out(record: dict[str, Any], evaluation: Evaluation) -> list[str]:
    rows = [row for row in record.get("rows", []) if isinstance(row, dict)]
    specs = [model.get("spec") for model in record.get("models", {}).values()]
    protocols = [row["protocol"] for row in rows if row.get("protocol") not in (None, END_TO_END)]
    fractions = [row["fraction"] for row in rows if "fraction" in row]
    left_out = [f"the model {spec}" for spec in _not_in(specs, evaluation.specs)]
    if evaluation.protocols:
        left_out += [f"the protocol {name}" for name in _not_in(protocols, evaluation.protocols)]
    left_out += [f"the fraction {fraction:g}" for fraction in _not_in(fractions, evaluation.fractions)]
    if record.get("has_baseline") and not evaluation.has_baseline:
        left_out.append(f"the baseline {record.get('baseline')}")
    return [f"{what} is left out" for what in left_out]


def _not_in(old: Iterable[Any], new: Iterable[Any]) -> list[Any]:
    return [one for one in dict.fromkeys(old) if one not in set(new)]
