"""A frozen model from any source (a model folder, or timm), with a digest of its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from dino_path.model.folder import read_model_folder
from dino_path.model.folder_weights import build_untrained, load_backbone
from dino_path.model.pretrained import TimmBackbone, load_timm_weights, untrained_timm_backbone
from dino_path.model.tokens import TokenFeatures, own_kind, plain_backbone, with_features
from dino_path.preprocessing import Preprocessing
from dino_path.records.feature_kinds import FeatureKind, split_kind

UNTRAINED_SEED = 0
GENERIC_FOLDER_NAMES = ("model", "export", "")


@dataclass(frozen=True)
class FrozenModel:
    """A model without classifier, on the CPU, in eval mode, without gradients.

    Attributes:
        name: what tables and file names call it: of a folder its name, without the path.
        module: (B, 3, H, W) normalised float images -> (B, D).
        identity: the architecture, as `model_digest` takes it.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    identity: str

    @property
    def digest(self) -> str:
        """SHA-256 of architecture, weights and preprocessing: equal digests give equal features."""
        return model_digest(self.module, self.identity, self.preprocessing)


def load_frozen(spec: str) -> FrozenModel:
    """The model that `spec` names.

    Args:
        spec: a model folder | `untrained:` + model folder (the same architecture, weights drawn with a fixed seed) |
            `timm:` + model name (timm's weights; those of a file with `@FILE` at its end) | `untrained:timm:` + model
            name. Before any of them `cls:`, `mean:` or `cls+mean:` for this kind of features, not the model's own.

    Raises:
        CheckpointError: nothing that can be loaded stands behind `spec`, or it has no features of this kind.
    """
    kind, spec = split_kind(spec)
    if spec.startswith("timm:"):
        name = spec.removeprefix("timm:")
        plain, _, file = name.partition("@")
        shown = f"{plain} ({Path(file).stem})" if file else plain
        return _of_timm(shown, load_timm_weights(name), kind)
    if spec.startswith("untrained:timm:"):
        name = spec.removeprefix("untrained:timm:")
        return _of_timm(f"untrained-{name}", untrained_timm_backbone(name, seed=UNTRAINED_SEED), kind)
    path = Path(spec.removeprefix("untrained:"))
    folder = read_model_folder(path)
    if spec.startswith("untrained:"):
        name, module = f"untrained-{_folder_name(path)}", build_untrained(folder, seed=UNTRAINED_SEED)
    else:
        name, module = _folder_name(path), load_backbone(folder)
    identity = json.dumps([folder.architecture, folder.arguments], sort_keys=True)
    return frozen_model(name, module, folder.preprocessing, identity, own=folder.features, kind=kind)


def frozen_model(
    name: str,
    backbone: nn.Module,
    preprocessing: Preprocessing,
    identity: str,
    *,
    own: FeatureKind | None = None,
    kind: FeatureKind | None,
) -> FrozenModel:
    """The frozen model of a backbone.

    Args:
        own: kind of features that belongs to the model; None: as timm pools them.
        kind: that is asked for; None: its own.

    Raises:
        CheckpointError: it has no features of this kind.
    """
    module = with_features(backbone, kind or own, name=name).requires_grad_(False).eval()
    if kind is not None and kind != (own or own_kind(backbone)):
        name = f"{name}-{kind}"
    return FrozenModel(name, module, preprocessing, identity)


def model_digest(module: nn.Module, identity: str, preprocessing: Preprocessing) -> str:
    """SHA-256 of architecture, weights and preprocessing: the key under which features may be kept."""
    what = [identity, preprocessing.mean, preprocessing.std, preprocessing.input_px]
    if preprocessing.stain_normalisation:  # where there is none, the digests of features that exist stay as they are
        what.append(preprocessing.stain_normalisation)
    if isinstance(module, TokenFeatures):
        what.append(module.kind)
    total = hashlib.sha256(json.dumps(what).encode())
    for key, tensor in sorted(plain_backbone(module).state_dict().items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return total.hexdigest()


def _of_timm(name: str, backbone: TimmBackbone, kind: FeatureKind | None) -> FrozenModel:
    return frozen_model(name, backbone.module, backbone.preprocessing, name, kind=kind)


def _folder_name(path: Path) -> str:
    """The folder's own name, or its parent's where that says more (`runs/vits16/model` -> `vits16`)."""
    path = path.resolve()
    return path.parent.name if path.name in GENERIC_FOLDER_NAMES else path.name
