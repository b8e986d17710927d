"""One GPU: facebookresearch/dino's own step and loop, and ours, at growing batches; the same model, views and tiles.

    make bench-gpu PEER=CHECKOUT_OF_facebookresearch/dino            # without PEER: ours alone
    uv run python benchmarks/gpu/bench.py --device cpu --tiny        # only to see that it runs, [--peer CHECKOUT]

2 x 224 + 8 x 96 px, 65,536 prototypes, ViT-S, B and L with patches of 16. Ours in bf16, also compiled, also
with what is elementwise recomputed; the peer in its own fp16 with GradScaler, `train_one_epoch` unchanged. For each,
after a warm-up:

- step alone: views in memory, page-locked (ours uint8, theirs normalised floats), wall time of whole steps;
- end to end: both loops whole, from the same JPEG files, as many workers: `dino_path pretrain` (recipe `dino`; once
  more with `views.colour_on_device`), and its ImageFolder, DataAugmentationDINO, DataLoader and `train_one_epoch`;
- peak memory of the allocator; MFU: FLOPs that the method needs (counted once, the same for both) over the peak rate;
- the stages, each waited for, which forbids overlap: their sum is longer than the step;
- a torch profile of the first batch size, under OUT.

Every case adds a line to OUT/results.jsonl and renews OUT/results.md; the same command again does what is missing, so
--budget-s may be short. What runs out of memory is noted, and larger batches of it are left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch._dynamo
from torch.profiler import ProfilerActivity, profile

from dino_path.distributed import World, usable_cores
from dino_path.records.metrics import read_metrics
from dino_path.run import RunFolder
from dino_path.settings import load_config
from dino_path.slides.synthetic import stain_image
from dino_path.slides.textures import PAINTERS
from dino_path.training.loop import pretrain

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from contenders import (
    STAGES,
    Contender,
    Stopwatch,
    Work,
    flops_per_tile,
    our_contender,
    peer_contender,
    peer_without_gpu,
)

NUM_TILES, TILE_PX = 512, 256
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}  # bf16, dense; NVIDIA's data sheets
LEAN = {"activation_checkpointing": "elementwise"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {  # name, and options of TrainingConfig
    "ours": ("dino_path", {}),
    "peer": ("facebookresearch/dino", {}),
    "compiled": ("dino_path, compiled", {"compile": True}),
    "elementwise": ("dino_path, elementwise recomputed", LEAN),
    "compiled-elementwise": ("dino_path, compiled, elementwise recomputed", {"compile": True} | LEAN),
}
Row = dict[str, Any]


class TimedLoader:
    """The peer's loader, cut to `count` batches, with the seconds from batch `warm` on and what was waited for."""

    def __init__(self, loader: Any, *, warm: int, count: int) -> None:
        self.loader, self.warm, self.count = loader, warm, count
        self.start_s = self.wait_s = 0.0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for number in range(self.count):
            asked_s = time.perf_counter()
            batch = next(batches)
            if number == self.warm:
                self.start_s, self.wait_s = asked_s, 0.0  # its loop synchronises after each step
            self.wait_s += time.perf_counter() - asked_s
            yield batch


