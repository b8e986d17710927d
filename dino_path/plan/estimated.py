"""How long a step takes on hardware that is not here: counted operations over what such hardware is known to reach."""

from __future__ import annotations

import math
import re

from dino_path.config import ClusterConfig, ViewsConfig
from dino_path.plan.figure import Figure

# 1e12 operations a second, dense, in bf16 (V100: fp16) with sums in fp32: NVIDIA's data sheets.
GPU_TFLOPS = {
    "v100": 125.0, "a10": 125.0, "a30": 165.0, "a40": 150.0, "a100": 312.0, "l4": 121.0, "l40s": 362.0, "h100": 989.0,
    "h200": 989.0, "b200": 2250.0,
}  # fmt: skip
DEFAULT_GPU = "a100"
# The share of it that training reaches: what facebookresearch/dino reached on V100s by its README, and this project's
# aim, which is not measured (docs/scaling.md).
GPU_SHARES = 0.10, 0.35
# 1e9 operations a second of one CPU core in training: fp32 with AVX2 or AVX-512, bf16 where the core multiplies it
# itself. 25 tiles/s of vit192_cpu_1h on one core of an AMD EPYC are 117.
CPU_GFLOPS = {"fp32": (15.0, 80.0), "bf16": (60.0, 150.0)}
# Tiles a second whose views (2 x 224 and 8 x 96 px) one core makes: AMD EPYC, benchmarks/views. All on the CPU, and
# with views.colour_on_device.
CORE_TILES, CORE_TILES_WITHOUT_COLOUR = 315.0, 873.0
CORE_PIXELS = 2 * 224**2 + 8 * 96**2
VIEWS_SPREAD = 2.0  # other CPUs, other tiles: from half of it to twice


def gpu_of(cluster: ClusterConfig) -> str | None:
    """The kind of GPU that the cluster section names, as its type or among the constraints; None: none that we know."""
    stages = [stage.gpus for name, stage in cluster.stages.items() if name in ("pretrain", "gpu")]
    texts = [str(each) for each in (*stages, cluster.gpus_per_node, cluster.constraint)]
    words = re.split(r"[^a-z0-9]+", " ".join(texts).lower())
    return next((word for word in words if word in GPU_TFLOPS), None)


def step_on_gpu(flops: float, cluster: ClusterConfig) -> Figure:
    """Seconds of one step of one GPU, without waits for views and other processes."""
    named = gpu_of(cluster)
    kind = named or DEFAULT_GPU
    slow, fast = (flops / (share * GPU_TFLOPS[kind] * 1e12) for share in GPU_SHARES)
    how = (
        f"estimate: {GPU_SHARES[0]:.0%} to {GPU_SHARES[1]:.0%} of the {GPU_TFLOPS[kind]:g} TFLOP/s of "
        f"{'an' if kind[0] in 'ahl' else 'a'} {kind.upper()}"
    )
    return Figure(math.sqrt(slow * fast), "s", how, fast, slow)


def step_on_cpu(flops: float, precision: str, num_cores: int) -> Figure:
    """Seconds of one step on so many cores of a CPU."""
    low, high = CPU_GFLOPS[precision]
    slow, fast = (flops / (one * 1e9 * num_cores) for one in (low, high))
    how = f"estimate: {low:g} to {high:g} GFLOP/s in {precision} of each of {num_cores} core(s)"
    return Figure(math.sqrt(slow * fast), "s", how, fast, slow)


def views_of_core(views: ViewsConfig) -> Figure:
    """Tiles a second whose views one core makes."""
    pixels = 2 * views.global_px**2 + views.num_local * views.local_px**2
    rate = (CORE_TILES_WITHOUT_COLOUR if views.colour_on_device else CORE_TILES) * CORE_PIXELS / pixels
    how = "estimate: benchmarks/views on an AMD EPYC, by pixels"
    return Figure(rate, "tiles/s", how, rate / VIEWS_SPREAD, rate * VIEWS_SPREAD)
