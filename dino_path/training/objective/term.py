"""The interface of an objective term: what it reads, returns and keeps.

Shape suffixes: V student views, B tiles, D backbone features, N patches of a global view, G features of a guide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dino_path.model.head import NetworkOutput
from dino_path.training.schedules import StepSettings
from dino_path.views.masks import ViewMasks


@dataclass(frozen=True)
class Needs:
    """The network outputs that a term needs; the features of the student's backbone are always available."""

    teacher: bool = False
    """The teacher's pass. Without it the teacher only follows the student, and comes at no cost."""
    patches: bool = False
    """The global views' patch tokens, of both networks."""
    masks: bool = False
    """Patches that the student does not see, and both networks' projections of those."""


class Guidance(NamedTuple):
    """A guide's (frozen model's) features of the 2 * B unmasked global views, without gradient."""

    cls: Tensor
    """(2 * B, G)"""
    patches: Tensor | None
    """(2 * B, N, G); None where patches are not compared."""


@dataclass(frozen=True)
class Outputs:
    """The networks' outputs for one micro-batch."""

    student: NetworkOutput
    """Of V * B views, view by view, the two global views first; with gradient."""
    teacher: NetworkOutput | None
    """Of the 2 * B global views in the same order, none of their patches hidden; without gradient. None where no term
    has asked for it."""
    masks: ViewMasks | None = None
    """Which patches of its global views the student did not see, where a term has asked for masks."""
    guidance: Guidance | None = None
    """Of the same views, if there is a guide."""

    @property
    def num_tiles(self) -> int:
        """B"""
        if self.teacher is not None:
            return len(self.teacher.features) // 2
        assert self.guidance is not None
        return len(self.guidance.cls) // 2


@dataclass(frozen=True)
class TermValue:
    """Result of one evaluation of a term."""

    loss: Tensor
    """Scalar, not weighted yet."""
    logged: dict[str, Tensor]
    """Further scalars for the record, under their names there, the same ones every time; without gradient."""


@dataclass(frozen=True)
class Collapse:
    """A collapse of the teacher: its mode and a remedy."""

    mode: str
    remedy: str


class Term(ABC):
    """One part of the loss. Most terms are a `measure`; the rest is for those that remember something.

    Its order in a step: `prepare` once; `measure` and `to_average` for each micro-batch; after the last one the
    averages travel over the ranks while the backward pass runs; `update` gets them if the step was accepted, after the
    teacher has moved.
    """

    name: str
    """In checkpoints, and in records: with several terms, `<name>_loss` is this one's share of `loss`."""
    needs = Needs()

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def prepare(self, teachers: Sequence[NetworkOutput], settings: StepSettings) -> None:  # noqa: B027
        """Read the teacher's outputs for all micro-batches of this rank; all ranks call this before the first loss."""

    @abstractmethod
    def measure(self, outputs: Outputs, settings: StepSettings) -> TermValue:
        """The term on one micro-batch of this rank."""

    def to_average(self, outputs: Outputs) -> dict[str, Tensor]:
        """What `update` needs as means over all micro-batches and ranks; every rank gives the same names and shapes."""
        return {}

    def update(self, means: Mapping[str, Tensor]) -> None:
        """Take in the means of an accepted step: of just what `to_average` gives."""
        assert not means

    def state(self) -> dict[str, Tensor]:
        """State for checkpoints, equal on every rank: the tensors themselves, into which a restore writes."""
        return {}

    def derived(self, loss: float, averages: Mapping[str, float]) -> dict[str, float]:
        """Further numbers for the record; one under the name of an average takes its place.

        Args:
            loss: the mean of this term, weighted, over an interval.
            averages: of all that is logged; each 0 where there is only to say which numbers there will be.
        """
        return {}

    def find_collapse(self, averages: Mapping[str, float]) -> Collapse | None:
        """The collapse that this term's numbers show, if there is one."""
        return None

    def note(self, averages: Mapping[str, float]) -> str:
        """The one fact that belongs into a line of progress; empty: none."""
        return ""
