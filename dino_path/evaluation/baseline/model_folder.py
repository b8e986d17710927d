"""The network of a supervised baseline, written as a model folder."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import nn

from dino_path.atomic import atomic_write
from dino_path.model.backbone import backbone_arguments
from dino_path.model.names import architecture
from dino_path.preprocessing import Preprocessing
from dino_path.records.model_folder import CONFIG_NAME, WEIGHTS_NAME, write_model_record


def write_baseline_model(folder: Path, backbone: nn.Module, name: str, preprocessing: Preprocessing) -> None:
    """Write the backbone so that `timm.create_model("local-dir:...")` and our extractor load it.

    Args:
        name: of the timm model.
    """
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in backbone.state_dict().items()}
    with atomic_write(folder / WEIGHTS_NAME, "wb") as stream:
        stream.write(safetensors.torch.save(weights, metadata={"format": "pt"}))
    write_model_record(
        folder / CONFIG_NAME,
        architecture(name),
        backbone_arguments(name),
        preprocessing,
        num_features=int(backbone.num_features),  # type: ignore[arg-type]
        features=None,
        tag="supervised",
        timm_keys={"fixed_input_size": False},
        made=None,
    )
