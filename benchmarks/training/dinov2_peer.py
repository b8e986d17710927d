"""facebookresearch/dinov2's own step, for benchmarks/training and gpu; run alone it compares its loss with ours.

    uv run python benchmarks/training/dinov2_peer.py CHECKOUT_OF_facebookresearch/dinov2

Its `SSLMetaArch` runs unchanged: `forward_backward` with its ViT, nested views, heads, losses, Sinkhorn-Knopp, gradient
scaler and parameter groups; then, as its `do_train` has them, the clipping, the optimizer, `update_teacher`, and the
look at the losses that finds a NaN. Its own settings hold (ssl_default_config.yaml), but for those that `settings_of`
changes, so that both sides train the same network. Three of its libraries are replaced, none of which has a part in the
arithmetic:

- xformers: its attention by torch's. On a GPU one call for the tokens of both resolutions, on a CPU a call each.
  `index_select_cat` and `scaled_index_add` by torch's operations. The peer asks xformers for a cross-entropy too,
  which no published xformers has, so that its own comes in, as it does with xformers.
- FullyShardedDataParallel, for one process: the parameters stay fp32, each pass through a network begins with a copy of
  them in the given precision, and its inputs are cast too. The copies' gradients are cast one by one, where FSDP holds
  those of a whole network at once: it would need more memory, not less.
- fvcore, which only writes checkpoints.

Alone: the loss of one batch, and the gradients' norms, of both sides with the same weights and masks, fp32, without
stochastic depth, all views of one size (the two interpolate position embeddings differently).
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from contenders import (
    SETTINGS,
    Contender,
    Stopwatch,
    Work,
    our_learner,
    peer_views,
    peer_without_gpu,
    random_batch,
    void,
)
from torch import Tensor, nn

from dino_path.training.objective.term import Outputs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Settings(dict[str, Any]):
    """What the peer reads from its YAML files, by attribute and by key."""

    __getattr__ = dict.__getitem__


def settings_of(work: Work, precision: str, peer: Path) -> Settings:
    """The peer's defaults, with the ViT, the stochastic depth, the heads and the targets of this benchmark."""
    text = (peer / "dinov2" / "configs" / "ssl_default_config.yaml").read_text()
    settings: Settings = json.loads(json.dumps(yaml.safe_load(text)), object_hook=Settings)
    changes: dict[str, dict[str, Any]] = {
        "student": {
            "arch": work.arch, "patch_size": 16,
            "drop_path_rate": work.drop_path_rate, "drop_path_uniform": work.drop_path_schedule == "constant",
        },
        "crops": {"global_crops_size": work.global_px, "local_crops_number": work.num_local},
        "dino": {"head_n_prototypes": work.prototypes},
        "ibot": {"head_n_prototypes": work.prototypes, "separate_head": True},
        "train": {"centering": "sinkhorn_knopp"},
        "compute_precision": {"grad_scaler": precision == "fp16"},
    }  # fmt: skip
    for section, values in changes.items():
        settings[section] |= values
    return settings


class BlockDiagonalMask:
    """Replaces xformers': images of several sizes are concatenated; attention stays within each image."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self._batch_sizes: list[int] = []  # of each resolution; the peer writes it
        self._starts: Tensor | None = None

    @classmethod
    def from_seqlens(cls, lengths: Sequence[int]) -> BlockDiagonalMask:
        return cls(lengths)

    @classmethod
    def from_tensor_list(cls, tensors: Sequence[Tensor]) -> tuple[BlockDiagonalMask, Tensor]:
        mask = cls([each.shape[1] for each in tensors for _ in each])
        mask._batch_sizes = [len(each) for each in tensors]
        return mask, torch.cat([each.reshape(1, -1, *each.shape[2:]) for each in tensors], dim=1)

    def split(self, row: Tensor) -> list[Tensor]:
        """(1, all tokens, ...) -> (images, tokens, ...) of each resolution."""
        firsts = [sum(self._batch_sizes[:number]) for number in range(len(self._batch_sizes))]
        lengths = [self.lengths[first] for first in firsts]
        sizes = [length * number for length, number in zip(lengths, self._batch_sizes, strict=True)]
        return [
            part.view(-1, length, *row.shape[2:]) for part, length in zip(row.split(sizes, dim=1), lengths, strict=True)
        ]

    def starts(self, device: torch.device) -> Tensor:
        """Where each image's tokens begin, and the end of the last."""
        if self._starts is None:  # as xformers keeps them: the peer has one mask for each shape
            self._starts = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=device)
        return self._starts


def attention(query: Tensor, key: Tensor, value: Tensor, attn_bias: BlockDiagonalMask | None = None) -> Tensor:
    """(B, N, heads, D) each; stands for xformers' `memory_efficient_attention`."""
    if attn_bias is None:
        heads_first = (each.transpose(1, 2) for each in (query, key, value))
        return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)
    if query.is_cuda:
        starts, longest = attn_bias.starts(query.device), max(attn_bias.lengths)
        rows = (each.squeeze(0) for each in (query, key, value))
        attended = torch.ops.aten._flash_attention_forward(*rows, starts, starts, longest, longest, 0.0, False, False)
        result: Tensor = attended[0].unsqueeze(0)
        return result
    parts = zip(*(attn_bias.split(each) for each in (query, key, value)), strict=True)
    return torch.cat([attention(*part).reshape(1, -1, *query.shape[2:]) for part in parts], dim=1)


