"""Past one machine: bytes on the wire, bytes read, and expected tiles/s at 1 to 128 GPUs, from a model that is stated.

uv run python benchmarks/scaling/bench.py [--store STORE ...]

Counted on the built models: parameters, gradients, floating-point operations. Measured here: the bytes that two gloo
processes really send per optimizer step (in a network namespace of their own, whose loopback carries nothing else:
needs root and `unshare`), and the mean size of a stored tile (of each STORE). Modelled: everything in tiles/s; the
assumptions are the constants below. docs/scaling.md says what follows from the tables.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from dino_path.config import DinoConfig, ModelConfig, ObjectiveConfig
from dino_path.model.sizes import backbone_size
from dino_path.tiles.store import TileStore
from dino_path.training.networks import build_network

BACKBONES = {
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-L/16": "vit_large_patch16_224",
    "ResNet-50": "resnet50",
}
NUM_GPUS = (1, 8, 32, 128)
NUM_GLOBAL, NUM_LOCAL, BATCH = 2, 8, 64  # configs/vits16_8gpu.yaml; tiles per GPU

# Assumptions. One GPU: an H100 or H200, bf16 without sparsity (NVIDIA's data sheet), and two guesses of the share of it
# that training reaches: the aim of this project, and what the published code reached on V100s by its README (below).
PEAK_FLOPS, AIM = 989e12, 0.35
V100_PEAK_FLOPS, README_TILES, README_DAYS, README_GPUS = 125e12, 100 * 1.28e6, 1.75, 8  # ViT-S/16, 100 epochs
# Ring all-reduce; bytes/s in and out of one GPU inside a node (NVLink 4), and of one node: eight 400 Gb/s adapters, or
# one of 100 Gb/s. Of the nominal rate 0.8 is reached. A message costs 2 log2(N) hops of 10 us.
GPUS_PER_NODE, NVLINK, EFFICIENCY, HOP_S = 8, 450e9, 0.8, 10e-6
NETWORKS = {"8 x 400 Gb/s per node": 8 * 50e9, "1 x 100 Gb/s per node": 12.5e9}
BUCKET_BYTES = 25 * 2**20  # DistributedDataParallel's; the last one has nothing left to hide behind
HIDDEN = 0.5  # share of a step's computing that is the student's backward pass, behind which buckets travel
# Views: 8 cores per GPU at the rates of benchmarks/views/README.md (AMD EPYC, idle machine).
CORES_PER_GPU = 8
CORE_RATES = {"all on the CPU": 315.0, "views.colour_on_device": 873.0}

# The measured run: two processes, small enough for two cores.
MEASURED = (
    "model.backbone=vit_tiny_patch16_224", "objective.dino.num_prototypes=4096",
    "views.global_px=96", "views.local_px=48", "views.num_local=2",
    "training.batch_size_per_gpu=2", "training.num_workers=0", "training.device=cpu",
    "training.checkpoint_every_steps=1000", "monitor.log_every_steps=1000", "wandb.mode=disabled",
    "optim.lr_warmup=0 steps", "optim.freeze_last_layer=1 steps",
)  # fmt: skip
SHORT, LONG = 2, 8  # steps; the difference of two runs leaves the start out


@dataclass(frozen=True)
class Network:
    """Student (as the teacher): millions are single parameters here.

    Attributes:
        gradients: numbers that are averaged over the ranks each step.
        flops: of one tile in one step: student forward and backward, teacher forward.
    """

    backbone: int
    head: int
    gradients: int
    prototypes: int
    flops: float

    @property
    def wire_bytes(self) -> int:
        """What one step sums over the ranks: fp32 gradients, the center, and two numbers (finite? stop?)."""
        return 4 * (self.gradients + self.prototypes + 2)

    @property
    def checkpoint_bytes(self) -> int:
        """Student, teacher, and AdamW's two moments, fp32."""
        return 4 * 4 * (self.backbone + self.head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, action="append", default=[], help="tile store; may be given again")
    arguments = parser.parse_args()
    networks = {name: network_of(timm_name) for name, timm_name in BACKBONES.items()}
    tile_bytes = stores(arguments.store)
    wire(networks)
    measured_wire()
    published = published_share(networks["ViT-S/16"])
    throughput(networks, published)
    reading(networks["ViT-S/16"], tile_bytes)


