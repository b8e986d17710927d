"""One row of a table: a model under a protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dino_path.config import FrozenProtocol
from dino_path.evaluation.measures.intervals import Score
from dino_path.evaluation.measures.metrics import Metrics


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
