"""Every setting, typed, documented and with its one default; `settings.py` reads and writes the tree.

What has scientific consequences and no safe value (`tiles.mpp`, the length of the training) has no default.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if not 0 < limits[0] <= limits[1]:
        raise ValueError("write [low, high] with 0 < low <= high")
    return limits


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
FractionRange = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


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
    stream_start: int = 0
    """Step at which the stream of tiles began: not 0 in a run that went on from another, with other tiles."""
    tiles_before: int = 0
    """Tiles seen before that step."""

    def epoch(self, steps: int) -> float:
        """Passes over the store after so many steps, since its stream of tiles began."""
        return (steps - self.stream_start) / self.steps_per_epoch

    def tiles_seen(self, steps: int) -> int:
        return self.tiles_before + (steps - self.stream_start) * self.global_batch_size


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
    masks: Path | None = Field(
        None,
        description="folder of tissue masks from other tools: one file of outlines or picture per slide, named"
        " <slide_id> or <file name>; formats in tiling.md",
    )


class TilesConfig(Section):
    """How slides become tiles. A tile store remembers this section and refuses tiles made with another."""

    mpp: float = Field(ge=0.05, le=50, description="microns per pixel of the tiles; no default: it is your choice")
    size_px: int = Field(256, ge=16, le=4096, description="edge of a tile, in pixels at `mpp`")
    stride_px: int | None = Field(None, ge=1, description="step of the grid, in pixels at `mpp`; None: `size_px`")
    mpp_tolerance: float = Field(
        0.05,
        ge=0,
        lt=0.5,
        description="a level this close to `mpp` (relative) is taken as it is, and so is the half, quarter or eighth"
        " of one; the record's `tile_mpp` says what it truly was",
    )
    edge: Literal["drop", "pad"] = Field(
        "drop",
        description="tiles that reach over the slide's edge: left out, or kept with the slide's background colour"
        " there, which counts as no tissue",
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
    mask_values: tuple[int, ...] | None = Field(
        None, description="values that mean tissue in mask pictures from other tools; None: all but 0"
    )
    mask_classes: tuple[str, ...] | None = Field(
        None,
        description="classes of outlines from other tools that mean tissue; None: all areas, with a class or without,"
        " but QuPath's `Ignore*`",
    )
    max_pen_fraction: Fraction = Field(
        0.05, description="tiles with more pen ink are not kept; 1 for green and blue special stains"
    )
    max_black_fraction: Fraction = Field(0.25, description="tiles with more black are not kept")
    max_dark_fraction: Fraction = Field(
        1.0, description="tiles with more of their area as dark as folded tissue are not kept; 1: off"
    )
    min_sharpness: float = Field(
        0.0,
        ge=0,
        description="tiles less sharp (variance of the Laplacian at `sharpness_mpp`, grey levels squared) are not kept",
    )
    sharpness_mpp: float = Field(
        1.0, gt=0, description="microns per pixel at which sharpness is measured; coarser tiles: at their own"
    )
    coordinates_only: bool = Field(
        False, description="store no pixels: training and embedding read the tiles from the slides"
    )
    jpeg_quality: int = Field(90, ge=50, le=100, description="of the stored tiles")
    jpeg_subsampling: Literal["auto", "444", "420"] = Field(
        "auto",
        description="colour resolution of tiles that are encoded anew: whole (`444`), or halved in both directions"
        " (`420`: smaller); `auto`: halved only where the slide's own JPEG tiles are",
    )
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
    global_um: PositiveRange | None = Field(
        None,
        description="size of a global crop in microns (square root of its area, which is uniform), instead of"
        " `global_scale`: views of many magnifications, from tiles cut larger than views. The tiles' mpp must be known",
    )
    local_um: PositiveRange | None = Field(None, description="size of a local crop in microns, likewise")
    aspect: Range = Field((3 / 4, 4 / 3), description="aspect ratio of the crops")
    flip_prob: Fraction = Field(0.5, description="horizontal flip (`dino`); see `dihedral`")
    dihedral: bool = Field(True, description="all eight flips and quarter turns, uniformly: tissue has no up")
    stain_normalisation: Literal["reinhard", "macenko"] | None = Field(
        None,
        description="each tile's colours moved to a fixed target first, estimated on the tile alone (noisy where it has"
        " little of a stain). The model folder carries it, and features are made of the same colours",
    )
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
    colour_on_device: bool = Field(
        False,
        description="workers only decode, crop and resize; turns, stain, colour, blur and solarisation are computed on"
        " the training device, for whole batches. The same views but for rounding; worth it with a GPU and few cores",
    )

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
    """The backbone: any that timm builds."""

    backbone: str = Field("vit_small_patch16_224", description="a timm model name")
    arguments: dict[str, bool | int | float | str] = Field(
        {}, description="further arguments of timm.create_model, such as embed_dim, depth, patch_size"
    )
    shifted_patch_tokenization: bool = Field(
        False, description="ViTs on little data: each patch is seen with four half-patch shifts (arXiv:2112.13492)"
    )
    locality_self_attention: bool = Field(
        False, description="ViTs on little data: no token attends to itself, heads learn their temperature (ibid.)"
    )
    weights: str | None = Field(
        None,
        description="None: from scratch; `timm`: timm's own weights; a model folder, such as a timm model downloaded"
        " whole; a .safetensors file with timm's key names; or a file of facebookresearch/dino: a bare backbone, or a"
        " training checkpoint, whose head is taken too",
    )
    drop_path_rate: Fraction = Field(0.1, description="stochastic depth, student only")
    drop_path_schedule: Literal["linear", "constant"] = Field(
        "linear",
        description="`linear`: rises from 0 in the first block to the rate in the last; `constant`: the rate in every"
        " block, as in DINOv2's ViT-L and larger",
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="RGB mean; travels with the export")
    std: tuple[Positive, Positive, Positive] = Field(
        (0.229, 0.224, 0.225), description="RGB std; travels with the export"
    )

    @property
    def backbone_arguments(self) -> dict[str, bool | int | float | str]:
        """`arguments`, and the settings of our own that change the backbone, where they are on."""
        ours = ("shifted_patch_tokenization", "locality_self_attention")
        return {**self.arguments, **{name: True for name in ours if getattr(self, name)}}


class HeadConfig(Section):
    """A projection head and its prototypes."""

    num_prototypes: int = Field(65536, ge=2, description="K, the output units of the head")
    head_hidden: int = Field(2048, ge=1, description="width of the head's hidden layers")
    head_bottleneck: int = Field(256, ge=1, description="width before the prototypes")
    head_layers: int = Field(3, ge=1, description="linear layers before the prototypes")
    head_batch_norm: bool = Field(False, description="batch norm in the head; off in the paper's recipes")
    norm_last_layer: bool = Field(
        True,
        description="keep the prototypes at unit length. False often trains small ViTs better, but less stably",
    )


class DinoConfig(HeadConfig):
    """The cross-entropy between the teacher's and the student's [CLS], and its head. iBOT has the same temperatures."""

    weight: float = Field(1.0, ge=0, description="of this term in the loss; 0: off")
    student_temp: float = Field(0.1, gt=0, description="temperature of the student's softmax")
    teacher_temp: float = Field(
        0.04, gt=0, description="after warm-up. Lower sharpens. Above 0.07 the paper saw collapse"
    )
    warmup_teacher_temp: float = Field(0.04, gt=0, description="at the start; decrease it if the loss stays at ln K")
    teacher_temp_warmup: AsDuration = Field(Duration(amount=0, unit="epochs"), description="linear")


class MasksConfig(Section):
    """Which patches of the student's global views are hidden."""

    shape: Literal["blocks", "patches"] = Field(
        "blocks",
        description="`blocks`: rectangles of at least four patches, as in iBOT and DINOv2; `patches`: single"
        " patches anywhere",
    )
    view_fraction: Fraction = Field(0.5, description="share of the batch's global views that are masked at all")
    ratio: FractionRange = Field(
        (0.1, 0.5), description="share of a masked view's patches; the masked views of a batch spread evenly over it"
    )


