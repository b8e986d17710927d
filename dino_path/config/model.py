"""The backbone: `model`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dino_path.config.section import Fraction, Positive, Section


class ModelConfig(Section):
    """The backbone: any that timm builds."""

    backbone: str = Field("vit_small_patch16_224", description="a timm model name")
    arguments: dict[str, bool | int | float | str] = Field(
        {}, description="further arguments of timm.create_model, such as embed_dim, depth, patch_size"
    )
    shifted_patch_tokenization: bool = Field(
        False,
        description="ViTs on little data: each token also sees four half-patch shifts of its patch (arXiv:2112.13492)",
    )
    locality_self_attention: bool = Field(
        False, description="ViTs on little data: no token attends to itself, heads learn their temperature (ibid.)"
    )
    weights: str | None = Field(
        None,
        description="None: from scratch; `timm`: timm's weights of this backbone; `timm:NAME`: those of another tag;"
        " a model folder, such as a downloaded timm model; a run folder or one of its checkpoints (the teacher's"
        " backbone is loaded); or a file: a backbone of timm (such as UNI) or of facebookresearch's dino, dinov2 or"
        " dinov3, or a checkpoint of their training (its heads are loaded too)",
    )
    lora_rank: int | None = Field(
        None,
        ge=1,
        description="train only low-rank adapters of this rank on attention and MLPs (LoRA), and freeze the"
        " backbone's own weights: less memory for a run that starts from trained weights. None: train all weights",
    )
    lora_alpha: Positive | None = Field(
        None, description="the adapters' output is multiplied by this / `lora_rank`; None: by 1"
    )
    drop_path_rate: Fraction = Field(0.1, description="stochastic depth, student only")
    drop_path_schedule: Literal["linear", "constant"] = Field(
        "linear",
        description="`linear`: rises from 0 in the first block to the rate in the last; `constant`: the rate in every"
        " block, as in DINOv2's ViT-L and larger; a ViT does not compute dropped samples, which saves time",
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="RGB mean; travels with the export")
    std: tuple[Positive, Positive, Positive] = Field(
        (0.229, 0.224, 0.225), description="RGB std; travels with the export"
    )

    @property
    def lora_scale(self) -> float:
        """What the adapters add is multiplied by this."""
        return 1.0 if self.lora_alpha is None or self.lora_rank is None else self.lora_alpha / self.lora_rank

    @model_validator(mode="after")
    def _alpha_of_what(self) -> ModelConfig:
        if self.lora_alpha is not None and self.lora_rank is None:
            raise ValueError("lora_alpha needs lora_rank: there are no adapters without it")
        return self

    @property
    def backbone_arguments(self) -> dict[str, bool | int | float | str]:
        """`arguments`, and the settings of our own that change the backbone, where they are on."""
        ours = ("shifted_patch_tokenization", "locality_self_attention")
        return {**self.arguments, **{name: True for name in ours if getattr(self, name)}}
