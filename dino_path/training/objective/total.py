"""The whole objective: which terms a config asks for, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from dino_path.config import ObjectiveConfig, TrainingConfig
from dino_path.distributed import World
from dino_path.model.head import NetworkOutput
from dino_path.records.guide import GuideRecord
from dino_path.training.objective.dino import DinoTerm
from dino_path.training.objective.distill import DistillTerm
from dino_path.training.objective.ibot import IbotTerm
from dino_path.training.objective.kde import KdeTerm
from dino_path.training.objective.koleo import KoleoTerm
from dino_path.training.objective.term import Collapse, Needs, Outputs, Term
from dino_path.training.schedules import StepSettings

TermStates = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class StateDifference:
    """State that only the terms or only a checkpoint has, as `<term>.<name>`."""

    missing: list[str]
    """The terms keep it, and the checkpoint lacks it: it stays as it was."""
    unused: list[str]
    """The checkpoint has it, and no term keeps it."""


def build_terms(
    config: ObjectiveConfig, training: TrainingConfig, world: World, guide: GuideRecord | None = None
) -> list[Term]:
    """The terms with a weight, in the order in which they are added up. A new one has its line here, and nowhere else.

    Args:
        guide: what `objective.distill.teacher` is, where that term has a weight.

    Raises:
        ConfigError: a term that has a weight has nothing to measure in batches of the given size.
    """
    terms: list[Term] = []
    if config.dino.weight > 0:
        terms.append(DinoTerm(config.dino, config.targets, is_fused=training.fused_loss, world=world))
    if config.ibot.weight > 0:
        terms.append(IbotTerm(config, training, world))
    if config.koleo.weight > 0:
        terms.append(KoleoTerm(config.koleo, training))
    if config.kde.weight > 0:
        terms.append(KdeTerm(config.kde, training))
    if config.distill.weight > 0:
        assert guide is not None, "a model to learn from comes with the term"
        terms.append(DistillTerm(config.distill, guide, world.device))
    return terms


class Objective:
    """Evaluates all terms and adds them up. Names that belong to one term become `<term>.<name>` here."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = {term.name: term for term in terms}
        self.needs = Needs(
            teacher=any(term.needs.teacher for term in terms),
            patches=any(term.needs.patches for term in terms),
            masks=any(term.needs.masks for term in terms),
        )

    @torch.no_grad()
    def prepare(self, teachers: Sequence[NetworkOutput], settings: StepSettings) -> None:
        """Pass the teacher's outputs for this rank's micro-batches to the terms; all ranks call this once per step."""
        for term in self.terms.values():
            term.prepare(teachers, settings)

    def measure(self, outputs: Outputs, settings: StepSettings) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, with gradient, and all scalars for the record, without.

        With several terms these include the share of each in `loss`, so that the log shows what was optimised.
        """
        parts: dict[str, Tensor] = {}
        logged: dict[str, Tensor] = {}
        for term in self.terms.values():
            value = term.measure(outputs, settings)
            parts[f"{term.name}_loss"] = term.weight * value.loss
            assert logged.keys().isdisjoint(value.logged), f"{term.name} logs a name of another term's"
            logged |= value.logged
        loss = reduce(add, parts.values())
        shares = {name: part.detach() for name, part in parts.items()} if len(parts) > 1 else {}
        return loss, {"loss": loss.detach(), **shares, **logged}

    @torch.no_grad()
    def to_average(self, outputs: Outputs) -> dict[str, Tensor]:
        """Numbers that the terms need as means over the global batch."""
        return {
            f"{term.name}.{name}": value
            for term in self.terms.values()
            for name, value in term.to_average(outputs).items()
        }

    def update(self, means: Mapping[str, Tensor]) -> None:
        """Give every term its means of an accepted step."""
        for term in self.terms.values():
            prefix = f"{term.name}."
            term.update({key.removeprefix(prefix): value for key, value in means.items() if key.startswith(prefix)})

    def state(self) -> TermStates:
        return {name: state for name, term in self.terms.items() if (state := term.state())}

    def load_state(self, states: TermStates) -> StateDifference:
        """Write a checkpoint's state into the terms; returns the state that only one side has."""
        ours, theirs = _by_name(self.state()), _by_name(states)
        for name in ours.keys() & theirs.keys():
            ours[name].copy_(theirs[name])
        return StateDifference(missing=sorted(ours.keys() - theirs.keys()), unused=sorted(theirs.keys() - ours.keys()))

    def derived(self, averages: Mapping[str, float]) -> dict[str, float]:
        """Further numbers for a record, of its averages."""
        found: dict[str, float] = {}
        for term in self.terms.values():
            found |= term.derived(averages.get(f"{term.name}_loss", averages["loss"]), averages)
        return found

    def find_collapse(self, averages: Mapping[str, float]) -> Collapse | None:
        """The first collapse that a term's numbers show."""
        return next(filter(None, (term.find_collapse(averages) for term in self.terms.values())), None)

    def notes(self, averages: Mapping[str, float]) -> list[str]:
        return [note for term in self.terms.values() if (note := term.note(averages))]


def _by_name(states: TermStates) -> dict[str, Tensor]:
    return {f"{term}.{name}": tensor for term, state in states.items() for name, tensor in state.items()}