class IbotConfig(HeadConfig):
    """The same cross-entropy for masked patches: the student must say of each what the teacher says who sees it."""

    weight: float = Field(0.0, ge=0, description="of this term in the loss; 0: off. DINOv2: 1")
    head: Literal["own", "shared"] = Field(
        "own", description="`own`: the head settings here; `shared`: the [CLS] term's head serves patches too"
    )
    masks: MasksConfig = MasksConfig()


class KoleoConfig(Section):
    """Spread of the batch's [CLS] features: each one's distance to its nearest neighbour (Sablayrolles et al. 2019)."""

    weight: float = Field(0.0, ge=0, description="of this term in the loss; 0: off. DINOv2: 0.1")


class KdeConfig(Section):
    """Spread of the batch's [CLS] features: density under a von Mises-Fisher kernel, as in Virchow2."""

    weight: float = Field(0.0, ge=0, description="of this term in the loss; 0: off. Virchow2: 0.05")
    kappa: Positive = Field(5.0, description="concentration of the kernel exp(kappa cos)")
    ramp_start: AsDuration = Field(Duration(amount=0, unit="steps"), description="the weight is 0 until here")
    ramp_end: AsDuration = Field(Duration(amount=0, unit="steps"), description="and rises linearly until here")


class TargetsConfig(Section):
    """How the teacher's logits become the distributions that the student is to match."""

    method: Literal["centering", "sinkhorn-knopp"] = Field(
        "centering",
        description="`centering`: their softmax, after a running mean of them is taken away, as in DINO;"
        " `sinkhorn-knopp`: every prototype is made to be used equally within the batch, as in SwAV and DINOv2",
    )
    center_momentum: float = Field(0.9, ge=0, lt=1, description="of the running mean of the teacher's logits")


