"""What is optimised: `objective`, a section for each term."""

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

    @model_validator(mode="after")
    def _batch_norm_needs_patches(self) -> IbotConfig:
        if self.weight > 0 and self.head == "own" and self.head_batch_norm:
            raise ValueError("head_batch_norm: a process may have no masked patch, of which there are no statistics")
        return self


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

    @property
    def methods(self) -> tuple[str, ...]:
        """The names under which the literature knows what is on."""
        used = {
            "DINO": self.dino.weight > 0,
            "iBOT": self.ibot.weight > 0,
            "KoLeo": self.koleo.weight > 0,
            "KDE": self.kde.weight > 0,
            "Sinkhorn-Knopp": self.targets.method == "sinkhorn-knopp",
        }
        return tuple(name for name, is_used in used.items() if is_used)

    @model_validator(mode="after")
    def _can_be_optimised(self) -> ObjectiveConfig:
        if self.dino.weight == 0 == self.ibot.weight:
            raise ValueError("dino.weight and ibot.weight are both 0: nothing would tell the student what to learn")
        return self