def index_select_cat(sources: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    pairs = zip(sources, indices, strict=True)
    return torch.cat([source.index_select(0, index).flatten() for source, index in pairs])


def scaled_index_add(x: Tensor, index: Tensor, source: Tensor, *, scaling: Tensor, alpha: float) -> Tensor:
    result: Tensor = ScaledIndexAdd.apply(x, index, source, scaling, alpha)
    return result


class ScaledIndexAdd(torch.autograd.Function):
    """Like xformers' it saves only its inputs; torch's operations would save the scaled source as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, source: Tensor, scaling: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(index, source, scaling)
        ctx.alpha = alpha
        return torch.index_add(x, 0, index, source * scaling, alpha=alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, source, scaling = ctx.saved_tensors
        chosen = ctx.alpha * grad.index_select(0, index)
        return grad, None, chosen * scaling, (chosen * source).flatten(0, -2).sum(0), None


class Unsharded(nn.Module):
    """Replaces FullyShardedDataParallel around one of the peer's networks, in a world of one process."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module  # FSDP's name, which the peer takes out of its parameters' names
        self.dtype = dtype

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._fsdp_wrapped_module, name)

    def forward(self, inputs: Tensor | list[Tensor], **keywords: Any) -> Any:
        weights = {name: each.to(self.dtype) for name, each in self._fsdp_wrapped_module.named_parameters()}
        cast = [each.to(self.dtype) for each in inputs] if isinstance(inputs, list) else inputs.to(self.dtype)
        return torch.func.functional_call(self._fsdp_wrapped_module, weights, (cast,), keywords)

    def clip_grad_norm_(self, limit: float) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), limit)


def import_peer(peer: Path, dtype: torch.dtype) -> Any:
    """Its module `ssl_meta_arch`, imported with the replacements for its libraries."""
    xformers, ops, fsdp = ModuleType("xformers"), ModuleType("xformers.ops"), ModuleType("dinov2.fsdp")
    vars(ops).update(
        fmha=SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask), memory_efficient_attention=attention,
        unbind=torch.unbind, index_select_cat=index_select_cat, scaled_index_add=scaled_index_add,
    )  # fmt: skip
    vars(fsdp).update(
        get_fsdp_wrapper=lambda *_, **__: partial(Unsharded, dtype=dtype),
        get_fsdp_modules=lambda network: [SimpleNamespace(params=[*network.parameters()])],
        ShardedGradScaler=partial(torch.amp.GradScaler, "cuda"),
        reshard_fsdp_model=void,
    )
    if str(peer) not in sys.path:
        sys.path.insert(0, str(peer))
    sys.modules |= {"xformers": xformers, "xformers.ops": ops, "dinov2.fsdp": fsdp}
    for name in ("dinov2.train", "dinov2.train.ssl_meta_arch"):  # whose wrapper is of another precision
        sys.modules.pop(name, None)
    package = ModuleType("dinov2.train")  # whose __init__ imports the loop, and that fvcore
    package.__path__ = [str(peer / "dinov2" / "train")]
    sys.modules["dinov2.train"] = package
    transformers = importlib.import_module("dinov2.models.vision_transformer")
    vars(transformers)["vit_tiny"] = partial(  # it has none: timm's numbers, its class
        transformers.DinoVisionTransformer, embed_dim=192, depth=12, num_heads=3,
        block_fn=partial(transformers.Block, attn_class=transformers.MemEffAttention),
    )  # fmt: skip
    importlib.import_module("dinov2.layers.block").attn_bias_cache.clear()  # of another run's imagined GPU
    return importlib.import_module("dinov2.train.ssl_meta_arch")


