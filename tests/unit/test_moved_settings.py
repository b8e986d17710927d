"""Settings under the names of earlier versions: taken, said, and refused where both names are given."""

from pathlib import Path

import pytest

from dino_path.config import Config
from dino_path.errors import ConfigError
from dino_path.moved_settings import MOVED, lift_settings
from dino_path.settings import as_plain, load_config

# Another value than the default for each that has moved, as it stands in YAML.
VALUES = {
    "model.num_prototypes": 128, "model.head_hidden": 64, "model.head_bottleneck": 32, "model.head_layers": 2,
    "model.head_batch_norm": True, "model.norm_last_layer": False, "training.student_temp": 0.2,
    "training.teacher_temp": 0.07, "training.warmup_teacher_temp": 0.03, "training.teacher_temp_warmup": "30 epochs",
    "training.center_momentum": 0.8,
}  # fmt: skip


def setting(config: Config, dotted: str) -> object:
    tree = as_plain(config)
    for name in dotted.split("."):
        tree = tree[name]
    return tree


def written(folder: Path, text: str) -> Path:
    file = folder / "old.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_move_has_a_value_here() -> None:
    assert VALUES.keys() == MOVED.keys()


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_in_a_file_and_on_the_command_line_sets_what_it_set(
    tmp_path: Path, old: str, caplog: pytest.LogCaptureFixture
) -> None:
    section, key = old.split(".")
    default, value = setting(Config(), MOVED[old]), VALUES[old]
    assert value != default
    length = ", num_steps: 3" if section == "training" else ""
    file = written(tmp_path, f"{section}: {{{key}: {value}{length}}}\n")
    for config in (load_config(file), load_config(None, [f"{old}={value}", "training.num_steps=3"])):
        assert setting(config, MOVED[old]) == value
    assert caplog.messages == [
        f"{source}: settings have moved: {old} -> {MOVED[old]}" for source in (file, "command line")
    ]


def test_new_names_are_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    load_config(None, [f"{new}={VALUES[old]}" for old, new in MOVED.items()])
    assert caplog.messages == []


@pytest.mark.parametrize(
    "override", ["model.num_prototypes=3", "objective.dino.num_prototypes=3", "model={num_prototypes: 3}"]
)
@pytest.mark.parametrize("text", ["model: {num_prototypes: 9}", "objective: {dino: {num_prototypes: 9}}"])
def test_the_command_line_wins_over_the_file_under_either_name(tmp_path: Path, text: str, override: str) -> None:
    assert load_config(written(tmp_path, text), [override]).objective.dino.num_prototypes == 3


def test_both_names_in_one_file_are_refused(tmp_path: Path) -> None:
    text = "model: {num_prototypes: 9}\nobjective: {dino: {num_prototypes: 8}}\n"
    with pytest.raises(ConfigError, match=r"'model\.num_prototypes' is 'objective\.dino\.num_prototypes' now"):
        load_config(written(tmp_path, text))


def test_a_wrong_value_under_an_old_name_is_refused_under_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"'objective.dino.head_layers': Input should be greater than or equal to 1"):
        load_config(None, ["model.head_layers=0"])
    with pytest.raises(ConfigError, match="'objective': Input should be a valid dictionary"):
        load_config(None, ["objective=3", "model.head_layers=2"])


def test_a_lift_leaves_its_argument_and_what_did_not_move_as_they_are() -> None:
    tree = {
        "model": {"backbone": "resnet18", "num_prototypes": 9},
        "optim": None,
        "objective": {"dino": {"weight": 2.0}},
    }
    lifted, found, twice = lift_settings(tree)
    assert tree["model"] == {"backbone": "resnet18", "num_prototypes": 9}
    assert tree["objective"] == {"dino": {"weight": 2.0}}
    assert lifted == {
        "model": {"backbone": "resnet18"}, "optim": None, "objective": {"dino": {"weight": 2.0, "num_prototypes": 9}},
    }  # fmt: skip
    assert (found, twice) == (["model.num_prototypes"], [])
    assert lift_settings(lifted) == (lifted, [], [])
