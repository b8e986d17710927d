"""Health numbers on matrices whose answer is known, and collapse named on numbers that show it."""

import math

import pytest
import torch
from tiny import ALONE

from dino_path.config import DinoConfig, TargetsConfig
from dino_path.training.monitor import MAX_FEATURE_ROWS, FeatureWindow, feature_spread, find_feature_collapse, rankme
from dino_path.training.objective.dino import DinoTerm


def test_rankme_counts_the_directions_of_orthogonal_features() -> None:
    assert rankme(torch.eye(16)[:5]) == pytest.approx(5, rel=1e-4)
    assert rankme(3.7 * torch.eye(16)) == pytest.approx(16, rel=1e-4)


def test_rankme_is_one_for_features_on_a_line() -> None:
    direction = torch.randn(8, generator=torch.Generator().manual_seed(0))
    assert rankme(torch.arange(1.0, 21)[:, None] * direction) == pytest.approx(1, abs=1e-3)


def test_rankme_is_the_exponential_of_the_entropy_of_singular_values() -> None:
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 2 * 0.125 * math.log(8)
    assert rankme(torch.diag(values)) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_spread_is_zero_for_equal_features_and_about_one_for_gaussian_ones() -> None:
    same = torch.ones(50, 16)
    gaussian = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert feature_spread(same) == pytest.approx(0, abs=1e-6)
    assert feature_spread(gaussian) == pytest.approx(1, abs=0.02)
    assert feature_spread(same * torch.arange(1.0, 51)[:, None]) == pytest.approx(0, abs=1e-6), "length is no spread"


def test_spread_of_two_opposite_halves_is_known() -> None:
    features = torch.zeros(10, 4)
    features[:5, 0], features[5:, 0] = 2.0, -2.0
    assert feature_spread(features) == pytest.approx(math.sqrt(4) / 4)


def test_one_feature_vector_has_no_spread_and_no_warning() -> None:
    assert feature_spread(torch.ones(1, 8)) == 0


def test_window_keeps_the_newest_rows() -> None:
    window = FeatureWindow()
    for number in range(30):
        window.add(torch.full((100, 2), float(number)))
    features = window.features()
    assert MAX_FEATURE_ROWS <= len(features) < MAX_FEATURE_ROWS + 100
    assert features[-1, 0] == 29
    assert features[0, 0] == 30 - len(features) // 100


LN_K = math.log(4096)
HEALTHY = {"teacher_entropy": 3.0, "kl": 0.4, "prototypes_used": 300.0}


@pytest.mark.parametrize(
    ("signs", "mode"),
    [
        ({}, None),
        ({"teacher_entropy": LN_K - 0.001, "kl": 0.0001, "prototypes_used": 4095.0}, "uniform"),
        ({"teacher_entropy": LN_K - 0.001, "kl": 0.5, "prototypes_used": 4095.0}, None),
        ({"teacher_entropy": 0.9 * LN_K, "kl": 0.0001}, None),
        ({"teacher_entropy": 0.001, "prototypes_used": 1.01}, "one-hot"),
        ({"teacher_entropy": 0.001, "prototypes_used": 40.0}, None),
    ],
)
def test_dinos_collapse_is_named_and_health_is_not(signs: dict[str, float], mode: str | None) -> None:
    config = DinoConfig(num_prototypes=4096)
    term = DinoTerm(config, TargetsConfig(), is_fused=True, world=ALONE)
    collapse = term.find_collapse(HEALTHY | signs)
    assert (collapse.mode if collapse else None) == mode
    if collapse:
        assert "lower" in collapse.remedy


def test_features_that_are_all_alike_are_a_collapse_whatever_the_objective() -> None:
    collapse = find_feature_collapse(0.001)
    assert collapse is not None
    assert collapse.mode == "constant features"
    assert find_feature_collapse(0.8) is None
