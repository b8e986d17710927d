"""One training step counted on tensors without values: operations, memory, bytes of a checkpoint. Nothing is computed.

The step is the real one (`train_step`), on torch's fake tensors: they have shapes and types, and what is alive at once
can be added up. A GPU's own context and the cache of its allocator are not among it. Against benchmarks/gpu, which
imagines CUDA too, the peak of a ViT-S/16 with 64 tiles is 8.66 GB for 8.55.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from dino_path.config import Config, ViewsConfig
from dino_path.distributed import World
from dino_path.model.backbone import count_parameters
from dino_path.model.sizes import patch_grid
from dino_path.training.guide import LiveGuide
from dino_path.training.learner import Learner
from dino_path.training.schedules import StepSettings
from dino_path.training.step import train_step
from dino_path.views.batches import ViewBatch
from dino_path.views.masks import MaskDrawer, ViewMasks

BLOCK_BYTES = 512  # torch's CUDA allocator gives no less
FLOAT_BYTES = 4


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    count: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return count


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    count: int = sdpa_backward_flop_count(gradient, query, key, value)  # type: ignore[no-untyped-call]
    return count


# Operations by the shapes of tensors. torch 2.11 counts the attention of GPUs alone.
ATTENTION_OF_CPUS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass(frozen=True)
class StepCount:
    """The operations and memory of one process in one optimizer step.

    Attributes:
        num_parameters: of the backbone.
        flops: of the step, all micro-batches and passes; a multiply-add counts as two.
        kept_bytes: between steps: both networks, gradients, the optimizer's moments, what the terms remember, and the
            views of one micro-batch.
        peak_bytes: the most at once; without GPU context, allocator cache and sharding.
        tile_bytes: what one more tile in a micro-batch adds to the peak.
        checkpoint_bytes: of the tensors in it.
    """

    num_parameters: int
    flops: float
    kept_bytes: int
    peak_bytes: int
    tile_bytes: float
    checkpoint_bytes: int


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, adds up the memory of tensors without values; every value that is read is 0."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, FakeTensor):
                self._note(tensor)
        return made

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._storages:
            return
        num_bytes = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
        self._storages.add(storage._cdata)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, storage._cdata, num_bytes)

    def _forget(self, address: int, num_bytes: int) -> None:
        self._storages.remove(address)
        self.live_bytes -= num_bytes


def count_step(
    config: Config, settings: StepSettings, *, precision: str, is_gpu: bool, guide: LiveGuide | None = None
) -> StepCount:
    """Count one step of one process.

    Args:
        precision: `bf16` or `fp32`, what the device will use.
        is_gpu: use torch's fused attention, as on a GPU.
        guide: the frozen model to learn from, on the CPU.

    Raises:
        ConfigError: as a training would: the backbone cannot be built, or has no patch tokens.
    """
    assert config.training is not None
    told = {"accumulate_steps": 1, "compile": False, "sharding": None, "device": "cpu", "precision": precision}
    training, model = config.training.model_copy(update=told), config.model.model_copy(update={"weights": None})
    batch_size, num_passes = training.batch_size_per_gpu, config.training.accumulate_steps
    masks = _masks(config)
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True), _Alive() as alive:
        learner = Learner(model, config.objective, config.optim, training, world, guide)
        if is_gpu:
            for module in (*learner.student.backbone.modules(), *learner.teacher.backbone.modules()):
                if hasattr(module, "fused_attn"):
                    module.fused_attn = True  # type: ignore[assignment]
        _make_moments(learner)
        batch = _batch(config.views, batch_size, masks)
        alive.peak_bytes = alive.live_bytes
        uncounted = {which: count for which, count in ATTENTION_OF_CPUS.items() if which not in flop_registry}
        with FlopCounterMode(display=False, custom_mapping=uncounted) as operations:
            train_step(learner, [batch], settings, step=0)
        kept_bytes, peak_bytes = alive.live_bytes, alive.peak_bytes
        checkpoint_bytes = _checkpoint_bytes(learner)
        num_parameters = count_parameters(learner.student.backbone)
    of_guide = sum(_bytes(one) for one in guide.module.parameters()) if guide is not None else 0
    # All micro-batches of a step are normalised before the first is learned from.
    waiting = (num_passes - 1) * 2 * batch_size * 3 * config.views.global_px**2 * FLOAT_BYTES
    return StepCount(
        num_parameters=num_parameters,
        flops=float(operations.get_total_flops()) * num_passes,
        kept_bytes=kept_bytes + of_guide,
        peak_bytes=peak_bytes + of_guide + waiting,
        tile_bytes=(peak_bytes - kept_bytes) / batch_size,
        checkpoint_bytes=checkpoint_bytes,
    )


def _make_moments(learner: Learner) -> None:
    """Give the optimizer its moments, which it makes at its first step."""
    for parameter in learner.student.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)


def _batch(views: ViewsConfig, batch_size: int, masks: ViewMasks | None) -> ViewBatch:
    """Finished views: what `views.colour_on_device` adds stays below the peak (benchmarks/gpu)."""
    num_global, num_local = 2 * batch_size, views.num_local * batch_size
    return ViewBatch(
        torch.zeros((num_global, views.global_px, views.global_px, 3), dtype=torch.uint8),
        torch.zeros((num_local, views.local_px, views.local_px, 3), dtype=torch.uint8),
        torch.zeros((num_global, 0)),
        torch.zeros((num_local, 0)),
        torch.arange(batch_size),
        masks=masks,
    )


def _masks(config: Config) -> ViewMasks | None:
    """The masks of the first step, drawn as in training; None if no term hides patches."""
    ibot, training = config.objective.ibot, config.training
    assert training is not None
    if ibot.weight == 0:
        return None
    size = training.batch_size_per_gpu
    grid = patch_grid(config.model.backbone, config.model.backbone_arguments, config.views.global_px)
    drawer = MaskDrawer(ibot.masks, grid, seed=training.seed, global_batch_size=size)
    return drawer.draw(0, 0, np.zeros(size, np.int64), np.arange(size))


def _checkpoint_bytes(learner: Learner) -> int:
    """Both networks, the optimizer's state, and what the terms remember."""
    tensors = [*learner.student.state_dict().values(), *learner.teacher.state_dict().values()]
    tensors += [value for term in learner.objective.state().values() for value in term.values()]
    moments = [value for state in learner.optimizer.state.values() for value in state.values()]
    return sum(_bytes(one) for one in (*tensors, *moments) if isinstance(one, Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
