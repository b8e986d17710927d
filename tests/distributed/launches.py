"""Groups of processes that cannot form, or fail; `test_launches.py` starts this and reads what they say.

python launches.py OUT
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from forked import run_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dino_path.distributed import World, open_world
from dino_path.errors import StoppedBySignal

TIMEOUT_S = 2.0
HANG_S = 100.0
LATE_S = 20.0  # also for meeting: each connection may wait some seconds for a name server


def meets(world: World) -> None:
    assert world.sum_(torch.ones(())) == world.size


def raises_on_1(world: World) -> None:
    world.barrier()
    if world.rank == 1:
        raise ValueError("a bug on rank 1")
    world.barrier()


def raises_on_0_while_others_hang(world: World) -> None:
    world.barrier()
    if world.rank == 0:
        raise ValueError("a bug on rank 0")
    time.sleep(HANG_S)


def raises_on_1_while_others_hang(world: World) -> None:
    world.barrier()
    if world.rank == 1:
        raise ValueError("a bug on rank 1")
    time.sleep(HANG_S)


def killed_on_0_while_others_hang(world: World) -> None:
    world.barrier()
    if world.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(HANG_S)


def hangs_on_1(world: World) -> None:
    world.barrier()
    if world.rank == 1:
        time.sleep(HANG_S)
    world.barrier()


def hangs_on_1_in_a_sharded_pass(world: World) -> None:
    """Where FSDP alone exchanges: all have come to the same of our own exchanges."""
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    mesh = init_device_mesh("cpu", (world.size,))
    for layer in (first, second):
        fully_shard(layer, mesh=mesh)
    between = first(torch.ones(2, 8))
    between.register_hook(lambda _: time.sleep(HANG_S) if world.rank == 1 else None)
    second(between).sum().backward()


def stopped_on_0(world: World) -> None:
    world.barrier()
    if world.rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    world.barrier()


def stopped_on_1(world: World) -> None:
    world.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    world.barrier()


def stopped_on_1_while_others_work(world: World) -> None:
    world.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(HANG_S)


def killed_on_1(world: World) -> None:
    world.barrier()
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()


def loses_its_device_on_1(world: World) -> None:
    world.barrier()
    if world.rank == 1:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")
    world.barrier()


def works_on_while_1_has_left(world: World) -> None:
    world.barrier()
    if world.rank == 0:
        time.sleep(2 * LATE_S)


def stops(world: World) -> None:
    """As after SIGTERM: in order, and each in its own time."""
    time.sleep(0.5 * world.rank)
    raise StoppedBySignal("run", "stopped.", "saved.", "continues.")


OF_TIME = (
    hangs_on_1, hangs_on_1_in_a_sharded_pass, stopped_on_0,
    stopped_on_1, stopped_on_1_while_others_work, killed_on_1, works_on_while_1_has_left,
)  # fmt: skip
# (who comes, of how many, what they do, variables of single ones)
CASES: dict[str, tuple[list[int], int, Callable[[World], None], Mapping[int, Mapping[str, str]]]] = {
    "all come": ([0, 1, 2], 3, meets, {}),
    "two are missing": ([0, 2], 4, meets, {}),
    "the first is missing": ([1], 2, meets, {}),
    "one comes twice": ([0, 1, 1], 3, meets, {}),
    "one was told of another size": ([0, 1], 2, meets, {1: {"WORLD_SIZE": "3"}}),
    "no such host": ([0, 1], 2, meets, {rank: {"MASTER_ADDR": "no-such-host.invalid"} for rank in (0, 1)}),
    "one raises": ([0, 1, 2], 3, raises_on_1, {}),
    "one raises, others hang": ([0, 1, 2], 3, raises_on_1_while_others_hang, {}),
    "the first raises, others hang": ([0, 1, 2], 3, raises_on_0_while_others_hang, {}),
    "the first is killed, others hang": ([0, 1, 2], 3, killed_on_0_while_others_hang, {}),
    "one hangs": ([0, 1, 2], 3, hangs_on_1, {}),
    "one hangs in a sharded pass": ([0, 1, 2], 3, hangs_on_1_in_a_sharded_pass, {}),
    "one is stopped": ([0, 1, 2], 3, stopped_on_1, {}),
    "one is stopped, others work": ([0, 1, 2], 3, stopped_on_1_while_others_work, {}),
    "the first is stopped": ([0, 1, 2], 3, stopped_on_0, {}),
    "one is killed": ([0, 1, 2], 3, killed_on_1, {}),
    "one loses its device": ([0, 1, 2], 3, loses_its_device_on_1, {}),
    "the others have left": ([0, 1, 2], 3, works_on_while_1_has_left, {}),
    "all stop": ([0, 1, 2], 3, stops, {}),
}


def play(case: str, out: Path) -> None:
    """Write what the processes of one case say, and a line with their exit codes and the seconds until their end."""
    ranks, size, body, further = CASES[case]

    def run() -> None:
        timeout_s = TIMEOUT_S if body is meets else LATE_S if body in OF_TIME else HANG_S
        with open_world("cpu", timeout_s=timeout_s) as world:
            body(world)

    with (out / f"{case}.said").open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
    start_s = time.monotonic()
    codes = run_ranks(ranks, size, run, further)
    outcome = f"{' '.join(map(str, codes))} {time.monotonic() - start_s:.1f}"
    (out / f"{case}.outcome").write_text(outcome, encoding="utf-8")


def main(out: Path) -> None:
    """Run nearly all cases at once, because they mostly wait."""
    # Its process knocks at a port that nobody serves, which may become the port of another case's processes.
    alone = "the first is missing"
    for cases in ([case for case in CASES if case != alone], [alone]):
        children = []
        for case in cases:
            child = os.fork()
            if child == 0:
                play(case, out)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:  # started by torchrun: this process is one rank
        with open_world("cpu", timeout_s=HANG_S) as world:
            raises_on_1_while_others_hang(world)
