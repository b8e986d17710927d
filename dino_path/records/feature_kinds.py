"""Which vector of an image a model gives, and how a model is named together with another kind than its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from dino_path.config import COMPARISON_SPECS

FeatureKind = Literal["cls", "mean", "cls+mean"]
FEATURE_KINDS: tuple[FeatureKind, ...] = get_args(FeatureKind)
KIND_TITLES: Mapping[FeatureKind | None, str] = {
    "cls": "the [CLS] token",
    "mean": "the mean of the patch tokens",
    "cls+mean": "the [CLS] token, then the mean of the patch tokens",
    None: "as the network pools them",
}


def split_kind(spec: str) -> tuple[FeatureKind | None, str]:
    """`cls+mean:runs/a/model` -> the kind that is asked for and the model; None: the model's own kind."""
    for kind in FEATURE_KINDS:
        if spec.startswith(f"{kind}:"):
            return kind, spec.removeprefix(f"{kind}:")
    return None, spec


def is_comparison(spec: str) -> bool:
    """Whether a model is there to be compared with: no model that dino_path trained."""
    return split_kind(spec)[1].startswith(COMPARISON_SPECS)