def network_of(backbone: str, *, num_prototypes: int = 65536, global_px: int = 224, local_px: int = 96) -> Network:
    """Counted on the built model; nothing is allocated."""
    with torch.device("meta"):
        objective = ObjectiveConfig(dino=DinoConfig(num_prototypes=num_prototypes))
        network = build_network(ModelConfig(backbone=backbone), objective, drop_path_rate=0.0)
    assert network.head is not None
    size = backbone_size(backbone, (global_px, local_px), local_px)
    large, small = (float(size.gflops[edge] or math.nan) * 1e9 for edge in (global_px, local_px))
    head = 2.0 * sum(module.numel() for module in network.head.parameters() if module.ndim == 2 and module.shape[1] > 1)
    student = NUM_GLOBAL * (large + head) + NUM_LOCAL * (small + head)
    return Network(
        backbone=sum(parameter.numel() for parameter in network.backbone.parameters()),
        head=sum(parameter.numel() for parameter in network.head.parameters()),
        gradients=sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
        prototypes=num_prototypes,
        flops=3 * student + NUM_GLOBAL * (large + head),  # a backward pass costs two forward passes
    )


# --- the tables ----------------------------------------------------------------------------------------------------


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def stores(paths: list[Path]) -> float:
    """Mean bytes of a stored tile over all stores; 13 kB, which histology at 256 px has here, without one."""
    rows, sizes = [], []
    for path in paths:
        store = TileStore.open(path)
        lengths = np.array([len(store.read_bytes(number)) for number in range(len(store))])
        sizes.append(lengths)
        rows.append([path.name, f"{len(lengths):,}", f"{lengths.mean():,.0f}", f"{np.percentile(lengths, 95):,.0f}"])
    if not rows:
        return 13_000.0
    table("Stored tiles (measured)", ["store", "tiles", "mean bytes", "95th percentile"], rows)
    return float(np.concatenate(sizes).mean())


def wire(networks: dict[str, Network]) -> None:
    rows = []
    for name, network in networks.items():
        sent = [f"{ring_share(num_gpus) * network.wire_bytes / 1e6:,.0f}" for num_gpus in NUM_GPUS[1:]]
        rows.append([
            name, f"{network.backbone / 1e6:.1f} + {network.head / 1e6:.1f}", f"{network.gradients * 4 / 1e6:,.1f}",
            f"{network.prototypes * 4 / 1e6:.2f}", *sent, f"{network.flops / 1e9:,.0f}",
            f"{network.checkpoint_bytes / 1e9:.2f}",
        ])  # fmt: skip
    head = ["65,536 prototypes", "parameters, M (backbone + head)", "gradients, MB", "center, MB"]
    head += [f"sent per GPU and step at {count}, MB" for count in NUM_GPUS[1:]]
    table("Per optimizer step (counted)", [*head, "GFLOPs per tile", "checkpoint, GB"], rows)


def measured_wire() -> None:
    counted = network_of("vit_tiny_patch16_224", num_prototypes=4096, global_px=96, local_px=48).wire_bytes
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        print("\nBytes on the wire: not measured, `unshare --net` needs root.")
        return
    short, long = (loopback_bytes(num_steps) for num_steps in (SHORT, LONG))
    per_step = (long - short) / (LONG - SHORT) / 2
    table(
        "Two gloo processes, ViT-Ti/16 with 4,096 prototypes (measured: loopback of a namespace of their own)",
        ["", "bytes per process and step"],
        [
            ["gradients, center and verdict, counted", f"{counted:,}"],
            ["sent, TCP and IP headers included", f"{per_step:,.0f} ({per_step / counted:.3f} x)"],
        ],
    )


