"""Every setting, typed, documented and with its one default; YAML files and dotted overrides become one tree.

What has scientific consequences and no safe value (`tiles.mpp`, the length of the training) has no default.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dino_path.errors import ConfigError


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 < limits[0] <= limits[1]:
        raise ValueError("write [low, high] with 0 < low <= high")
    return limits


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
FractionRange = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- durations ---------------------------------------------------------------------------------------------------

DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)\s*(steps?|epochs?|tiles?|%)\s*", re.IGNORECASE)


class Duration(Section):
    """A length of training with its unit: `"500 steps"`, `"10 epochs"`, `"2e6 tiles"`, `"10 %"` of the run."""

    amount: float = Field(ge=0)
    unit: Literal["steps", "epochs", "tiles", "%"]

    def steps(self, clock: Clock) -> int:
        """The same length in optimizer steps, rounded to the nearest."""
        per_unit = {
            "steps": 1.0,
            "epochs": clock.steps_per_epoch,
            "tiles": 1.0 / clock.global_batch_size,
            "%": clock.num_steps / 100,
        }
        return round(self.amount * per_unit[self.unit])

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


class Clock(Section):
    """What turns epochs and tiles into steps."""

    num_steps: int
    steps_per_epoch: float
    global_batch_size: int


def _read_duration(value: object) -> object:
    if isinstance(value, (Duration, dict)):
        return value
    match = DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('write a number and its unit: "500 steps", "10 epochs", "2e6 tiles" or "10 %"')
    unit = match[2].lower()
    return {"amount": float(match[1]), "unit": unit if unit == "%" else unit.rstrip("s") + "s"}


AsDuration = Annotated[Duration, BeforeValidator(_read_duration)]


# --- sections, in the order of the data ---------------------------------------------------------------------------


class SlidesConfig(Section):
    """Which slides take part."""

    exclude: tuple[str, ...] = Field((), description="slide ids (or file names) to leave out")
    split: str | None = Field(
        None, description="pretrain only on slides whose `split` column in the slides CSV has this value"
    )


class TilesConfig(Section):
    """How slides become tiles. A tile store remembers this section and refuses tiles made with another."""

    mpp: float = Field(ge=0.05, le=50, description="microns per pixel of the tiles; no default: it is your choice")
    size_px: int = Field(256, ge=16, le=4096, description="edge of a tile, in pixels at `mpp`")
    stride_px: int | None = Field(None, ge=1, description="step of the grid, in pixels at `mpp`; None: `size_px`")
    mpp_tolerance: float = Field(
        0.05, ge=0, lt=0.5, description="a level this close to `mpp` (relative) is read without resampling"
    )
    tissue: Literal["otsu", "saturation"] = Field(
        "otsu", description="threshold of the tissue mask: `otsu` on the log of the saturation, or `saturation`, fixed"
    )
    min_saturation: float = Field(
        0.06,
        ge=0,
        le=1,
        description="HSV saturation of tissue: the threshold of `saturation`, the floor of `otsu`",
    )
    mask_mpp: float = Field(8.0, gt=0, description="microns per pixel of the tissue mask")
    min_tissue_fraction: Fraction = Field(0.5, description="tiles with less tissue are not kept")
    min_area_um2: float = Field(2_000.0, ge=0, description="smaller pieces of tissue are dropped")
    max_hole_um2: float = Field(10_000.0, ge=0, description="smaller holes in the tissue are filled")
    max_pen_fraction: Fraction = Field(0.05, description="tiles with more pen ink are not kept")
    max_black_fraction: Fraction = Field(0.25, description="tiles with more black are not kept")
    min_sharpness: float = Field(
        0.0,
        ge=0,
        description="tiles less sharp (variance of the Laplacian, grey levels squared) are not kept",
    )
    jpeg_quality: int = Field(90, ge=50, le=100, description="of the stored tiles")
    copy_native_jpeg: bool = Field(
        True,
        description="where a tile is one of the slide's own JPEG tiles, store its bytes as they are: nothing is lost",
    )
    reader: Literal["auto", "openslide"] = Field(
        "auto", description="`auto`: JPEG tiles straight from the file where that shows what OpenSlide shows"
    )


class ViewsConfig(Section):
    """One tile -> 2 global and `num_local` local views. Probabilities are per view."""

    recipe: Literal["histology", "dino"] = Field(
        "histology",
        description="fills the settings below that are not given; `dino` is the paper's augmentation",
    )
    global_px: int = Field(224, ge=16, description="edge of a global view")
    local_px: int = Field(96, ge=8, description="edge of a local view")
    num_local: int = Field(8, ge=0, description="local views per tile")
    global_scale: FractionRange = Field((0.4, 1.0), description="area of a global crop, as a share of the tile")
    local_scale: FractionRange = Field((0.05, 0.4), description="area of a local crop, as a share of the tile")
    aspect: Range = Field((3 / 4, 4 / 3), description="aspect ratio of the crops")
    flip_prob: Fraction = Field(0.5, description="horizontal flip (`dino`); see `dihedral`")
    dihedral: bool = Field(True, description="all eight flips and quarter turns, uniformly: tissue has no up")
    stain_prob: Fraction = Field(0.8, description="jitter of the haematoxylin, eosin and residual densities")
    stain_sigma: float = Field(0.2, ge=0, lt=1, description="each stain's density is scaled by U(1 - sigma, 1 + sigma)")
    stain_bias: float = Field(0.02, ge=0, description="and shifted by U(-bias, bias), in optical density")
    colour_prob: Fraction = Field(0.8, description="brightness, contrast, saturation and hue jitter")
    brightness: float = Field(0.2, ge=0, description="strength: a factor from U(1 - s, 1 + s)")
    contrast: float = Field(0.2, ge=0, description="strength, likewise")
    saturation: float = Field(0.1, ge=0, description="strength, likewise")
    hue: float = Field(0.02, ge=0, le=0.5, description="largest shift, as a share of the colour circle")
    grey_prob: Fraction = Field(0.0, description="conversion to grey")
    blur_prob: tuple[Fraction, Fraction, Fraction] = Field(
        (0.5, 0.1, 0.5), description="Gaussian blur: first global, second global, local views"
    )
    blur_sigma: Range = Field((0.1, 2.0), description="standard deviation of the blur, in pixels of the view")
    solarize_prob: Fraction = Field(0.0, description="solarisation at 128, second global view only")

    @model_validator(mode="before")
    @classmethod
    def _fill_recipe(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("recipe") == "dino":
            return {**DINO_RECIPE, **given}
        return given


# The augmentation of the DINO paper, main_dino.py (facebookresearch/dino 7c446df), as differences to `histology`.
DINO_RECIPE: dict[str, Any] = {
    "dihedral": False, "flip_prob": 0.5, "stain_prob": 0.0, "colour_prob": 0.8, "brightness": 0.4, "contrast": 0.4,
    "saturation": 0.2, "hue": 0.1, "grey_prob": 0.2, "blur_prob": (1.0, 0.1, 0.5), "solarize_prob": 0.2,
}  # fmt: skip


class ModelConfig(Section):
    """The backbone (any that timm builds) and DINO's projection head."""

    backbone: str = Field("vit_small_patch16_224", description="a timm model name")
    arguments: dict[str, bool | int | float | str] = Field(
        {}, description="further arguments of timm.create_model, such as embed_dim, depth, patch_size"
    )
    weights: str | None = Field(None, description="None: from scratch; `timm`: timm's own weights; else a model folder")
    drop_path_rate: Fraction = Field(0.1, description="stochastic depth, student only")
    num_prototypes: int = Field(65536, ge=2, description="K, the output units of the head")
    head_hidden: int = Field(2048, ge=1, description="width of the head's hidden layers")
    head_bottleneck: int = Field(256, ge=1, description="width before the prototypes")
    head_layers: int = Field(3, ge=1, description="linear layers before the prototypes")
    head_batch_norm: bool = Field(False, description="batch norm in the head; off in the paper's recipes")
    norm_last_layer: bool = Field(
        True,
        description="keep the prototypes at unit length. False often trains small ViTs better, but less stably",
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="RGB mean; travels with the export")
    std: tuple[Positive, Positive, Positive] = Field(
        (0.229, 0.224, 0.225), description="RGB std; travels with the export"
    )


