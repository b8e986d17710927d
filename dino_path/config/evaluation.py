"""Evaluation of frozen features: `evaluation`, and `baseline`, the supervised network for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dino_path.config.section import Fraction, Section

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
ShiftName = Literal["haematoxylin", "eosin", "gamma", "blur", "jpeg", "resolution"]
Count = Annotated[int, Field(ge=1)]


class EvaluationConfig(Section):
    """Frozen-feature protocols; docs/evaluation.md describes them."""

    protocols: tuple[FrozenProtocol, ...] = Field(
        ("knn", "linear"),
        min_length=1,
        description="what `evaluate table` runs: knn, knn-uni, linear, logistic, linear-uni, linear-dino",
    )
    linear_crops: int = Field(
        10,
        ge=1,
        description="crops of each training image that `linear-dino` cycles through; 100: a new crop in every epoch",
    )
    knn_k: int = Field(20, ge=1, description="number of neighbours; at most the size of the training set")
    knn_ks: tuple[Count, ...] = Field(
        (10, 20, 100, 200),
        description="further numbers of neighbours, reported in addition to `knn_k`; none is chosen by its result",
    )
    knn_temperature: float = Field(0.07, gt=0, description="T of the votes exp(similarity / T)")
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
    test_fraction: float = Field(
        0.3, gt=0, lt=1, description="share of the groups to test on, if the data have no split"
    )
    cross_validation: int | None = Field(
        None,
        ge=2,
        description="folds of patients (slides, images), stratified by class: each is tested once with a classifier"
        " trained on the others, for cohorts too small for a test part; None: one split",
    )
    cross_validation_repeats: int = Field(1, ge=1, description="how often the folds are drawn; all repeats are pooled")
    shifts: tuple[ShiftName, ...] = Field(
        ("haematoxylin", "eosin", "gamma", "blur", "jpeg", "resolution"),
        min_length=1,
        description="changes of stain and scanner under which `evaluate robustness` tests the images again",
    )
    shift_images: int = Field(
        2000, ge=50, description="test images used for each shift; a random sample if there are more"
    )
    seed: int = Field(0, ge=0, description="seed of splits, bootstrap and all other random choices")
    batch_size: int = Field(128, ge=1, description="images per forward pass")
    input_px: int | None = Field(
        None,
        ge=16,
        description="resize images to this edge; None: the model's own input size, as in embed. Results say which",
    )
    regions: Path | None = Field(
        None,
        description="folder of outlines (<slide_id>.geojson, .xml, ...) or pictures (<slide_id>.png, .tif: class"
        " numbers over the whole slide, 0 for none): they label the tiles of a `store:`; formats in tiling.md",
    )
    region_classes: dict[str, int] = Field(
        {},
        description="the classes to use, and their numbers in pictures of regions (outlines ignore the number);"
        " empty: all classes, and those of pictures are named by their number",
    )
    min_region_fraction: float = Field(
        0.75, gt=0.5, le=1, description="share of a tile that one region class must cover to label it"
    )
    segmentation_classes: dict[str, int] = Field(
        {},
        description="names of the class numbers in the masks of `evaluate segmentation`; 0 is `background`, which no"
        " mean includes unless it is named here; empty: classes are named by their number",
    )
    segmentation_scale: float = Field(
        1.0,
        gt=0,
        le=8,
        description="images are resized by this factor before windows are cut from them: 0.5 halves the edge. Masks"
        " are compared at their own size, whatever the factor",
    )
    segmentation_fit_tokens: int = Field(
        100_000, ge=100, description="patches for fitting the linear layer, sampled evenly from all training images"
    )
    segmentation_knn_tokens: int = Field(10_000, ge=20, description="how many of these patches k-NN searches")
    breakhis_magnification: Literal["40X", "100X", "200X", "400X"] = Field(
        "40X", description="which images of `breakhis:` are read"
    )
    allow_duplicates: bool = Field(
        False, description="accept a given split that has identical images in training and test"
    )


class BaselineConfig(Section):
    """The supervised ResNet-50 on the same splits."""

    backbone: str = Field("resnet50", description="a timm model name")
    weights: str | None = Field(
        None, description="None: from scratch; `timm`: timm's own; `timm:NAME`; else a model folder"
    )
    num_epochs: int = Field(30, ge=1, description="maximum number of epochs; validation decides which epoch is kept")
    batch_size: int = Field(32, ge=2, description="images per step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of a one-cycle AdamW")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW")
    label_smoothing: Fraction = Field(0.1, description="label smoothing of the cross-entropy")
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of the training groups for validation, if the data have no `val` part"
    )
    patience: int = Field(8, ge=1, description="training stops after this many epochs without a gain on validation")
    input_px: int | None = Field(None, ge=16, description="None: the size of the images")
