"""What this machine has and lacks for dino_path, and how to fix it. Every check runs the real thing, not only its
version.

Checks import libraries inside the functions, because the libraries may be broken.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import tempfile
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path

from dino_path.progress import meter

logger = logging.getLogger(__name__)

GIB = 2**30
# Readers that are extras, and what they read beyond OpenSlide and tifffile.
SLIDE_EXTRAS = {"slideio": "VSI and some CZI", "wsidicom": "DICOM in JPEG-LS and other rare syntaxes"}
# openslide-bin #433: the bottom tiles of TIFFs that are not JPEG come out corrupted.
BAD_OPENSLIDE_BINARIES = ("4.0.0.9", "4.0.0.10", "4.0.0.11")
# Views on their way from the workers to the training process: 8 workers x 2 batches of 64 tiles x 0.5 MB.
MIN_SHARED_MEMORY = 1 * GIB
LOW_DISK = 20 * GIB
LOW_OPEN_FILES = 1024
COMMAND_TIMEOUT_S = 10.0
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY")


@dataclass(frozen=True)
class Finding:
    """One line of the examination: fine; or, with a remedy, a lack that one can live with (`!`) or a fault (`✗`)."""

    name: str
    found: str
    is_fault: bool = False
    remedy: str | None = None

    def line(self) -> str:
        """For the terminal; the remedy stands below."""
        mark = "✗" if self.is_fault else "!" if self.remedy else "✓"
        text = f"{mark} {self.name:<13} {self.found}"
        return f"{text}\n  {'':<13} -> {self.remedy}" if self.remedy else text


def examine(out: Path) -> list[Finding]:
    """All findings: faults first, then lacks, then what is fine; in each the most important first.

    Args:
        out: the folder whose disk and write access are checked; it need not exist and is not made.
    """
    checks: dict[str, Callable[[], list[Finding]]] = {
        "Python": check_python, "packages": check_packages, "torch and torchvision": check_torch, "GPUs": check_gpus,
        "process groups": check_process_groups, "OpenSlide": check_openslide, "slide readers": check_slide_extras,
        "FAISS": check_faiss, "disk": lambda: check_disk(out), "shared memory": check_shared_memory, "CPU": check_cpus,
        "open files": check_open_files, "SLURM": check_slurm, "W&B": check_wandb, "git": check_git,
    }  # fmt: skip
    findings = []
    with meter("examining", len(checks), "checks") as counter:
        for name, check in checks.items():
            logger.info("looking at %s", name)
            findings += check()
            counter.advance()
    return sorted(findings, key=lambda finding: 0 if finding.is_fault else 1 if finding.remedy else 2)


def check_python() -> list[Finding]:
    """This Python against `requires-python`."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    asked = _python_bounds()
    if asked is not None and not _is_within(platform.python_version(), asked):
        return [Finding("Python", found, is_fault=True, remedy=f"make an environment with Python {asked}")]
    return [Finding("Python", found)]


def check_packages() -> list[Finding]:
    """The installed packages against the bounds of pyproject.toml; one fault for each that is missing or outside."""
    requirements = _requirements()
    if not requirements:
        return [Finding("packages", "cannot be compared", remedy="install dino-path: pip install .")]
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [Finding("packages", "`packaging` is missing", is_fault=True, remedy="pip install packaging")]
    faults = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        remedy = f'pip install "{requirement.name}{requirement.specifier}"'
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            faults.append(Finding(requirement.name, "is missing", is_fault=True, remedy=remedy))
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            faults.append(Finding(requirement.name, f"{installed} is not supported", is_fault=True, remedy=remedy))
    return faults or [Finding("packages", f"all {len(requirements)} are installed, in supported versions")]


