"""Files of earlier versions can be opened, resumed, exported, embedded and reported (tests/fixtures/README.md)."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from runs import state_in
from typer.testing import CliRunner

from dino_path.cli import app
from dino_path.run import RunFolder
from dino_path.tiles.store import TileStore

ARCHIVES = sorted((Path(__file__).parents[1] / "fixtures").glob("files_of_*.tar.xz"))
MADE_IN = "/somewhere"


@pytest.fixture(params=ARCHIVES, ids=lambda file: file.name.split(".")[0])
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an earlier version, as if it had been made here; it is the working folder."""
    folder = tmp_path / MADE_IN.strip("/")  # models and files of features are named by the folder they lie in
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".csv", ".yaml", ".jsonl"):
            file.write_text(file.read_text().replace(MADE_IN, str(folder)))
    monkeypatch.chdir(folder)
    return folder


def run(*words: str) -> str:
    """The output of a command, which must succeed."""
    answer = CliRunner().invoke(app, [*words])
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    assert answer.exit_code == 0, answer.output
    return answer.output


@pytest.mark.parametrize("settings", [("store",), ("coordinates", "tiles.coordinates_only=true")])
def test_a_store_needs_no_work_and_has_its_tiles(old: Path, settings: tuple[str, ...]) -> None:
    name, *further = settings
    before = {file: file.read_bytes() for file in (old / name / "tiles").iterdir()}
    assert "0 done, 2 already there" in run(
        "tile", "slides.csv", "--config", "config.yaml", "--out", name, "--workers", "1", *further
    )
    assert {file: file.read_bytes() for file in (old / name / "tiles").iterdir()} == before
    assert len(TileStore.open(old / name)) == 32


def test_a_run_stopped_halfway_ends_where_it_would_have_ended(old: Path) -> None:
    run_folder = RunFolder(old / "run")
    expected = state_in(shutil.copy(run_folder.checkpoint_file(6), old / "undisturbed.pt"))
    run_folder.checkpoint_file(6).unlink()
    halfway = state_in(run_folder.checkpoint_file(3))
    run("pretrain", "--config", "config.yaml", "store=store", "out=run", "slides.split=train")
    resumed = state_in(run_folder.checkpoint_file(6))
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        # Equal to the bit on the machine that made it; other processors and versions of torch round otherwise.
        torch.testing.assert_close(
            resumed[name], value, rtol=1e-3, atol=1e-6, msg=lambda text, at=name: f"{at}: {text}"
        )
    assert sum(not torch.equal(halfway[name], resumed[name]) for name in halfway) > len(halfway) // 2


def test_a_finished_run_is_finished(old: Path) -> None:
    before = RunFolder(old / "run").checkpoint_file(6).read_bytes()
    run("pretrain", "--config", "config.yaml", "store=store", "out=run", "slides.split=train")
    assert RunFolder(old / "run").checkpoint_file(6).read_bytes() == before


def test_a_run_is_exported_as_it_was(old: Path) -> None:
    from safetensors.torch import load_file

    run("export", "run", "--out", "again")
    then, now = load_file(old / "model" / "model.safetensors"), load_file(old / "again" / "model.safetensors")
    assert then.keys() == now.keys()
    assert all(torch.equal(then[name], now[name]) for name in then)


def test_features_of_a_store_are_kept(old: Path) -> None:
    before = {file: file.read_bytes() for file in (old / "features").rglob("*.h5")}
    assert len(before) == 6
    run("embed", "model", "store", "--out", "features", "--layout", "trident,clam", "--workers", "0")
    assert {file: file.read_bytes() for file in (old / "features").rglob("*.h5")} == before


def test_a_model_folder_gives_the_features_that_it_gave(old: Path) -> None:
    import h5py

    run("embed", "model", "images", "--out", "again", "--workers", "0")
    with h5py.File("image_features/features.h5") as then, h5py.File("again/features.h5") as now:
        torch.testing.assert_close(torch.tensor(now["features"][:]), torch.tensor(then["features"][:]))


def test_a_report_shows_run_store_model_and_every_evaluation(old: Path) -> None:
    run(
        "report", "run", "--store", "store", "--model", "model", "--out", "report.html",
        "--evaluation", "fewshot", "--evaluation", "fractions",
    )  # fmt: skip
    page = (old / "report.html").read_text()
    accuracy = json.loads((old / "run" / "eval" / "results.json").read_text())
    assert accuracy["rows"], "the evaluation that the page must show"
    for word in ("untrained-somewhere", "mean-colour", "few-shot", "fraction", "s0", "s1"):
        assert word.casefold() in page.casefold(), word


def test_a_table_stands_beside_an_old_baseline(old: Path) -> None:
    text = run(
        "evaluate", "table", "model", "--data", "manifest.csv", "--baseline", "baseline", "--out", "table",
        "--workers", "0", "evaluation.num_bootstrap=100",
    )  # fmt: skip
    assert "supervised" in text
    assert "missing, run" not in text
