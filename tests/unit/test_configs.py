"""configs/: every file loads, its header's commands exist, and its values are the published ones."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dino_path.cli import check_command
from dino_path.config import Config
from dino_path.model.names import architecture
from dino_path.settings import load_config
from dino_path.training.schedules import Schedules, resolve_clock, resolve_schedules

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
RECIPES = [file for file in FILES if file.name != "demo.yaml"]
OF_GPUS = [file for file in RECIPES if "cpu" not in file.name]
IMAGENET_TILES = 1_281_167
COMMAND = re.compile(r"#   (?:torchrun \S+ -m dino_path|dino-path) (.*)")


def load(file: Path) -> Config:
    return load_config(file, ["store=STORE", "out=RUN"], needs=("store", "out", "tiles", "training"))


def header(file: Path) -> str:
    return "\n".join(line for line in file.read_text().split("\n\n")[0].splitlines() if line.startswith("#"))


def commands(file: Path) -> Iterator[list[str]]:
    """The arguments of every `dino-path` command in the header."""
    for line in header(file).splitlines():
        match = COMMAND.fullmatch(line)
        if match:
            yield shlex.split(match[1])


def schedules(config: Config) -> Schedules:
    """Resolved as they would be on ImageNet, for which the recipes were published."""
    assert config.training is not None
    world_size = config.cluster.nodes * int(config.cluster.gpus_per_node)
    clock = resolve_clock(config.training, num_tiles=IMAGENET_TILES, world_size=world_size)
    return resolve_schedules(config.optim, config.objective, config.training, clock)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_config_loads_and_names_a_model_that_timm_knows(file: Path) -> None:
    assert architecture(load(file).model.backbone)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_header_gives_commands_that_exist(file: Path) -> None:
    found = list(commands(file))
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_a_recipe_uses_itself(file: Path) -> None:
    assert all(f"configs/{file.name}" in words for words in commands(file))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_settings_that_the_header_suggests_are_settings(file: Path) -> None:
    text = header(file).replace("\n# ", " ")
    suggested = [
        word.rstrip(".;,") for word in shlex.split(text.replace("'s", "s")) if re.match(r"[a-z]+(\.[a-z_]+)+=", word)
    ]
    assert load_config(file, suggested)


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "peak_lr", "momentum", "teacher_temps"),
    [
        ("vits16_1gpu", 256, 100, 5e-4, 0.9995, (0.04, 0.04)),
        ("vits16_8gpu", 512, 100, 1e-3, 0.996, (0.04, 0.04)),
        ("vitb16_4x8gpu", 1024, 300, 2e-3, 0.996, (0.04, 0.07)),
        ("resnet50_8gpu", 512, 100, 0.06, 0.996, (0.04, 0.04)),
    ],
)
def test_the_schedules_are_those_of_the_published_recipe(
    name: str, batch: int, epochs: int, peak_lr: float, momentum: float, teacher_temps: tuple[float, float]
) -> None:
    resolved = schedules(load(FOLDER / f"{name}.yaml"))
    clock = resolved.clock
    assert clock.global_batch_size == batch
    assert clock.num_steps == round(epochs * IMAGENET_TILES / batch)
    assert resolved.lr.peak == pytest.approx(peak_lr)
    assert resolved.lr.final == 1e-6
    assert resolved.lr.warmup_steps == round(10 * IMAGENET_TILES / batch)
    assert resolved.freeze_steps == round(IMAGENET_TILES / batch)
    assert (resolved.momentum.peak, resolved.momentum.final) == (momentum, 1.0)
    assert (resolved.teacher_temp.warmup_from, resolved.teacher_temp.peak) == teacher_temps


@pytest.mark.parametrize("name", ["vits16_1gpu", "vits16_8gpu", "vitb16_4x8gpu"])
def test_the_transformers_have_dinos_crops_adamw_and_growing_weight_decay(name: str) -> None:
    config = load(FOLDER / f"{name}.yaml")
    assert (config.views.num_local, config.views.global_scale, config.views.local_scale) == (8, (0.4, 1), (0.05, 0.4))
    assert (config.views.global_px, config.views.local_px) == (224, 96)
    assert (config.optim.optimizer, config.optim.weight_decay, config.optim.final_weight_decay) == ("adamw", 0.04, 0.4)
    assert (config.optim.clip_norm, config.optim.clip_scope) == (3.0, "parameter")
    assert (config.objective.dino.num_prototypes, config.objective.dino.norm_last_layer) == (65536, True)
    assert config.model.drop_path_rate == 0.1


def test_resnet50_has_its_own_crops_sgd_and_a_constant_weight_decay() -> None:
    config = load(FOLDER / "resnet50_8gpu.yaml")
    assert (config.views.global_scale, config.views.local_scale) == ((0.14, 1), (0.05, 0.14))
    assert (config.optim.optimizer, config.optim.weight_decay, config.optim.final_weight_decay) == ("sgd", 1e-4, 1e-4)
    assert config.model.drop_path_rate == 0.0


@pytest.mark.parametrize("file", OF_GPUS, ids=lambda file: file.name)
def test_a_recipe_uses_views_of_tissue_and_refuses_a_node_without_gpus(file: Path) -> None:
    config = load(file)
    assert config.views.recipe in ("histology", "virchow2")
    assert config.views.dihedral
    assert config.training is not None
    assert config.training.device == "cuda"
    assert config.training.num_workers == config.cluster.cpus_per_gpu


DINOV2 = ["vits16_dinov2_1gpu", "vits14_reg4_adapt_1gpu", "vitb14_dinov2_8gpu", "vitl14_dinov2_4x8gpu"]


@pytest.mark.parametrize("name", DINOV2)
def test_recipes_of_dinov2s_objective_have_its_terms_optimizer_and_view_sizes_that_patches_tile(name: str) -> None:
    config = load(FOLDER / f"{name}.yaml")
    assert config.objective.methods == ("DINO", "iBOT", "KDE", "Sinkhorn-Knopp")
    assert (config.optim.lr_scaling, config.optim.clip_scope, config.optim.freeze_by) == ("sqrt", "module", "zero_lr")
    assert config.optim.patch_embed_lr == 0.2
    patch_px = 16 if "16" in name else 14
    assert config.views.global_px % patch_px == config.views.local_px % patch_px == 0


@pytest.mark.parametrize(
    ("name", "batch", "peak_lr", "momentum"),
    [
        ("vits16_dinov2_1gpu", 256, 4e-3 * 0.5, 0.992),
        ("vits14_reg4_adapt_1gpu", 128, 1e-4, 0.994),
        ("vitb14_dinov2_8gpu", 1024, 2e-4, 0.994),
        ("vitl14_dinov2_4x8gpu", 3072, 2e-4 * 3**0.5, 0.994),
    ],
)
def test_their_learning_rates_are_the_published_ones_scaled_by_the_square_root_of_the_batch(
    name: str, batch: int, peak_lr: float, momentum: float
) -> None:
    resolved = schedules(load(FOLDER / f"{name}.yaml"))
    assert resolved.clock.global_batch_size == batch
    assert resolved.lr.peak == pytest.approx(peak_lr, rel=2e-3)
    assert resolved.momentum.peak == momentum


def test_virchow2s_views_are_cut_from_392_px_at_nearly_their_own_size() -> None:
    views = load(FOLDER / "vitb14_dinov2_8gpu.yaml").views
    for edge, scale in ((views.global_px, views.global_scale), (views.local_px, views.local_scale)):
        assert [share * 392**2 / edge**2 for share in scale] == pytest.approx([0.9, 1.1], rel=2e-3)
    assert views.aspect == (0.95, 1.05)
