"""`dino_path.pretrain`, `export`, `evaluate` and their settings: what the commands do, as calls."""

import csv
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from slide_files import tissue_image, write_slide_file
from tiny import TINY, write_tiles

import dino_path
from dino_path.api.settings import Settings, settled
from dino_path.config import Config
from dino_path.errors import ConfigError, DataError, LaunchError, SlideError
from dino_path.journal import journal
from dino_path.settings import load_config

WITHOUT_A_GUARD = """
import sys
import dino_path

print("read")
tiling = dino_path.tile("slide.tif", out="store", tiles={"mpp": 0.5, "size_px": 64, "mask_mpp": 4, "min_area_um2": 500})
print(tiling.counts())
assert tiling.to_arrow()["was_there_before"].to_pylist() == [len(sys.argv) > 1]
"""


def test_importing_is_quick_and_says_what_there_is() -> None:
    """In a process of its own, without anything heavy."""
    heavy = ("torch", "timm", "numpy", "pyarrow", "pydantic", "cv2", "sklearn")
    program = f"import sys, dino_path; print([name for name in {heavy} if name in sys.modules], dir(dino_path))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert answer.startswith("[] ")
    assert all(repr(name) in answer for name in dino_path.__all__)
    assert set(dino_path.__all__) == {*dino_path._HOMES, "errors", "DinoPathError"}
    with pytest.raises(AttributeError, match="no attribute 'tiel'"):
        getattr(dino_path, "tiel")  # noqa: B009


def test_settings_are_sections_by_keyword_over_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("tiles: {mpp: 0.5, size_px: 128}\nobjective: {ibot: {weight: 1}}\n")
    found = settled(file, {"tiles": {"mpp": 0.25}, "objective": {"dino": {"num_prototypes": 64}}})
    words = ("tiles.mpp=0.25", "objective.dino.num_prototypes=64")
    assert found == load_config(file, words)
    assert settled(found, {"optim": {"base_lr": 1e-3}}) == load_config(file, [*words, "optim.base_lr=1e-3"])
    assert settled(None, {"training": {"num_steps": 5}, "optim.lr_warmup": "2 steps"}) == load_config(
        None, ("training.num_steps=5", "optim.lr_warmup=2 steps")
    )
    assert settled(None, {"model": {"arguments": {"img_size": 32}}}).model.arguments == {"img_size": 32}
    assert set(Settings.__annotations__) < set(Config.model_fields)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tils": {"mpp": 1}}, "unknown key 'tils'. Did you mean 'tiles'"),
        ({"tiles": {"mp": 1}}, "unknown key 'tiles.mp'"),
        ({"tiles": 3}, "'tiles'"),
        ({}, "missing key 'tiles.mpp'"),
    ],
)
def test_faulty_settings_are_refused_as_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        settled(None, settings, needs=("tiles",))
    assert refusal.value.thing == "settings"


