"""Small frozen models to learn from: a model folder written by hand."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from dino_path.model.backbone import build_backbone

# 4 x 4 patches of 4 px where the student of `tiny.py` has 4 x 4 of 8 px.
GUIDE = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 1, "num_heads": 2}
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.3, 0.25)


def write_guide(folder: Path, *, seed: int = 0, architecture: str = "vit_tiny_patch16_224", **settings: object) -> Path:
    """A model folder with random weights.

    Args:
        settings: `model_args`, and what stands beside it in config.json, where they are others than here.
    """
    arguments = settings.pop("model_args", GUIDE if architecture.startswith("vit") else {})
    torch.manual_seed(seed)
    backbone = build_backbone(architecture, arguments)  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    save_file(backbone.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    shape = {"input_size": [3, 24, 24], "mean": MEAN, "std": STD}
    config = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": shape, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
