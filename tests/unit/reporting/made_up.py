"""A made-up run folder, evaluation and tile store, as the other rooms write them."""

import base64
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dino_path.config import Config, TilesConfig
from dino_path.records.environment import ENVIRONMENT, EnvironmentRecord, present_environment
from dino_path.records.evaluation import FewShotRecord, FractionsRecord, ResultsRecord
from dino_path.records.evaluation import write_evaluation as write_evaluation_record
from dino_path.records.examples import (
    EXAMPLES,
    ExamplesRecord,
    MistakeRecord,
    ModelExamplesRecord,
    NeighbourRecord,
    QueryRecord,
    SlideResultRecord,
    TileRecord,
)
from dino_path.records.metrics import StepRecord, metrics_line
from dino_path.records.slide import SlideRecord, write_slide_record
from dino_path.records.store import StoreRecord, write_store_record
from dino_path.settings import as_plain, as_yaml

NUM_PROTOTYPES = 4096


def write_run(run: Path, *, num_records: int = 120, seed: int = 0, **training: Any) -> Path:
    random = np.random.default_rng(seed)
    (run / "figures").mkdir(parents=True)
    tree = {
        "model": {"backbone": "vit_small_patch16_224"},
        "objective": {"dino": {"num_prototypes": NUM_PROTOTYPES}},
        "training": {"num_steps": 10 * num_records, "batch_size_per_gpu": 64, **training},
    }
    (run / "config.yaml").write_text(as_yaml(Config.model_validate(tree)))
    versions = {"torch": "2.15.0", "timm": "1.0.31", "wandb": None}
    environment = EnvironmentRecord(
        command=("dino-path", "pretrain"), python="3.12.1", platform="Linux", num_cpus=2, git_commit="4f9a52e",
        versions=versions,
    )  # fmt: skip
    ENVIRONMENT.write(run / "environment.json", environment)
    with (run / "metrics.jsonl").open("w") as stream:
        for number in range(num_records):
            part, step = number / num_records, 10 * number + 9
            fall = math.exp(-4 * part)
            record = StepRecord.model_validate({
                "step": step, "loss": 3.1 + 5.2 * fall + 0.15 * random.normal(),
                "teacher_entropy": 2.4 + 5.4 * fall + 0.1 * random.normal(), "kl": 0.7 + 0.1 * random.normal(),
                "rankme": 160 * (1 - fall) + 12 + random.normal(), "feature_std": 0.6 + 0.3 * part,
                "prototypes_used": 400 + 1500 * part, "grad_norm": 2 * fall + 0.4 + 0.1 * abs(random.normal()),
                "lr": 2.5e-4 * min(1, part * 10) * (1 + math.cos(math.pi * part)), "weight_decay": 0.04 + 0.36 * part,
                "momentum": 0.996 + 0.004 * part, "epoch": part, "teacher_temp": 0.04 + 0.03 * min(1, part * 3),
                "tiles_seen": (step + 1) * 64, "tiles_per_s": 1800 + 60 * random.normal(),
                "data_wait": abs(0.03 * random.normal()), "eta_s": 5.0, "peak_memory_gb": 1.0, "num_skipped": 0,
                "collapse": None,
            })  # fmt: skip
            stream.write(metrics_line(record))
    picture = np.full((300, 500, 4), 255, np.uint8)
    cv2.circle(picture, (250, 150), 100, (155, 69, 91, 255), -1)
    cv2.imwrite(str(run / "figures" / "attention_of_a_gland.png"), picture)
    return run


COMMON = {
    "data": {
        "name": "polyps", "classes": ["normal", "tumour"], "num_images": {"test": {"normal": 100, "tumour": 100}},
        "grouped_by": "patient", "num_groups": {"test": 41}, "split_rule": "as given with the data",
        "content_digest": "c", "split_digest": "s",
    },
    "config": {}, "models": {}, "environment": present_environment(),
}  # fmt: skip


def score(value: float, half: float = 0.03) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def evaluation_row(model: str, spec: str, protocol: str, value: float, differences: dict[str, float]) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        name: score(value + shift) for name, shift in
        (("accuracy", 0.01), ("balanced_accuracy", 0), ("macro_f1", -0.01), ("kappa", -0.1), ("auroc", 0.05))
    }  # fmt: skip
    metrics["recall"] = {"normal": score(value + 0.02), "tumour": score(value - 0.02)}
    metrics |= {"confusion": [[90, 10], [20, 80]], "num_test_images": 200, "interval": "95 % interval over 41 patients"}
    found = {other: {"balanced_accuracy": score(by), "accuracy": score(by)} for other, by in differences.items()}
    return {
        "model": model,
        "spec": spec,
        "protocol": protocol,
        "metrics": metrics,
        "settings": {},
        "differences": found,
    }


