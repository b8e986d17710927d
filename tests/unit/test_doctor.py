"""The doctor says what is broken and how to fix it, and never breaks itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dino_path import doctor
from dino_path.doctor import Finding, examine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of faiss's and torch's own imports


@pytest.fixture
def no_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH; commands put into the returned folder are found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def put_command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_line_shows_the_mark_the_name_and_below_it_the_remedy() -> None:
    assert Finding("git", "2.39").line() == "✓ git           2.39"
    assert Finding("GPU", "none", remedy="buy one").line() == "! GPU           none\n                -> buy one"
    assert Finding("disk", "full", is_fault=True, remedy="empty it").line().startswith("✗ disk          full\n")


def test_the_whole_examination_finds_the_software_sound_and_puts_lacks_before_what_is_fine(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    names = [finding.name for finding in findings]
    software = {"Python", "packages", "torch", "gloo", "OpenSlide", "FAISS"}
    assert [finding.line() for finding in findings if finding.is_fault and finding.name in software] == []
    assert {*software, "disk", "CPU", "SLURM", "W&B"} <= set(names)
    has_remedy = [finding.remedy is not None for finding in findings]
    assert has_remedy == sorted(has_remedy, reverse=True)
    assert names.index("torch") < names.index("FAISS")


def test_readers_that_are_extras_are_named_with_what_is_refused_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    (finding,) = doctor.check_slide_extras()
    assert not finding.is_fault
    assert "VSI and some CZI are refused without slideio" in finding.found
    assert finding.remedy is not None
    assert finding.remedy.endswith("uv pip install 'dino-path[slideio,wsidicom]'")


def test_an_extra_that_cannot_be_loaded_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libx.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "SLIDE_EXTRAS", {"numpy": "everything"})
    monkeypatch.setattr(doctor, "import_module", fail)
    fine, broken = doctor.check_slide_extras()
    assert (fine.remedy, broken.name, broken.is_fault) == (None, "numpy", True)


def test_faults_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "check_git", lambda: [Finding("git", "broken", is_fault=True, remedy="fix it")])
    assert examine(tmp_path)[0].name == "git"


def test_a_missing_and_an_outdated_package_are_faults_with_the_command_that_mends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: ["no-such-package>=2", "numpy>=999", "rich>=1"])
    missing, outdated = doctor.check_packages()
    assert (missing.found, missing.is_fault) == ("is missing", True)
    assert missing.remedy == 'pip install "no-such-package>=2"'
    assert outdated.found.endswith("is not supported")
    assert outdated.remedy == 'pip install "numpy>=999"'


def test_the_bounds_are_those_of_pyproject() -> None:
    assert any(text.startswith("timm>=") for text in doctor._requirements())
    assert doctor._is_within("3.12.1", doctor._python_bounds() or "")
    assert not doctor._is_within("3.10.14", doctor._python_bounds() or "")


def test_an_old_python_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    (finding,) = doctor.check_python()
    assert finding.is_fault
    assert "3.11" in (finding.remedy or "")


@pytest.mark.parametrize(("binary", "is_fault"), [("4.0.0.9", True), ("4.0.0.11", True), ("4.0.0.12", False)])
def test_the_openslide_binaries_that_corrupt_tiffs_are_faults(
    monkeypatch: pytest.MonkeyPatch, binary: str, is_fault: bool
) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: binary)
    (finding,) = doctor.check_openslide()
    assert finding.is_fault == is_fault
    assert binary in finding.found


def test_a_package_that_cannot_be_imported_is_a_fault_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    findings = [*doctor.check_openslide(), *doctor.check_faiss(), *doctor.check_torch()]
    assert [finding.is_fault for finding in findings] == [True, True, True]
    assert all(finding.remedy for finding in findings)


def test_a_torchvision_of_another_build_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nms(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "torchvision.ops", SimpleNamespace(nms=nms))
    (finding,) = doctor.check_torch()
    assert finding.is_fault
    assert "nms does not exist" in finding.found


def test_a_gpu_that_torch_cannot_use_is_a_fault_and_no_gpu_is_none(
    monkeypatch: pytest.MonkeyPatch, no_commands: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (finding,) = doctor.check_gpus()
    assert not finding.is_fault
    assert finding.remedy is not None

    put_command(no_commands, "nvidia-smi", "echo 'GPU 0: NVIDIA H200 (UUID: GPU-1)'")
    (finding,) = doctor.check_gpus()
    assert finding.is_fault
    assert "H200" in finding.found

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = doctor.check_gpus()
    assert not finding.is_fault
    assert "CUDA_VISIBLE_DEVICES" in finding.found


def test_the_disk_check_writes_where_out_will_be_and_leaves_nothing(tmp_path: Path) -> None:
    (finding,) = doctor.check_disk(tmp_path / "not" / "yet")
    assert finding.found.startswith(f"{tmp_path}: writable")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_is_a_fault() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc here, where even root cannot write")
    (finding,) = doctor.check_disk(Path("/proc/self/run"))
    assert finding.is_fault
    assert "cannot write" in finding.found


def test_a_full_disk_and_small_shared_memory_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(total=64 * 2**20, free=3 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    (disk,), (shared,) = doctor.check_disk(tmp_path), doctor.check_shared_memory(tmp_path)
    assert (disk.is_fault, disk.remedy is not None) == (False, True)
    assert shared.is_fault
    assert "--shm-size" in (shared.remedy or "")


def test_more_threads_than_cores_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    (finding,) = doctor.check_cpus()
    assert (finding.remedy or "").startswith("export OMP_NUM_THREADS=")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert doctor.check_cpus()[0].remedy is None


@pytest.mark.parametrize(("text", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("?", 8)])
def test_the_cores_of_a_container_are_those_it_grants(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert doctor._cpu_quota(tmp_path / "cpu.max", without=8) == cores
    assert doctor._cpu_quota(tmp_path / "absent", without=8) == 8


def test_slurm_is_shown_and_its_absence_is_no_fault(no_commands: Path) -> None:
    (finding,) = doctor.check_slurm()
    assert not finding.is_fault
    assert "torchrun" in (finding.remedy or "")

    put_command(no_commands, "sinfo", 'if [ "$1" = --version ]; then echo slurm 23.02; else exit 1; fi')
    assert "cannot be reached" in doctor.check_slurm()[0].found

    put_command(
        no_commands, "sinfo", 'if [ "$1" = --version ]; then echo slurm 23.02; else echo "gpu* 4 nodes x 1"; fi'
    )
    (finding,) = doctor.check_slurm()
    assert finding.found == "slurm 23.02: gpu* 4 nodes x 1"
    assert finding.remedy is None


def test_a_command_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(words: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(words, 10)

    monkeypatch.setattr(subprocess, "run", hang)
    assert doctor.check_slurm()[0].found == "none on this machine"
    assert doctor.check_git()[0].remedy is not None


def test_the_wandb_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "not-a-real-key")
    (finding,) = doctor.check_wandb()
    assert "WANDB_API_KEY is set" in finding.found
    assert os.environ["WANDB_API_KEY"] not in finding.line()