class OptimConfig(Section):
    """Optimizer and its schedules. Cosine schedules as in DINO, one value a step."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="the paper: adamw for ViTs, sgd for ResNet-50")
    base_lr: float = Field(5e-4, gt=0, description="peak learning rate at a global batch of 256; scaled linearly")
    final_lr: float = Field(1e-6, ge=0, description="learning rate that the cosine goes to")
    lr_warmup: AsDuration = Field(Duration(amount=10, unit="epochs"), description="linear, from 0")
    weight_decay: float = Field(0.04, ge=0, description="at the start; not for biases and norms")
    final_weight_decay: float = Field(0.4, ge=0, description="at the end of the cosine")
    clip_norm: float | None = Field(3.0, gt=0, description="gradient clipping; None: off")
    clip_scope: Literal["parameter", "global"] = Field(
        "parameter",
        description="`parameter` clips each tensor by its own norm, as the published code does; `global` the whole",
    )
    freeze_last_layer: AsDuration = Field(
        Duration(amount=1, unit="epochs"), description="the prototypes get no update for so long (stability)"
    )


class TrainingConfig(Section):
    """The DINO objective and the loop. Give exactly one of num_steps, num_epochs, num_tiles."""

    num_steps: int | None = Field(None, ge=1, description="length of the run in optimizer steps")
    num_epochs: float | None = Field(None, gt=0, description="or in passes over the store")
    num_tiles: float | None = Field(None, ge=1, description="or in tiles seen")
    batch_size_per_gpu: int = Field(64, ge=1, description="tiles per process and step")
    student_temp: float = Field(0.1, gt=0, description="temperature of the student's softmax")
    teacher_temp: float = Field(
        0.04, gt=0, description="after warm-up. Lower sharpens. Above 0.07 the paper saw collapse"
    )
    warmup_teacher_temp: float = Field(0.04, gt=0, description="at the start; decrease it if the loss stays at ln K")
    teacher_temp_warmup: AsDuration = Field(Duration(amount=0, unit="epochs"), description="linear")
    momentum: float = Field(0.996, ge=0, le=1, description="of the teacher, at the start; use 0.9995 at batch 256")
    final_momentum: float = Field(1.0, ge=0, le=1, description="at the end of the cosine")
    center_momentum: float = Field(0.9, ge=0, lt=1, description="of the running mean of the teacher's logits")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="autocast of backbone and head: `auto` is bf16 on CUDA, fp32 on a CPU"
    )
    seed: int = Field(0, ge=0, description="of the weights, the order of the tiles and the views")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` is CUDA where there is one")
    num_workers: int = Field(8, ge=0, description="processes that make views; 0: none. Changes no view")
    checkpoint_every_steps: int = Field(1000, ge=1, description="a killed run loses at most so many steps")
    keep_checkpoints: int = Field(3, ge=1, description="the newest so many are kept")
    max_non_finite_steps: int = Field(10, ge=0, description="skipped steps after which the run ends")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        given = [n for n in ("num_steps", "num_epochs", "num_tiles") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of num_steps, num_epochs, num_tiles (given: {given or 'none'})")
        return self


class MonitorConfig(Section):
    """What is watched during training."""

    log_every_steps: int = Field(10, ge=1, description="steps that one record of metrics.jsonl averages")
    on_collapse: Literal["warn", "stop"] = Field("warn", description="what a collapsed teacher does to the run")


class EvaluationConfig(Section):
    """Frozen-feature protocols."""

    knn_k: int = Field(20, ge=1, description="neighbours; clamped to the size of the training set")
    knn_temperature: float = Field(0.07, gt=0, description="of the votes exp(similarity / T)")
    num_bootstrap: int = Field(1000, ge=100, description="resamples behind each confidence interval")
    test_fraction: float = Field(0.3, gt=0, lt=1, description="of the groups, where the data bring no split")
    seed: int = Field(0, ge=0, description="of splits, bootstrap and whatever else is drawn")
    batch_size: int = Field(128, ge=1, description="images per forward pass")
    input_px: int | None = Field(None, ge=16, description="resize images to this edge; None: the model's own")
    regions: Path | None = Field(
        None, description="folder of <slide_id>.geojson (QuPath): labels the tiles of a `store:`"
    )
    min_region_fraction: float = Field(
        0.75, gt=0.5, le=1, description="share of a tile that one region class must cover to label it"
    )
    allow_duplicates: bool = Field(
        False, description="accept a given split that has the very same image in training and test"
    )


class BaselineConfig(Section):
    """The supervised ResNet-50 on the same splits."""

    backbone: str = Field("resnet50", description="a timm model name")
    weights: str | None = Field(None, description="None: from scratch; `timm`: timm's own; else a model folder")
    num_epochs: int = Field(30, ge=1, description="at most; validation decides which epoch is kept")
    batch_size: int = Field(32, ge=2, description="images per step")
    lr: float = Field(1e-3, gt=0, description="peak of a one-cycle AdamW")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW")
    label_smoothing: Fraction = Field(0.1, description="of the cross-entropy")
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="of the training groups")
    patience: int = Field(8, ge=1, description="epochs without gain on validation before it stops")
    input_px: int | None = Field(None, ge=16, description="None: the size of the images")


class WandbConfig(Section):
    """Weights & Biases. Numbers and settings only: pixels never leave."""

    mode: Literal["offline", "online", "disabled"] = Field(
        "offline", description="`offline` writes into the run folder; `wandb sync` can send it later"
    )
    project: str = Field("dino_path", description="W&B project")
    entity: str | None = Field(None, description="W&B team or user; None: your default")
    name: str | None = Field(None, description="of the run; None: W&B invents one")


class ClusterConfig(Section):
    """What SLURM is asked for."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # account: 4711, time: 30 (minutes)

    partition: str | None = Field(None, description="None: the cluster's default")
    account: str | None = Field(None, description="who is charged; None: your default")
    nodes: int = Field(1, ge=1, description="pretraining only; everything else runs on one")
    gpus_per_node: int = Field(1, ge=0, description="also the number of processes per node (1 process when 0)")
    cpus_per_gpu: int = Field(8, ge=1, description="CPU cores of each process, also where it has no GPU")
    memory_per_node: str | None = Field(None, description="as SLURM writes it: 64G")
    time: str = Field("24:00:00", description="limit, as SLURM writes it: 24:00:00, 2-12:00:00, or minutes")
    constraint: str | None = Field(None, description="node features, such as h200")
    array_tasks: int = Field(1, ge=1, description="tiling: job-array tasks over the slides")
    extra_lines: tuple[str, ...] = Field((), description="further #SBATCH options, such as --mail-type=END")
    setup_lines: tuple[str, ...] = Field(
        (),
        description="shell lines before the work (module load, venv): they put `dino-path` on the PATH, or set"
        " `dino_path=(...)` for a container. Empty: the Python that submits is used",
    )


