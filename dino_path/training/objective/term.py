"""What every term of the objective is: what it reads, what it gives, what it keeps.

Shape suffixes: V student views, B tiles, D backbone features, N patches of a global view.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dino_path.model.head import NetworkOutput
from dino_path.training.schedules import StepSettings
from dino_path.views.masks import ViewMasks


@dataclass(frozen=True)
class Needs:
    """What a term asks of the networks' passes; the backbone's features are always there."""

    patches: bool = False
    """The global views' patch tokens, of both networks."""
    masks: bool = False
    """Patches that the student does not see, and both networks' projections of those."""


@dataclass(frozen=True)
class Outputs:
    """What the networks made of one micro-batch."""

    student: NetworkOutput
    """Of V * B views, view by view, the two global views first; with gradient."""
    teacher: NetworkOutput
    """Of the 2 * B global views in the same order, none of their patches hidden; without gradient."""
    masks: ViewMasks | None = None
    """Which patches of its global views the student did not see, where a term has asked for masks."""

    @property
    def num_tiles(self) -> int:
        return len(self.teacher.features) // 2


@dataclass(frozen=True)
class TermValue:
    """What one evaluation of a term gives."""

    loss: Tensor
    """Scalar, not weighted yet."""
    logged: dict[str, Tensor]
    """Further scalars for the record, under their names there, the same ones every time; without gradient."""


@dataclass(frozen=True)
class Collapse:
    """A collapsed teacher: how, and what helps."""

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
        """Take in what the teacher made of all micro-batches of this rank; all ranks call, before the first loss."""

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
        """What a checkpoint keeps, the same on every rank; the tensors themselves: a restore writes into them."""
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
