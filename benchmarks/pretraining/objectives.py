"""Compare loss terms added to DINO for a small ViT on real tiles: same number of tiles, evaluated on test images.

    OMP_NUM_THREADS=1 uv run python benchmarks/pretraining/objectives.py FOLDER... --out OUT [--tiles 16000] [--seeds 3]

FOLDERs are labelled sets as `--data` of `dino-path evaluate` takes them; the pretraining sees all images outside their
test parts (`prepare` in curve.py). Each variant trains with stain.yaml and the settings below; the first seed trains
all, the others those of `--best`. Then every model, the untrained network and the colour control are evaluated on each
set: k-NN, linear probe, and k-NN and logistic regression with 10 and 1 % of the labels. Called again it continues.
Prints balanced accuracies, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from curve import HERE, prepare

IBOT = (
    "objective.ibot.weight=1", "objective.ibot.num_prototypes=1024", "objective.ibot.head_hidden=1024",
    "objective.ibot.head_bottleneck=192",
)  # fmt: skip
KDE = ("objective.kde.weight=0.05",)
BALANCED = (
    "objective.targets.method=sinkhorn-knopp", "objective.dino.teacher_temp=0.05",
    "objective.dino.warmup_teacher_temp=0.04", "objective.dino.teacher_temp_warmup=30%",
)  # fmt: skip
VARIANTS = {"dino": (), "kde": KDE, "ibot": IBOT, "all": (*IBOT, *KDE, *BALANCED)}
CONTROLS = ("untrained", "colour-statistics")


def dino_path(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dino_path", *words], check=True)


def trained(name: str, seed: int, tiles: Path, out: Path, num_tiles: int) -> Path:
    """The model folder of one variant."""
    run, model = out / "runs" / f"{name}-{seed}", out / "models" / f"{name}-{seed}"
    settings = (f"training.num_tiles={num_tiles}", f"training.seed={seed}", *VARIANTS[name])
    dino_path("pretrain", "--config", str(HERE / "stain.yaml"), f"store={tiles}", f"out={run}", *settings)
    if not model.exists():
        dino_path("export", str(run), "--out", str(model))
    return model


def evaluated(models: list[Path], manifest: Path, out: Path) -> list[dict[str, object]]:
    """The rows of all protocols on one set."""
    words = [str(model) for model in models] + [f"untrained:{models[0]}", "colour-statistics", "--data", str(manifest)]
    rows: list[dict[str, object]] = []
    for kind, further in (
        ("results", ["evaluation.protocols=[knn,linear]"]),
        ("fractions", ["--fractions", "0.1,0.01", "evaluation.fraction_protocols=[knn,logistic]"]),
    ):
        folder = out / "eval" / f"{manifest.stem}-{kind}-{len(models)}"
        if not (folder / f"{kind}.json").exists():
            dino_path("evaluate", "table", *words, "--out", str(folder), *further)
        rows += json.loads((folder / f"{kind}.json").read_text())["rows"]
    return rows


def table(of_sets: dict[str, list[dict[str, object]]]) -> str:
    """Markdown: a row for each set and protocol, a column for each variant."""
    lines = [
        "| set, protocol | " + " | ".join([*CONTROLS, *VARIANTS]) + " |",
        "|---" * (len(CONTROLS) + len(VARIANTS) + 1) + "|",
    ]
    for name, rows in of_sets.items():
        cells: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            share = f", {row['fraction']:.0%} of the labels" if "fraction" in row else ""
            variant = next(one for one in (*CONTROLS, *VARIANTS) if str(row["model"]).startswith(one))
            value = row["metrics"]["balanced_accuracy"]["value"]  # type: ignore[index]
            cells[f"{row['protocol']}{share}"][variant].append(f"{value:.3f}")
        for protocol, of_variants in cells.items():
            columns = [" / ".join(of_variants[variant]) for variant in (*CONTROLS, *VARIANTS)]
            lines.append(f"| {name}, {protocol} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiles", type=int, default=16000, help="seen by each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--best", nargs="+", choices=VARIANTS, default=["kde", "all"], help="trained with every seed")
    arguments = parser.parse_args()

    tiles, manifests = prepare(arguments.folders, arguments.out)
    jobs = [(name, 0) for name in VARIANTS]
    jobs += [(name, seed) for seed in range(1, arguments.seeds) for name in arguments.best]
    models = [trained(name, seed, tiles, arguments.out, arguments.tiles) for name, seed in jobs]
    print(table({manifest.stem: evaluated(models, manifest, arguments.out) for manifest in manifests}))


if __name__ == "__main__":
    main()