class Config(Section):
    """One run: from slides to report."""

    store: Path | None = Field(None, description="tile store, or a folder of images")
    out: Path | None = Field(None, description="run folder")
    slides: SlidesConfig = SlidesConfig()
    tiles: TilesConfig | None = None
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig | None = None
    monitor: MonitorConfig = MonitorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    baseline: BaselineConfig = BaselineConfig()
    wandb: WandbConfig = WandbConfig()
    cluster: ClusterConfig = ClusterConfig()


# --- from text to tree --------------------------------------------------------------------------------------------


class _StrictLoader(yaml.SafeLoader):
    """YAML as plain data: no anchors, and of the words without quotes only null, true, false and numbers are special.

    YAML 1.1 would read 24:00:00 as 86400, 2026-01-31 as a date, 010 as 8, `no` as false, and 1e-4 as a string.
    Repeated keys are collected in `repeated`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[str] = []

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.constructor.ConstructorError(
                None, None, "anchors and aliases are not used here", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                self.repeated.append(f"key {key!r} is given twice (again in line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", [*"~nN", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", [*"tTfF"]),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", [*"-+0123456789"]),
    (
        "float",
        r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$|^[-+]?[0-9]+\.[0-9]*$|^[-+]?\.[0-9]+$",
        [*"-+0123456789."],
    ),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _parse_yaml(text: str) -> tuple[Any, list[str]]:
    """The data, and one fault for each repeated key."""
    loader = _StrictLoader(text)
    try:
        return loader.get_single_data(), loader.repeated
    finally:
        loader.dispose()


Tree = dict[str, Any]
T = TypeVar("T", bound=Section)


def load_config(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    needs: Sequence[str] = (),
    settings: Tree | None = None,
) -> Config:
    """Read `file`, apply `dotted.key=value` overrides (last wins), check everything, report all faults at once.

    Args:
        needs: keys or sections that the command cannot do without, such as `store` or `tiles`.
        settings: dotted keys that the command line gave by its own options, such as {"out": Path("run")}.

    Raises:
        ConfigError: with every unknown, missing, repeated or mistyped key in one message.
    """
    source = str(file) if file else "command line"
    tree, faults = _read_yaml(file) if file else ({}, [])
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            faults.append(f"{override!r} is not of the form dotted.key=value")
            continue
        try:
            value, repeated = _parse_yaml(text)
            faults += repeated
            _set(tree, key, value)
        except (yaml.YAMLError, TypeError) as error:
            faults.append(f"{override!r}: {_one_line(error)}")
    for key, value in (settings or {}).items():
        _set(tree, key, value)
    # `optim:` with nothing below it is an empty section, as when all its lines are commented out.
    tree = {key: value for key, value in tree.items() if value is not None or _section_at([key]) is None}
    for key in needs:
        if _section_at([key]) is not None:
            tree.setdefault(key, {})
        elif tree.get(key) is None:
            faults.append(f"missing key '{key}' ({Config.model_fields[key].description})")
    config = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        faults += _fault_lines(error, tree)
    if faults or config is None:
        raise ConfigError(
            source,
            faults[0] if len(faults) == 1 else f"{len(faults)} faults:\n" + "\n".join(f"    - {f}" for f in faults),
            "Every key must be known, given once, and of the right type.",
            "Mend the file or the dotted overrides; docs/config.md lists all keys.",
        )
    return config


def section_from_file(cls: type[T], tree: Tree, source: str) -> T:
    """A section read back from one of our own JSON or YAML files."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(
            source,
            "; ".join(_fault_lines(error, tree)),
            f"A {cls.__name__} as this version of dino_path writes it is needed.",
            "The file was made by another version, or edited.",
        ) from None


