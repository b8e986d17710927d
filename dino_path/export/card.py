"""The model card: what the model is, what it expects, how to use it, what it was tested on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dino_path.model.folder import WEIGHTS_NAME, Triple

HEADER = """---
# No licence was chosen by the software that wrote this card: set one before you share the model.
license: unknown
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- histology
- pathology
- vision
- self-supervised
- dino
---
"""

USES = """## Intended use

Features of H&E tiles for research: k-NN and linear probes, multiple-instance learning, retrieval, clustering.

Out of scope: diagnosis, treatment, or any other clinical decision. **This is not a medical device.** Stains,
scanners, organs and resolutions that the training slides did not show may give poor features; test on your own data
before you rely on them.

## Licence

Unknown: set by you. The weights derive from the training slides, whose terms may bind them."""


@dataclass(frozen=True)
class ModelFacts:
    """What the card states of the model itself; units as in `ExportSource`."""

    architecture: str
    model_args: Mapping[str, Any]
    num_features: int
    num_parameters: int
    mean: Triple
    std: Triple
    input_px: int
    mpp: float | None


def model_card(facts: ModelFacts, provenance: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
    """The text of README.md. It holds no date, so that the same model gives the same card."""
    parts = [
        HEADER,
        f"# {facts.architecture}, self-supervised on histology",
        f"A frozen feature extractor, pretrained with DINO (Caron et al. 2021) by dino_path. It turns a tile of "
        f"{facts.input_px} px{_at_mpp(facts)} into {facts.num_features} numbers.",
        _expectations(facts),
        _usage(facts),
        *_training(provenance),
        *_results(results),
        USES,
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _at_mpp(facts: ModelFacts) -> str:
    return "" if facts.mpp is None else f" at {facts.mpp:g} µm/px"


def _expectations(facts: ModelFacts) -> str:
    mpp = "unknown (the training images did not say)" if facts.mpp is None else f"**{facts.mpp:g} µm/px**"
    rows = [
        ("architecture", f"`{facts.architecture}` (timm)"),
        ("parameters", f"{facts.num_parameters:,}"),
        ("features", f"{facts.num_features} per tile"),
        ("resolution of the tiles", mpp),
        ("input", f"{facts.input_px} x {facts.input_px} px, RGB, in [0, 1], then (image - mean) / std"),
        ("mean", ", ".join(f"{value:g}" for value in facts.mean)),
        ("std", ", ".join(f"{value:g}" for value in facts.std)),
    ]
    return "## What it expects\n\n" + _table(("", ""), rows)


def _usage(facts: ModelFacts) -> str:
    arguments = ", ".join(
        [repr(facts.architecture), "num_classes=0", *(f"{k}={v!r}" for k, v in facts.model_args.items())]
    )
    return f"""## Use

With timm 1.0.16 or later (`FOLDER` is the folder that holds this file):

```python
import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
tile = Image.open("tile.png").convert("RGB")  # a tile{_at_mpp(facts)}
with torch.inference_mode():
    features = model(transform(tile)[None])  # (1, {facts.num_features})
```

With an older timm, as some slide toolkits pin it:

```python
import timm
from safetensors.torch import load_file

model = timm.create_model({arguments}).eval()
model.load_state_dict(load_file("FOLDER/{WEIGHTS_NAME}"), strict=True)
```"""


def _training(provenance: Mapping[str, Any]) -> Iterator[str]:
    if provenance:
        rows = [(key.replace("_", " "), _cell(value)) for key, value in provenance.items() if value is not None]
        yield "## Training\n\n" + _table(("", ""), rows)


def _results(results: Mapping[str, Any] | None) -> Iterator[str]:
    if results:
        yield "## Results\n\n" + json.dumps(results)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