class ObjectiveConfig(Section):
    """What is optimised: the weighted sum of these terms."""

    dino: DinoConfig = DinoConfig()
    ibot: IbotConfig = IbotConfig()
    koleo: KoleoConfig = KoleoConfig()
    kde: KdeConfig = KdeConfig()
    targets: TargetsConfig = TargetsConfig()

    @model_validator(mode="after")
    def _can_be_optimised(self) -> ObjectiveConfig:
        if self.dino.weight == 0 == self.ibot.weight:
            raise ValueError("dino.weight and ibot.weight are both 0: nothing would tell the student what to learn")
        return self


class OptimConfig(Section):
    """Optimizer and its schedules. Cosine schedules as in DINO, one value a step."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="the paper: adamw for ViTs, sgd for ResNet-50")
    base_lr: float = Field(5e-4, gt=0, description="peak learning rate, at the batch that `lr_scaling` names")
    lr_scaling: Literal["linear", "sqrt"] = Field(
        "linear",
        description="how it follows the global batch. `linear`: x batch / 256, as in DINO; `sqrt`: x the square root"
        " of batch / 1024, as in DINOv2",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="each layer's learning rate is this times the next one's: the heads have the whole rate, the last"
        " block this share of it. Below 1 the first layers keep what they know; 1: all the same",
    )
    patch_embed_lr: float = Field(1.0, gt=0, description="the patch embedding's learning rate, times this; DINOv2: 0.2")
    final_lr: float = Field(1e-6, ge=0, description="learning rate that the cosine goes to")
    lr_warmup: AsDuration = Field(Duration(amount=10, unit="epochs"), description="linear, from 0")
    weight_decay: float = Field(0.04, ge=0, description="at the start; not for biases and norms")
    final_weight_decay: float = Field(0.4, ge=0, description="at the end of the cosine")
    decay_embeddings: bool = Field(
        True,
        description="weight decay on position embeddings and [CLS] token too, as in the published code; false: none on"
        " what timm says should have none",
    )
    clip_norm: float | None = Field(3.0, gt=0, description="gradient clipping; None: off")
    clip_scope: Literal["parameter", "module", "global"] = Field(
        "parameter",
        description="`parameter` clips each tensor by its own norm, as DINO's code does; `module` backbone and heads,"
        " each by its own, as DINOv2's; `global` the whole",
    )
    freeze_last_layer: AsDuration = Field(
        Duration(amount=1, unit="epochs"), description="the prototypes get no update for so long (stability)"
    )
    freeze_by: Literal["no_gradient", "zero_lr"] = Field(
        "no_gradient",
        description="how they are frozen: `no_gradient` as in the published code, the optimizer does not know them"
        " until then; `zero_lr` as in dinov2, its moments start at once, and a global norm counts them",
    )


class TrainingConfig(Section):
    """The loop. Give exactly one of num_steps, num_epochs, num_tiles."""

    num_steps: int | None = Field(None, ge=1, description="length of the run in optimizer steps")
    num_epochs: float | None = Field(None, gt=0, description="or in passes over the store")
    num_tiles: float | None = Field(None, ge=1, description="or in tiles seen")
    continue_from: Path | None = Field(
        None,
        description="start from all that another run holds (student, teacher, heads, centers, the optimizer's moments):"
        " a run folder, for its newest checkpoint, or a checkpoint; into a new run folder. See pretraining.md",
    )
    schedules: Literal["extend", "restart"] = Field(
        "extend",
        description="with `continue_from`. `extend`: steps count on, and length and schedules are those of one run from"
        " the other's first step; `restart`: steps, length, warm-ups and schedules begin at 0",
    )
    batch_size_per_gpu: int = Field(64, ge=1, description="tiles per process and forward pass")
    accumulate_steps: int = Field(
        1,
        ge=1,
        description="forward and backward passes per optimizer step: the global batch is batch_size_per_gpu x this x"
        " processes, where one pass of it all does not fit into memory",
    )
    activation_checkpointing: bool | Literal["elementwise"] = Field(
        False,
        description="compute some of the student twice instead of keeping it: less memory, the same numbers."
        " `elementwise`: the MLPs' activation functions, a fifth of a ViT's memory (layer norms too, a third,"
        " when compiled), for a few percent of the time; true: the blocks, nearly all of it, for a forward pass more",
    )
    sharding: Literal["fsdp2"] | None = Field(
        None,
        description="`fsdp2`: each process keeps its share of both networks and of the optimizer's state, and gathers"
        " one block at a time: for a backbone that one GPU does not hold. The same numbers, but for rounding. None:"
        " every process keeps all",
    )
    compile: bool = Field(
        False, description="torch.compile each transformer block: faster on a GPU after minutes of compiling"
    )
    fused_loss: bool = Field(
        True,
        description="never hold the logits of all views: a few tiles' at a time, with their gradients. Less memory, the"
        " same numbers but for rounding",
    )
    momentum: float = Field(0.996, ge=0, le=1, description="of the teacher, at the start; use 0.9995 at batch 256")
    final_momentum: float = Field(1.0, ge=0, le=1, description="at the end of the cosine")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="autocast of backbone and head: `auto` is bf16 on CUDA, fp32 on a CPU"
    )
    balance: Literal["slide", "patient"] | None = Field(
        None,
        description="draw as many tiles from every slide (patient), however many it has; None: every tile as often."
        " A small slide's tiles then come more often, in other views each time",
    )
    seed: int = Field(0, ge=0, description="of the weights, the order of the tiles and the views")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` is CUDA where there is one")
    num_workers: int | None = Field(
        None,
        ge=0,
        description="processes that make views; None: one less than this process may use cores, at most 8; 0: none."
        " Changes no view",
    )
    timeout_s: float = Field(
        600.0,
        gt=0,
        description="how long processes wait for one another, at the start and in every exchange, before they give up",
    )
    checkpoint_every_steps: int = Field(1000, ge=1, description="a killed run loses at most so many steps")
    keep_checkpoints: int = Field(3, ge=1, description="the newest so many are kept")
    max_non_finite_steps: int = Field(10, ge=0, description="skipped steps after which the run ends")

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        given = [n for n in ("num_steps", "num_epochs", "num_tiles") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of num_steps, num_epochs, num_tiles (given: {given or 'none'})")
        return self

    @model_validator(mode="after")
    def _schedules_of_what(self) -> TrainingConfig:
        if self.schedules == "restart" and self.continue_from is None:
            raise ValueError("schedules=restart needs continue_from: a run that starts from none begins at 0 anyway")
        return self

    @model_validator(mode="after")
    def _compiled_or_sharded(self) -> TrainingConfig:
        if self.compile and self.sharding is not None:
            raise ValueError("compile and sharding do not go together yet: leave one of them out")
        return self


class MonitorConfig(Section):
    """What is watched during training."""

    log_every_steps: int = Field(10, ge=1, description="steps that one record of metrics.jsonl averages")
    on_collapse: Literal["warn", "stop"] = Field("warn", description="what a collapsed teacher does to the run")
    knn_data: str | None = Field(
        None,
        description="labelled images (as `evaluate --data`) for a running k-NN of the teacher: their validation part,"
        " else a fifth of the training part; the test part stays unseen",
    )
    knn_every_steps: int = Field(
        1000, ge=1, description="steps between two of them, a multiple of `log_every_steps`; the last step has one too"
    )
    knn_images: int = Field(
        10_000, ge=10, description="at most so many of the labelled images; other processes wait while the first counts"
    )

    @model_validator(mode="after")
    def _knn_at_a_record(self) -> MonitorConfig:
        if self.knn_data is not None and self.knn_every_steps % self.log_every_steps:
            raise ValueError(
                f"knn_every_steps ({self.knn_every_steps}) must be a multiple of log_every_steps"
                f" ({self.log_every_steps})"
            )
        return self


FeatureProtocol = Literal["knn", "knn-uni", "linear", "logistic", "linear-uni"]
FrozenProtocol = Literal[FeatureProtocol, "linear-dino"]
PROTOCOL_TITLES = {  # in reports and model cards; `evaluate` has shorter ones for its columns
    "knn": "k-NN",
    "knn-uni": "k-NN as in UNI",
    "linear": "linear probe",
    "logistic": "logistic regression",
    "linear-uni": "logistic regression as in UNI",
    "linear-dino": "linear layer as in DINO",
    "end-to-end": "supervised, end to end",
}
# What a model is given as, where it is there to be compared with: no model that dino_path trained.
COMPARISON_SPECS = ("untrained:", "timm:", "mean-colour", "colour-statistics")
IndexKind = Literal["flat", "ivf", "hnsw"]
Count = Annotated[int, Field(ge=1)]


class EvaluationConfig(Section):
    """Frozen-feature protocols; docs/evaluation.md says what they are."""

    protocols: tuple[FrozenProtocol, ...] = Field(
        ("knn", "linear"),
        min_length=1,
        description="what `evaluate table` runs: knn, knn-uni, linear, logistic, linear-uni, linear-dino",
    )
    linear_crops: int = Field(
        10, ge=1, description="crops of each training image that `linear-dino` goes round; 100: a new one every epoch"
    )
    knn_k: int = Field(20, ge=1, description="neighbours; clamped to the size of the training set")
    knn_ks: tuple[Count, ...] = Field(
        (10, 20, 100, 200), description="further numbers of neighbours, reported beside `knn_k`; nothing is chosen"
    )
    knn_temperature: float = Field(0.07, gt=0, description="of the votes exp(similarity / T)")
    knn_index: IndexKind = Field(
        "flat", description="`flat` is exact; `ivf` and `hnsw` are for millions of images, and their recall is measured"
    )
    shots: tuple[Count, ...] = Field((1, 5, 10, 20), description="labelled images per class in few-shot episodes")
    num_episodes: int = Field(1000, ge=100, description="few-shot episodes for each number of shots")
    fraction_protocols: tuple[FeatureProtocol, ...] = Field(
        ("logistic", "knn"), min_length=1, description="what `evaluate table --fractions` runs"
    )
    fraction_draws: int = Field(5, ge=5, description="draws of the labelled images for each label fraction below 1")
    num_bootstrap: int = Field(1000, ge=100, description="resamples behind each confidence interval")
    test_fraction: float = Field(0.3, gt=0, lt=1, description="of the groups, where the data bring no split")
    cross_validation: int | None = Field(
        None,
        ge=2,
        description="folds of patients (slides, images), stratified by class: each is tested once by a model of the"
        " others, for cohorts too small to hold out a part; None: one split",
    )
    cross_validation_repeats: int = Field(1, ge=1, description="how often the folds are drawn anew; all are pooled")
    seed: int = Field(0, ge=0, description="of splits, bootstrap and whatever else is drawn")
    batch_size: int = Field(128, ge=1, description="images per forward pass")
    input_px: int | None = Field(
        None, ge=16, description="resize images to this edge; None: the model's own, as embed does. Results say which"
    )
    regions: Path | None = Field(
        None,
        description="folder of outlines (<slide_id>.geojson, .xml, ...) or pictures (<slide_id>.png, .tif: class"
        " numbers over the whole slide, 0 for none): labels the tiles of a `store:`; formats in tiling.md",
    )
    region_classes: dict[str, int] = Field(
        {},
        description="the classes that count, and their numbers in pictures of regions (outlines have no use for the"
        " number); empty: all, a picture's named by their number",
    )
    min_region_fraction: float = Field(
        0.75, gt=0.5, le=1, description="share of a tile that one region class must cover to label it"
    )
    breakhis_magnification: Literal["40X", "100X", "200X", "400X"] = Field(
        "40X", description="which images of `breakhis:` are read"
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


CpuStage = Literal["tile", "export", "report"]
GpuStage = Literal["pretrain", "embed", "baseline", "evaluate"]
GpuRequest = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*:[0-9]+$")]
"""So many GPUs of a type that the cluster knows: a100:2."""


class StageConfig(Section):
    """What one stage is given where it differs from `cluster`; `cpu` and `gpu` are all stages of a kind at once."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    partition: str | None = Field(None, description="as cluster.partition; None, here and below: what `cluster` says")
    account: str | None = Field(None, description="as cluster.account")
    qos: str | None = Field(None, description="as cluster.qos")
    gpus: Annotated[int, Field(ge=0)] | GpuRequest | None = Field(
        None, description="per node, as cluster.gpus_per_node; stages other than pretraining take one unless told here"
    )
    cpus: int | None = Field(None, ge=1, description="CPU cores of each process, as cluster.cpus_per_gpu")
    memory: str | None = Field(None, description="per node, as cluster.memory_per_node")
    time: str | None = Field(None, description="as cluster.time")
    constraint: str | None = Field(None, description="as cluster.constraint")
    extra_lines: tuple[str, ...] | None = Field(None, description="instead of cluster.extra_lines")


