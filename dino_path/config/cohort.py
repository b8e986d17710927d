"""What features are worth on slides that have one label, or one survival time, each: `cohort`."""

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
        None, description="what is predicted; null: whichever the table has. A table that has both needs it"
    )
    unit: CaseUnit = Field(
        "slide",
        description="what has one label: `patient` takes all slides of a patient together; survival always does",
    )
    ordered_classes: tuple[str, ...] = Field(
        (), description="the classes from low to high, for quadratic kappa; whole numbers as labels have their order"
    )
    aggregators: tuple[Aggregator, ...] = Field(
        ("mean", "abmil"),
        min_length=1,
        description="how the tiles of a slide become one answer: mean features and logistic regression, attention-MIL;"
        " survival has `mean` alone",
    )
    folds: int = Field(5, ge=2, description="of patients, stratified by class; each is tested by models of the others")
    repeats: int = Field(5, ge=1, description="how often the folds are drawn again")
    by_centre: bool = Field(False, description="the folds are the centres of the table, one repeat")
    seed: int = Field(0, ge=0, description="of folds, networks, samples of tiles and bootstrap")
    num_bootstrap: int = Field(1000, ge=100, description="resamples behind each interval over many patients")
    abmil_epochs: int = Field(20, ge=1, description="passes over the training slides; nothing stops earlier")
    abmil_tiles: int = Field(256, ge=1, description="tiles of a slide in one training step, drawn again in every epoch")
    abmil_memory_gb: Positive = Field(
        2.0, description="for the tiles that training draws from: of slides that do not fit, equally large samples"
    )
    abmil_hidden: int = Field(128, ge=1, description="width to which features are projected")
    abmil_attention: int = Field(64, ge=1, description="width of the gated attention")
    abmil_dropout: float = Field(0.25, ge=0, lt=1, description="of the projected features")
    abmil_lr: Positive = Field(1e-3, description="of AdamW, falling to 0 along a cosine")
    abmil_weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    abmil_batch_slides: int = Field(8, ge=1, description="slides per step")
    cox_components: int = Field(16, ge=1, description="principal components of the mean features that Cox is given")
    cox_penalty: float = Field(0.1, ge=0, description="ridge penalty of Cox (lifelines' `penalizer`)")
