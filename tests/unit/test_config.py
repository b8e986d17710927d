"""From YAML and dotted overrides to one typed tree; everything wrong with them in one readable message."""

from pathlib import Path
from typing import Any

import pytest

from dino_path.config import DINO_RECIPE, Config, Duration, OptimConfig, TilesConfig, ViewsConfig
from dino_path.errors import ConfigError
from dino_path.settings import as_plain, as_yaml, digest, load_config, section_from_file


def written(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def faults_of(*overrides: str, file: Path | None = None, needs: tuple[str, ...] = ()) -> str:
    """What the refusal found."""
    with pytest.raises(ConfigError) as refusal:
        load_config(file, overrides, needs=needs)
    return refusal.value.found


def test_compiling_what_is_sharded_is_refused() -> None:
    fault = faults_of("training.num_steps=1", "training.compile=true", "training.sharding=fsdp2")
    assert "compile and sharding do not go together" in fault


# --- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("optim.wieght_decay=0.1", "unknown key 'optim.wieght_decay'. Did you mean 'weight_decay'?"),
        ("trainin.num_steps=3", "unknown key 'trainin'. Did you mean 'training'?"),
        (
            "monitor.zzz=1",
            "unknown key 'monitor.zzz'. Known here: keep_best, knn_data, knn_every_steps, ",
        ),
        ("views.blur_prob.first=1", "'views.blur_prob': Input should be a valid tuple"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_known_one(override: str, fault: str) -> None:
    assert faults_of(override, "training.num_steps=3").startswith(fault)


def test_all_faults_come_in_one_message(tmp_path: Path) -> None:
    file = written(tmp_path, "optim:\n  base_lr: fast\n  base_lr: -1\nviews:\n  num_lokal: 3\ntiles: {size_px: 256}\n")
    found = faults_of("monitor.log_every_steps=0", "training.num_steps=1", "nonsense", file=file, needs=("store",))
    assert found.startswith("7 faults:")
    for fault in (
        "key 'base_lr' is given twice (again in line 3)",
        "'nonsense' is not of the form dotted.key=value",
        "missing key 'store' (tile store, or a folder of images)",
        "'optim.base_lr': Input should be greater than 0 (given: -1)",
        "unknown key 'views.num_lokal'. Did you mean 'num_local'?",
        "missing key 'tiles.mpp' (microns per pixel of the tiles; no default: it is your choice)",
        "'monitor.log_every_steps': Input should be greater than or equal to 1 (given: 0)",
    ):
        assert fault in found


def test_a_refusal_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    file = written(tmp_path, "no_such_section: 1\n")
    with pytest.raises(ConfigError) as refusal:
        load_config(file)
    assert refusal.value.thing == str(file)
    assert "docs/config.md" in refusal.value.remedy


def test_repeated_keys_are_refused_at_every_depth(tmp_path: Path) -> None:
    assert "key 'optim' is given twice (again in line 2)" in faults_of(
        file=written(tmp_path, "optim: {base_lr: 1.0}\noptim: {base_lr: 2.0}\n")
    )
    assert "key 'depth' is given twice" in faults_of("model.arguments={depth: 1, depth: 2}")


@pytest.mark.parametrize("text", ["optim: &a {base_lr: 1.0}\n", "optim: *a\n", "views: &v\n  hue: 0.1\n"])
def test_anchors_and_aliases_are_refused(tmp_path: Path, text: str) -> None:
    assert "anchors and aliases are not used here" in faults_of(file=written(tmp_path, text))


def test_merge_keys_are_plain_unknown_keys(tmp_path: Path) -> None:
    assert "unknown key 'optim.<<'" in faults_of(file=written(tmp_path, "optim:\n  <<: {base_lr: 1.0}\n"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- a\n- b\n", "holds a list."),
        ("just words\n", "holds a str."),
        ("optim: [\n", "while parsing"),
        ("{[a, b]: 1}\n", "a key must be a word"),
        ("views: !!python/object:os.system {}\n", "tags such as !!int are not used here"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
    ],
)
def test_files_that_are_no_tree_of_plain_data_are_refused(tmp_path: Path, text: str, fault: str) -> None:
    assert fault in faults_of(file=written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        *((f"!!{tag}", "tags such as !!int are not used here") for tag in (
            "int x", "int ''", "float x", "bool x", "timestamp x", "binary x", "set {a}", "omap [a]", "str 1", "x y",
        )),
        ("[" * 2000, "more than 20 deep"), ("{a: " * 2000, "more than 20 deep"),
        ("9" * 5000, "a number of more than 300 digits"), ("-" + "9" * 301, "a number of more than 300 digits"),
    ],
)  # fmt: skip
def test_what_makes_the_yaml_library_raise_errors_of_its_own_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    assert fault in faults_of(f"optim.base_lr={text}")
    assert fault in faults_of(file=written(tmp_path, f"optim:\n  base_lr: {text}\n"))


def test_twenty_levels_and_three_hundred_digits_are_read() -> None:
    assert "more than" not in faults_of("model.arguments={a: " + "[" * 17 + "]" * 17 + "}", "nothing=1")
    assert load_config(None, ["model.arguments={a: " + "9" * 300 + "}"]).model.arguments == {"a": int("9" * 300)}


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in faults_of(file=tmp_path / "missing.yaml")
    assert "cannot be read" in faults_of(file=tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in faults_of(file=tmp_path / "binary.yaml")


def test_an_empty_file_and_an_empty_section_have_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == Config()
    assert load_config(written(tmp_path, "optim:\n  # base_lr: 1.0\n")) == Config()
    assert "missing key 'tiles.mpp'" in faults_of(file=written(tmp_path, "tiles:\n"), needs=("tiles",))


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("5E-4", 5e-4), ("1.5e+1", 15.0), (".5", 0.5), ("2.", 2.0), ("3", 3.0)]
)
def test_numbers_are_written_as_people_write_them(text: str, value: float) -> None:
    assert load_config(None, [f"optim.base_lr={text}"]).optim.base_lr == value


@pytest.mark.parametrize("text", ["24:00:00", "2-12:00:00", "010", "2026-01-31", "no"])
def test_words_that_old_yaml_would_convert_stay_words(text: str) -> None:
    assert load_config(None, [f"wandb.name={text}", f"cluster.time={text}"]).wandb.name == text
    assert load_config(None, [f"cluster.time={text}"]).cluster.time == text


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("500 steps", Duration(amount=500, unit="steps")),
        ("1 step", Duration(amount=1, unit="steps")),
        ("10epochs", Duration(amount=10, unit="epochs")),
        ("0.5 Epoch", Duration(amount=0.5, unit="epochs")),
        ("2e6 tiles", Duration(amount=2e6, unit="tiles")),
        ("10 %", Duration(amount=10, unit="%")),
        ("{amount: 3, unit: steps}", Duration(amount=3, unit="steps")),
        ("12345678 tiles", Duration(amount=12345678, unit="tiles")),
        ("0.1234567 epochs", Duration(amount=0.1234567, unit="epochs")),
        ("1e-7 epochs", Duration(amount=1e-7, unit="epochs")),
    ],
)
def test_durations_have_an_amount_and_a_unit_and_are_written_to_the_last_digit(
    tmp_path: Path, text: str, duration: Duration
) -> None:
    config = load_config(None, [f"optim.lr_warmup={text}"])
    assert config.optim.lr_warmup == duration
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(None, [f"optim.lr_warmup={duration}"]) == config