@pytest.mark.slow
def test_tile_works_in_a_script_without_a_guard_and_continues(tmp_path: Path) -> None:
    """Python's own worker processes would run the script again."""
    write_slide_file(tmp_path / "slide.tif", [tissue_image()])
    (tmp_path / "script.py").write_text(WITHOUT_A_GUARD)
    for words, counts in (((), "1 done, 0 there before"), (("again",), "0 done, 1 there before")):
        answer = subprocess.run(
            [sys.executable, "script.py", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (answer.returncode, answer.stderr) == (0, "")
        assert answer.stdout.startswith(f"read\n{counts}")


def test_slides_that_all_fail_are_refused(tmp_path: Path) -> None:
    write_slide_file(tmp_path / "slide.tif", [tissue_image(300, 300)], mpp=None)
    with pytest.raises(SlideError, match=r"none of 1 slide\(s\) could be tiled, 1 because") as refusal:
        dino_path.tile(tmp_path / "slide.tif", out=tmp_path / "store", tiles={"mpp": 0.5})
    with (tmp_path / "store/slides.csv").open() as stream:
        assert [row["status"] for row in csv.DictReader(stream)] == ["failed"]
    assert "slides.csv" in refusal.value.remedy


def test_a_run_from_python_is_that_of_the_command(tmp_path: Path, reload_here: None) -> None:
    """Half of it by one call, the rest by another; the weights are those of an unbroken run of the settings."""
    tiles = write_tiles(tmp_path / "tiles")
    config = load_config(None, TINY)
    logger = logging.getLogger("dino_path")
    before = logger.level, logger.handlers[:]

    def interrupt(record: logging.LogRecord) -> bool:
        if "5/10" in record.getMessage() or record.getMessage().startswith("step 5"):
            raise KeyboardInterrupt
        return True

    logging.getLogger("dino_path.steps").addFilter(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            dino_path.pretrain(tiles, tmp_path / "run", config=config)
    finally:
        logging.getLogger("dino_path.steps").removeFilter(interrupt)
    result = dino_path.pretrain(tiles, tmp_path / "run", config=config)
    whole = dino_path.pretrain(tiles, tmp_path / "whole", config=config)
    ends = [torch.load(one.checkpoint, weights_only=True)["teacher"]["backbone"] for one in (result, whole)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert (logger.level, logger.handlers) == before

    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    table = whole.to_arrow()
    assert table["loss"].to_pylist() == [line["loss"] for line in lines]
    assert table["step"].to_pylist() == list(range(10))
    assert str(whole).startswith(f"checkpoint: {whole.checkpoint}")
    assert " INFO 12 tiles in " in (tmp_path / "whole/log.txt").read_text()

    again = dino_path.pretrain(tiles, tmp_path / "whole", config=config)
    assert again.was_finished
    assert "is finished, and nothing was done" in str(again)

    exported = dino_path.export(whole.run, tmp_path / "model", license="apache-2.0")
    assert exported.num_features == 32
    assert str(exported) == repr(exported)
    assert dino_path.load(tmp_path / "model").embed(tiles).values.shape == (12, 32)


def test_an_evaluation_is_the_table_and_its_numbers(tmp_path: Path, make_class_folders: Callable) -> None:
    folder = make_class_folders(tmp_path / "labelled")
    settings = {"num_bootstrap": 100, "knn_k": 3}
    found = dino_path.evaluate(
        "knn", ["mean-colour", "colour-statistics"], folder, out=tmp_path / "out", workers=0, device="cpu",
        evaluation=settings,
    )  # fmt: skip
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    table = found.to_arrow().to_pylist()
    for row in rows:
        score = row["metrics"]["balanced_accuracy"]
        assert {"model": row["model"], "protocol": "knn", "metric": "balanced_accuracy", **score} in table
    assert str(found) == found._repr_markdown_() == (tmp_path / "out/results.md").read_text()
    shots = dino_path.evaluate(
        "fewshot", "mean-colour", folder, out=tmp_path / "few", workers=0, device="cpu",
        evaluation={**settings, "shots": [1, 2], "num_episodes": 100},
    )  # fmt: skip
    assert {row["shots"] for row in shots.to_arrow().to_pylist()} == {1, 2}
    parts = dino_path.evaluate(
        "table", "mean-colour", folder, out=tmp_path / "parts", workers=0, device="cpu", fractions=[1, 0.5],
        evaluation={**settings, "fraction_draws": 5, "fraction_protocols": ["knn"]},
    )  # fmt: skip
    assert {row["fraction"] for row in parts.to_arrow().to_pylist()} == {1, 0.5}
    with pytest.raises(DataError, match="would be lost"):
        dino_path.evaluate("knn", "mean-colour", folder, out=tmp_path / "out", evaluation=settings)


def test_what_evaluate_does_not_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not a protocol"):
        dino_path.evaluate("knnn", "mean-colour", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Fractions of the labels are for the protocol `table`"):
        dino_path.evaluate("knn", "mean-colour", tmp_path, fractions="1,0.5")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(LaunchError, match="one of 2 processes"):
        dino_path.evaluate("knn", "mean-colour", tmp_path)


def test_a_journal_keeps_a_level_that_somebody_set(tmp_path: Path) -> None:
    logger = logging.getLogger("dino_path")
    level = logger.level
    try:
        for wanted, kept in ((logging.NOTSET, ["told", "warned"]), (logging.WARNING, ["warned"])):
            logger.setLevel(wanted)
            with journal(tmp_path / str(wanted) / "log.txt"):
                logger.info("told")
                logger.warning("warned")
            assert logger.level == wanted
            lines = (tmp_path / str(wanted) / "log.txt").read_text().splitlines()
            assert [line.split()[-1] for line in lines] == kept
    finally:
        logger.setLevel(level)
