"""What a training step asks of a GPU, counted on a machine without one: peak memory, operations, waits of the host.

    uv run python benchmarks/gpu/imagined.py [--peer CHECKOUT_OF_facebookresearch/dino]
    uv run python benchmarks/gpu/imagined.py --objective dinov2 [--peer CHECKOUT_OF_facebookresearch/dinov2]

Tensors on the GPU are torch's fake ones: a shape, a type and a device, without values. An operation between two devices
fails as it would on a GPU, a question for a value is a wait, and what is alive can be added up: what the allocator is
asked for, in blocks of 512 bytes, without its cache and without the libraries' own memory. Both implementations run
without DistributedDataParallel, whose buckets hold all gradients once more. Nothing is said about time.

Needs Linux, a C compiler and an ordinary torch wheel, which brings CUDA's headers and Triton's: `imagined.c` answers
where torch asks the CUDA runtime. Exit code 1 when a step of ours waits for the device.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.cuda.amp.common
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
import contenders
from contenders import ARCHS, OBJECTIVES, Contender, Work, our_contender, peer_contender
from dinov2_peer import dinov2_contender

from dino_path.config import ViewsConfig
from dino_path.views.device import pack
from dino_path.views.parameters import draw_views

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
KINDS = {
    "ours": "dino_path", "colour": "dino_path, colour on the GPU", "plain": "dino_path, all logits at once",
    "elementwise": "dino_path, activation_checkpointing=elementwise",
    "blocks": "dino_path, activation_checkpointing=true", "peer": "facebookresearch/",
}  # fmt: skip
BLOCK_BYTES = 512  # torch's CUDA allocator gives no less
NO_KERNEL = ("detach", "_unsafe_view", "empty", "new_empty", "empty_like", "empty_strided")


def host_waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host asks for a value, or for a copy between host and device that is done when the call returns."""
    if func is aten._to_copy.default:
        target = kwargs.get("device") or args[0].device
        return bool(target.type != args[0].device.type and not kwargs.get("non_blocking"))
    if func is aten.copy_.default:
        is_asynchronous = args[2] if len(args) > 2 else kwargs.get("non_blocking")
        return bool(args[0].device.type != args[1].device.type and not is_asynchronous)
    return func is aten._local_scalar_dense.default


class ImaginedGpu(TorchDispatchMode):
    """While open, what touches a tensor on the GPU is imagined and counted; the rest runs as ever.

    A value that the host asks for is 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode()
        self.live_bytes = self.peak_bytes = self.num_operations = self.num_waits = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        devices = {each.type for each in leaves if isinstance(each, torch.device)}
        if not any(isinstance(each, FakeTensor) for each in leaves) and GPU.type not in devices:
            return func(*args, **kwargs)
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        self.num_waits += host_waits(func, args, kwargs)
        if func is aten._local_scalar_dense.default:
            return 0.0
        if "cpu" in devices:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        with self.fake:
            made = func(*tree_map(self._imagined, args), **tree_map(self._imagined, kwargs))
        self.num_operations += not func.is_view and func.overloadpacket.__name__ not in NO_KERNEL
        self._note(made)
        return made

    def _imagined(self, value: Any) -> Any:
        is_real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.fake.from_tensor(value) if is_real else value

    def _note(self, made: Any) -> None:
        """Count a new tensor's memory until its last user lets go of it."""
        for tensor in tree_leaves(made):
            if not isinstance(tensor, FakeTensor) or tensor.device.type != GPU.type:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                num_bytes = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
                self._alive.add(storage._cdata)
                self.live_bytes += num_bytes
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)
                weakref.finalize(storage, self._forget, storage._cdata, num_bytes)

    def _forget(self, address: int, num_bytes: int) -> None:
        self._alive.remove(address)
        self.live_bytes -= num_bytes


class NoEvent:
    """Stands for torch.cuda.Event."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Alone(nn.Module):
    """Stands for DistributedDataParallel around the peer's student."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, views: Any) -> Any:
        return self.module(views)


def imagine_a_gpu() -> None:
    """For the rest of this process: where torch and the peer would look for a GPU, they find what fake tensors need."""
    real_address = Tensor.data_ptr
    replacements: dict[Any, dict[str, Any]] = {
        torch.cuda: {
            "_lazy_init": lambda: None, "is_bf16_supported": lambda: True, "Event": NoEvent,
            "synchronize": lambda: None,
        },
        fake_tensor: {"init_gpu_context": lambda _: None},
        torch.cuda.amp.common: {"amp_definitely_not_available": lambda: False},
        Tensor: {
            "pin_memory": lambda tensor: tensor,
            "cuda": lambda tensor, **_: tensor.to(GPU, non_blocking=True),
            "data_ptr": lambda t: t.untyped_storage()._cdata if isinstance(t, FakeTensor) else real_address(t),
        },
        # Which library convolves, and in which layout: of the patches, 16 x 16 px side by side, it is all the same.
        torch._C: {
            "_select_conv_backend": lambda *_, **__: torch._C._ConvBackend.Cudnn,
            "_conv_determine_backend_memory_format": lambda *_: torch.contiguous_format,
        },
        torch.distributed: {"all_reduce": lambda _: None, "get_world_size": lambda: 1},
        contenders: {"DistributedDataParallel": Alone},
    }  # fmt: skip
    for place, attributes in replacements.items():
        for name, value in attributes.items():
            setattr(place, name, value)
    torch._C._set_only_lift_cpu_tensors(True)
    torch.autograd.set_multithreading_enabled(False)


