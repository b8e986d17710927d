"""k-NN classification: the same features, DINO's protocol (k = 20, T = 0.07), time and memory.

    uv run python benchmarks/knn/bench.py [--peer CHECKOUT_OF_facebookresearch/dino] [--train 100000] [--queries 10000]
        [--rounds 3] [--only NAME ...]

The peer's script classifies once for each k in 10, 20, 100, 200 by default, with one call of `knn_classifier` each;
ours answers all from one search. Both are timed for one k and for the four.

Each contestant runs in a process of its own, round after round, so that its peak memory is its own and a change of the
machine's speed hits all alike. Times are CPU seconds (user and system, all threads) from features as a model gives them
to predictions: bringing to length 1, index, search, vote; medians. Memory is the peak of that work above what the
process held before it, libraries and features included (Linux only).
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

NUM_CLASSES, K, TEMPERATURE = 9, 20, 0.07
KS = (10, 20, 100, 200)  # eval_knn.py's default
FOUR = "k in 10/20/100/200"
OURS = ("flat", f"flat, {FOUR}", "ivf", "hnsw")
PEER = "facebookresearch/dino"
PEERS = (PEER, f"{PEER}, {FOUR}")


def example_features(num_train: int, num_queries: int, num_features: int) -> tuple[np.ndarray, ...]:
    """Features and labels of training images and of queries: 200 clusters in 32 dimensions, with noise in all."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((32, num_features), dtype=np.float32)
    centres = rng.standard_normal((200, 32), dtype=np.float32)
    labels_of_centres = rng.integers(NUM_CLASSES, size=200)
    parts = []
    for count in (num_train, num_queries):
        cluster = rng.integers(200, size=count)
        latent = centres[cluster] + 1.2 * rng.standard_normal((count, 32), dtype=np.float32)
        features = rng.standard_normal((count, num_features), dtype=np.float32)
        features += latent @ spread
        parts += [features, labels_of_centres[cluster]]
    return tuple(parts)


class Meter:
    """CPU and wall seconds, and peak memory in MiB, since it was created."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._before_mib = _status_mib("VmRSS")
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        return {
            "cpu_s": time.process_time() - self._cpu_s,
            "wall_s": time.perf_counter() - self._wall_s,
            "memory_mib": _status_mib("VmHWM") - self._before_mib,
        }


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def run_ours(name: str, data: tuple[np.ndarray, ...]) -> dict[str, float]:
    from dino_path.evaluation.protocols.knn import NeighbourIndex, knn_classify

    train, labels, queries, query_labels = data
    ks = KS if FOUR in name else (K,)
    meter = Meter()
    index = NeighbourIndex(train, name.partition(",")[0])
    build_cpu_s = meter.read()["cpu_s"]
    result = knn_classify(train, labels, queries, num_classes=NUM_CLASSES, ks=ks, temperature=TEMPERATURE, index=index)
    record = meter.read()
    top1 = {f"top1_{k}": 100 * float((result[k].predicted == query_labels).mean()) for k in ks}
    return {**record, "build_cpu_s": build_cpu_s, **top1, "recall": index.recall(queries, K)}


def run_peer(name: str, checkout: str, data: tuple[np.ndarray, ...]) -> dict[str, float]:
    import torch

    sys.path.insert(0, checkout)
    peer = importlib.import_module("eval_knn")
    train, labels, queries, query_labels = (torch.from_numpy(part) for part in data)
    meter = Meter()
    train, queries = (torch.nn.functional.normalize(features, dim=1) for features in (train, queries))
    top1 = {
        f"top1_{k}": peer.knn_classifier(train, labels, queries, query_labels, k, TEMPERATURE, NUM_CLASSES)[0]
        for k in (KS if FOUR in name else (K,))
    }
    return {**meter.read(), **top1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of facebookresearch/dino, outside this repository")
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*OURS, *PEERS], help="these contestants; default: all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        data = example_features(options.train, options.queries, options.features)
        is_peer = options.one in PEERS
        print(json.dumps(run_peer(options.one, options.peer, data) if is_peer else run_ours(options.one, data)))
        return
    names = options.only or [*OURS, *(PEERS if options.peer else ())]
    records: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--one", name]
            records[name].append(
                json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            )
    print(f"{options.train:,} x {options.features} training features, {options.queries:,} queries\n")
    columns = ("CPU s (min - max)", "of it the index", "wall s", "memory, MiB", "top-1 %", "recall", "against the peer")
    print(f"| k = {K} or four | {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")
    medians = {name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
               for name, rounds in records.items()}  # fmt: skip
    for name, middle in medians.items():
        cpu = [r["cpu_s"] for r in records[name]]
        peer = medians.get(PEERS[FOUR in name])
        ratio = f"{peer['cpu_s'] / middle['cpu_s']:.1f} x" if peer else ""
        build = f"{middle['build_cpu_s']:.2f}" if "build_cpu_s" in middle else ""
        recall = f"{middle['recall']:.4f}" if "recall" in middle else ""
        top1 = " / ".join(f"{value:.3f}" for key, value in middle.items() if key.startswith("top1"))
        print(f"| {name} | {middle['cpu_s']:.2f} ({min(cpu):.2f} - {max(cpu):.2f}) | {build} | {middle['wall_s']:.2f} "
              f"| {middle['memory_mib']:.0f} | {top1} | {recall} | {ratio} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
