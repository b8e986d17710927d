"""What is watched during training, and where it is shown: `monitor`, `wandb`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dino_path.config.section import Section


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


class WandbConfig(Section):
    """Weights & Biases. Numbers and settings only: pixels never leave."""

    mode: Literal["offline", "online", "disabled"] = Field(
        "offline", description="`offline` writes into the run folder; `wandb sync` can send it later"
    )
    project: str = Field("dino_path", description="W&B project")
    entity: str | None = Field(None, description="W&B team or user; None: your default")
    name: str | None = Field(None, description="of the run; None: W&B invents one")