def loopback_bytes(num_steps: int) -> int:
    """What two processes send each other in a run of so many steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(16):
            noise = np.random.default_rng(number).integers(0, 255, (96, 96, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / f"{number}.jpg"), noise)
        words = [sys.executable, "-m", "dino_path", "pretrain", *MEASURED]
        words += [f"store={folder}", f"training.num_steps={num_steps}"]
        script = 'ip link set lo up; for RANK in 0 1; do export RANK LOCAL_RANK=$RANK; "$@" out="$OUT" & done; wait;'
        answer = subprocess.run(
            ["unshare", "--net", "sh", "-c", f"{script} grep lo: /proc/net/dev", "sh", *words],
            env={**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
                 "OUT": str(folder / "run"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (folder / "run/checkpoints" / f"step_{num_steps:08d}.pt").exists(), answer.stderr
    return int(answer.stdout.split("lo:")[1].split()[8])


def published_share(vit_s: Network) -> float:
    """Share of a V100's peak that facebookresearch/dino reached, by the hours in its README."""
    tiles_per_s = README_TILES / (README_DAYS * 86400) / README_GPUS
    share = tiles_per_s * vit_s.flops / V100_PEAK_FLOPS
    print(
        f"\nfacebookresearch/dino, ViT-S/16, by its README: {tiles_per_s:.0f} tiles/s per V100, {share:.0%} of its peak"
    )
    return share


def throughput(networks: dict[str, Network], published: float) -> None:
    rows = []
    for name, network in networks.items():
        for share in (AIM, published):
            for link, node_bytes_per_s in NETWORKS.items():
                rates = [
                    tiles_per_s(network, num_gpus, share, node_bytes_per_s, CORE_RATES["views.colour_on_device"])
                    for num_gpus in NUM_GPUS
                ]
                efficiency = rates[-1] / (NUM_GPUS[-1] * rates[0])
                rows.append([name, f"{share:.0%}", link, *(f"{rate:,.0f}" for rate in rates), f"{efficiency:.0%}"])
    head = ["", "share of peak", "network", *(f"{count} GPUs" for count in NUM_GPUS), "of 128 x one"]
    table(f"Expected tiles/s, {BATCH} tiles per GPU, colour on the device (modelled)", head, rows)
    vit_s = networks["ViT-S/16"]
    rows = []
    for views, rate in CORE_RATES.items():
        for share in (AIM, published):
            appetite = share * PEAK_FLOPS / vit_s.flops
            rows.append([
                views, f"{share:.0%}", f"{appetite:,.0f}", f"{CORES_PER_GPU * rate:,.0f}", f"{appetite / rate:.1f}"
            ])  # fmt: skip
    head = ["ViT-S/16, one GPU", "share of peak", "tiles/s it could train on", f"{CORES_PER_GPU} cores make"]
    table("Views (cores measured, GPU modelled)", [*head, "cores needed"], rows)


def tiles_per_s(network: Network, num_gpus: int, share: float, node_bytes_per_s: float, core_rate: float) -> float:
    """The slower of training and of making views; what is sent hides behind the backward pass, but for one bucket."""
    compute_s = BATCH * network.flops / (share * PEAK_FLOPS)
    step_s = compute_s
    if num_gpus > 1:
        bytes_per_s = EFFICIENCY * (NVLINK if num_gpus <= GPUS_PER_NODE else min(NVLINK, node_bytes_per_s))
        num_buckets = math.ceil(network.wire_bytes / BUCKET_BYTES)
        sending_s = ring_share(num_gpus) * network.wire_bytes / bytes_per_s
        sending_s += num_buckets * 2 * math.log2(num_gpus) * HOP_S
        step_s += max(sending_s - HIDDEN * compute_s, sending_s / num_buckets)
    return num_gpus * BATCH / max(step_s, BATCH / (CORES_PER_GPU * core_rate))


def ring_share(num_gpus: int) -> float:
    """What each GPU sends in a ring all-reduce, as a multiple of what is summed."""
    return 2 * (num_gpus - 1) / num_gpus


def reading(vit_s: Network, tile_bytes: float) -> None:
    node_bytes_per_s = NETWORKS["8 x 400 Gb/s per node"]
    rows = []
    for count in NUM_GPUS:
        rate = tiles_per_s(vit_s, count, AIM, node_bytes_per_s, CORE_RATES["views.colour_on_device"])
        rows.append([
            f"{count}", f"{rate:,.0f}", f"{rate * tile_bytes / count / 1e6:.0f}", f"{rate * tile_bytes / 1e9:.2f}",
            f"{rate:,.0f}",
        ])  # fmt: skip
    head = ["GPUs", "tiles/s", "MB/s per GPU", "GB/s in all", "random reads/s in all"]
    table(f"Reading, ViT-S/16 at {AIM:.0%}, {tile_bytes:,.0f} bytes a tile (modelled)", head, rows)


if __name__ == "__main__":
    main()
