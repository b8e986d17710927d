"""Lengths of training with their unit, and the clock that turns them into steps."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dino_path.config.section import Section

DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)\s*(steps?|epochs?|tiles?|%)\s*", re.IGNORECASE)


class Duration(Section):
    """A length of training with its unit: `"500 steps"`, `"10 epochs"`, `"2e6 tiles"`, `"10 %"` of the run."""

    amount: float = Field(ge=0)
    unit: Literal["steps", "epochs", "tiles", "%"]

    def steps(self, clock: Clock) -> int:
        """The same length in optimizer steps, rounded to the nearest."""
        per_unit = {
            "steps": 1.0,
            "epochs": clock.steps_per_epoch,
            "tiles": 1.0 / clock.global_batch_size,
            "%": clock.num_steps / 100,
        }
        return round(self.amount * per_unit[self.unit])

    def __str__(self) -> str:
        return length_text(self.amount, self.unit)


def length_text(amount: float, unit: str) -> str:
    """`10 %`, `12345678 tiles`: read back, it is the same number."""
    number = int(amount) if amount.is_integer() else amount
    return f"{number} {unit}"


class Clock(Section):
    """What turns epochs and tiles into steps."""

    num_steps: int
    steps_per_epoch: float
    global_batch_size: int
    stream_start: int = 0
    """Step at which the stream of tiles began: not 0 in a run that continues another with other tiles."""
    tiles_before: int = 0
    """Tiles seen before that step."""

    def epoch(self, steps: int) -> float:
        """Passes over the store after so many steps, since its stream of tiles began."""
        return (steps - self.stream_start) / self.steps_per_epoch

    def tiles_seen(self, steps: int) -> int:
        return self.tiles_before + (steps - self.stream_start) * self.global_batch_size


def _read_duration(value: object) -> object:
    if isinstance(value, (Duration, dict)):
        return value
    match = DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('write a number and its unit: "500 steps", "10 epochs", "2e6 tiles" or "10 %"')
    unit = match[2].lower()
    return {"amount": float(match[1]), "unit": unit if unit == "%" else unit.rstrip("s") + "s"}


AsDuration = Annotated[Duration, BeforeValidator(_read_duration)]
