"""The loss: `objective`, with a section for each term."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dino_path.config.durations import AsDuration, Duration
from dino_path.config.section import Fraction, FractionRange, Positive, Section


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
    """The cross-entropy between the teacher's and student's [CLS], and its head. iBOT has the same temperatures."""

    weight: float = Field(1.0, ge=0, description="of this term in the loss; 0: off")
    student_temp: float = Field(0.1, gt=0, description="temperature of the student's softmax")
    teacher_temp: float = Field(
        0.04,
        gt=0,
        description="temperature of the teacher after warm-up. Lower is sharper. Above 0.07 the paper reports collapse",
    )
    warmup_teacher_temp: float = Field(
        0.04, gt=0, description="temperature of the teacher at the start; decrease it if the loss stays at ln K"
    )
    teacher_temp_warmup: AsDuration = Field(
        Duration(amount=0, unit="epochs"), description="linear, from `warmup_teacher_temp` to `teacher_temp`"
    )


class MasksConfig(Section):
    """Which patches of the student's global views are hidden."""

    shape: Literal["blocks", "patches"] = Field(
        "blocks",
        description="`blocks`: rectangles of at least four patches, as in iBOT and DINOv2; `patches`: single"
        " patches anywhere",
    )
    view_fraction: Fraction = Field(0.5, description="share of the batch's global views that are masked")
    ratio: FractionRange = Field(
        (0.1, 0.5), description="share of hidden patches in a masked view; spread evenly over this range within a batch"
    )


class IbotConfig(HeadConfig):
    """The same cross-entropy for masked patches: the student predicts the teacher's output for hidden patches."""

    weight: float = Field(0.0, ge=0, description="of this term in the loss; 0: off. DINOv2: 1")
    head: Literal["own", "shared"] = Field(
        "own",
        description="`own`: a head with the settings here; `shared`: the head of the [CLS] term is also used"
        " for patches",
    )
    masks: MasksConfig = MasksConfig()

    @model_validator(mode="after")
    def _batch_norm_needs_patches(self) -> IbotConfig:
        if self.weight > 0 and self.head == "own" and self.head_batch_norm:
            raise ValueError("head_batch_norm: a process may have no masked patch, and then no batch statistics")
        return self


class KoleoConfig(Section):
    """Spread of the batch's [CLS] features: distance of each to its nearest neighbour (Sablayrolles et al. 2019)."""

    weight: float = Field(0.0, ge=0, description="of this term in the loss; 0: off. DINOv2: 0.1")


class KdeConfig(Section):
    """Spread of the batch's [CLS] features: density under a von Mises-Fisher kernel, as in Virchow2."""

    weight: float = Field(0.0, ge=0, description="of this term in the loss; 0: off. Virchow2: 0.05")
    kappa: Positive = Field(5.0, description="concentration of the kernel exp(kappa cos)")
    ramp_start: AsDuration = Field(Duration(amount=0, unit="steps"), description="the weight is 0 until here")
    ramp_end: AsDuration = Field(Duration(amount=0, unit="steps"), description="and rises linearly until here")


class DistillConfig(Section):
    """A frozen model to learn from: the student learns to match its features, through a projection."""

    weight: float = Field(0.0, ge=0, description="of this term in the loss; 0: off")
    teacher: str | None = Field(
        None,
        description="the frozen model, as in `embed`: a model folder, or `timm:` and a timm model name. It sees the"
        " global views with its own mean, std and input size",
    )
    patches: float = Field(
        1.0,
        ge=0,
        description="weight of the patch tokens relative to [CLS]; 0: only [CLS], as for CNNs. Above 0, views are"
        " resized so that the frozen model has as many patches as the student",
    )
    cached: bool = Field(
        False,
        description="compute the frozen model's features of each whole tile once, before the first step, and keep"
        " them in the run folder: for a model that is too slow or too large to run in every step. Views must then be"
        " whole tiles",
    )

    @model_validator(mode="after")
    def _of_what(self) -> DistillConfig:
        if self.weight > 0 and self.teacher is None:
            raise ValueError("distill.weight is above 0 and distill.teacher is not given: name the model to learn from")
        return self


class TargetsConfig(Section):
    """How the teacher's logits become the target distributions of the student."""

    method: Literal["centering", "sinkhorn-knopp"] = Field(
        "centering",
        description="`centering`: their softmax, after subtracting their running mean, as in DINO; `sinkhorn-knopp`:"
        " every prototype is used equally within the batch, as in SwAV and DINOv2",
    )
    center_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the running mean of the teacher's logits")


class ObjectiveConfig(Section):
    """The loss: the weighted sum of these terms."""

    dino: DinoConfig = DinoConfig()
    ibot: IbotConfig = IbotConfig()
    koleo: KoleoConfig = KoleoConfig()
    kde: KdeConfig = KdeConfig()
    distill: DistillConfig = DistillConfig()
    targets: TargetsConfig = TargetsConfig()

    @property
    def has_prototypes(self) -> bool:
        """Whether a term compares prototype outputs. Then there are heads, and the teacher sees every global view."""
        return self.dino.weight > 0 or self.ibot.weight > 0

    @property
    def methods(self) -> tuple[str, ...]:
        """The published names of the terms and targets that are on."""
        used = {
            "DINO": self.dino.weight > 0,
            "iBOT": self.ibot.weight > 0,
            "KoLeo": self.koleo.weight > 0,
            "KDE": self.kde.weight > 0,
            "Sinkhorn-Knopp": self.has_prototypes and self.targets.method == "sinkhorn-knopp",
            "distillation": self.distill.weight > 0,
        }
        return tuple(name for name, is_used in used.items() if is_used)

    @model_validator(mode="after")
    def _can_be_optimised(self) -> ObjectiveConfig:
        if not self.has_prototypes and self.distill.weight == 0:
            raise ValueError(
                "dino.weight, ibot.weight and distill.weight are all 0: the student would have nothing to learn from"
            )
        return self
