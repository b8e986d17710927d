"""Runs of earlier versions continue bit for bit, and can be exported and reported."""

import json
import shutil
from pathlib import Path

import pytest
from same_numbers import FIXTURES, check_numbers, numbers_of
from tiny import ALONE

from dino_path.exporting.checkpoint import export_checkpoint
from dino_path.reporting.report import write_report
from dino_path.run import RunFolder
from dino_path.settings import load_config
from dino_path.training.loop import pretrain

OF_A_WINDOW = ("feature_std", "rankme")  # over the steps since the start of the process: no checkpoint keeps it


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A copy of the run of version 1 where its paths, `tiles` and `run`, lead to it."""
    shutil.copytree(FIXTURES / "run_v1", tmp_path / "v1")
    monkeypatch.chdir(tmp_path / "v1")
    return RunFolder(Path("run"))


def test_a_run_of_version_1_goes_on_from_its_own_config_to_the_bit(run: RunFolder) -> None:
    pretrain(load_config(run.config_file), ALONE)
    expected = json.loads((FIXTURES / "run_v1" / "expected.json").read_text(encoding="utf-8"))
    assert len(expected["steps"]) == 6, "three that were logged before, three new ones"
    found = numbers_of(run)
    for step in (*found["steps"], *expected["steps"]):
        for name in OF_A_WINDOW:
            del step[name]
    check_numbers(found, expected, machine_then=expected["machine"])


def test_a_run_of_version_1_is_exported_and_reported(run: RunFolder, tmp_path: Path) -> None:
    result = export_checkpoint(run.path, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["num_features"] == 8
    page = write_report([run.path], tmp_path / "report.html", models=[tmp_path / "model"]).read_text(encoding="utf-8")
    assert "Teacher entropy" in page
    assert "ln K" in page
    assert result.folder.is_dir()