def as_plain(section: Section) -> Tree:
    """The section as plain data that YAML and JSON can hold and `load_config` reads back."""
    plain: Tree = json.loads(section.model_dump_json())
    short: Tree = _shorten_durations(plain)
    return short


def as_yaml(section: Section) -> str:
    """The section as YAML text."""
    return yaml.safe_dump(as_plain(section), sort_keys=False, width=110)


def digest(section: Section) -> str:
    """16 hexadecimal digits that change when a setting of the section does."""
    return hashlib.sha256(json.dumps(as_plain(section), sort_keys=True).encode()).hexdigest()[:16]


def _shorten_durations(tree: Any) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {"amount", "unit"}:
            return f"{tree['amount']:g} {tree['unit']}"
        return {key: _shorten_durations(value) for key, value in tree.items()}
    return tree


def _read_yaml(file: Path) -> tuple[Tree, list[str]]:
    """The tree, and one fault for each repeated key."""
    try:
        tree, faults = _parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            str(file),
            f"cannot be read ({_one_line(error)}).",
            "A YAML file is needed.",
            "Check the path; configs/ has examples.",
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            str(file),
            _one_line(error),
            "A YAML file of plain keys and values is needed.",
            "Mend that line; configs/ has examples.",
        ) from None
    if tree is None:
        return {}, faults
    if not isinstance(tree, dict):
        raise ConfigError(
            str(file),
            f"holds a {type(tree).__name__}.",
            "Sections such as `tiles:` are needed.",
            "See configs/ for examples.",
        )
    return tree, faults


