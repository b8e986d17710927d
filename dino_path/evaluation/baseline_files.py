"""The folder of a supervised baseline: what it holds, and reading it back.

OUT/result.json         metrics with intervals, settings, split, history
    predictions.csv     one row per test image: content (hash of the file), image, label, predicted, one score per class
    config.json, model.safetensors    the trained backbone as a model folder: its frozen features can be evaluated too
    checkpoint.pt       while it trains
    fraction_F/draw_N/  the same for baselines that saw a fraction F of the labels
    repeat_R/fold_F/    the same for each fold of a cross-validation, fractions below; what they amount to stands in
                        cross_validation.json in OUT
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from torch import nn

from dino_path.errors import DataError
from dino_path.evaluation.datasets import LabelledSet
from dino_path.model.backbone import architecture, backbone_arguments
from dino_path.model.folder import CONFIG_NAME, WEIGHTS_NAME
from dino_path.preprocessing import Preprocessing
from dino_path.run import atomic_write, write_json

FORMAT = "dino_path supervised baseline, 1"


@dataclass(frozen=True)
class BaselineFolder:
    """Where the files lie."""

    path: Path

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def predictions_file(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoint.pt"

    def of_draw(self, fraction: float, draw: int) -> BaselineFolder:
        """The folder of the baseline that saw a draw of a fraction of the labels; for all of them, this one."""
        return self if fraction == 1 else BaselineFolder(self.path / f"fraction_{fraction:g}" / f"draw_{draw}")

    def is_finished(self) -> bool:
        return self.result_file.is_file()

    def read_result(self) -> dict[str, Any]:
        """The content of `result.json`; epochs count from 1, also where an older version counted from 0.

        Raises:
            DataError: not there, or not written by `dino-path baseline`.
        """
        try:
            record = json.loads(self.result_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._no_baseline(f"result.json cannot be read ({error}).") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise self._no_baseline("result.json was not written by this version's `dino-path baseline`.")
        record["history"], record["best_epoch"] = counted_from_1(record["history"], record["best_epoch"])
        return record

    def title(self) -> str:
        """What tables call it: the network, what its training started from, and whether that was too short.

        Raises:
            DataError: not there, or not written by `dino-path baseline`.
        """
        record = self.read_result()
        config = record["config"]
        start = "from scratch" if config["weights"] is None else f"from {config['weights']}"
        return f"supervised {config['backbone']} ({start}{', undertrained' * is_undertrained(record)})"

    def write_predictions(self, labelled: LabelledSet, test: NDArray[np.int64], scores_NC: NDArray[np.float64]) -> None:
        """Write the class scores of the test images, given as their numbers in the set."""
        with atomic_write(self.predictions_file) as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["content", "image", "label", "predicted", *(f"score_{name}" for name in labelled.classes)])
            for index, scores in zip(test.tolist(), scores_NC, strict=True):
                table.writerow(
                    [
                        labelled.content[index].decode(),
                        labelled.source.name(index),
                        labelled.classes[labelled.labels[index]],
                        labelled.classes[int(scores.argmax())],
                        *(f"{score:.9g}" for score in scores),
                    ]
                )

    def read_scores(self, labelled: LabelledSet) -> NDArray[np.float64]:
        """Class scores of the test images, in the order of the set, wherever the files lie now.

        Raises:
            DataError: no baseline, or one of another split.
        """
        record = self.read_result()
        if record["data"]["split_digest"] != labelled.split_digest:
            raise DataError(
                str(self.path),
                f"this baseline was tested on another split of {record['data']['name']} "
                f"({record['data']['split_rule']}; classes {', '.join(record['data']['classes'])}).",
                f"Both sides of a comparison need the same images, classes and split ({labelled.split_rule}).",
                "Run `dino-path baseline` with the same --data and evaluation settings.",
            )
        try:
            with self.predictions_file.open(newline="", encoding="utf-8") as stream:
                scores_of = {
                    row["content"]: [float(row[f"score_{name}"]) for name in labelled.classes]
                    for row in csv.DictReader(stream)
                }
            return np.array([scores_of[labelled.content[index].decode()] for index in labelled.part("test")])
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise self._no_baseline(f"predictions.csv does not fit ({type(error).__name__}: {error}).") from None

    def write_model(self, backbone: nn.Module, name: str, preprocessing: Preprocessing) -> None:
        """Write the backbone so that `timm.create_model("local-dir:...")` and our extractor load it.

        Args:
            name: of the timm model.
        """
        weights = {key: tensor.detach().cpu().contiguous() for key, tensor in backbone.state_dict().items()}
        with atomic_write(self.path / WEIGHTS_NAME, "wb") as stream:
            stream.write(safetensors.torch.save(weights, metadata={"format": "pt"}))
        config = {
            "architecture": architecture(name),
            "num_classes": 0,
            "num_features": backbone.num_features,
            "global_pool": "avg",
            "model_args": backbone_arguments(name),
            "pretrained_cfg": {
                "tag": "supervised",
                "custom_load": False,
                "input_size": [3, preprocessing.input_px, preprocessing.input_px],
                "fixed_input_size": False,
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "crop_mode": "center",
                "mean": list(preprocessing.mean),
                "std": list(preprocessing.std),
                "num_classes": 0,
            },
            "mpp": preprocessing.mpp,
            "tile_px": preprocessing.tile_px,
        }
        write_json(self.path / CONFIG_NAME, config)

    def _no_baseline(self, found: str) -> DataError:
        return DataError(
            str(self.path),
            found,
            "The output folder of a finished `dino-path baseline` is needed.",
            "Check the path, or run `dino-path baseline --data SPEC --out DIR` (again).",
        )


def counted_from_1(history: list[dict[str, Any]], best_epoch: int) -> tuple[list[dict[str, Any]], int]:
    """History and best epoch as they are; of a file that counts from 0, one more."""
    if not history or history[0]["epoch"] == 1:
        return history, best_epoch
    return [{**epoch, "epoch": epoch["epoch"] + 1} for epoch in history], best_epoch + 1


def is_undertrained(record: dict[str, Any]) -> bool:
    """Did the training end at its last allowed epoch, before validation had stopped gaining for `patience` epochs?"""
    num_epochs, config = len(record["history"]), record["config"]
    return bool(num_epochs >= config["num_epochs"] and num_epochs - record["best_epoch"] < config["patience"])