@pytest.mark.parametrize("text", ["500", "ten epochs", "-5 steps", "3 hours", "1.2.3 steps", "epochs", "null", "[1]"])
def test_durations_without_a_sensible_unit_are_refused_with_examples(text: str) -> None:
    assert 'write a number and its unit: "500 steps"' in faults_of(f"optim.lr_warmup={text}")


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("views.global_scale=[1.0, 0.4]", "write [low, high] with 0 < low <= high"),
        ("views.local_scale=[0, 0.4]", "write [low, high] with 0 < low <= high"),
        ("views.aspect=[-1, 1]", "write [low, high] with 0 < low <= high"),
        ("views.global_scale=[0.4, 1.5]", "'views.global_scale.1': Input should be less than or equal to 1"),
        ("views.global_scale=[0.4]", "'views.global_scale': 1 value(s) given, more are needed"),
        ("views.blur_prob=[0.5, 0.1, 2]", "'views.blur_prob.2': Input should be less than or equal to 1"),
        ("model.std=[0.2, 0, 0.2]", "'model.std.1': Input should be greater than 0"),
        ("optim.base_lr=nan", "'optim.base_lr': Input should be a"),
        ("wandb.mode=of", "'wandb.mode': Input should be 'offline', 'online' or 'disabled' (given: 'of')"),
        ("optim=3", "'optim': Input should be a valid dictionary"),
        ("optim.base_lr={", "while parsing a flow node"),
        ("=3", "'=3' is not of the form dotted.key=value"),
    ],
)
def test_impossible_values_are_refused_and_shown(override: str, fault: str) -> None:
    assert fault in faults_of(override)


@pytest.mark.parametrize(("value", "given"), [("[1, 2]", " (given: [1, 2])"), ("{a: 1}", "")])
def test_a_value_that_fits_none_of_several_types_is_one_fault(value: str, given: str) -> None:
    found = faults_of(f"model.arguments={{depth: {value}}}")
    assert found == f"'model.arguments.depth': one of bool, int, float, str is needed{given}"


