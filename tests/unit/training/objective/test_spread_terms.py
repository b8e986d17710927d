"""KoLeo and KDE push features apart; their behaviour for nearly equal tiles; which features they use."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from objective_batches import SETTINGS, objective_config, objective_of, random_batch
from tiny import ALONE
from torch import Tensor

from dino_path.errors import ConfigError
from dino_path.training.objective.kde import kde
from dino_path.training.objective.koleo import koleo

LOSSES = {"koleo": koleo, "kde": partial(kde, kappa=5)}
HIDDEN = ([1, 0, 2, 0], [0, 3, 0, 1])
both_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def random_features(count: int, width: int = 16) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loss_and_gradient(loss: Callable[[Tensor], Tensor], features: Tensor) -> tuple[float, Tensor]:
    leaf = features.clone().requires_grad_()
    value = loss(F.normalize(leaf, dim=-1))
    return float(value.detach()), torch.autograd.grad(value, leaf)[0]


@both_losses
def test_its_gradient_pushes_features_apart(loss: Callable[[Tensor], Tensor]) -> None:
    features = 1 + 0.3 * random_features(12)  # in one corner of the space
    before = features
    for _ in range(20):
        value, gradient = loss_and_gradient(loss, features)
        features = features - 0.5 * gradient
    assert loss_and_gradient(loss, features)[0] < value
    cosines = [
        (unit @ unit.T).fill_diagonal_(0).sum() / (12 * 11)
        for unit in (F.normalize(each, dim=-1) for each in (before, features))
    ]
    assert cosines[1] < cosines[0] - 0.05


def test_between_nearly_equal_tiles_koleos_gradient_explodes_and_kdes_does_not() -> None:
    """Half of the tiles lie beside the other half, as neighbouring tiles of a slide may."""
    features, shift = random_features(32, 64), random_features(32, 65)[:, 1:]
    norms = {
        name: [
            float(loss_and_gradient(loss, torch.cat([features, features + shrink * shift]))[1].norm())
            for shrink in (1e-1, 1e-2, 1e-3, 1e-4)
        ]
        for name, loss in LOSSES.items()
    }
    assert norms["koleo"] == pytest.approx([0.32, 3.2, 32, 320], rel=0.1)
    assert max(norms["kde"]) < 0.02
    assert max(norms["kde"]) < 1.5 * min(norms["kde"])


def test_equal_tiles_have_a_finite_gradient() -> None:
    features = torch.ones(4, 8)
    for loss in LOSSES.values():
        value, gradient = loss_and_gradient(loss, features)
        assert math.isfinite(value)
        assert gradient.isfinite().all()


def test_koleos_neighbour_is_another_tile_even_where_all_are_opposite() -> None:
    assert float(koleo(torch.tensor([[1.0, 0], [-1, 0]]))) == pytest.approx(-math.log(2))


def test_kde_leaves_out_the_density_of_a_tile_at_itself() -> None:
    """With the diagonal, features far apart would look as dense as near ones at a large kappa."""
    assert float(kde(torch.tensor([[1.0, 0], [-1, 0]]), kappa=1000)) == -1000


@pytest.mark.parametrize("name", LOSSES)
def test_each_global_view_is_measured_by_itself_before_the_head_and_local_views_are_not(name: str) -> None:
    batch = random_batch(HIDDEN)
    objective = objective_of(objective_config(dino=1, **{name: 0.5}), ALONE)
    outputs = batch.outputs()
    objective.prepare([outputs.teacher], SETTINGS)
    loss, numbers = objective.measure(outputs, replace(SETTINGS, kde_ramp=1.0))
    expected = sum(LOSSES[name](batch.features[view].detach()) for view in (0, 1))
    torch.testing.assert_close(numbers[name], expected)
    (gradient,) = torch.autograd.grad(loss, batch.features)
    assert gradient[:2].all()
    assert not gradient[2:].any()


def test_half_precision_features_are_measured_in_fp32() -> None:
    batch = random_batch(HIDDEN, dtype=torch.float32)
    outputs = batch.outputs()
    features = outputs.student.features.bfloat16()
    half, single = (
        replace(outputs, student=outputs.student._replace(features=each)) for each in (features, features.float())
    )
    for name in LOSSES:
        term = objective_of(objective_config(dino=1, **{name: 1}), ALONE).terms[name]
        with torch.autocast("cpu", torch.bfloat16):
            found = term.measure(half, SETTINGS).loss
        assert found.dtype == torch.float32
        assert torch.equal(found, term.measure(single, SETTINGS).loss)


def test_kdes_ramp_scales_what_is_optimised_and_not_what_it_says_of_the_features() -> None:
    outputs = random_batch(HIDDEN).outputs()
    term = objective_of(objective_config(dino=1, kde=1), ALONE).terms["kde"]
    values = [term.measure(outputs, replace(SETTINGS, kde_ramp=ramp)) for ramp in (0.0, 0.25, 1.0)]
    assert torch.equal(values[0].logged["kde"], values[2].logged["kde"])
    torch.testing.assert_close(4 * values[1].loss, values[2].loss)
    assert not values[0].loss.any()


@pytest.mark.parametrize("name", LOSSES)
def test_one_tile_at_a_time_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"objective.{name}.weight=0.5: training.batch_size_per_gpu is 1"):
        objective_of(objective_config(dino=1, **{name: 0.5}), ALONE, batch_size_per_gpu=1, accumulate_steps=8)
