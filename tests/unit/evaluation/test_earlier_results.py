"""A second evaluation into the same folder: results are replaced by the same and more, and by nothing else."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dino_path.cli import app
from dino_path.errors import DataError
from dino_path.preprocessing import Preprocessing

COLOUR, STATISTICS = "mean-colour", "colour-statistics"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The command line configures logging; afterwards it is as it was."""
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def evaluate(protocol: str, *words: str, data: Path, out: Path | None = None) -> str:
    """What the command prints; its refusal is raised."""
    arguments = ["evaluate", protocol, *words, "evaluation.num_bootstrap=100", "--data", str(data), "--device", "cpu"]
    arguments += ["--workers", "0", *(["--out", str(out)] if out else [])]
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.output


def models_in(folder: Path, stem: str = "results") -> set[str]:
    return {row["model"] for row in json.loads((folder / f"{stem}.json").read_text())["rows"]}


def test_the_same_evaluation_again_and_one_with_more_replace_the_results(class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate("knn", COLOUR, data=class_folders, out=out)
    evaluate("knn", COLOUR, "evaluation.batch_size=7", data=class_folders, out=out)
    evaluate("table", COLOUR, STATISTICS, data=class_folders, out=out)
    assert models_in(out) == {COLOUR, STATISTICS}


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (("table", STATISTICS), "the model mean-colour is left out"),
        (("knn", COLOUR), "the protocol linear is left out"),
        (("table", COLOUR, "evaluation.knn_k=5"), "evaluation.knn_k was 20, now 5"),
        (("table", COLOUR, "evaluation.seed=1"), r"another split \(data;"),
        (("fewshot", COLOUR, "evaluation.seed=1"), r"results\.json.*another split"),
    ],
)
def test_results_that_would_be_lost_are_named_and_stay(
    class_folders: Path, tmp_path: Path, words: tuple[str, ...], lost: str
) -> None:
    out = tmp_path / "out"
    evaluate("table", COLOUR, data=class_folders, out=out)
    before = (out / "results.json").read_bytes()
    with pytest.raises(DataError, match=lost):
        evaluate(*words, data=class_folders, out=out)
    assert (out / "results.json").read_bytes() == before


def test_fractions_and_a_baseline_are_not_lost_either(class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("evaluation.fraction_draws=5", "--fractions")
    evaluate("table", COLOUR, *words, "1,0.5", data=class_folders, out=out)
    with pytest.raises(DataError, match=r"the fraction 0\.5 is left out"):
        evaluate("table", COLOUR, *words, "1", data=class_folders, out=out)
    evaluate("table", COLOUR, data=class_folders, out=out)  # other files, the same split
    record = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({**record, "has_baseline": True, "baseline": "supervised resnet50"}))
    with pytest.raises(DataError, match="the baseline supervised resnet50 is left out"):
        evaluate("table", COLOUR, data=class_folders, out=out)


def test_folders_that_are_not_named_come_from_data_and_protocol_and_share_features(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"results: {Path('eval/data-knn/results.json')}" in evaluate("knn", COLOUR, data=class_folders)
    features = {file: file.stat().st_mtime_ns for file in (tmp_path / "eval/features").iterdir()}
    assert len(features) == 1
    evaluate("linear", COLOUR, data=class_folders)
    evaluate("fewshot", COLOUR, "evaluation.num_episodes=100", data=class_folders)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "eval/features").iterdir()} == features
    assert {file.name for file in (tmp_path / "eval").iterdir()} == {
        "data-knn",
        "data-linear",
        "data-fewshot",
        "features",
    }


def test_the_results_of_a_runs_model_go_into_the_run(class_folders: Path, tmp_path: Path) -> None:
    from dino_path.evaluation.baseline.model_folder import write_baseline_model
    from dino_path.model.backbone import build_backbone

    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    backbone = build_backbone("resnet10t", {})
    write_baseline_model(run / "model", backbone, "resnet10t", Preprocessing((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 32))
    evaluate("knn", str(run / "model"), COLOUR, data=class_folders)
    assert (run / "eval/data-knn/results.json").is_file()
    assert models_in(run / "eval/data-knn") == {"run", COLOUR}