def check_torch() -> list[Finding]:
    """torch, and whether torchvision was built for it (timm fails at import where it was not)."""
    remedy = "install both again from one index: pip install --force-reinstall torch torchvision"
    try:
        import torch
        from torchvision.ops import nms  # type: ignore[import-untyped]
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return [Finding("torch", f"cannot be imported with torchvision: {_one_line(error)}", True, remedy)]
    try:
        kept = nms(torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]]), torch.tensor([1.0, 0.5]), 0.5)
    except (RuntimeError, NotImplementedError) as error:
        return [Finding("torch", f"does not fit its torchvision: {_one_line(error)}", True, remedy)]
    assert kept.tolist() == [0]
    return [Finding("torch", f"{version('torch')} with torchvision {version('torchvision')}")]


def check_gpus() -> list[Finding]:
    """The CUDA devices: memory, bf16, and whether a kernel really runs on each."""
    try:
        import torch
    except (ImportError, OSError):
        return []  # check_torch has said so
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus:
        return [_examine_gpu(index) for index in range(num_gpus)]
    hardware = _answer(["nvidia-smi", "-L"])
    if not hardware:
        return [Finding("GPU", "none: training runs on the CPU, which is enough for the demo and small tests",
                        remedy="on a cluster, run this on a GPU node: srun --gpus=1 dino-path doctor")]  # fmt: skip
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        shown = os.environ["CUDA_VISIBLE_DEVICES"]
        return [Finding("GPU", f"hidden by CUDA_VISIBLE_DEVICES={shown!r}", remedy="unset CUDA_VISIBLE_DEVICES")]
    reason = _one_line(caught[0].message) if caught else f"this torch is built for CUDA {torch.version.cuda}"
    remedy = "install a torch for the CUDA version that `nvidia-smi` shows, or a newer driver"
    return [Finding("GPU", f"present ({hardware.splitlines()[0]}), but torch cannot use it: {reason}", True, remedy)]


def _examine_gpu(index: int) -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(index)
    name = f"GPU {index}"
    has_bf16 = properties.major >= 8
    found = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, {'bf16' if has_bf16 else 'no bf16'}"
    try:
        product = torch.ones(16, 16, device=f"cuda:{index}") @ torch.ones(16, 16, device=f"cuda:{index}")
        is_right = product.sum().item() == 16**3
    except RuntimeError as error:
        remedy = "see `nvidia-smi`: another process may hold the GPU, or this torch does not support it"
        return Finding(name, f"{found}; a test matrix product fails: {_one_line(error)}", is_fault=True, remedy=remedy)
    if not is_right:
        return Finding(
            name, f"{found}; a test matrix product is wrong", is_fault=True, remedy="have the hardware checked"
        )
    if not has_bf16:
        return Finding(name, found, remedy="train with training.precision=fp32: bf16 is emulated here, and slow")
    return Finding(name, found)


def check_process_groups() -> list[Finding]:
    """gloo by forming a group of one; NCCL by its version."""
    try:
        import torch
        import torch.distributed as dist
    except (ImportError, OSError):
        return []
    if not dist.is_available() or not dist.is_gloo_available():
        return [Finding("gloo", "not in this torch", remedy="only one process can train; install the ordinary torch")]
    findings = []
    if not dist.is_initialized():
        try:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
            dist.all_reduce(torch.ones(1))
            dist.destroy_process_group()
            findings.append(Finding("gloo", "forms a process group"))
        except (RuntimeError, ValueError) as error:
            remedy = "export GLOO_SOCKET_IFNAME=lo (or the network device that connects your nodes)"
            findings.append(Finding("gloo", f"forms no process group: {_one_line(error)}", True, remedy))
    if dist.is_nccl_available():
        parts = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        findings.append(Finding("NCCL", ".".join(str(part) for part in parts)))
    elif torch.cuda.is_available() and torch.cuda.device_count() > 1:
        remedy = "several GPUs need it; install the ordinary torch wheels for Linux"
        findings.append(Finding("NCCL", "not in this torch", is_fault=True, remedy=remedy))
    return findings


