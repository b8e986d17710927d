"""Gated attention against its formula in plain numpy; training that is seeded, bounded, and finds one tile in many."""

import numpy as np
import pytest
import torch

from dino_path.config import CohortConfig
from dino_path.evaluation.cohorts.attention_mil import GatedAttention, answer, train_attention

CONFIG = CohortConfig(abmil_hidden=16, abmil_attention=8, abmil_epochs=40, abmil_lr=1e-2, abmil_dropout=0)
CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values - values.max())
    return shares / shares.sum()


def test_the_network_is_the_formula_of_ilse_whatever_pieces_a_bag_comes_in() -> None:
    torch.manual_seed(0)
    network = GatedAttention(5, 3, CONFIG).eval()
    network.mean.copy_(torch.arange(5.0))
    network.std.fill_(2.0)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    bag = RNG.normal(size=(37, 5)).astype(np.float32) * 3

    def layer(name: str, inputs: np.ndarray) -> np.ndarray:
        return inputs @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    hidden = np.maximum(layer("project", (bag - weights["mean"]) / weights["std"]), 0)
    gated = np.tanh(layer("tanh", hidden)) / (1 + np.exp(-layer("gate", hidden)))
    attention = softmax(layer("score", gated)[:, 0])
    probabilities = softmax(layer("classify", attention @ hidden))
    for pieces in ([bag], np.array_split(bag, 5), [bag[:1], bag[1:]]):
        found = answer(network, pieces, CPU)
        np.testing.assert_allclose(found.attention, attention, atol=1e-6)
        np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-6)
    with torch.no_grad():
        logits = network([torch.from_numpy(bag), torch.from_numpy(bag[:9])])
    np.testing.assert_allclose(softmax(logits[0].numpy()), probabilities, atol=1e-6)


def bags_with_one_telling_tile(number: int, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Bags of noise of 10 to 30 tiles; those of class 1 have one tile that lies far out."""
    labels = np.arange(number) % 2
    bags = [rng.normal(size=(int(rng.integers(10, 31)), 6)).astype(np.float32) for _ in labels]
    for bag, label in zip(bags, labels, strict=True):
        bag[len(bag) // 2, 0] += 8 * label
    return bags, labels.astype(np.int64)


def test_training_finds_the_one_tile_that_tells_and_is_the_same_for_equal_seeds() -> None:
    bags, labels = bags_with_one_telling_tile(40, np.random.default_rng(1))
    state = torch.random.get_rng_state()
    standard = np.zeros(6, np.float32), np.ones(6, np.float32)
    common = {"num_classes": 2, "config": CONFIG, "device": CPU}
    first, again, other = (train_attention(bags, labels, standard, seed=[seed], **common) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's draws are as they were"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.classify.weight, other.classify.weight)
    new, new_labels = bags_with_one_telling_tile(20, np.random.default_rng(2))
    answers = [answer(first, [bag], CPU) for bag in new]
    assert [int(one.probabilities.argmax()) for one in answers] == new_labels.tolist()
    for one, bag, label in zip(answers, new, new_labels, strict=True):
        assert one.attention.sum() == pytest.approx(1, abs=1e-5)
        if label:
            assert one.attention.argmax() == len(bag) // 2
