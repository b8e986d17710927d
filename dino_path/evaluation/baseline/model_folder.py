"""The network of a supervised baseline, written as a model folder."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import nn

from dino_path.model.backbone import backbone_arguments
from dino_path.model.folder import CONFIG_NAME, WEIGHTS_NAME
from dino_path.model.names import architecture
from dino_path.preprocessing import Preprocessing
from dino_path.run import atomic_write, write_json


def write_baseline_model(folder: Path, backbone: nn.Module, name: str, preprocessing: Preprocessing) -> None:
    """Write the backbone so that `timm.create_model("local-dir:...")` and our extractor load it.

    Args:
        name: of the timm model.
    """
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in backbone.state_dict().items()}
    with atomic_write(folder / WEIGHTS_NAME, "wb") as stream:
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
    write_json(folder / CONFIG_NAME, config)
