"""Check in a fresh process, with timm alone if possible, that a written folder gives the features of its source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dino_path.errors import CheckpointError
from dino_path.model.tokens import timm_lines
from dino_path.preprocessing import Preprocessing

TOLERANCE = 1e-5  # relative; of weights that were rounded to half precision see `formats`
NUM_IMAGES = 2
SEED = 0

_START = """
import json, sys
from pathlib import Path
import timm, torch

folder, num_images, seed, edge_px, threads = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
"""
# What a user of the folder would run: timm and torch, nothing of ours.
_LOAD_BY_TIMM = """
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
"""
# A backbone that timm alone cannot build.
_LOAD_BY_US = """
from dino_path.model.folder import read_model_folder
from dino_path.model.folder_weights import load_backbone
from dino_path.model.tokens import with_features
from dino_path.records.model_folder import CONFIG_NAME, read_model_record
described = read_model_folder(Path(folder))
model = with_features(load_backbone(described), described.features, name=folder).eval()
pretrained_cfg = read_model_record(Path(folder) / CONFIG_NAME).pretrained_cfg.model_dump()
data = timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg)
"""
_ANSWER = """
transform = timm.data.create_transform(**data, is_training=False)
normalize = next(step for step in transform.transforms if hasattr(step, "mean"))
crop = next(step for step in transform.transforms if type(step).__name__ == "CenterCrop")
torch.manual_seed(seed)
images = torch.randn(num_images, 3, edge_px, edge_px)
with torch.inference_mode():
    LINES
print(json.dumps({
    "features": features.tolist(),
    "input_size": list(data["input_size"]),
    "crop": list(crop.size) if isinstance(crop.size, (list, tuple)) else [crop.size, crop.size],
    "mean": torch.as_tensor(normalize.mean).flatten().tolist(),
    "std": torch.as_tensor(normalize.std).flatten().tolist(),
}))
"""

Loader = Literal["timm", "dino_path"]


@dataclass(frozen=True)
class ReloadCheck:
    """How far the reloaded model was from its source: largest difference of a feature, relative to the largest one."""

    relative_difference: float
    loader: Loader
    tolerance: float = TOLERANCE


def check_reload(
    folder: Path,
    backbone: nn.Module,
    preprocessing: Preprocessing,
    *,
    loader: Loader,
    tolerance: float = TOLERANCE,
) -> ReloadCheck:
    """Load `folder` in a fresh process and compare features (seeded noise, fp32) and preprocessing.

    Args:
        backbone: the source, in eval mode, on the CPU; of features that timm does not pool, `with_features` of it.
        loader: who loads it: timm alone, or this package.

    Raises:
        CheckpointError: the folder cannot be loaded, or what is loaded differs from the source.
    """
    mean, std, input_px = preprocessing.mean, preprocessing.std, preprocessing.input_px
    assert input_px is not None
    record = _reload(_script(loader, backbone), folder, input_px)
    found = np.asarray(record["features"], np.float32)
    expected = _features(backbone, input_px)
    difference = compare_features(folder, found, expected, tolerance)
    if not np.allclose(record["mean"], mean, atol=1e-6) or not np.allclose(record["std"], std, atol=1e-6):
        raise _differs(folder, f"mean {record['mean']} and std {record['std']} instead of {mean} and {std}")
    if record["input_size"] != [3, input_px, input_px] or record["crop"] != [input_px, input_px]:
        raise _differs(folder, f"images of {record['crop']} px instead of {input_px} px")
    return ReloadCheck(difference, loader, tolerance)


def compare_features(
    path: Path,
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    expected: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    tolerance: float,
) -> float:
    """The largest difference of a feature, relative to the largest feature.

    Raises:
        CheckpointError: it is beyond `tolerance`. `path` says what was loaded.
    """
    if found.shape != expected.shape:
        raise _differs(path, f"features of shape {found.shape} instead of {expected.shape}")
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    if not difference <= tolerance:
        raise _differs(path, f"features that differ by {difference:.1e} (relative; tolerated: {tolerance:.0e})")
    return difference


def ask_fresh_process(script: str, path: Path, *arguments: str) -> Any:
    """The last line printed by a Python script that gets `path` and the arguments, parsed as JSON.

    Raises:
        CheckpointError: it ended with an error.
    """
    answer = subprocess.run(
        [sys.executable, "-c", script, str(path.resolve()), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    if answer.returncode != 0:
        last = answer.stderr.strip().splitlines()[-1:] or ["no message"]
        raise _differs(path, f"an error ({last[0]})")
    return json.loads(answer.stdout.strip().splitlines()[-1])


def _script(loader: Loader, backbone: nn.Module) -> str:
    """The script for the fresh process. If timm loads the model, it uses the lines of the model card."""
    if loader == "dino_path":
        return _START + _LOAD_BY_US + _ANSWER.replace("LINES", "features = model(images)")
    return _START + _LOAD_BY_TIMM + _ANSWER.replace("LINES", "\n    ".join(timm_lines(backbone, "images")))


def _reload(script: str, folder: Path, input_px: int) -> dict[str, list[float]]:
    numbers = (NUM_IMAGES, SEED, input_px, torch.get_num_threads())
    record: dict[str, list[float]] = ask_fresh_process(script, folder, *map(str, numbers))
    return record


@torch.inference_mode()
def _features(backbone: nn.Module, input_px: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        images = torch.randn(NUM_IMAGES, 3, input_px, input_px)
    features: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = backbone(images).numpy()
    return features


def _differs(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        str(folder),
        f"loading it in a fresh process gives {what}.",
        "It must give the features of the trained backbone; nothing was exported.",
        "Check the timm version (`dino-path doctor`), and report this with the config of the run.",
    )