def peer_batch(work: Work, dtype: torch.dtype) -> dict[str, Any]:
    """The output of its `collate_data_and_cast`, with our normalised views and our masks."""
    masks = random_batch(work).masks
    assert masks is not None
    num_views, num_patches = masks.hidden.shape
    upper = torch.linspace(0.1, 0.5, num_views // 2 + 1)[1:]  # its rows of a head, whatever the masks hide
    views = [torch.cat(part).to(dtype) for part in peer_views(work)]
    batch = {
        "collated_global_crops": views[0],
        "collated_local_crops": views[1],
        "collated_masks": masks.hidden,
        "mask_indices_list": masks.indices,
        "masks_weight": masks.weights,
        "n_masked_patches": torch.full((1,), len(masks.indices)),
    }
    pinned = {name: each.pin_memory() if work.device.type == "cuda" else each for name, each in batch.items()}
    return pinned | {"upperbound": sum(int(num_patches * share) for share in upper)}


def dinov2_contender(work: Work, precision: str, peer: Path) -> Contender:
    """facebookresearch/dinov2 as its `main` builds it, and the body of its `do_train`."""
    dtype = DTYPES[precision]
    model = build_peer(work, precision, peer)
    optimizer = torch.optim.AdamW(model.get_params_groups(), betas=(0.9, 0.999))
    for group in optimizer.param_groups:  # its apply_optim_scheduler, of a schedule that stands still
        group["lr"] = SETTINGS.lr * group["lr_multiplier"]
        group["weight_decay"] = SETTINGS.weight_decay * group["wd_multiplier"]
    batch, scaler = peer_batch(work, dtype), model.fp16_scaler

    def step(watch: Stopwatch | None = None) -> float:
        optimizer.zero_grad(set_to_none=True)
        losses = model.forward_backward({**batch}, teacher_temp=SETTINGS.teacher_temp)
        if watch is not None:
            watch.lap("backward")
        if scaler is not None:
            scaler.unscale_(optimizer)
        for network in model.student.values():
            network.clip_grad_norm_(3.0)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if watch is not None:
            watch.lap("clip, optimizer")
        model.update_teacher(SETTINGS.momentum)
        if watch is not None:
            watch.lap("EMA")
        return sum(loss.item() for loss in losses.values())

    def staged_step(watch: Stopwatch) -> None:
        watch.lap()
        with stages_of(model, watch):
            step(watch)

    return Contender(f"facebookresearch/dinov2, {precision}", step, staged_step)


def build_peer(work: Work, precision: str, peer: Path) -> Any:
    torch.manual_seed(0)
    model = import_peer(peer, DTYPES[precision]).SSLMetaArch(settings_of(work, precision, peer))
    model.to(work.device)
    model.prepare_for_distributed_training()
    model.need_to_synchronize_fsdp_streams = False  # of streams that nothing here has
    model.train()
    return model


@contextmanager
def stages_of(model: Any, watch: Stopwatch) -> Iterator[None]:
    """While open, `forward_backward` reports the end of its stages to the watch."""
    teacher, student, backprop = model.teacher, model.student, model.backprop_loss

    def backprop_loss(loss: Tensor) -> None:
        watch.lap("loss")
        backprop(loss)

    model.backprop_loss = backprop_loss
    try:
        with (
            watch.around(teacher["backbone"], before="views", inside="teacher"),
            watch.around(teacher["ibot_head"], before="teacher", inside="teacher"),
            watch.around(teacher["dino_head"], before="teacher", inside="teacher"),
            watch.around(student["backbone"], before="targets", inside="student"),
            watch.around(student["ibot_head"], before="student", inside="head"),
            watch.around(student["dino_head"], before="head", inside="head"),
        ):
            yield
    finally:
        model.backprop_loss = backprop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path, metavar="CHECKOUT")
    peer = parser.parse_args().peer
    warnings.simplefilter("ignore")  # the peer is of 2023
    work = Work("vit_tiny", 4, 1024, 224, 224, 2, torch.device("cpu"), objective="dinov2", drop_path_rate=0.0)
    with peer_without_gpu(work.device):
        model = build_peer(work, "fp32", peer)
        learner, batch = our_learner(work, "fp32"), random_batch(work)
        for network, theirs in ((learner.student, model.student), (learner.teacher, model.teacher)):
            state = {name.replace("_fsdp_wrapped_module.", ""): each for name, each in theirs.state_dict().items()}
            named = {
                name.replace("backbone.mask_token", "mask_token.weight")
                .replace("dino_head.", "head.")
                .replace("ibot_head.", "patch_head."): each
                for name, each in state.items()
            }
            network.load_state_dict(named)
        shares = model.forward_backward(peer_batch(work, torch.float32), teacher_temp=SETTINGS.teacher_temp)
        seen = learner.global_views(batch)
        taught = learner.teach(seen, batch.masks)
        learner.objective.prepare([taught], SETTINGS)
        loss, numbers = learner.objective.measure(Outputs(learner.study(seen, batch), taught, batch.masks), SETTINGS)
        loss.backward()  # type: ignore[no-untyped-call]
    theirs_by_term = {
        "dino": shares["dino_local_crops_loss"] + shares["dino_global_crops_loss"],
        "ibot": 2 * shares["ibot_loss"],
        "koleo": 2 * shares["koleo_loss"],
    }
    print(f"{'loss':12s} {'dino_path':>12s} {'dinov2':>12s}")
    for name, share in theirs_by_term.items():
        print(f"{name:12s} {numbers[f'{name}_loss'].item():12.6f} {share.item():12.6f}")
    print(f"\n{'gradient':12s} {'dino_path':>12s} {'dinov2':>12s}")
    ours = {
        "backbone": [learner.student.backbone, learner.student.mask_token],
        "dino_head": [learner.student.head],
        "ibot_head": [learner.student.patch_head],
    }
    for name, networks in ours.items():
        norms = [
            nn.utils.get_total_norm([p.grad for network in those for p in network.parameters() if p.grad is not None])
            for those in (networks, [model.student[name]])
        ]
        print(f"{name:12s} {norms[0].item():12.6f} {norms[1].item():12.6f}")


if __name__ == "__main__":
    main()
