"""Prototype layer and loss, forward and backward, with all logits at once and piece by piece: time and memory.

    uv run python benchmarks/training/loss.py [--batches 16 64] [--piece-mb 16 64 256] [--prototypes 65536]

Of one head output (bottleneck of 256) with 10 views a tile, fp32: what a step does between the head's MLP and its
gradient. Every case runs in a process of its own; the memory is that process's peak above its inputs, gradients
included (on a GPU the allocator's), and predicted bytes stand beside it. CPU seconds of one thread (on a GPU wall
seconds), medians of --rounds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from dino_path.model.head import Projection
from dino_path.training.objective import fused_loss
from dino_path.training.objective.dino_loss import dino_loss
from dino_path.training.objective.fused_loss import fused_dino_loss

NUM_VIEWS, WIDTH = 10, 256


def predicted_mb(batch: int, num_prototypes: int, piece_mb: float | None) -> float:
    """Peak bytes above the inputs, counted from the code; gradients included, MB.

    Plain, at the peak (in the backward pass): 5 V B K for the student's logits, the same over the temperature, their
    gradient, the local views' part of it padded to all views and what it is added to; 3 B K for the teacher's softmax
    and the locals' targets. Fused: a piece's rows, and the teacher's exponentials of them.
    """
    gradients = num_prototypes * WIDTH + NUM_VIEWS * batch * WIDTH
    if piece_mb is None:
        return 4e-6 * ((5 * NUM_VIEWS + 3) * batch * num_prototypes + gradients)
    tiles = max(1, int(piece_mb * 2**20) // ((NUM_VIEWS + 2) * num_prototypes * 4))
    return 4e-6 * ((NUM_VIEWS + 4) * min(tiles, batch) * num_prototypes + 2 * gradients)


def one_case(arguments: argparse.Namespace) -> None:
    """Print [CPU seconds, or wall seconds of a GPU, ...] and peak MB as JSON."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch, piece_mb = arguments.batches[0], arguments.piece_mb[0]
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=generator)).to(device)

    student = Projection(unit(NUM_VIEWS * batch).requires_grad_(), unit(arguments.prototypes).requires_grad_())
    teacher, center = Projection(unit(2 * batch), unit(arguments.prototypes)), torch.zeros(1, arguments.prototypes)
    center = center.to(device)
    fused_loss.PIECE_BYTES = int(piece_mb * 2**20)
    unit(8) @ unit(8).T  # what the first product of matrices loads
    before_mb, seconds = resident_mb(device), []
    for _ in range(arguments.rounds):
        student.bottleneck.grad = student.prototypes.grad = None
        start_s = now_s(device)
        if piece_mb:
            objective = fused_dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04)
        else:
            logits = student.logits(), teacher.logits()
            objective = dino_loss(*logits, center, student_temp=0.1, teacher_temp=0.04)
            del logits
        objective.loss.backward()
        seconds.append(now_s(device) - start_s)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(device) - before_mb}))


def now_s(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def resident_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 1e6
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64], help="tiles")
    parser.add_argument("--piece-mb", type=float, nargs="+", default=[16, 64, 256], help="of the fused loss")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one_case(arguments)
        return
    print(f"{'tiles':>5s} {'loss':>14s} {'seconds (min - max)':>24s} {'peak MB':>9s} {'predicted':>9s}")
    for batch in arguments.batches:
        for piece_mb in (0.0, *arguments.piece_mb):
            command = [
                sys.executable, __file__, "--one", "--batches", str(batch), "--piece-mb", str(piece_mb),
                "--prototypes", str(arguments.prototypes), "--rounds", str(arguments.rounds),
            ]  # fmt: skip
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            name = f"fused, {piece_mb:g} MB" if piece_mb else "plain"
            if answer.returncode:
                print(f"{batch:5d} {name:>14s} failed: {answer.stderr.strip().splitlines()[-1:]}")
                continue
            case = json.loads(answer.stdout)
            s = case["seconds"]
            timing = f"{statistics.median(s):.3f} ({min(s):.3f} - {max(s):.3f})"
            predicted = predicted_mb(batch, arguments.prototypes, piece_mb or None)
            print(f"{batch:5d} {name:>14s} {timing:>24s} {case['peak_mb']:9.0f} {predicted:9.0f}", flush=True)


if __name__ == "__main__":
    main()
