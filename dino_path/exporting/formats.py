"""Graphs for programs without timm: ONNX and torch.export, each checked by loading it in a fresh process.

Both take (B, 3, input_px, input_px) fp32 images, normalised as `config.json` says, and give (B, D) fp32 features; B is
free, the edge is not. They hold the whole computation, so that they carry what timm cannot build, too (`locality`).

Shape suffixes: B images, D features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dino_path.errors import CheckpointError
from dino_path.exporting.format_names import NAMES, Format, Precision
from dino_path.exporting.reload import ask_fresh_process, compare_features

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Largest difference of a feature from the training graph's in fp32, relative to the largest feature: other kernels add
# in another order; half precision rounds every weight and every step.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1}
TRACED_BATCH, CHECKED_BATCH = 2, 3  # they differ: a batch size frozen into the graph shows
SEED = 0

# What a user of the file would run.
SCRIPTS: dict[Format, str] = {
    "onnx": """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(json.dumps(session.run(["features"], {"images": np.load(sys.argv[2])})[0].tolist()))
""",
    "pt2": """
import json, sys
import numpy as np, torch
model = torch.export.load(sys.argv[1]).module()
with torch.inference_mode():
    print(json.dumps(model(torch.from_numpy(np.load(sys.argv[2]))).tolist()))
""",
}


def write_graph(kind: Format, folder: Path, backbone: nn.Module, input_px: int, *, precision: Precision) -> float:
    """Write `model.onnx` or `model.pt2`, load it in a fresh process, and return its largest relative difference.

    Args:
        backbone: the training graph with the features that the folder gives, fp32, in eval mode, on the CPU; it is left
            as it was.

    Raises:
        CheckpointError: it cannot be written or loaded, or its features differ from the backbone's.
    """
    file = folder / NAMES[kind]
    images_BCHW = _noise(CHECKED_BATCH, input_px)
    with torch.inference_mode():
        expected_BD: Tensor = backbone(images_BCHW)
    graph = _AtPrecision(backbone, DTYPES[precision])
    try:
        _write(kind, file, graph, _noise(TRACED_BATCH, input_px))
    except (RuntimeError, ValueError, TypeError, NotImplementedError, torch.onnx.errors.OnnxExporterError) as error:
        raise CheckpointError(
            str(file),
            f"torch {torch.__version__} cannot export this model ({' '.join(str(error).split())[:300]}).",
            "A model whose computation can be traced with a free batch size is needed.",
            f"Leave {kind} out of --format: the timm folder holds the same model.",
        ) from None
    finally:
        backbone.float()
    images_file = folder / "images.npy"
    np.save(images_file, images_BCHW.numpy())
    try:
        found = np.asarray(ask_fresh_process(SCRIPTS[kind], file, str(images_file)), np.float32)
    finally:
        images_file.unlink()
    return compare_features(file, found, expected_BD.numpy(), TOLERANCES[precision])


class _AtPrecision(nn.Module):
    """The backbone at another precision inside; images and features stay fp32."""

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone, self.dtype = backbone.to(dtype), dtype

    def forward(self, images: Tensor) -> Tensor:
        features_BD: Tensor = self.backbone(images.to(self.dtype)).float()
        return features_BD


def _write(kind: Format, file: Path, graph: nn.Module, example_BCHW: Tensor) -> None:
    graph.eval()
    shapes = ({0: torch.export.Dim("batch")},)
    if kind == "pt2":
        exported = torch.export.export(graph, (example_BCHW,), dynamic_shapes=shapes)
        for module in exported.graph_module.modules():
            if isinstance(module, torch.fx.GraphModule):
                for node in module.graph.nodes:
                    node.meta.pop("stack_trace", None)  # it names the folders of our source files
        torch.export.save(exported, file)
        return
    program = torch.onnx.export(
        graph,
        (example_BCHW,),
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=["images"],
        output_names=["features"],
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    program.save(str(file))  # weights inside, up to the 2 GB that the format allows


def _noise(num_images: int, input_px: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(num_images, 3, input_px, input_px, generator=generator)