@dataclass(frozen=True)
class Counts:
    """Of one training step, the second of a run, when the optimizer has its moments."""

    kept_gb: float
    peak_gb: float
    num_operations: int
    num_waits: int


def contender_of(kind: str, work: Work, peer: Path | None) -> Contender:
    match kind:
        case "peer":
            assert peer is not None
            return (peer_contender if work.objective == "dino" else dinov2_contender)(work, "fp16", peer)
        case "colour":
            config = ViewsConfig(recipe="dino", num_local=work.num_local)
            views = [
                draw_views(config, tile_width=256, tile_height=256, mpp=None, seed=0, epoch=0, tile=tile)
                for tile in range(work.batch)
            ]
            packed = torch.tensor([[pack(view) for view in of_tile] for of_tile in views]).transpose(0, 1)
            return our_contender(work, "bf16", parameters=(packed[:2].flatten(0, 1), packed[2:].flatten(0, 1)))
        case "plain":
            return our_contender(work, "bf16", fused_loss=False)
        case "elementwise":
            return our_contender(work, "bf16", activation_checkpointing="elementwise")
        case "blocks":
            return our_contender(work, "bf16", activation_checkpointing=True)
    return our_contender(work, "bf16")


def count(kind: str, work: Work, peer: Path | None) -> Counts:
    """Two steps; the second is counted."""
    with ImaginedGpu() as gpu:
        contender = contender_of(kind, work, peer)
        contender.step()
        gpu.peak_bytes, gpu.num_operations, gpu.num_waits = gpu.live_bytes, 0, 0
        contender.step()
    return Counts(gpu.live_bytes / 1e9, gpu.peak_bytes / 1e9, gpu.num_operations, gpu.num_waits)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", choices=OBJECTIVES, default="dino")
    parser.add_argument("--drop-path-rate", type=float, default=0.1, help="of both sides")
    parser.add_argument("--drop-path-schedule", choices=("linear", "constant"), default="linear")
    parser.add_argument("--peer", type=Path, help="checkout of facebookresearch/dino, or of dinov2 for its objective")
    parser.add_argument("--archs", nargs="+", choices=ARCHS, default=["vit_small", "vit_base", "vit_large"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batches", type=int, nargs=2, default=[64, 128])
    parser.add_argument("--prototypes", type=int, default=65536)
    arguments = parser.parse_args()
    if arguments.peer is None:
        arguments.kinds = [kind for kind in arguments.kinds if kind != "peer"]
    return arguments


def main() -> int:
    arguments = parse()
    imagine_a_gpu()
    few, many = arguments.batches
    print(
        f"| | kept GB | peak GB, {few} tiles | of the peer | MB a tile | tiles in 80 / 141 GB | operations | waits |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    num_waits = 0
    of_all = (
        arguments.prototypes, 224, 96, 8, GPU,
        arguments.objective, arguments.drop_path_rate, arguments.drop_path_schedule,
    )  # fmt: skip
    for arch in arguments.archs:
        counts = {
            kind: [count(kind, Work(arch, batch, *of_all), arguments.peer) for batch in (few, many)]
            for kind in arguments.kinds
        }
        for kind, (one, other) in counts.items():
            tile_gb = (other.peak_gb - one.peak_gb) / (many - few)
            fixed_gb = one.peak_gb - few * tile_gb
            fitting = " / ".join(f"{(size - fixed_gb) / tile_gb:,.0f}" for size in (80, 141))
            share = f"{one.peak_gb / counts['peer'][0].peak_gb:.2f}" if "peer" in counts else ""
            name = KINDS[kind] + (arguments.objective if kind == "peer" else "")
            print(
                f"| {arch}/16, {name} | {one.kept_gb:.2f} | {one.peak_gb:.2f} | {share} | {1000 * tile_gb:.0f} |"
                f" {fitting} | {one.num_operations:,} | {one.num_waits} |",
                flush=True,
            )
            num_waits += 0 if kind == "peer" else one.num_waits
    return int(num_waits > 0)


def run_with_the_imagined_runtime() -> int:
    """Compile imagined.c and start this script again with it in the place of CUDA's libraries."""
    import triton

    # The runtime's own headers first: the device's properties lie elsewhere in other versions. Not all are there.
    nvidia = [file.parent for file in (Path(torch.__file__).parents[1] / "nvidia").rglob("driver_types.h")]
    headers = [*nvidia, Path(triton.__file__).parent / "backends" / "nvidia" / "include"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        source = Path(__file__).with_suffix(".c")
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-shared", "-fPIC", *(f"-I{each}" for each in headers), "-o", library, source], check=True
        )
        environment = os.environ | {"IMAGINED_GPU": "1"}
        for name, first in (("LD_PRELOAD", str(library)), ("LD_LIBRARY_PATH", folder)):
            environment[name] = ":".join(filter(None, [first, os.environ.get(name)]))
        return subprocess.run([sys.executable, *sys.argv], env=environment).returncode


if __name__ == "__main__":
    if "IMAGINED_GPU" not in os.environ:
        parse()
        sys.exit(run_with_the_imagined_runtime())
    sys.exit(main())
