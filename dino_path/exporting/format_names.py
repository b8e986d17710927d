"""Formats of an export, and what this machine lacks for them, checked without torch."""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

from dino_path.errors import ConfigError
from dino_path.settings import read_names

Format = Literal["timm", "onnx", "pt2"]
Precision = Literal["fp32", "fp16", "bf16"]
NAMES: dict[Format, str] = {"onnx": "model.onnx", "pt2": "model.pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def read_formats(text: str) -> tuple[Format, ...]:
    """Formats from their names with commas between, each once; `timm` is always the first.

    Raises:
        ConfigError: a name that is none of them.
    """
    return read_names(f"timm,{text}", get_args(Format), "--format")


def refuse_impossible(formats: tuple[Format, ...], precision: Precision) -> None:
    """Check, before any work, that these formats can be written here.

    Raises:
        ConfigError: packages are missing, or onnxruntime could not run the graph.
    """
    if "onnx" not in formats:
        return
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "--format onnx",
            f"{', '.join(missing)} cannot be imported.",
            "They are needed to write and check the graph.",
            "Install the extra: uv pip install 'dino-path[onnx]'.",
        )
    if precision == "bf16":
        raise ConfigError(
            "--format onnx --precision bf16",
            "onnxruntime has no bf16 convolution on CPUs, so the file could not be checked.",
            "fp32 or fp16 is needed.",
            "Use --precision fp16, or export ONNX into another folder.",
        )
