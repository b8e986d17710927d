"""A suite: labelled sets and their evaluation protocols, as in the files of `configs/suites/`.

To add a protocol of `dino-path evaluate`: its name in `SuiteProtocol`, the metrics that may be a set's primary number
in `PRIMARY_METRICS`, and a line in `KINDS` of `dino_path/evaluation/results/suite_kinds.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from dino_path.config.evaluation import EvaluationConfig, FrozenProtocol
from dino_path.config.section import Section

SuiteProtocol = Literal[FrozenProtocol, "fewshot", "fractions", "retrieval", "robustness", "segmentation"]
TABLE_METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "kappa", "auroc")
# Allowed primary metrics by protocol: numbers of one test with an interval over its groups, where larger is better.
PRIMARY_METRICS: Mapping[SuiteProtocol, tuple[str, ...]] = {
    "knn": TABLE_METRICS,
    "knn-uni": TABLE_METRICS,
    "linear": TABLE_METRICS,
    "logistic": TABLE_METRICS,
    "linear-uni": TABLE_METRICS,
    "linear-dino": TABLE_METRICS,
    "fewshot": (),  # its range is that of the episodes, not of the tested groups
    "fractions": (),  # one number for each fraction
    "retrieval": ("mMV@1", "mMV@3", "mMV@5", "mMV@10"),  # means over classes that count the same
    "robustness": ("accuracy_known", "accuracy_new", "accuracy_shifted"),  # balanced; the last without centres
    "segmentation": ("dice", "iou"),  # of the linear layer, by image
}


def _different(values: tuple[float | str, ...]) -> tuple[float | str, ...]:
    if len({*values}) < len(values):
        raise ValueError("one is given twice")
    return values


SetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
LabelFraction = Annotated[float, Field(gt=0, le=1)]


class PrimaryConfig(Section):
    """The number of a set that appears in the suite's table."""

    protocol: SuiteProtocol = Field(description="one of the set's protocols")
    metric: str = Field(
        "balanced_accuracy", description="one of the protocol's metrics in `PRIMARY_METRICS`, such as auroc"
    )

    @model_validator(mode="after")
    def _has_interval(self) -> Self:
        metrics = PRIMARY_METRICS[self.protocol]
        if not metrics:
            raise ValueError(f"{self.protocol} gives no single number with an interval over the tested groups")
        if self.metric not in metrics:
            raise ValueError(f"{self.protocol} gives {', '.join(metrics)}, not {self.metric}")
        return self


class SuiteSet(Section):
    """One labelled set of a suite."""

    data: str = Field(description="as --data of `evaluate`; a path in it is relative to --root")
    about: str = Field("", description="one sentence for the page: tissue, task, source")
    protocols: Annotated[tuple[SuiteProtocol, ...], AfterValidator(_different)] = Field(
        min_length=1,
        description="protocols to run: knn, ..., fewshot, fractions, retrieval, robustness; or segmentation alone",
    )
    primary: PrimaryConfig = Field(description="`protocol` and `metric` of the number in the suite's table")
    fractions: Annotated[tuple[LabelFraction, ...], AfterValidator(_different)] = Field(
        (1.0, 0.1, 0.01), min_length=1, description="of the training labels, for the protocol `fractions`"
    )
    evaluation: EvaluationConfig = Field(
        EvaluationConfig(), description="settings for this set that override the suite's"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.primary.protocol not in self.protocols:
            raise ValueError(f"its primary protocol {self.primary.protocol} is not among its protocols")
        if "segmentation" in self.protocols and len(self.protocols) > 1:
            raise ValueError("segmentation reads masks, the other protocols labels: give it a set of its own")
        _refuse_protocols(self.evaluation)
        return self


class SuiteConfig(Section):
    """The file."""

    title: str = Field(description="title of the page")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="settings for all sets")
    baselines: Path | None = Field(
        None, description="folder with one `dino-path baseline` folder for each set, named like the set"
    )
    sets: dict[SetName, SuiteSet] = Field(
        min_length=1, description="sets by name, which is also the name of the set's folder in --out"
    )

    @model_validator(mode="after")
    def _protocols_are_of_sets(self) -> Self:
        _refuse_protocols(self.evaluation)
        return self

    def evaluation_of(self, name: str) -> EvaluationConfig:
        """The settings of one set: its own, and the suite's where it gives none."""
        own = self.sets[name].evaluation
        return self.evaluation.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


def _refuse_protocols(evaluation: EvaluationConfig) -> None:
    if "protocols" in evaluation.model_fields_set:
        raise ValueError("evaluation.protocols has no meaning in a suite: each set names its protocols")
