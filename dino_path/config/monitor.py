"""What is watched during training, and where it is shown: `monitor`, `wandb`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dino_path.config.section import Section


class MonitorConfig(Section):
    """What is watched during training."""

    log_every_steps: int = Field(10, ge=1, description="steps averaged in one record of metrics.jsonl")
    tensorboard: bool = Field(
        False,
        description="also write the numbers of metrics.jsonl for TensorBoard, into RUN/tensorboard (extra"
        " `tensorboard`); the names of its files contain the name of the machine",
    )
    on_collapse: Literal["warn", "stop"] = Field("warn", description="what to do when the teacher collapses")
    knn_data: str | None = Field(
        None,
        description="labelled images (as `evaluate --data`) for a running k-NN of the teacher: their validation part,"
        " else a fifth of the training part; the test part stays unseen",
    )
    knn_every_steps: int = Field(
        1000,
        ge=1,
        description="steps between two measurements of k-NN, a multiple of `log_every_steps`; the last"
        " step is also measured",
    )
    knn_images: int = Field(
        10_000,
        ge=10,
        description="use at most this many of the labelled images; other processes wait while the first one measures",
    )

    keep_best: bool = Field(
        True,
        description="keep the best checkpoint beside the newest, for `export --best`: by the running k-NN, whenever"
        " it is measured; without `knn_data` by the effective rank of the features (RankMe), at every checkpoint"
        " that coincides with a record",
    )
    stop_after: int | None = Field(
        None,
        ge=1,
        description="end the run after this many comparisons in a row without a gain; None: run the full length",
    )

    @model_validator(mode="after")
    def _stopped_by_what(self) -> MonitorConfig:
        if self.stop_after is not None and not self.keep_best:
            raise ValueError("stop_after needs keep_best=true: it counts comparisons with the best")
        return self

    @model_validator(mode="after")
    def _knn_at_a_record(self) -> MonitorConfig:
        if self.knn_data is not None and self.knn_every_steps % self.log_every_steps:
            raise ValueError(
                f"knn_every_steps ({self.knn_every_steps}) must be a multiple of log_every_steps"
                f" ({self.log_every_steps})"
            )
        return self


class WandbConfig(Section):
    """Weights & Biases. Only numbers and settings are sent, unless `log_images` is set."""

    mode: Literal["offline", "online", "disabled"] = Field(
        "offline", description="`offline` writes into the run folder; `wandb sync` can upload it later"
    )
    project: str = Field("dino_path", description="W&B project")
    entity: str | None = Field(None, description="W&B team or user; None: your default")
    name: str | None = Field(None, description="name of the run; None: chosen by W&B")
    log_images: bool = Field(
        False,
        description="also send pixels of slides: a sheet of the first tiles' views, and at each running k-NN"
        " (`monitor.knn_data`) a few validation tiles with their nearest neighbours; both are kept in RUN/figures",
    )
