"""The shipped configs by name: what their headers say, and what `--config NAME` takes."""

from pathlib import Path

import pytest

from dino_path.errors import ConfigError
from dino_path.settings import config_file, load_config, shipped_config, shipped_names
from dino_path.shipped import FIELDS, shipped_configs

FOLDER = Path(__file__).parents[2] / "configs"


def test_every_config_is_listed_with_all_that_one_must_know_before_taking_it() -> None:
    found = shipped_configs()
    assert {one.name for one in found} == {file.stem for file in FOLDER.glob("*.yaml")}
    for one in found:
        assert set(FIELDS) <= {*one.fields}, one.name
        assert all(one.fields.values())
        assert one.commands
        assert max(len(one.short(field)) for field in ("For", "Hardware", "Hours")) < 110, one.name


def test_a_field_is_its_whole_paragraph_and_its_short_form_the_first_sentence() -> None:
    of_cpu = next(one for one in shipped_configs() if one.name == "vit192_cpu_1h")
    assert of_cpu.short("Hours") == "0.8 on one core of an AMD EPYC"
    assert of_cpu.fields["Hours"].endswith("That is 72,000 tiles at 25 tiles/s.")
    assert "\n" not in of_cpu.fields["Number to expect"]
    assert of_cpu.commands[-1] == "dino-path pretrain --config configs/vit192_cpu_1h.yaml store=STORE out=RUN"


def test_the_list_begins_with_what_needs_no_gpu() -> None:
    sizes = [one.num_gpus for one in shipped_configs()]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (0, 32)


def test_a_name_is_taken_for_a_file_and_a_file_of_that_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("vits16_1gpu")) == load_config(FOLDER / "vits16_1gpu.yaml")
    (tmp_path / "demo").mkdir()  # a folder of that name is in nobody's way
    assert config_file(Path("demo")) == shipped_config("demo.yaml")
    (tmp_path / "vits16_1gpu").write_text("training: {num_steps: 3}")
    training = load_config(Path("vits16_1gpu")).training
    assert training is not None
    assert training.num_steps == 3


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("vits16_1gp", "Did you mean vits16_1gpu"),
        ("zzz", "says what each is for"),
        ("configs/vits16_1gpu.yaml", "Give --config vits16_1gpu"),
        ("nowhere.yaml", "lists the shipped configs"),
    ],
)
def test_a_mistyped_name_or_path_is_refused_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        load_config(Path(given))
    assert remedy in refusal.value.remedy
    assert given in refusal.value.thing
    assert "vits16_1gpu" in str(refusal.value) or given == "nowhere.yaml"


def test_the_names_are_those_of_the_files() -> None:
    assert {"demo", "vits16_8gpu"} <= {*shipped_names()}
