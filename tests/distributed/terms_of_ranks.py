"""Two steps of the objective on each of two processes; `test_terms_of_ranks.py` starts it, and takes them alone too.

python terms_of_ranks.py OUT
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from forked import run_ranks
from objective_batches import SETTINGS, objective_config, objective_of, random_batch

from dino_path.distributed import World, open_world

METHODS = ("centering", "sinkhorn-knopp")
# Patches hidden of four tiles, in their first global view and in their second: the second process has none.
HIDDEN = {"unequal": ([3, 1, 0, 0], [2, 6, 0, 0]), "none at all": ([0] * 4, [0] * 4)}
CASES = [(method, hidden) for method in METHODS for hidden in HIDDEN]


def two_steps(method: str, hidden: str, world: World) -> dict[str, Any]:
    """Loss and gradients of the second step, as means over the processes, and the state after it."""
    size = 4 // world.size
    objective = objective_of(objective_config(method, dino=1, ibot=0.5), world, batch_size_per_gpu=size)
    for seed in range(2):
        batch = random_batch(HIDDEN[hidden], seed=seed)
        outputs = batch.outputs(world.rank * size, (world.rank + 1) * size)
        objective.prepare([outputs.teacher], SETTINGS)
        loss, _ = objective.measure(outputs, SETTINGS)
        means = objective.to_average(outputs)
        objective.update({name: world.sum_(value) / world.size for name, value in means.items()})
    gradients = torch.autograd.grad(loss, batch.leaves[1:])  # of all but the features, which no head term looks at
    return {
        "loss": world.sum_(loss.detach()) / world.size,
        **{f"gradient {n}": world.sum_(gradient) / world.size for n, gradient in enumerate(gradients)},
        **{f"{term} {name}": value for term, of in objective.state().items() for name, value in of.items()},
    }


def main(out: Path) -> None:
    warnings.simplefilter("error")
    with open_world("cpu", timeout_s=60) as world:
        largest = world.max_(torch.tensor([float(world.rank), -float(world.rank)]))
        found = {f"{method}, {hidden}": two_steps(method, hidden, world) for method, hidden in CASES}
        torch.save({"largest": largest, **found}, out / f"rank_{world.rank}.pt")


if __name__ == "__main__":
    sys.exit(max(abs(code) for code in run_ranks(range(2), 2, lambda: main(Path(sys.argv[1])))))
