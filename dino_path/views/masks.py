"""Which patches of the student's global views are hidden.

Shape suffixes: B tiles, N patches of a global view, M hidden patches of all 2 * B views.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ViewMasks:
    """The hidden patches of one micro-batch's global views."""

    hidden: Tensor
    """(2 * B, N) bool."""
    indices: Tensor
    """(M,) int64 into the flattened (2 * B * N), rising."""
    weights: Tensor
    """(M,) float32: one by the number of hidden patches of the same view."""
