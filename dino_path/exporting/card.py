"""The model card: the model, its input, how to use it, and its test results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dino_path.config import PROTOCOL_TITLES
from dino_path.model.locality import OUR_ARGUMENTS, is_plain
from dino_path.preprocessing import Preprocessing
from dino_path.records.model_folder import WEIGHTS_NAME

UNKNOWN_LICENSE = "unknown"
SLIDE_IDS = re.compile(r"(?<=slides without regions left out): .*", re.DOTALL)  # in results of earlier versions
HEADER = """---
{remark}license: {license}
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
NO_LICENSE = "# No licence was chosen by the software that wrote this card: set one before you share the model.\n"

OURSELVES = "dino_path"

USES = """## Intended use

Features of H&E tiles for research: k-NN and linear probes, multiple-instance learning, retrieval, clustering.

Out of scope: diagnosis, treatment, or any other clinical decision. **This is not a medical device.** Stains,
scanners, organs and resolutions that were not in the training slides may give poor features; test on your own data
before you rely on them."""

SOURCES = {  # of the names in `ObjectiveConfig.methods`, and of what others trained
    "DINO": "M. Caron, H. Touvron, I. Misra, H. Jégou, J. Mairal, P. Bojanowski, A. Joulin: Emerging Properties in\n"
    "Self-Supervised Vision Transformers. ICCV 2021.",
    "iBOT": "J. Zhou, C. Wei, H. Wang, W. Shen, C. Xie, A. Yuille, T. Kong: iBOT: Image BERT Pre-Training with Online\n"
    "Tokenizer. ICLR 2022.",
    "DINOv2": "M. Oquab, T. Darcet, T. Moutakanni et al.: DINOv2: Learning Robust Visual Features without\n"
    "Supervision. TMLR 2024.",
    "DINOv3": "O. Siméoni, H. V. Vo, M. Seitzer et al.: DINOv3. arXiv:2508.10104.",
    "KoLeo": "A. Sablayrolles, M. Douze, C. Schmid, H. Jégou: Spreading vectors for similarity search. ICLR 2019.",
    "KDE": "E. Zimmermann, E. Vorontsov, J. Viret et al.: Virchow2: Scaling Self-Supervised Mixed Magnification\n"
    "Models in Pathology. arXiv:2408.00738.",
    "Sinkhorn-Knopp": "M. Caron, I. Misra, J. Mairal, P. Goyal, P. Bojanowski, A. Joulin: Unsupervised Learning of\n"
    "Visual Features by Contrasting Cluster Assignments. NeurIPS 2020.",
    "distillation": "M. Ranzinger, G. Heinrich, J. Kautz, P. Molchanov: AM-RADIO: Agglomerative Vision Foundation\n"
    "Model. CVPR 2024.",
}


@dataclass(frozen=True)
class ModelFacts:
    """What the card states of the model itself; units as in `ExportSource`.

    Attributes:
        features: how many, and which vector of a tile they are.
        timm_lines: Python that makes them of `transform(tile)` with a timm `model`.
        graphs: names of further files that hold the model.
    """

    architecture: str
    model_args: Mapping[str, Any]
    num_features: int
    features: str
    timm_lines: Sequence[str]
    num_parameters: int
    preprocessing: Preprocessing
    license: str = UNKNOWN_LICENSE
    graphs: tuple[str, ...] = ()


