"""One training step against facebookresearch/dino's or dinov2's own on a CPU: same model, views and batch, one process.

    uv run python benchmarks/training/bench.py --peer CHECKOUT_OF_facebookresearch/dino
    uv run python benchmarks/training/bench.py --objective dinov2 --peer CHECKOUT_OF_facebookresearch/dinov2

Prints tiles/s of whole steps (ours: `train_step`, uint8 views in; theirs: `train_one_epoch` of main_dino.py, unchanged,
normalised float views in), then the time of each stage of both. The views lie in memory: the loader has a benchmark of
its own. CPU seconds of one thread, fp32 and bf16; dino has no bf16, so it gets an autocast around its whole epoch.
`--objective dinov2`: its [CLS] and iBOT heads, Sinkhorn-Knopp and KoLeo on both sides; see dinov2_peer.py.
The rounds are interleaved, so that a change of the machine's speed hits all alike, and medians are quoted.

On a GPU: benchmarks/gpu/bench.py.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from pathlib import Path

import torch
from contenders import (
    ARCHS,
    OBJECTIVES,
    STAGES,
    Contender,
    Stages,
    Stopwatch,
    Work,
    our_contender,
    peer_contender,
    peer_without_gpu,
)
from dinov2_peer import dinov2_contender

CPU = torch.device("cpu")
PRECISIONS = ("fp32", "bf16")


def measure(contenders: list[Contender], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[Stages]]]:
    """Seconds of whole steps and of stages by contender; the first round warms up."""
    steps_s: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    stages_s: dict[str, list[Stages]] = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        for contender in contenders:
            watch = Stopwatch(CPU)
            contender.step()
            step_s = watch.lap()
            staged = Stopwatch(CPU)
            contender.staged_step(staged)
            if number > 0:
                steps_s[contender.name].append(step_s)
                stages_s[contender.name].append(staged.stages)
    return steps_s, stages_s


def print_tables(steps_s: dict[str, list[float]], stages_s: dict[str, list[Stages]], batch: int) -> None:
    seconds = {name: statistics.median(values) for name, values in steps_s.items()}
    print(f"\n{'whole step':34s} tiles/s    s/step (min - max)        against the peer")
    peers = {name.split(", ")[1]: value for name, value in seconds.items() if name.startswith("facebook")}
    for name, median in seconds.items():
        ratios = "  ".join(f"{precision}: {value / median:.2f} x" for precision, value in peers.items())
        low, high = min(steps_s[name]), max(steps_s[name])
        print(f"{name:34s} {batch / median:7.2f}   {median:7.3f} ({low:.3f} - {high:.3f})   {ratios}")
    print(f"\n{'seconds by stage':34s} " + "  ".join(f"{stage:>15s}" for stage in STAGES))
    for name, rounds in stages_s.items():
        medians = [statistics.median(stages[stage] for stages in rounds) for stage in STAGES]
        print(f"{name:34s} " + "  ".join(f"{value:15.3f}" for value in medians))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=OBJECTIVES, default="dino")
    parser.add_argument("--drop-path-rate", type=float, default=0.1, help="of both sides")
    parser.add_argument("--drop-path-schedule", choices=("linear", "constant"), default="linear")
    parser.add_argument("--peer", type=Path, help="checkout of facebookresearch/dino, or of dinov2 for its objective")
    parser.add_argument("--arch", choices=ARCHS, default="vit_tiny", help="patch 16")
    parser.add_argument("--batch", type=int, default=4, help="tiles per step")
    parser.add_argument("--prototypes", type=int, default=4096)
    parser.add_argument("--global-px", type=int, default=224)
    parser.add_argument("--local-px", type=int, default=96)
    parser.add_argument("--num-local", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peers are of 2021 and 2023
    print(
        f"{arguments.arch}/16, {arguments.batch} tiles, 2 x {arguments.global_px} + {arguments.num_local} x"
        f" {arguments.local_px} px, {arguments.prototypes} prototypes, objective {arguments.objective},"
        f" stochastic depth {arguments.drop_path_rate:g} {arguments.drop_path_schedule};"
        f" torch {torch.__version__}, CPU, one thread"
    )
    work = Work(
        arguments.arch, arguments.batch, arguments.prototypes, arguments.global_px, arguments.local_px,
        arguments.num_local, CPU, arguments.objective, arguments.drop_path_rate, arguments.drop_path_schedule,
    )  # fmt: skip
    with peer_without_gpu(CPU):
        contenders = [our_contender(work, precision) for precision in PRECISIONS]
        if arguments.peer:
            peer = peer_contender if work.objective == "dino" else dinov2_contender
            contenders += [peer(work, precision, arguments.peer) for precision in PRECISIONS]
        print_tables(*measure(contenders, arguments.rounds), arguments.batch)


if __name__ == "__main__":
    main()