def _set(tree: Tree, dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for name in sections:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise TypeError(f"{name!r} holds a value, not a section")
    tree[key] = value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _fault_lines(error: ValidationError, tree: Tree) -> list[str]:
    """The faults in our words, one per place: pydantic gives one per type where a value fits none of several."""
    by_place: dict[tuple[int | str, ...], list[Any]] = {}
    for fault in error.errors():
        by_place.setdefault(_place(fault, tree), []).append(fault)
    return [_fault_line(place, faults) for place, faults in by_place.items()]


def _place(fault: Any, tree: Any) -> tuple[int | str, ...]:
    """Where in the given tree a fault lies; what pydantic appends for the type that it tried is left out."""
    if fault["type"] in ("extra_forbidden", "missing"):
        return tuple(fault["loc"])
    place = []
    for part in fault["loc"]:
        is_there = part in tree if isinstance(tree, dict) else isinstance(tree, list | tuple) and isinstance(part, int)
        if not is_there:
            break
        tree = tree[part]
        place.append(part)
    return tuple(place)


def _fault_line(place: Sequence[int | str], faults: Sequence[Any]) -> str:
    """One fault of pydantic's in our words: `unknown key 'optim.wieght_decay'. Did you mean 'weight_decay'?`"""
    fault = faults[0]
    location = [str(part) for part in place]
    dotted = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else f" Known here: {', '.join(sorted(known))}."
        return f"unknown key '{dotted}'.{hint}"
    if fault["type"] == "missing":
        section = _section_at(location[:-1])
        if section is None:  # a tuple that is too short
            return f"'{'.'.join(location[:-1])}': {location[-1]} value(s) given, more are needed"
        return f"missing key '{dotted}' ({section.model_fields[location[-1]].description or 'no default'})"
    message = fault["msg"].removeprefix("Value error, ")
    if len(faults) > 1:
        message = f"one of {', '.join(str(fault['loc'][-1]) for fault in faults)} is needed"
    return f"'{dotted}': {message}" + ("" if isinstance(fault["input"], dict) else f" (given: {fault['input']!r})")


def _section_at(location: Sequence[str]) -> type[Section] | None:
    """The section class that sits at a dotted place of the tree."""
    section: type[Section] = Config
    for name in location:
        field = section.model_fields.get(name)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = [option for option in options if isinstance(option, type) and issubclass(option, Section)]
        if not inner:
            return None
        section = inner[0]
    return section


def _known_keys(location: Sequence[str]) -> list[str]:
    section = _section_at(location)
    return list(section.model_fields) if section else []