def write_tiles(folder: Path, count: int) -> Path:
    """JPEG tiles of synthetic tissue, in one class folder, as the peer wants them."""
    painters = list(PAINTERS.values())
    (folder / "tiles").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        file = folder / "tiles" / f"{number:04d}.jpg"
        if not file.exists():
            rng = np.random.default_rng(number)
            image = stain_image(*painters[number % len(painters)](TILE_PX, TILE_PX, rng), rng)
            cv2.imwrite(str(file), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return folder


def time_step(contender: Contender, arguments: argparse.Namespace, device: torch.device) -> Row:
    """Seconds of whole steps and of their stages, medians, and the peak memory of whole steps."""
    for _ in range(arguments.warm_steps):
        contender.step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rounds_s, stages = [], []
    for _ in range(arguments.rounds):
        watch = Stopwatch(device)
        for _ in range(arguments.steps):
            contender.step()
        rounds_s.append(watch.lap() / arguments.steps)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    for number in range(4):
        staged = Stopwatch(device)
        contender.staged_step(staged)
        if number > 0:
            stages.append(staged.stages)
    return {
        "step_s": statistics.median(rounds_s), "step_s_min": min(rounds_s), "step_s_max": max(rounds_s),
        "peak_gb": peak_gb, "stages_s": {name: statistics.median(each[name] for each in stages) for name in STAGES},
    }  # fmt: skip


def our_loop(
    work: Work, arguments: argparse.Namespace, options: dict[str, Any], *, colour_on_device: bool
) -> tuple[float, float]:
    """Tiles/s and data wait of `pretrain` itself, from its own records; the first two intervals warm up."""
    num_steps = arguments.loop_steps * 4
    out = arguments.out / f"run_{work.arch}_{work.batch}_{time.time_ns()}"
    config = load_config(
        None,
        [
            f"model.backbone={work.arch}_patch16_224", f"objective.dino.num_prototypes={work.prototypes}",
            "views.recipe=dino", f"views.colour_on_device={colour_on_device}", f"views.global_px={work.global_px}",
            f"views.local_px={work.local_px}", f"views.num_local={work.num_local}",
            f"training.num_steps={num_steps}", f"training.batch_size_per_gpu={work.batch}",
            "training.precision=bf16", f"training.device={work.device.type}",
            f"training.num_workers={arguments.workers}", f"monitor.log_every_steps={arguments.loop_steps}",
            f"training.checkpoint_every_steps={num_steps}", "optim.lr_warmup=2 steps", "wandb.mode=disabled",
            *(f"training.{name}={value}" for name, value in options.items()),
        ],
        settings={"store": arguments.out / "tiles", "out": out},
    )  # fmt: skip
    pretrain(config, World(rank=0, size=1, local_rank=0, device=work.device))
    records = read_metrics(RunFolder(out).metrics_file).records[2:]
    for file in RunFolder(out).checkpoint_files():
        file.unlink()
    return (
        statistics.median(record.tiles_per_s for record in records),
        statistics.median(record.data_wait for record in records),
    )


def peer_loop(contender: Contender, work: Work, arguments: argparse.Namespace) -> tuple[float, float]:
    """The same of the peer's whole loop."""
    import main_dino  # type: ignore[import-not-found]
    from torchvision import datasets

    transform = main_dino.DataAugmentationDINO((0.4, 1.0), (0.05, 0.4), work.num_local)
    if work.global_px != 224:  # only with --tiny: the sizes are fixed in its code
        inner = transform

        def transform(image: Any) -> list[torch.Tensor]:
            views = [view[:, : work.global_px, : work.global_px] for view in inner(image)]
            return views[:2] + [view[:, : work.local_px, : work.local_px] for view in views[2:]]

    warm, count = arguments.loop_steps, 3 * arguments.loop_steps
    images = datasets.ImageFolder(str(arguments.out / "tiles"), transform=transform)
    copies = -(-count * work.batch // len(images))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.ConcatDataset([images] * copies), batch_size=work.batch, shuffle=True, drop_last=True,
        num_workers=arguments.workers, pin_memory=work.device.type == "cuda",
    )  # fmt: skip
    timed = TimedLoader(loader, warm=warm, count=count)
    assert contender.loop is not None
    contender.loop(timed)
    if work.device.type == "cuda":
        torch.cuda.synchronize()
    elapsed_s = time.perf_counter() - timed.start_s
    return (count - warm) * work.batch / elapsed_s, timed.wait_s / elapsed_s


def save_profile(contender: Contender, kind: str, work: Work, out: Path) -> None:
    """A table by operation and a trace of three steps."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if work.device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(3):
            contender.step()
        if work.device.type == "cuda":
            torch.cuda.synchronize()
    name = f"profile_{work.arch}_{work.batch}_{kind}"
    order = "self_cuda_time_total" if work.device.type == "cuda" else "self_cpu_time_total"
    (out / f"{name}.txt").write_text(profiler.key_averages().table(sort_by=order, row_limit=40))
    profiler.export_chrome_trace(str(out / f"{name}.json.gz"))


def one_case(kind: str, work: Work, arguments: argparse.Namespace, *, is_first: bool) -> Row:
    """All measurements of one contender at one batch size; `out of memory` where it does not fit."""
    is_cuda, options = work.device.type == "cuda", KINDS[kind][1]
    try:
        if kind == "peer":
            contender = peer_contender(work, "fp16" if is_cuda else "fp32", arguments.peer)
        else:
            contender = our_contender(work, "bf16", **options)
        row = time_step(contender, arguments, work.device)
        if is_first:
            save_profile(contender, kind, work, arguments.out)
        if kind == "peer":
            row["loop"] = peer_loop(contender, work, arguments)
        else:
            del contender
            for name, colour_on_device in (("loop", False), ("loop_colour_on_device", True)):
                if kind == "ours" or not colour_on_device:
                    clear(work.device)
                    row[name] = our_loop(work, arguments, options, colour_on_device=colour_on_device)
    except torch.OutOfMemoryError:
        row = {"failed": "out of memory"}
    return row


def clear(device: torch.device) -> None:
    """Nothing of one case is left to the next, compiled code included: it would serve a network with other options."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def table(rows: list[Row], head: str) -> str:
    """Markdown for benchmarks/gpu/README.md."""
    gflops = {row["arch"]: row["gflop_per_tile"] for row in rows}
    flops = "; ".join(f"{arch}/16 {gflop:.1f}" for arch, gflop in gflops.items())
    lines = [
        f"{head} GFLOP a tile: {flops}.", "",
        "| | batch | step alone, tiles/s (min - max) | end to end, tiles/s (data wait) | the same, colour on the GPU |"
        " peak GB | MFU of the step |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        name = f"{row['arch']}/16, {row['name']}"
        if "failed" in row:
            lines.append(f"| {name} | {row['batch']} | {row['failed']} | | | | |")
            continue
        low, middle, high = (row["batch"] / row[each] for each in ("step_s_max", "step_s", "step_s_min"))
        loops = [row.get(each) for each in ("loop", "loop_colour_on_device")]
        cells = [
            f"{middle:,.0f} ({low:,.0f} - {high:,.0f})",
            *("" if loop is None else f"{loop[0]:,.0f} ({loop[1]:.1%})" for loop in loops),
            "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}",
            "" if row["mfu"] is None else f"{row['mfu']:.1%}",
        ]
        lines.append(f"| {name} | {row['batch']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| ms by stage, each waited for | batch | " + " | ".join(STAGES) + " |",
        "|---" * (len(STAGES) + 2) + "|",
    ]
    for row in rows:
        if "failed" not in row:
            values = " | ".join(f"{1000 * row['stages_s'][stage]:.1f}" for stage in STAGES)
            lines.append(f"| {row['arch']}/16, {row['name']} | {row['batch']} | {values} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of facebookresearch/dino")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="views of 32 and 16 px, 512 prototypes, two tiles")
    parser.add_argument("--archs", nargs="+", default=["vit_small", "vit_base", "vit_large"])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="whole steps per round")
    parser.add_argument("--warm-steps", type=int, default=5)
    parser.add_argument(
        "--loop-steps", type=int, default=30, help="per interval of the whole loops: two warm up, two count"
    )
    parser.add_argument("--workers", type=int, default=usable_cores() - 1)
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="begin no case after so many seconds")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, bf16 dense; known for H100, H200, A100")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.archs, arguments.batches = ["vit_tiny"], [2]
        arguments.rounds = arguments.steps = arguments.warm_steps = arguments.loop_steps = 1
        arguments.workers = min(arguments.workers, 1)
    if arguments.peer is None:
        arguments.kinds = [kind for kind in arguments.kinds if kind != "peer"]
        print("no --peer (PEER=): facebookresearch/dino is left out")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "no GPU here. --device cpu --tiny tries the code without one.\n")
    return arguments


