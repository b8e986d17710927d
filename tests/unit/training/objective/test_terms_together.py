"""All terms in one objective: which there are, what is logged, and that micro-batches make up their batch."""

import math
import re
from pathlib import Path

import pytest
import torch
from objective_batches import (
    NUM_PATCH_PROTOTYPES,
    NUM_PROTOTYPES,
    SETTINGS,
    objective_config,
    objective_of,
    random_batch,
)
from tiny import ALONE, tiny_config
from torch import Tensor

from dino_path.errors import ConfigError
from dino_path.training.objective.term import Needs
from dino_path.training.objective.total import Objective

# Tiles 0 to 3: numbers of hidden patches in the first global view and in the second. The first two tiles have all.
HIDDEN = ([3, 1, 0, 0], [2, 6, 0, 0])
BATCH_OF_FOUR = {"batch_size_per_gpu": 4}
methods = pytest.mark.parametrize("method", ["centering", "sinkhorn-knopp"])


def measured(objective: Objective, *divisions: tuple[int, int]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Means of the micro-batches' numbers, and gradients of all leaves, of two steps: in the second, centers moved."""
    batch = random_batch(HIDDEN)
    for _ in range(2):
        parts = [batch.outputs(*division) for division in divisions]
        objective.prepare([part.teacher for part in parts], SETTINGS)
        found = [objective.measure(part, SETTINGS) for part in parts]
        each = [objective.to_average(part) for part in parts]
        objective.update({name: sum(of[name] for of in each) / len(parts) for name in each[0]})  # type: ignore[misc]
    loss = torch.stack([loss for loss, _ in found]).mean()
    numbers = {name: torch.stack([of[name] for _, of in found]).mean() for name in found[0][1]}
    return numbers, list(torch.autograd.grad(loss, batch.leaves, allow_unused=True))


def test_terms_without_weight_are_left_out_and_dino_comes_first() -> None:
    everything = objective_of(objective_config(dino=1, ibot=1, koleo=0.1, kde=0.1), ALONE)
    assert [*everything.terms] == ["dino", "ibot", "koleo", "kde"]
    assert everything.needs == Needs(masks=True)
    assert [*objective_of(objective_config(ibot=1), ALONE).terms] == ["ibot"]
    plain = objective_of(objective_config(dino=1), ALONE)
    assert [*plain.terms] == ["dino"]
    assert plain.needs == Needs()


@methods
def test_what_is_logged_is_what_is_optimised(method: str) -> None:
    weights = {"dino": 2.0, "ibot": 0.7, "koleo": 0.1, "kde": 0.3}
    objective = objective_of(objective_config(method, **weights), ALONE, **BATCH_OF_FOUR)
    outputs = random_batch(HIDDEN).outputs()
    objective.prepare([outputs.teacher], SETTINGS)
    loss, numbers = objective.measure(outputs, SETTINGS)
    assert not any(value.requires_grad for value in numbers.values())
    value = {name: float(number) for name, number in numbers.items()}
    assert value["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
    assert value["loss"] == pytest.approx(sum(value[f"{name}_loss"] for name in weights), rel=1e-12)
    assert value["dino_loss"] == pytest.approx(2.0 * (value["teacher_entropy"] + value["kl"]), rel=1e-12)
    assert value["ibot_loss"] == pytest.approx(0.7 * (value["ibot_entropy"] + value["ibot_kl"]), rel=1e-12)
    assert value["ibot_masked_views"] == pytest.approx(4 / 8)
    assert value["koleo_loss"] == pytest.approx(0.1 * value["koleo"], rel=1e-12)
    assert value["kde_loss"] == pytest.approx(0.3 * 0.25 * value["kde"], rel=1e-12)
    of_masked = objective.derived(value)
    assert of_masked["ibot_entropy"] == pytest.approx(2 * value["ibot_entropy"])
    assert of_masked["ibot_kl"] == pytest.approx(2 * value["ibot_kl"])
    assert 0 < of_masked["ibot_entropy"] < math.log(NUM_PATCH_PROTOTYPES)
    assert 1 < value["ibot_prototypes_used"] < NUM_PATCH_PROTOTYPES


@methods
@pytest.mark.parametrize("is_fused", [True, False])
def test_micro_batches_are_the_batch_also_where_one_has_no_masked_patch(method: str, is_fused: bool) -> None:
    config = objective_config(method, dino=1, ibot=0.5)
    numbers, gradients = [], []
    for size, divisions in ((4, [(0, 4)]), (2, [(0, 2), (2, 4)]), (1, [(n, n + 1) for n in range(4)])):
        objective = objective_of(
            config, ALONE, batch_size_per_gpu=size, accumulate_steps=len(divisions), fused_loss=is_fused
        )
        found = measured(objective, *divisions)
        numbers.append({name: found[0][name] for name in found[0] if "prototypes_used" not in name})
        gradients.append(found[1])
        state = objective.state()
        assert state.keys() == (set() if method == "sinkhorn-knopp" else {"dino", "ibot"})
        assert all(center.any() for of in state.values() for center in of.values())
    assert gradients[0][0] is None
    for other_numbers, other_gradients in zip(numbers[1:], gradients[1:], strict=True):
        torch.testing.assert_close(other_numbers, numbers[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other_gradients[1:], gradients[0][1:], rtol=1e-9, atol=1e-12)


@methods
def test_with_and_without_all_logits_the_objective_is_the_same(method: str) -> None:
    config = objective_config(method, dino=1, ibot=0.5, koleo=0.1, kde=0.1)
    plain, fused = (
        measured(objective_of(config, ALONE, fused_loss=is_fused, **BATCH_OF_FOUR), (0, 4))
        for is_fused in (False, True)
    )
    torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-12)
    assert all(gradient.any() for gradient in plain[1])


def test_records_without_a_masked_view_have_their_names_and_name_no_collapse() -> None:
    objective = objective_of(objective_config(ibot=1), ALONE)
    outputs = random_batch(([0, 0], [0, 0])).outputs()
    objective.prepare([outputs.teacher], SETTINGS)
    averages = {name: float(value) for name, value in objective.measure(outputs, SETTINGS)[1].items()}
    assert objective.derived(averages) == {"ibot_entropy": 0, "ibot_kl": 0}
    assert objective.find_collapse(averages) is None


def test_a_shared_head_has_the_prototypes_of_the_cls_head() -> None:
    config = objective_config(dino=1, ibot=1)
    term = objective_of(config, ALONE).terms["ibot"]
    assert term.ln_k == math.log(NUM_PATCH_PROTOTYPES)  # type: ignore[attr-defined]
    shared = config.model_copy(update={"ibot": config.ibot.model_copy(update={"head": "shared"})})
    assert objective_of(shared, ALONE).terms["ibot"].ln_k == math.log(NUM_PROTOTYPES)  # type: ignore[attr-defined]


def test_a_batch_of_which_no_view_would_be_masked_is_refused() -> None:
    config = objective_config(ibot=1)
    masks = config.ibot.masks.model_copy(update={"view_fraction": 0.05})
    config = config.model_copy(update={"ibot": config.ibot.model_copy(update={"masks": masks})})
    with pytest.raises(ConfigError, match=r"none of a step's 16 global views is masked") as refusal:
        objective_of(config, ALONE, batch_size_per_gpu=4, accumulate_steps=2)
    assert "Set it to 0.063 or more" in str(refusal.value)
    assert objective_of(config, ALONE, batch_size_per_gpu=5, accumulate_steps=2).terms["ibot"]


LN_K = math.log(NUM_PATCH_PROTOTYPES)


@pytest.mark.parametrize(
    ("signs", "mode"),
    [
        ({}, None),
        ({"ibot_entropy": LN_K - 0.001, "ibot_kl": 0.0001}, "uniform patches"),
        ({"ibot_entropy": LN_K - 0.001, "ibot_kl": 0.5}, None),
        ({"ibot_entropy": 0.001, "ibot_prototypes_used": 1.01}, "one-hot patches"),
        ({"ibot_entropy": 0.001, "ibot_prototypes_used": 9.0}, None),
    ],
)
def test_ibots_collapse_is_named_and_health_is_not(signs: dict[str, float], mode: str | None) -> None:
    healthy = {"ibot_entropy": 1.2, "ibot_kl": 0.4, "ibot_prototypes_used": 9.0, "ibot_masked_views": 0.5}
    collapse = objective_of(objective_config(ibot=1), ALONE).find_collapse(healthy | signs)
    assert (collapse.mode if collapse else None) == mode


def test_remedies_name_settings_that_there_are() -> None:
    objective = objective_of(objective_config(dino=1, ibot=1), ALONE)
    uniform = {"teacher_entropy": math.log(NUM_PROTOTYPES), "kl": 0.0, "prototypes_used": 11.0}
    one_hot = {"teacher_entropy": 0.0, "kl": 0.0, "prototypes_used": 1.0}
    config = tiny_config(Path("store"), Path("out"))
    for prefix, term in (("", objective.terms["dino"]), ("ibot_", objective.terms["ibot"])):
        for signs in (uniform, one_hot):
            names = {f"{prefix}{name.removeprefix('teacher_' if prefix else '')}": n for name, n in signs.items()}
            if prefix and signs is uniform:
                names["ibot_entropy"] = LN_K
            collapse = term.find_collapse(names | {"ibot_masked_views": 0.5})
            assert collapse is not None
            settings = re.findall(r"\b(?:objective|optim|training)\.[\w.]*\w", collapse.remedy)
            assert len(settings) >= 3
            for setting in settings:
                section: object = config
                for name in setting.split("."):
                    section = getattr(section, name)
