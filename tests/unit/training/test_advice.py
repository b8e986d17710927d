"""Advice is given for a setting that does not suit the run, and disappears when it is followed."""

import re
from pathlib import Path

import pytest
import yaml
from tiny import ALONE, tiny_config, training_of

from dino_path.config import Config
from dino_path.settings import load_config
from dino_path.training.advice import advice
from dino_path.training.loop import pretrain
from dino_path.training.schedules import resolve_clock

CONFIGS = Path(__file__).parents[3] / "configs"
WELL = (
    "training.num_steps=10000", "training.batch_size_per_gpu=128", "objective.dino.num_prototypes=1024",
    "optim.lr_warmup=10 %", "optim.freeze_last_layer=1 %",
)  # fmt: skip


def advice_for(config: Config, num_tiles: int = 20_000) -> list[str]:
    clock = resolve_clock(training_of(config), num_tiles=num_tiles, world_size=1)
    return [str(one) for one in advice(config, clock, num_tiles=num_tiles)]


def test_a_usual_run_gets_no_advice() -> None:
    assert advice_for(load_config(None, WELL)) == []


@pytest.mark.parametrize("name", ["vits16_8gpu", "vits16_1gpu", "vitb16_4x8gpu", "resnet50_8gpu"])
def test_the_shipped_recipes_get_none_on_a_million_tiles(name: str) -> None:
    assert advice_for(load_config(CONFIGS / f"{name}.yaml"), 1_000_000) == []


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("objective.dino.num_prototypes=65536", "65536 prototypes are many for 20000 tiles"),
        ("training.momentum=0.9999", "the teacher averages over 10000 steps and the run has 10000"),
        ("training.momentum=1", "the teacher averages over inf steps"),
        ("optim.lr_warmup=10 epochs", None),
        ("optim.lr_warmup=4000 steps", "the learning rate rises for 4000 of 10000 steps"),
        ("optim.freeze_last_layer=2000 steps", "the prototypes are frozen for 2000 of 10000 steps"),
        ("objective.dino.teacher_temp=0.07", "a teacher temperature of 0.07 from the start may collapse"),
        ("training.batch_size_per_gpu=8", "8 tiles per step are few"),
    ],
)
def test_what_does_not_suit_the_run_is_named(setting: str, expected: str | None) -> None:
    usual = {word.split("=")[0]: word for word in WELL}
    usual[setting.split("=")[0]] = setting
    found = advice_for(load_config(None, list(usual.values())))
    if expected is None:
        assert found == []
        return
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_long_warm_up_of_the_teacher_that_never_ends_is_named() -> None:
    settings = ("objective.dino.teacher_temp=0.07", "objective.dino.teacher_temp_warmup=20000 steps")
    assert "rises for 20000 steps, and the run has 10000" in advice_for(load_config(None, [*WELL, *settings]))[0]


def test_defaults_on_few_tiles_are_advised_until_they_suit() -> None:
    given = {"training.num_steps": "300", "training.batch_size_per_gpu": "16", "objective.dino.teacher_temp": "0.06"}
    found = advice_for(load_config(None, [f"{key}={value}" for key, value in given.items()]), 2_000)
    assert len(found) == 6
    for sentence in found:
        for key, value in re.findall(r"([a-z_]+(?:\.[a-z_]+)+)=('[^']*'|\S+)", sentence):
            given[key] = str(yaml.safe_load(value))
    assert advice_for(load_config(None, [f"{key}={value}" for key, value in given.items()]), 2_000) == []


def test_advice_is_in_the_log_and_changes_no_setting(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", "training.num_steps=2", "training.momentum=0.996")
    with caplog.at_level("INFO"):
        pretrain(config, ALONE)
    assert "advice: the teacher averages over 250 steps and the run has 2: training.momentum=0" in caplog.text
    assert load_config(tmp_path / "run/config.yaml") == config