def check_openslide() -> list[Finding]:
    """The OpenSlide library, and whether it is one of the broken binaries."""
    remedy = 'pip install --upgrade openslide-python "openslide-bin>=4.0.0.12"'
    try:
        import openslide
    except (ImportError, OSError) as error:
        return [Finding("OpenSlide", f"cannot be loaded: {_one_line(error)}", is_fault=True, remedy=remedy)]
    library = str(openslide.__library_version__)
    try:
        binary = version("openslide-bin")
    except PackageNotFoundError:
        return [Finding("OpenSlide", f"{library} of this system", remedy=f"{remedy} brings a tested one")]
    found = f"{library} (openslide-bin {binary})"
    if binary in BAD_OPENSLIDE_BINARIES:
        return [Finding("OpenSlide", f"{found} corrupts the bottom tiles of TIFFs", is_fault=True, remedy=remedy)]
    return [Finding("OpenSlide", found)]


def check_slide_extras() -> list[Finding]:
    """The optional slide readers: which are installed, and what is refused without the others."""
    missing = [extra for extra in SLIDE_EXTRAS if find_spec(extra) is None]
    found = ", ".join(f"{extra} {version(extra)}" for extra in SLIDE_EXTRAS if extra not in missing)
    refused = ", ".join(f"{SLIDE_EXTRAS[extra]} are refused without {extra}" for extra in missing)
    remedy = f"needed only for such slides: uv pip install 'dino-path[{','.join(missing)}]'" if missing else None
    findings = [Finding("readers", "; ".join(text for text in (found, refused) if text), remedy=remedy)]
    for extra in SLIDE_EXTRAS.keys() - missing:
        try:
            import_module(extra)
        except (ImportError, OSError) as error:
            remedy = f"uv pip install --reinstall 'dino-path[{extra}]'"
            findings.append(Finding(extra, f"cannot be loaded: {_one_line(error)}", is_fault=True, remedy=remedy))
    return findings


def check_faiss() -> list[Finding]:
    """FAISS, checked by a search with a known result."""
    try:
        import faiss
        import numpy as np
    except (ImportError, OSError) as error:
        remedy = "pip install faiss-cpu"
        return [Finding("FAISS", f"cannot be imported: {_one_line(error)}", is_fault=True, remedy=remedy)]
    index = faiss.IndexFlatIP(4)
    index.add(np.eye(4, dtype=np.float32))
    _, nearest = index.search(np.eye(4, dtype=np.float32)[2:3], 1)
    if nearest.item() != 2:
        remedy = "pip install --force-reinstall faiss-cpu"
        return [Finding("FAISS", "gives a wrong search result", is_fault=True, remedy=remedy)]
    return [Finding("FAISS", f"{faiss.__version__}, a test search is correct")]