def write_evaluation(file: Path, *, has_baseline: bool = True) -> Path:
    baseline = "supervised resnet50 (from scratch)"
    differences = {baseline: 0.05} if has_baseline else {}
    rows = [
        evaluation_row("vits16", "runs/vits16/model", "knn", 0.87, differences),
        evaluation_row("vits16", "runs/vits16/model", "linear", 0.90, dict.fromkeys(differences, 0.08)),
        evaluation_row(
            "untrained-vits16", "untrained:runs/vits16/model", "linear", 0.71, dict.fromkeys(differences, -0.11)
        ),
        evaluation_row("mean-colour", "mean-colour", "linear", 0.66, dict.fromkeys(differences, -0.02)),
    ]
    if has_baseline:
        rows.append(evaluation_row(baseline, "runs/baseline", "end-to-end", 0.82, {}))
    record = {
        **COMMON,
        "baseline": baseline if has_baseline else "supervised ResNet-50: missing",
        "has_baseline": has_baseline,
        "rows": rows,
        "slide_signature": {
            "vits16": {
                "identity": score(0.31),
                "identity_chance": 0.05,
                "robustness": score(0.62),
                "robustness_chance": 0.44,
                "robustness_ratio": None,
                "unit": "patients",
                "num_images": 400,
                "neighbours": 20,
            },
        },
        "notes": ["in brackets: 95 % bootstrap interval over 41 test patients"],
    }
    write_evaluation_record(file.parent, ResultsRecord.model_validate(record))
    return file


def write_examples(folder: Path, *, split_digest: str = "s") -> None:
    """One query with a neighbour of its class and one of another, one mistake, one slide."""
    jpeg = base64.b64encode(cv2.imencode(".jpg", np.full((32, 32, 3), 200, np.uint8))[1].tobytes()).decode()
    tiles = [
        TileRecord(name=f"{name.lower()}.png", slide=f"slide {name}", label=label, jpeg=jpeg)
        for name, label in (("A", "normal"), ("C", "normal"), ("B", "tumour"))
    ]
    neighbours = (NeighbourRecord(tile=1, similarity=0.75), NeighbourRecord(tile=2, similarity=0.5))
    model = ModelExamplesRecord(
        queries=(QueryRecord(tile=0, neighbours=neighbours),),
        mistakes=(MistakeRecord(tile=0, predicted="tumour", score=0.91),),
        no_attention="has no [CLS].",
    )
    slide = SlideResultRecord(name="slide A", num_images=3, accuracy={"vits16": 0.3333, "mean-colour": 0.6667})
    record = ExamplesRecord(
        split_digest=split_digest, protocol="linear", apart="slides", unit="slide", tiles=tuple(tiles),
        models={"vits16": model}, slides=(slide,),
    )  # fmt: skip
    EXAMPLES.write(folder / "examples.json", record)


def fraction_row(row: dict[str, Any], fraction: float) -> dict[str, Any]:
    metrics = {name: row["metrics"][name] for name in ("accuracy", "balanced_accuracy", "macro_f1", "kappa")}
    kept = {key: row[key] for key in ("model", "protocol", "differences")}
    return {**kept, "metrics": metrics, "fraction": fraction, "num_draws": 5}


def write_fractions(file: Path) -> Path:
    """Two models at 100 and 10 %; the supervised network is missing at 10 %."""
    baseline, rows = "supervised resnet50 (from scratch)", []
    for model, gain in (("vits16", 0.0), ("untrained-vits16", -0.2)):
        for protocol in ("linear-uni", "knn"):
            for fraction in (1.0, 0.1):
                differences = {baseline: 0.04 + gain} if fraction == 1 else {}
                if gain:
                    differences["vits16"] = gain
                row = evaluation_row(model, model, protocol, 0.7 + 0.2 * fraction + gain, differences)
                rows.append(fraction_row(row, fraction))
    rows.append(fraction_row(evaluation_row(baseline, "", "end-to-end", 0.86, {}), 1.0))
    record = {**COMMON, "baseline": baseline, "rows": rows, "notes": ["five draws"], "labelled_images": {},
              "missing": {"0.1": "missing, run `dino-path baseline --fraction 0.1`"}}  # fmt: skip
    write_evaluation_record(file.parent, FractionsRecord.model_validate(record))
    return file


def write_fewshot(file: Path) -> Path:
    rows = [
        {"model": "vits16", "shots": shots,
         **{name: {"balanced_accuracy": value + by} for name, by in (("mean", 0), ("low", -0.1), ("high", 0.1))}}
        for shots, value in ((1, 0.55), (5, 0.71))
    ]  # fmt: skip
    record = {**COMMON, "baseline": "supervised resnet50 (from scratch): balanced accuracy 0.820", "rows": rows}
    write_evaluation_record(file.parent, FewShotRecord.model_validate(record))
    return file


def write_store(path: Path) -> Path:
    (path / "slides").mkdir(parents=True)
    (path / "overlays").mkdir()
    tiles = TilesConfig(mpp=0.5, size_px=256)
    write_store_record(path / "store.json", StoreRecord(digest="0" * 16, tiles=as_plain(tiles)))
    slides = [
        SlideRecord(f"case-{n:03d}", "/secret/place.svs", "done", patient_id="P-77", split="train", mpp=0.2508,
                    mpp_source="openslide.mpp-x", num_tiles=400 + n, tissue_percent=31.5,
                    flags=("tissue near 100 %",) if n == 1 else ())
        for n in range(3)
    ]  # fmt: skip
    slides.append(SlideRecord("case-090", "/secret/place.svs", "failed", "no mpp in the file"))
    slides.append(SlideRecord("case-091", "/secret/place.svs", "empty", "no tissue found", mpp=0.25))
    for slide in slides:
        write_slide_record(path / "slides" / f"{slide.slide_id}.json", slide)
        if slide.status == "done":
            picture = np.full((400, 600, 3), 245, np.uint8)
            cv2.ellipse(picture, (300, 200), (180, 120), 20, 0, 360, (190, 130, 210), -1)
            cv2.imwrite(str(path / "overlays" / f"{slide.slide_id}.jpg"), picture)
    return path
