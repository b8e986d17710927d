"""One row of a table: a model under a protocol; and which models are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dino_path.config import FrozenProtocol
from dino_path.evaluation.measures.intervals import Score
from dino_path.evaluation.measures.metrics import Metrics
from dino_path.records.feature_kinds import is_comparison


@dataclass(frozen=True)
class Row:
    """One model under one protocol, measured on the test images.

    Attributes:
        spec: what the model was loaded from; the baseline's folder for the baseline.
        settings: what the protocol used or chose, as plain values.
        predicted: (M,) class numbers of the tested images, in the order of the division.
        differences: name of the other model -> metric -> this model minus the other.
    """

    model: str
    spec: str
    protocol: FrozenProtocol | Literal["end-to-end"]
    metrics: Metrics
    settings: dict[str, Any]
    predicted: NDArray[np.int64]
    differences: dict[str, dict[str, Score]] = field(default_factory=dict)


def compared_pairs(specs: Mapping[str, str]) -> list[tuple[str, str]]:
    """(mine, other) of models by name: each of ours with every control and every model of ours after it.

    Where all are controls, the first stands for ours.
    """
    names = list(specs)
    mine = [name for name in names if not is_comparison(specs[name])] or names[:1]
    return [
        (name, other) for name in mine for other in names
        if other not in mine or mine.index(name) < mine.index(other)
    ]  # fmt: skip