def check_disk(out: Path) -> list[Finding]:
    """Free space and write access at `out`, or at the nearest folder above it that exists; by writing a file."""
    folder = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(2**20))
            stream.flush()
            os.fsync(stream.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        remedy = "choose a writable folder, or free space or quota there"
        return [Finding("disk", f"{folder}: cannot write ({error.strerror or error})", is_fault=True, remedy=remedy)]
    found = f"{folder}: writable, {free / GIB:,.0f} GiB free"
    if free < LOW_DISK:
        return [Finding("disk", found, remedy="tiles of 100 slides take about 20 GiB, a ViT-S checkpoint 1 GiB")]
    return [Finding("disk", found)]


def check_shared_memory(folder: Path = Path("/dev/shm")) -> list[Finding]:
    """The shared memory through which worker processes hand over views; containers often have 64 MB."""
    if not folder.is_dir():
        return []
    total = shutil.disk_usage(folder).total
    found = f"{folder}: {total / GIB:.2g} GiB"
    if total < MIN_SHARED_MEMORY:
        remedy = "workers die with a bus error: docker run --shm-size=16g (or --ipc=host), or training.num_workers=0"
        return [Finding("shared memory", found, is_fault=True, remedy=remedy)]
    return [Finding("shared memory", found)]


def check_cpus() -> list[Finding]:
    """Cores of the machine, cores that this process may use, and OMP settings."""
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    usable = min(usable, _cpu_quota(Path("/sys/fs/cgroup/cpu.max"), without=usable))
    omp = {name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ}
    settings = ", ".join(f"{name}={value}" for name, value in omp.items()) or "no OMP settings"
    found = f"{usable} of {cores} cores usable, {settings}"
    threads = omp.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > usable:
        return [Finding("CPU", found, remedy=f"export OMP_NUM_THREADS={usable}: more threads than cores are slow")]
    return [Finding("CPU", found)]


def check_open_files() -> list[Finding]:
    """The limit of open files; worker processes and slides need some hundreds."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LOW_OPEN_FILES:
        most = "4096" if hard == resource.RLIM_INFINITY else str(min(hard, 4096))
        return [Finding("open files", f"at most {soft}", remedy=f"ulimit -n {most}")]
    return [Finding("open files", "any number" if soft == resource.RLIM_INFINITY else f"at most {soft}")]


def check_slurm() -> list[Finding]:
    """SLURM's version and partitions, where there is one."""
    name = _answer(["sinfo", "--version"])
    if name is None:
        remedy = "needed only by `dino-path submit`; on one machine, use torchrun"
        return [Finding("SLURM", "none on this machine", remedy=remedy)]
    partitions = _answer(["sinfo", "--noheader", "--format=%P %D nodes %G %l"])
    if partitions is None:
        remedy = "sinfo does not answer: check SLURM_CONF, and whether the controller runs"
        return [Finding("SLURM", f"{name}, but its controller cannot be reached", remedy=remedy)]
    return [Finding("SLURM", f"{name}: " + "; ".join(" ".join(line.split()) for line in partitions.splitlines()))]


def check_wandb() -> list[Finding]:
    """W&B's mode, and whether there is a key in the environment (never which)."""
    mode = os.environ.get("WANDB_MODE")
    key = "WANDB_API_KEY is set" if os.environ.get("WANDB_API_KEY") else "no WANDB_API_KEY"
    if mode is not None:
        return [Finding("W&B", f"WANDB_MODE={mode} is set, {key}; wandb.mode in the config takes precedence")]
    return [Finding("W&B", f"offline unless wandb.mode=online; {key}")]


def check_git() -> list[Finding]:
    """git, by which a run records the commit of a checkout."""
    found = _answer(["git", "--version"])
    if found is None:
        return [Finding("git", "none", remedy="runs from a checkout will not record their commit")]
    return [Finding("git", found.removeprefix("git version "))]


def _cpu_quota(file: Path, *, without: int) -> int:
    """Cores that a container grants (cgroup 2: `cpu.max` holds quota and period); `without` where it grants all."""
    try:
        quota, period = file.read_text().split()
        return without if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return without


def _python_bounds() -> str | None:
    """`requires-python` of the checkout, or of the installed package."""
    project = _project_table()
    if project:
        return str(project["requires-python"])
    try:
        return metadata("dino-path")["Requires-Python"]
    except PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    """The dependencies of the checkout, or of the installed package; empty where neither is known."""
    project = _project_table()
    if project:
        return [str(text) for text in project["dependencies"]]  # type: ignore[attr-defined]
    try:
        return metadata("dino-path").get_all("Requires-Dist") or []
    except PackageNotFoundError:
        return []


def _project_table() -> dict[str, object]:
    """`[project]` of the pyproject.toml beside the package; empty for an installed package."""
    file = Path(__file__).parents[1] / "pyproject.toml"
    if not file.exists():
        return {}
    project: dict[str, object] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    return project if project.get("name") == "dino-path" else {}


def _is_within(number: str, bounds: str) -> bool:
    """Whether a version is within `>=3.11,<3.14`; True where `packaging` is missing (check_packages says so)."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(bounds).contains(number, prereleases=True)


def _answer(words: list[str]) -> str | None:
    """The output of a command; None if it does not exist, fails or does not answer."""
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _one_line(error: object) -> str:
    """The text of an error, short enough for a terminal."""
    return " ".join(str(error).split())[:200]
