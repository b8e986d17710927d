"""What is optimised: `objective`, a section for each term."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dino_path.config.durations import AsDuration, Duration
from dino_path.config.section import Positive, Section


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
    """The cross-entropy between the teacher's and the student's [CLS], and its head."""

    weight: Positive = Field(1.0, description="of this term in the loss")
    student_temp: float = Field(0.1, gt=0, description="temperature of the student's softmax")
    teacher_temp: float = Field(
        0.04, gt=0, description="after warm-up. Lower sharpens. Above 0.07 the paper saw collapse"
    )
    warmup_teacher_temp: float = Field(0.04, gt=0, description="at the start; decrease it if the loss stays at ln K")
    teacher_temp_warmup: AsDuration = Field(Duration(amount=0, unit="epochs"), description="linear")


class TargetsConfig(Section):
    """How the teacher's logits become the distributions that the student is to match."""

    method: Literal["centering"] = Field(
        "centering", description="`centering`: their softmax, after a running mean of them is taken away, as in DINO"
    )
    center_momentum: float = Field(0.9, ge=0, lt=1, description="of the running mean of the teacher's logits")


class ObjectiveConfig(Section):
    """What is optimised: the weighted sum of these terms."""

    dino: DinoConfig = DinoConfig()
    targets: TargetsConfig = TargetsConfig()
