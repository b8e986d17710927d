"""The built wheel holds every file that a command reads, and says its version in one voice."""

import os
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from dino_path import __version__

ROOT = Path(__file__).parents[2]
# What the installed package must find by itself, without a checkout around it.
SHIPPED = """
from importlib.metadata import version
from typing import get_args
import dino_path
from dino_path.cluster.submission import Stage, template_file
from dino_path.settings import shipped_config
print(dino_path.__file__, dino_path.__version__, version("dino-path"))
print(shipped_config("demo.yaml"), shipped_config("suites/public.yaml"), *map(template_file, get_args(Stage)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    (file,) = folder.glob("*.whl")
    return file


def files_below(folder: str) -> set[str]:
    files = (file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {file.relative_to(ROOT).as_posix() for file in files}


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_templates_configs_and_sbatch_files_and_nothing_else(wheel: Path) -> None:
    needed = files_below("dino_path") | {f"dino_path/{name}" for name in files_below("configs") | files_below("slurm")}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = BytesParser().parsebytes(archive.read(metadata))
    assert held == needed
    assert fields["Version"] == __version__
    assert fields["License-Expression"] == "Apache-2.0"


@pytest.mark.slow
def test_an_installed_package_finds_its_configs_suites_and_sbatch_files(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    answer = subprocess.run(
        [sys.executable, "-c", SHIPPED], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    package, *versions = answer.stdout.splitlines()[0].split()
    assert Path(package).parents[1] == site
    assert versions == [__version__, __version__]
    files = [Path(word) for word in answer.stdout.splitlines()[1].split()]
    assert [file for file in files if not file.is_file() or site not in file.parents] == []