def model_card(facts: ModelFacts, provenance: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """The text of README.md. It holds no date, so that the same model gives the same card.

    Args:
        provenance: how the weights came about, as plain values.
        results: contents of the `results.json` that `dino-path evaluate table` writes.
    """
    trainer, method = provenance.get("trained_by", OURSELVES), str(provenance.get("method", "DINO"))
    parts = [
        HEADER.format(remark=NO_LICENSE if facts.license == UNKNOWN_LICENSE else "", license=_yaml_text(facts.license)),
        f"# {facts.architecture}, self-supervised" + (" on histology" if trainer == OURSELVES else ""),
        f"A frozen feature extractor, pretrained with {method} by {trainer}. It turns a tile into "
        f"{facts.features}. It expects {_micro(facts.preprocessing.text())}.",
        _expectations(facts),
        _usage(facts),
        *(GRAPH_USES[name].format(input_px=facts.preprocessing.input_px) for name in facts.graphs),
        *_training(provenance),
        *_results(results),
        USES,
        _licence(facts),
        _citation(method.split(" + ")),
    ]
    return "\n\n".join(text for part in parts if (text := part.strip("\n"))) + "\n"


def _citation(methods: Sequence[str]) -> str:
    """Citations of the methods used in training."""
    names = [method.partition(" of ")[0] for method in methods]  # `distillation of MODEL`
    known = [(name, SOURCES[name]) for name in names if name in SOURCES]
    if not known:
        return ""
    if len(known) == 1:
        return f"## Citation\n\nThe method: {known[0][1]}"
    return "## Citation\n\n" + "\n".join(f"- {name}: {source}" for name, source in known)


def _micro(text: str) -> str:
    """As a page writes it: terminals may not have the letter."""
    return text.replace("um/px", "µm/px")


def _as_trained(facts: ModelFacts) -> str:
    """Of the tile in a snippet: ` of 256 px at 0.5 µm/px`, as far as known."""
    known = facts.preprocessing
    edge = "" if known.tile_px is None else f" of {known.tile_px} px"
    return edge + ("" if known.mpp is None else f" at {known.mpp:.4g} µm/px")


def _expectations(facts: ModelFacts) -> str:
    known = facts.preprocessing
    unknown = "unknown (the training did not record it)"
    mpp = "unknown (not given for the training images)" if known.mpp is None else f"**{known.mpp:.4g} µm/px**"
    normalised = "RGB, in [0, 1], then (image - mean) / std"
    rows = [
        ("architecture", f"`{facts.architecture}` (timm)"),
        ("parameters", f"{facts.num_parameters:,}"),
        ("features of a tile", facts.features),
        ("resolution of the tiles", mpp),
        ("edge of the tiles", unknown if known.tile_px is None else f"{known.tile_px} px"),
        *([("stain normalisation", f"{known.stain_normalisation}, of each whole tile, before it is resized")]
          if known.stain_normalisation else []),
        ("input, after the tile is resized", f"{known.input_px} x {known.input_px} px, {normalised}"),
        ("resolution of the input", unknown if known.seen_mpp is None else f"**{known.seen_mpp:.4g} µm/px**"),
        ("mean", ", ".join(f"{value:g}" for value in known.mean)),
        ("std", ", ".join(f"{value:g}" for value in known.std)),
    ]  # fmt: skip
    return "## What it expects\n\n" + _table(("", ""), rows)


def _normalise_stain(facts: ModelFacts) -> str:
    """The lines of the snippet that normalise stains, which timm does not do; empty if not needed."""
    method = facts.preprocessing.stain_normalisation
    if method is None:
        return ""
    return f"""# The training normalised stains, and timm does not:
import numpy as np
from dino_path.views.normalisation import normalise_stain

tile = Image.fromarray(normalise_stain(np.asarray(tile), "{method}"))
"""


def _usage(facts: ModelFacts) -> str:
    if not is_plain(facts.model_args):
        ours = " and ".join(key for key in OUR_ARGUMENTS if facts.model_args.get(key))
        return f"""## Use

timm cannot load this model and reports an error: its ViT has no {ours} (Lee,
Lee and Song 2021). dino_path can (`FOLDER` is the folder that holds this file), and so can its commands, such as
`dino-path embed FOLDER STORE --out FEATURES`:

```python
import torch
from dino_path.features.extractor import load_extractor

extractor = load_extractor("FOLDER", device=torch.device("cpu"))
edge_px = extractor.preprocessing.input_px
tiles = torch.zeros(1, 3, edge_px, edge_px)  # RGB in [0, 1]: tiles{_as_trained(facts)}, resized
mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (extractor.preprocessing.mean, extractor.preprocessing.std))
with torch.inference_mode():
    features = extractor.module((tiles - mean) / std)  # (1, {facts.num_features})
```"""
    made = "\n    ".join(facts.timm_lines)
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
tile = Image.open("tile.png").convert("RGB")  # a tile{_as_trained(facts)}
{_normalise_stain(facts)}with torch.inference_mode():
    {made}  # (1, {facts.num_features})
```

With an older timm, as some slide toolkits pin it:

```python
import timm
from safetensors.torch import load_file

model = timm.create_model({arguments}).eval()
model.load_state_dict(load_file("FOLDER/{WEIGHTS_NAME}"), strict=True)
```"""


GRAPH_USES = {
    "model.onnx": """With onnxruntime, without torch (`images`: fp32, normalised as above, any number of them):

```python
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
features = session.run(["features"], {{"images": images}})[0]  # images: (B, 3, {input_px}, {input_px})
```""",
    "model.pt2": """With torch alone (load `.pt2` files only from people you trust):

```python
import torch

features = torch.export.load("FOLDER/model.pt2").module()(images)  # images: (B, 3, {input_px}, {input_px})
```""",
}


def _licence(facts: ModelFacts) -> str:
    stated = "Unknown: set by you." if facts.license == UNKNOWN_LICENSE else f"`{_cell(facts.license)}`."
    return f"## Licence\n\n{stated} The weights derive from the training slides, whose terms may bind them."


def _training(provenance: Mapping[str, Any]) -> Iterator[str]:
    if provenance:
        rows = [(key.replace("_", " "), _cell(value)) for key, value in provenance.items() if value is not None]
        yield "## Training\n\n" + _table(("", ""), rows)


def _results(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if results:
        yield "## Results\n\nFrozen features; in brackets 95 % confidence intervals."
    for record in results:
        baseline = record["baseline"] if record.get("has_baseline") else None
        head = ["model", "protocol", "balanced accuracy", "accuracy", "AUROC"]
        if baseline:
            head.append("balanced accuracy, minus the supervised baseline's")
        yield f"### {record['data']['name']}\n\n" + _table(head, [_result_row(row, baseline) for row in record["rows"]])
        yield "\n".join(f"- {SLIDE_IDS.sub('', note)}" for note in record.get("notes", ()))


def _result_row(row: Mapping[str, Any], baseline: str | None) -> list[str]:
    scores = [_score(row["metrics"].get(name)) for name in ("balanced_accuracy", "accuracy", "auroc")]
    cells = [_cell(row["model"]), PROTOCOL_TITLES.get(row["protocol"], row["protocol"]), *scores]
    if baseline:
        cells.append(_score(row.get("differences", {}).get(baseline, {}).get("balanced_accuracy"), signed=True))
    return cells


def _score(score: Mapping[str, float | None] | None, *, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    if not score or score.get("value") is None:
        return ""
    interval = "" if score.get("low") is None else f" ({score['low']:{form}} to {score['high']:{form}})"
    return f"{score['value']:{form}}{interval}"


def _yaml_text(text: str) -> str:
    """The text as one value of YAML, in quotation marks unless it is a plain word."""
    return text if re.fullmatch(r"[A-Za-z][\w.+-]*", text) else json.dumps(text)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).replace("|", "\\|").splitlines())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