def remaining(rows: list[Row], arguments: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """(arch, batch, kind) of the cases without a row; none larger than what has failed. `rows` may grow meanwhile."""
    for arch in arguments.archs:
        for batch in arguments.batches:
            for kind in arguments.kinds:
                mine = [row for row in rows if (row["arch"], row["kind"]) == (arch, kind)]
                if not any("failed" in row or row["batch"] == batch for row in mine):
                    yield arch, batch, kind


def main() -> None:
    arguments = parse()
    warnings.simplefilter("ignore")  # the peer is of 2021
    began_s, longest_s = time.monotonic(), 0.0
    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = arguments.peak_tflops or next((rate for name, rate in PEAK_TFLOPS.items() if name in gpu), None)
    arguments.out = arguments.out.resolve()
    write_tiles(arguments.out / "tiles", 8 if arguments.tiny else NUM_TILES)
    results = arguments.out / "results.jsonl"
    rows: list[Row] = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    sizes = (512, 32, 16, 2) if arguments.tiny else (65536, 224, 96, 8)
    head = f"{gpu}, {usable_cores()} CPU cores, {arguments.workers} workers, torch {torch.__version__}."
    flops: dict[str, float] = {}
    with peer_without_gpu(device):
        for arch, batch, kind in remaining(rows, arguments):
            start_s = time.monotonic()
            if start_s - began_s + longest_s > arguments.budget_s:
                print("the time is up; the same command continues")
                break
            work = Work(arch, batch, *sizes, device)
            if arch not in flops:
                flops[arch] = flops_per_tile(work)
            row = {
                "arch": arch,
                "batch": batch,
                "kind": kind,
                "name": KINDS[kind][0],
                "gflop_per_tile": flops[arch] / 1e9,
            }
            row |= one_case(kind, work, arguments, is_first=batch == arguments.batches[0])
            if "failed" not in row:
                row["mfu"] = flops[arch] * batch / row["step_s"] / (peak * 1e12) if peak else None
            clear(device)
            rows.append(row)
            with results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            (arguments.out / "results.md").write_text(table(rows, head))
            print({key: row.get(key) for key in ("arch", "batch", "name", "step_s", "loop", "failed")})
            longest_s = max(longest_s, time.monotonic() - start_s)
    print(f"\n{table(rows, head)}\nin {arguments.out}")


if __name__ == "__main__":
    main()
