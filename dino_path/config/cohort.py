"""Evaluation on slides that each have one label or one survival time: `cohort`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dino_path.config.section import Positive, Section

Aggregator = Literal["mean", "abmil"]
Task = Literal["label", "survival"]
CaseUnit = Literal["slide", "patient"]


class CohortConfig(Section):
    """Slide-level evaluation (`evaluate slides`); docs/slides.md says what it does."""

    task: Task | None = Field(
        None, description="what is predicted; null: whichever the table has. Required if the table has both"
    )
    unit: CaseUnit = Field(
        "slide",
        description="the unit with one label: `patient` combines all slides of a patient; survival always does",
    )
    ordered_classes: tuple[str, ...] = Field(
        (), description="the classes from low to high, for quadratic kappa; not needed if the labels are whole numbers"
    )
    aggregators: tuple[Aggregator, ...] = Field(
        ("mean", "abmil"),
        min_length=1,
        description="how the tiles of a slide become one prediction: `mean` features with logistic regression, or"
        " attention-MIL (`abmil`); survival has only `mean`",
    )
    folds: int = Field(
        5,
        ge=2,
        description="number of folds of patients, stratified by class; each is tested with"
        " models trained on the others",
    )
    repeats: int = Field(5, ge=1, description="how often the folds are drawn")
    by_centre: bool = Field(False, description="use the centres of the table as folds, with one repeat")
    seed: int = Field(0, ge=0, description="seed of folds, networks, samples of tiles and bootstrap")
    num_bootstrap: int = Field(1000, ge=100, description="resamples behind each interval over many patients")
    abmil_epochs: int = Field(20, ge=1, description="passes over the training slides; there is no early stopping")
    abmil_tiles: int = Field(256, ge=1, description="tiles of a slide in one training step, drawn again in every epoch")
    abmil_memory_gb: Positive = Field(
        2.0, description="memory for the training tiles; slides that do not fit are sampled to equal size"
    )
    abmil_hidden: int = Field(128, ge=1, description="width to which features are projected")
    abmil_attention: int = Field(64, ge=1, description="width of the gated attention")
    abmil_dropout: float = Field(0.25, ge=0, lt=1, description="dropout of the projected features")
    abmil_lr: Positive = Field(1e-3, description="learning rate of AdamW, falling to 0 along a cosine")
    abmil_weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    abmil_batch_slides: int = Field(8, ge=1, description="slides per step")
    cox_components: int = Field(
        16, ge=1, description="principal components of the mean features used by the Cox regression"
    )
    cox_penalty: float = Field(0.1, ge=0, description="ridge penalty of the Cox regression (lifelines' `penalizer`)")
