"""What a ViT loses and gains where it goes on: trained on some organs, continued on another, judged on all.

    uv run python benchmarks/pretraining/continued.py FIRST... --on SECOND --out OUT [--seeds 3] [KEY=VALUE]...

FIRST and SECOND are labelled folders as for curve.py. A ViT learns from all images of FIRST outside the test parts
(configs/vit192_cpu_1h.yaml), then goes on with those of SECOND by the ways of a continued run: heads first behind a
frozen backbone, low rates, layer decay, its start as a frozen guide (objective.distill), the best checkpoint by the
k-NN of SECOND's validation images. Each seed continues once. One table for each set follows, on test images that no
training saw: each end, the start, the network untrained. KEY=VALUEs are settings of the continued runs. Called again it
continues.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from curve import prepare

from dino_path.records.environment import present_environment

DINO_PATH = [sys.executable, "-m", "dino_path"]
RECIPE = Path(__file__).parents[2] / "configs" / "vit192_cpu_1h.yaml"
GENTLY = [
    "training.freeze_backbone=10 %", "optim.base_lr=1e-3", "optim.layer_decay=0.8", "optim.patch_embed_lr=0.2",
    "training.momentum=0.994", "objective.distill.weight=1",
    "training.num_tiles=12000", "monitor.knn_every_steps=50",
]  # fmt: skip


def call(*words: object) -> None:
    """One command of ours."""
    subprocess.run([*DINO_PATH, *map(str, words)], check=True)


def trained(tiles: Path, run: Path, words: list[str], *, is_best: bool = False) -> Path:
    """Pretrain and export; a finished run is left as it is."""
    model = run / "model"
    if not (model / "config.json").is_file():
        call("pretrain", "--config", RECIPE, f"store={tiles}", f"out={run}", *words)
        call("export", run, "--out", model, *(["--best"] if is_best else []))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="FIRST... [KEY=VALUE]...")
    parser.add_argument("--on", type=Path, required=True, metavar="SECOND")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiles", type=int, default=16000, help="seen by the first training")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_intermixed_args()
    out: Path = arguments.out

    first_tiles, first = prepare([Path(word) for word in arguments.words if "=" not in word], out / "first")
    second_tiles, second = prepare([arguments.on], out / "second")
    start = trained(first_tiles, out / "start", [f"training.num_tiles={arguments.tiles}"])
    ends = []
    for seed in range(arguments.seeds):
        own = [f"model.weights={start}", f"objective.distill.teacher={start}", f"monitor.knn_data={second[0]}"]
        words = [*own, *GENTLY, f"training.seed={seed}", *(word for word in arguments.words if "=" in word)]
        ends.append(trained(second_tiles, out / f"continued-{seed}", words, is_best=True))
    for manifest in (*first, *second):
        models = [*ends, start, f"untrained:{start}"]
        call("evaluate", "table", *models, "--data", manifest, "--out", out / "eval" / manifest.stem)
    print(f"commit {present_environment().git_commit}")


if __name__ == "__main__":
    main()