def test_model_arguments_keep_their_types() -> None:
    config = load_config(None, ["model.arguments={depth: 2, qkv_bias: true, mlp_ratio: 4.0, act_layer: gelu, k: '1'}"])
    types = {name: type(value) for name, value in config.model.arguments.items()}
    assert types == {"depth": int, "qkv_bias": bool, "mlp_ratio": float, "act_layer": str, "k": str}


@pytest.mark.parametrize(
    ("lengths", "given"),
    [((), "none"), (("num_steps=5", "num_epochs=2"), "['num_steps', 'num_epochs']"), (("num_steps=null",), "none")],
)
def test_the_length_of_a_training_is_given_exactly_once(lengths: tuple[str, ...], given: str) -> None:
    found = faults_of(*[f"training.{length}" for length in lengths], needs=("training",))
    assert found == f"'training': give exactly one of num_steps, num_epochs, num_tiles (given: {given})"


# --- layers -------------------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(tmp_path: Path) -> None:
    file = written(tmp_path, "optim: {base_lr: 1.0, final_lr: 0.5}\nviews:\ntraining: {num_steps: 3}\n")
    overrides = ["optim.base_lr=2.0", "optim.base_lr=3.0", "views.num_local=1", "optim.clip_norm="]
    config = load_config(file, overrides, settings={"out": Path("somewhere")})
    assert (config.optim.base_lr, config.optim.final_lr, config.optim.clip_norm) == (3.0, 0.5, None)
    assert config.views.num_local == 1
    assert config.out == Path("somewhere")


def test_an_override_below_a_value_is_refused() -> None:
    assert "'store' holds a value, not a section" in faults_of("store=folder", "store.size=3")


def test_the_recipe_of_the_paper_fills_what_is_not_given() -> None:
    views = load_config(None, ["views.recipe=dino", "views.hue=0.05"]).views
    given = as_plain(views)
    assert {key: given[key] for key in DINO_RECIPE if key != "hue"} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in DINO_RECIPE.items() if key != "hue"
    }
    assert views.hue == 0.05
    assert views.blur_prob == (1.0, 0.1, 0.5)
    assert views.global_scale == ViewsConfig().global_scale


def test_settings_cannot_be_changed_after_they_are_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().optim.base_lr = 1.0  # type: ignore[misc]


# --- and back -----------------------------------------------------------------------------------------------------


def test_the_resolved_config_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "views.recipe=dino", "training.num_epochs=1e2", "tiles.mpp=0.5", "store=a b/store", "optim.final_lr=1e-6",
            "optim.freeze_last_layer=1250 steps", "model.arguments={depth: 2, dynamic: true}", "wandb.name=2026-01-31",
            "slides.exclude=['010', a.svs]", "cluster.time=24:00:00", "optim.clip_norm=null",
        ],
    )  # fmt: skip
    assert load_config(written(tmp_path, as_yaml(config))) == config
    plain: dict[str, Any] = as_plain(config)
    assert plain["optim"]["freeze_last_layer"] == "1250 steps"
    assert section_from_file(Config, plain, "a test") == config


def test_a_section_of_another_version_is_refused_by_the_files_name() -> None:
    with pytest.raises(ConfigError, match=r"store\.json: unknown key 'colour'\.") as refusal:
        section_from_file(TilesConfig, {"mpp": 0.5, "colour": 1}, "store.json")
    assert "TilesConfig" in refusal.value.needed


def test_digest_changes_with_a_setting_and_not_with_how_it_was_written() -> None:
    first = TilesConfig(mpp=0.5)
    assert digest(first) == digest(TilesConfig.model_validate({"size_px": 256, "mpp": 0.50}))
    assert digest(first) != digest(TilesConfig(mpp=0.25))
    assert len(digest(first)) == 16


def test_a_setting_that_is_new_changes_no_digest() -> None:
    class Later(OptimConfig):
        invented: int = 3

    assert digest(Later(base_lr=0.1)) == digest(OptimConfig(base_lr=0.1))
    assert digest(Later(base_lr=0.1, invented=4)) != digest(OptimConfig(base_lr=0.1))


def test_a_fallback_holds_only_where_nobody_gave_the_key(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("tiles: {mpp: 1.0}\n")
    for source, overrides, expected in (
        (file, [], 1.0),
        (None, ["tiles.mpp=2"], 2.0),
        (None, ["tiles.size_px=64"], 0.5),
    ):
        config = load_config(source, overrides, needs=("tiles",), fallback={"tiles.mpp": 0.5})
        assert config.tiles is not None
        assert config.tiles.mpp == expected
