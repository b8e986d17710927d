"""k-NN while a network learns from labelled tiles without their labels: recipes side by side, and what is untrained.

    uv run python benchmarks/pretraining/curve.py FOLDER... --out OUT [--only RECIPE] [--budget-s SECONDS]

FOLDERs are labelled sets as `--data` of `dino-path evaluate` takes them. Each is split as evaluations split it; the
pretraining sees all images outside the test parts, unlabelled ones too, and the running k-NN is that of the first
set's validation images (a fifth of its training part) among the rest of the training part. No test image is touched:
`dino-path evaluate table ... --data OUT/<set>.csv` judges the exported networks on them afterwards.

Called again it continues, also after `--budget-s`. `--only` trains one recipe, so that two may run side by side on two
cores; the table at the end has what is there. Recipes: stain.yaml and published.yaml for a CPU, vits16.yaml for a GPU.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from dino_path.cli.program import EXIT_STOPPED
from dino_path.config import Config, EvaluationConfig
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.protocols.running import running_test
from dino_path.records.metrics import read_metrics
from dino_path.run import RunFolder
from dino_path.settings import load_config
from dino_path.training.networks import build_network

HERE = Path(__file__).parent


def prepare(folders: list[Path], out: Path) -> tuple[Path, list[Path]]:
    """Links to everything that may be seen, and one manifest with its split per set."""
    tiles, manifests = out / "tiles", []
    tiles.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        labelled = load_labelled(str(folder), EvaluationConfig())
        manifests.append(out / f"{folder.name}.csv")
        labelled.write_split(manifests[-1])
        paths = [Path(labelled.source.name(int(index))) for index in range(len(labelled.split))]
        seen = [path for path, part in zip(paths, labelled.split, strict=True) if part != "test"]
        seen += [file for file in sorted(folder.glob("unlabelled/*")) if file.is_file()]
        for path in seen:
            link = tiles / f"{folder.name}-{path.parent.name}-{path.name}"
            if not link.is_symlink():
                link.symlink_to(path.resolve())
    return tiles, manifests


def config_of(recipe: str, out: Path, tiles: Path, manifest: Path) -> Config:
    """The recipe on these tiles."""
    paths = {"store": tiles, "out": out / Path(recipe).stem, "monitor.knn_data": str(manifest)}
    return load_config(HERE / recipe, [], settings=paths)


def train(recipe: str, config: Config, *, seconds: float) -> None:
    """`dino-path pretrain`; after so many seconds it is asked to save and stop."""
    words = [f"store={config.store}", f"out={config.out}", f"monitor.knn_data={config.monitor.knn_data}"]
    run = subprocess.Popen([sys.executable, "-m", "dino_path", "pretrain", "--config", HERE / recipe, *words])
    try:
        code = run.wait(timeout=None if seconds == float("inf") else max(seconds, 0))
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGTERM)
        code = run.wait()
    if code == EXIT_STOPPED:
        print("the time is up; the same command continues")
    elif code != 0:
        sys.exit(code)


def untrained_accuracy(config: Config) -> float:
    """k-NN of the network that the recipe starts from."""
    assert config.training is not None
    torch.manual_seed(config.training.seed)
    backbone = build_network(config.model, config.objective, drop_path_rate=0.0).backbone.eval()
    return running_test(config, device=torch.device("cpu")).knn(backbone)


def table(configs: list[Config]) -> str:
    """Markdown: tiles seen down, recipes across."""
    columns: list[dict[int, float]] = []
    for config in configs:
        assert config.out is not None
        column = {0: untrained_accuracy(config)}
        for record in read_metrics(RunFolder(config.out).metrics_file).records:
            if record.knn_accuracy is not None:
                column[record.tiles_seen] = record.knn_accuracy
        columns.append(column)
    lines = ["| tiles seen | " + " | ".join(config.out.name for config in configs if config.out) + " |"]
    lines.append("|---" * (len(configs) + 1) + "|")
    for seen in sorted({key for column in columns for key in column}):
        cells = [f"{column[seen]:.3f}" if seen in column else "" for column in columns]
        lines.append(f"| {seen:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["stain.yaml", "published.yaml"])
    parser.add_argument("--only", help="train this recipe alone")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="save and stop after so many seconds")
    arguments = parser.parse_args()

    tiles, manifests = prepare(arguments.folders, arguments.out)
    configs = [config_of(recipe, arguments.out, tiles, manifests[0]) for recipe in arguments.recipes]
    end_s = time.monotonic() + arguments.budget_s
    for recipe, config in zip(arguments.recipes, configs, strict=True):
        if arguments.only in (None, recipe):
            train(recipe, config, seconds=end_s - time.monotonic())
    print(table(configs))


if __name__ == "__main__":
    main()
