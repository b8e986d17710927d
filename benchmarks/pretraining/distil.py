"""Distil a ViT into a quarter of its size, and compare with the same network trained with DINO alone.

    uv run python benchmarks/pretraining/distil.py TEACHER FOLDER... --out OUT [--only distilled] [KEY=VALUE]...

TEACHER is a model folder of a ViT, such as the export of a run of curve.py; FOLDERs are its labelled sets. The pool,
the splits and the recipe are those of curve.py: all images outside the test parts, once with DINO, and once with the
teacher's [CLS] and patches instead, for as many tiles. Both students have half of the teacher's width and heads, so a
quarter of its parameters. At the end stand both, the teacher and the untrained student in one table for each set, with
test images that no training saw, and below each table what is kept at what size and speed.

Called again it continues. `--only` trains one of the two, so that they may run side by side on two cores; KEY=VALUEs
are settings of both trainings, such as training.num_tiles=20000.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from curve import HERE, prepare

from dino_path.model.backbone import build_backbone, count_parameters
from dino_path.model.folder import ModelFolder, read_model_folder
from dino_path.records.environment import present_environment
from dino_path.run import RunFolder

DINO_PATH = [sys.executable, "-m", "dino_path"]


def student_settings(teacher: ModelFolder) -> list[str]:
    """A quarter of the teacher."""
    with torch.device("meta"):
        network = build_backbone(teacher.architecture, teacher.arguments)
    width, heads = int(network.embed_dim), int(network.blocks[0].attn.num_heads)  # type: ignore[arg-type, index, union-attr]
    arguments = {**teacher.arguments, "embed_dim": width // 2, "num_heads": heads // 2}
    with torch.device("meta"):
        student = build_backbone(teacher.architecture, arguments)
    sizes = [count_parameters(each) / 1e6 for each in (student, network)]
    print(f"student: {sizes[0]:.2f} M parameters, teacher {sizes[1]:.2f} M", flush=True)
    text = ", ".join(
        f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in arguments.items()
    )
    edge_px = teacher.preprocessing.input_px
    return [f"model.backbone={teacher.architecture}", f"model.arguments={{{text}}}", f"views.global_px={edge_px}"]


def distilled_settings(teacher: Path) -> list[str]:
    """Settings that differ from the DINO run."""
    return [
        "objective.dino.weight=0", "objective.distill.weight=1", f"objective.distill.teacher={teacher}",
        "views.num_local=0", "optim.clip_scope=global",
    ]  # fmt: skip


def train(run: RunFolder, recipe: Path, words: list[str]) -> None:
    """Pretrain, and export; a finished run is not repeated."""
    start_s = time.monotonic()
    subprocess.run([*DINO_PATH, "pretrain", "--config", str(recipe), f"out={run.path}", *words], check=True)
    print(f"{run.path.name}: {time.monotonic() - start_s:.0f} s in this call", flush=True)
    subprocess.run([*DINO_PATH, "export", str(run.path), "--out", str(run.path / "model")], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, metavar="TEACHER")
    parser.add_argument("words", nargs="+", metavar="FOLDER... [KEY=VALUE]...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=HERE / "stain.yaml")
    parser.add_argument("--only", choices=["distilled", "alone"], help="train this student alone")
    arguments = parser.parse_intermixed_args()

    folders = [Path(word) for word in arguments.words if "=" not in word]
    tiles, manifests = prepare(folders, arguments.out)
    common = [f"store={tiles}", *student_settings(read_model_folder(arguments.teacher))]
    common += [word for word in arguments.words if "=" in word]
    runs = {"alone": common, "distilled": common + distilled_settings(arguments.teacher)}
    for name, words in runs.items():
        if arguments.only in (None, name):
            train(RunFolder(arguments.out / name), arguments.recipe, words)
    models = [str(arguments.out / name / "model") for name in ("distilled", "alone")]
    if not all(Path(model).is_dir() for model in models):
        print("the table comes when both are there")
        return
    models += [str(arguments.teacher), f"untrained:{models[0]}"]
    for manifest in manifests:
        out = arguments.out / "eval" / manifest.stem
        subprocess.run(
            [*DINO_PATH, "evaluate", "table", *models, "--data", str(manifest), "--out", str(out)], check=True
        )
    print(f"commit {present_environment().git_commit}")


if __name__ == "__main__":
    main()
