"""Gated attention-MIL (Ilse, Tomczak and Welling 2018, "Attention-based Deep Multiple Instance Learning", eq. 7 and 9).

A bag of tiles h_1 ... h_N becomes z = sum_n a_n h_n, with a = softmax over tiles of w . (tanh(V h_n) * sigm(U h_n)),
and one linear layer answers for z. Features are standardised by the training slides first, so that one learning rate
suits three colours and a thousand features; then they are projected, as CLAM and TRIDENT do.

Shape suffixes: N tiles of a bag, S tiles of all bags of a step, B bags, D features, H projected, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dino_path.config import CohortConfig
from dino_path.evaluation.measures.confusion import Floats, Ints
from dino_path.features.bags import Features


class GatedAttention(nn.Module):
    """The network. `mean` and `std` (D,) standardise the features and are part of its state."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_features: int, num_classes: int, config: CohortConfig) -> None:
        super().__init__()
        hidden, width = config.abmil_hidden, config.abmil_attention
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        self.project = nn.Linear(num_features, hidden)
        self.dropout = nn.Dropout(config.abmil_dropout)
        self.tanh = nn.Linear(hidden, width)
        self.gate = nn.Linear(hidden, width)
        self.score = nn.Linear(width, 1, bias=False)  # a bias moves all tiles alike, and the softmax takes it out
        self.classify = nn.Linear(hidden, num_classes)

    def tiles(self, features_SD: Tensor) -> tuple[Tensor, Tensor]:
        """Projected tiles (S, H), and the logits (S,) of their attention."""
        hidden_SH = self.dropout(F.relu(self.project((features_SD - self.mean) / self.std)))
        logits_S = self.score(torch.tanh(self.tanh(hidden_SH)) * torch.sigmoid(self.gate(hidden_SH)))[:, 0]
        return hidden_SH, logits_S

    def forward(self, bags: Sequence[Tensor]) -> Tensor:
        """Class logits (B, C) of bags (N, D) of any lengths."""
        sizes = [len(bag) for bag in bags]
        hidden_SH, logits_S = self.tiles(torch.cat(list(bags)))
        pooled = [
            torch.softmax(logits_N, dim=0) @ hidden_NH
            for hidden_NH, logits_N in zip(torch.split(hidden_SH, sizes), torch.split(logits_S, sizes), strict=True)
        ]
        logits_BC: Tensor = self.classify(torch.stack(pooled))
        return logits_BC


@dataclass(frozen=True)
class Answer:
    """Of one bag: class probabilities (C,), and the attention (N,) of its tiles, which sums to 1."""

    probabilities: Floats
    attention: NDArray[np.float32]


def train_attention(
    bags: Sequence[Features], labels: Ints, standard: tuple[Features, Features], *, num_classes: int,
    config: CohortConfig, seed: Sequence[int], device: torch.device,
) -> GatedAttention:  # fmt: skip
    """Train one network for `abmil_epochs` epochs; nothing is chosen, and no validation part is needed.

    AdamW along a cosine; cross-entropy in which classes weigh the same; in each epoch another `abmil_tiles` tiles of
    each bag. Equal seeds give equal networks on one machine.

    Args:
        bags: (N, D) tiles of each training case.
        standard: mean and standard deviation (D,) of the features.
    """
    rng = np.random.default_rng([*seed])
    counts_C = np.bincount(labels, minlength=num_classes)
    weights_C = torch.tensor(len(labels) / (num_classes * np.maximum(counts_C, 1)), dtype=torch.float32, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(rng.integers(2**31)))
        network = GatedAttention(bags[0].shape[1], num_classes, config)
        network.mean.copy_(torch.from_numpy(standard[0]))
        network.std.copy_(torch.from_numpy(standard[1]))
        network.to(device).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.abmil_lr, weight_decay=config.abmil_weight_decay)
        steps_per_epoch = math.ceil(len(bags) / config.abmil_batch_slides)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.abmil_epochs * steps_per_epoch)
        for _ in range(config.abmil_epochs):
            for batch in np.array_split(rng.permutation(len(bags)), steps_per_epoch):
                drawn = [torch.from_numpy(_draw(bags[case], config.abmil_tiles, rng)).to(device) for case in batch]
                loss = F.cross_entropy(network(drawn), torch.from_numpy(labels[batch]).to(device), weights_C)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    return network.eval()


@torch.inference_mode()
def answer(network: GatedAttention, pieces: Iterable[Features], device: torch.device) -> Answer:
    """The answer for a bag that comes in pieces (n, D): all tiles count, and memory holds one piece.

    The softmax runs along: sums are kept relative to the largest logit so far.
    """
    largest, total = torch.tensor(-torch.inf, device=device), torch.tensor(0.0, device=device)
    pooled_H = torch.zeros(network.classify.in_features, device=device)
    logits: list[Tensor] = []
    for piece_ND in pieces:
        hidden_NH, logits_N = network.tiles(torch.from_numpy(piece_ND).to(device))
        now = torch.maximum(largest, logits_N.max())
        weights_N, shrink = torch.exp(logits_N - now), torch.exp(largest - now)
        total, pooled_H, largest = total * shrink + weights_N.sum(), pooled_H * shrink + weights_N @ hidden_NH, now
        logits.append(logits_N)
    probabilities_C = torch.softmax(network.classify(pooled_H / total).double(), dim=0)
    attention_N = torch.exp(torch.cat(logits) - largest) / total
    return Answer(probabilities_C.cpu().numpy(), attention_N.cpu().numpy())


def _draw(bag_ND: Features, most: int, rng: np.random.Generator) -> Features:
    if len(bag_ND) <= most:
        return bag_ND
    return bag_ND[rng.choice(len(bag_ND), most, replace=False)]