class ClusterConfig(Section):
    """What SLURM is asked for."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # account: 4711, time: 30 (minutes)

    partition: str | None = Field(None, description="None: the cluster's default")
    account: str | None = Field(None, description="who is charged; None: your default")
    qos: str | None = Field(None, description="quality of service; None: your default")
    nodes: int = Field(1, ge=1, description="pretraining only; everything else runs on one")
    gpus_per_node: Annotated[int, Field(ge=0)] | GpuRequest = Field(
        1, description="also the number of processes per node (1 process when 0); of one type: a100:2"
    )
    gpu_request: Literal["gpus-per-node", "gres"] = Field(
        "gpus-per-node", description="how GPUs are asked for: --gpus-per-node=a100:2, or --gres=gpu:a100:2"
    )
    cpus_per_gpu: int = Field(8, ge=1, description="CPU cores of each process, also where it has no GPU")
    memory_per_node: str | None = Field(None, description="as SLURM writes it: 64G")
    time: str = Field("24:00:00", description="limit, as SLURM writes it: 24:00:00, 2-12:00:00, or minutes")
    constraint: str | None = Field(None, description="node features, such as h200")
    array_tasks: int = Field(1, ge=1, description="tiling: job-array tasks over the slides")
    extra_lines: tuple[str, ...] = Field(
        (),
        description="further #SBATCH options, such as --mail-type=END; those that ask for GPUs go to GPU stages only",
    )
    stages: dict[CpuStage | GpuStage | Literal["cpu", "gpu"], StageConfig] = Field(
        {},
        description="what single stages are given instead (tile, export, report; pretrain, embed, baseline, evaluate),"
        " or all that use no GPU (cpu) or may (gpu); a stage's own word goes first",
    )
    setup_lines: tuple[str, ...] = Field(
        (),
        description="shell lines before the work (module load, venv): they put `dino-path` on the PATH, or set"
        " `dino_path=(...)` for a container. Empty: the Python that submits is used",
    )

    @model_validator(mode="after")
    def _refuse_gpus_without_use(self) -> ClusterConfig:
        for name, stage in self.stages.items():
            if name in ("cpu", *get_args(CpuStage)) and stage.gpus not in (None, 0):
                raise ValueError(f"stages.{name}.gpus: tile, export and report use no GPU")
        return self


class Config(Section):
    """One run: from slides to report."""

    store: Path | None = Field(None, description="tile store, or a folder of images")
    out: Path | None = Field(None, description="run folder")
    slides: SlidesConfig = SlidesConfig()
    tiles: TilesConfig | None = None
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig | None = None
    monitor: MonitorConfig = MonitorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    baseline: BaselineConfig = BaselineConfig()
    wandb: WandbConfig = WandbConfig()
    cluster: ClusterConfig = ClusterConfig()
