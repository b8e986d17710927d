"""What minutes of one CPU core give on real tiles: recipes are chosen on validation parts, test parts are met once.

    export OMP_NUM_THREADS=1
    uv run python benchmarks/pretraining/small_machine.py choose DATA --out OUT [--only NAME ...] [--tiles 9000]
    uv run python benchmarks/pretraining/small_machine.py test DATA --out OUT [--seeds 3]

DATA has the folders of `SETS`, `nuinsseg-dev` and `slides`. The pool has no labels: all of it that is in no test part.
`choose` trains each recipe of `RECIPES` on the labelled sets' part of the pool, and evaluates it on validation parts (a
quarter of the training parts, whole patients where they are known). `test` trains the shipped config of small machines
on the whole pool, with several seeds, and evaluates it, controls and supervised networks on the test parts. Both
continue where they were stopped. `--only` trains and evaluates these recipes alone, so that two can run side by side.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
from curve import prepare
from objectives import dino_path

from dino_path import TileStore

CONFIG = Path(__file__).parents[2] / "configs" / "resnet10t_cpu_15min.yaml"
VIT = Path(__file__).parents[2] / "configs" / "vit192_cpu_1h.yaml"
SETS = ("pcam-dev", "lc25000-lung-dev", "oral-oscc", "nct-crc-108")
CHOOSING = SETS[:3]  # the fourth has 72 images outside its test part
SLIDE_TILES = 2000  # at most, of a slide at one scale
NUCLEI_PX = 256  # fields of 512 px are cut into quarters
NUCLEI_SCALE = 2.0  # for the segmentation: the ResNet's last feature map then has a vector per 16 px of the field
MILD = (
    "views.stain_sigma=0.2", "views.stain_bias=0.05", "views.brightness=0.2", "views.contrast=0.2",
    "views.saturation=0.2", "views.hue=0.05", "views.grey_prob=0",
)  # fmt: skip
RESNET = ("model.backbone=resnet10t", "model.arguments={}")
MILDER = (
    "views.stain_sigma=0.1", "views.stain_bias=0.02", "views.brightness=0.1", "views.contrast=0.1",
    "views.saturation=0.1", "views.hue=0.02", "views.grey_prob=0",
)  # fmt: skip
NATIVE = ("views.global_scale=[0.25,0.7]", "views.local_scale=[0.05,0.25]")
TEMPERATURES = ("teacher_temp", "warmup_teacher_temp")
VIT_ARGUMENTS = "embed_dim: 192, depth: 6, num_heads: 6, patch_size: 8, img_size: 64"
LOCALITY = "shifted_patch_tokenization: true, locality_self_attention: true"
RECIPES = {
    "vit": (),
    "resnet10t": RESNET,
    "resnet10t-nokde": (*RESNET, "objective.kde.weight=0"),
    "resnet10t-mild": (*RESNET, *MILD),
    "resnet10t-milder": (*RESNET, *MILDER),
    "resnet10t-native": (*RESNET, *MILD, *NATIVE),
    "resnet10t-lr": (*RESNET, *MILD, "optim.base_lr=1.2e-2"),
    # Beside resnet10t-native:
    "resnet10t-momentum95": (*RESNET, *MILD, *NATIVE, "training.momentum=0.95"),
    "resnet10t-momentum996": (*RESNET, *MILD, *NATIVE, "training.momentum=0.996"),
    "resnet10t-temp06": (*RESNET, *MILD, *NATIVE, *(f"objective.dino.{name}=0.06" for name in TEMPERATURES)),
    "resnet10t-locals2": (*RESNET, *MILD, *NATIVE, "views.num_local=2"),
    "convnext": ("model.backbone=convnext_atto", "model.arguments={}", *MILD, *NATIVE),
    "resnet18": ("model.backbone=resnet18", "model.arguments={}", *MILD, *NATIVE),
    # Beside vit:
    "vit-native": (*MILD, *NATIVE),
    "vit-locality": (f"model.arguments={{{VIT_ARGUMENTS}, {LOCALITY}}}",),
}
FRACTIONS = ("0.1", "0.01")
CONTROLS = ("mean-colour", "colour-statistics")


def pool(data: Path, out: Path) -> tuple[Path, Path, list[Path]]:
    """Links to the images of the labelled sets; these with tiles of the slides and fields of nuclei; the manifests."""
    labelled, manifests = prepare([data / name for name in SETS], out)
    whole = out / "pool"
    if not whole.exists():
        making = out / "pool_making"
        making.mkdir(exist_ok=True)
        for link in labelled.iterdir():
            (making / link.name).unlink(missing_ok=True)
            (making / link.name).symlink_to(link.resolve())
        write_nuclei(data / "nuinsseg-dev", making, out / "nuclei.csv")
        for mpp in ("1.0", "0.5"):
            write_tiles(data / "slides", mpp, making, out / f"slides_{mpp}")
        making.rename(whole)
    return labelled, whole, manifests


def write_nuclei(folder: Path, pool: Path, manifest: Path) -> None:
    """Quarters of fields outside the test part (every fourth field of an organ); a manifest with that split."""
    seen: dict[str, int] = {}
    with (folder / "manifest.csv").open(newline="") as file, manifest.open("w", newline="") as made:
        writer = csv.writer(made)
        writer.writerow(("path", "mask", "label", "split"))
        for row in csv.DictReader(file):
            number = seen[row["label"]] = seen.get(row["label"], -1) + 1
            part = "test" if number % 4 == 3 else "train"
            writer.writerow((folder / row["path"], folder / row["mask"], row["label"], part))
            if part == "train":
                field = cv2.imread(str(folder / row["path"]))
                for top in range(0, field.shape[0] - NUCLEI_PX + 1, NUCLEI_PX):
                    for left in range(0, field.shape[1] - NUCLEI_PX + 1, NUCLEI_PX):
                        name = f"nuclei-{Path(row['path']).stem}-{top}-{left}.png"
                        cv2.imwrite(str(pool / name), field[top : top + NUCLEI_PX, left : left + NUCLEI_PX])


def write_tiles(slides: Path, mpp: str, pool: Path, work: Path) -> None:
    """Tiles of the three slides at one scale, at most `SLIDE_TILES` of each, evenly over the slide."""
    work.mkdir(exist_ok=True)
    table = work / "slides.csv"
    table.write_text(
        "path,slide_id,mpp\n" + "".join(
            f"{slides / name},{slide},{given}\n" for name, slide, given in (
                ("CMU-1-Small-Region.svs", "skin", ""), ("TCGA-CR-7395-01A-01-TS1.svs", "head", "0.5"),
                ("p2_0039_section1.tif", "colon", ""),
            )
        )
    )  # fmt: skip
    dino_path("tile", str(table), "--out", str(work / "store"), f"tiles.mpp={mpp}", "tiles.size_px=128", "--quiet")
    store = TileStore(work / "store")
    of_slide = [str(slide) for slide in store.table["slide_id"].to_pylist()]
    for slide in sorted(set(of_slide)):
        numbers = [number for number, other in enumerate(of_slide) if other == slide]
        for number in numbers[:: -(-len(numbers) // SLIDE_TILES)]:
            image = cv2.cvtColor(store[number], cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(pool / f"{slide}-{mpp}-{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 95])


def write_validation(manifest: Path, out: Path) -> Path:
    """A quarter of the training part (a third of the patients, who are few) as test part; the test part left out."""
    out.mkdir(parents=True, exist_ok=True)
    with manifest.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "test"]
    has_patients = "patient_id" in rows[0]
    with (out / manifest.name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", *(["patient_id"] if has_patients else []), "split"))
        for row in rows:
            key = row["patient_id"] if has_patients else Path(row["path"]).name
            percent = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100
            part = "test" if percent < (33 if has_patients else 25) else "train"
            writer.writerow((row["path"], row["label"], *([key] if has_patients else []), part))
    return out / manifest.name


def trained(name: str, out: Path, tiles: Path, config: Path, settings: Sequence[str]) -> Path:
    """The model folder of one run."""
    run, model = out / "runs" / name, out / "models" / name
    if not (model / "config.json").exists():
        places = (f"store={tiles}", f"out={run}", "training.checkpoint_every_steps=2000")
        dino_path("pretrain", "--config", str(config), *places, *settings)
        dino_path("export", str(run), "--out", str(model), "--input-px", "96" if config == CONFIG else "64")
    return model


def evaluated(models: Iterable[str], manifest: Path, out: Path, *words: str) -> list[dict[str, object]]:
    """The rows of `evaluate table`."""
    file = out / ("fractions.json" if "--fractions" in words else "results.json")
    if not file.exists():
        dino_path("evaluate", "table", *models, "--data", str(manifest), "--out", str(out), *words)
    found: list[dict[str, object]] = json.loads(file.read_text())["rows"]
    return found


def choose(data: Path, out: Path, names: Sequence[str], num_tiles: int) -> None:
    """Each recipe with one seed, judged on the validation parts beside the untrained networks and the colours."""
    tiles, _, manifests = pool(data, out)
    models = [
        trained(f"{name}-{num_tiles}", out, tiles, VIT, (f"training.num_tiles={num_tiles}", *RECIPES[name]))
        for name in names
    ]
    untrained = {name.partition("-")[0]: f"untrained:{model}" for name, model in zip(names, models, strict=True)}
    for manifest in manifests:
        if manifest.stem in CHOOSING:
            part = write_validation(manifest, out / "validation")
            rows = evaluated(
                [*map(str, models), *untrained.values(), "colour-statistics"], part,
                out / "eval" / f"validation-{part.stem}-{'-'.join(names)}", "evaluation.protocols=[knn,logistic]",
                "evaluation.input_px=64",
            )  # fmt: skip
            for row in rows:
                print(f"{part.stem}, {row['model']} {row['protocol']}: {balanced(row)}", flush=True)


def balanced(row: dict[str, object]) -> str:
    """Balanced accuracy of a row, and its paired difference from every control."""
    text = f"{row['metrics']['balanced_accuracy']['value']:.3f}"  # type: ignore[index]
    for other, scores in row["differences"].items():  # type: ignore[attr-defined]
        one = scores["balanced_accuracy"]
        text += f" ({one['value']:+.3f}, {one['low']:+.3f} to {one['high']:+.3f} from {other})"
    return text


def test(data: Path, out: Path, num_seeds: int, settings: Sequence[str]) -> None:
    """The shipped config on the whole pool, and its models, controls and supervised networks on the test parts."""
    _, tiles, manifests = pool(data, out)
    models = [
        trained(f"seed-{seed}", out, tiles, CONFIG, (f"training.seed={seed}", *settings)) for seed in range(num_seeds)
    ]
    specs = [*map(str, models), f"untrained:{models[0]}", *CONTROLS]
    for manifest in manifests:
        rows = evaluated(specs, manifest, out / "eval" / manifest.stem)
        if manifest.stem in CHOOSING:  # of the fourth, a tenth of the labels is one image of a class
            base = out / "baselines" / manifest.stem
            for fraction in FRACTIONS:
                train_supervised(manifest, base, fraction)
            words = ("--baseline", str(base), "--fractions", ",".join(FRACTIONS))
            rows += evaluated(specs, manifest, out / "eval" / f"{manifest.stem}-few", *words)
        for row in rows:
            share = f" {row['fraction']:.0%} of the labels" if "fraction" in row else ""
            print(f"{manifest.stem}{share}, {row['model']} {row['protocol']}: {balanced(row)}", flush=True)
    nuclei = out / "eval" / "nuclei"
    if not (nuclei / "segmentation.json").exists():
        dino_path(
            "evaluate", "segmentation", *specs, "--data", str(out / "nuclei.csv"),
            "--out", str(nuclei), f"evaluation.segmentation_scale={NUCLEI_SCALE}",
        )  # fmt: skip
    print((nuclei / "segmentation.md").read_text(), flush=True)


def train_supervised(manifest: Path, base: Path, fraction: str) -> None:
    """ResNet-50 from scratch on five draws of so many labels; 20 epochs of fewer than 200 images, else 10."""
    if (base / f"fraction_{fraction}" / "draw_4" / "result.json").exists():
        return
    with manifest.open(newline="") as file:
        num_labels = float(fraction) * sum(row["split"] == "train" for row in csv.DictReader(file))
    dino_path(
        "baseline", "--data", str(manifest), "--out", str(base), "--fraction", fraction, "baseline.input_px=64",
        f"baseline.num_epochs={20 if num_labels < 200 else 10}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("choose", "test"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="of `choose`")
    parser.add_argument("--tiles", type=int, help="seen by a run; of `test`: as in the config")
    parser.add_argument("--seeds", type=int, default=3, help="of `test`")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.stage == "choose":
        choose(given.data.resolve(), given.out.resolve(), given.only, given.tiles or 9000)
    else:
        length = (f"training.num_tiles={given.tiles}",) if given.tiles else ()
        test(given.data.resolve(), given.out.resolve(), given.seeds, length)


if __name__ == "__main__":
    main()
