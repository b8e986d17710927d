"""Every setting, typed, documented and with its only default; `settings.py` reads and writes the tree.

Settings with scientific consequences and no safe value (`tiles.mpp`, the length of training) have no default. All other
modules import the sections from here.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from dino_path.config.cluster import ClusterConfig, CpuStage, GpuStage, StageConfig
from dino_path.config.cohort import Aggregator, CaseUnit, CohortConfig, Task
from dino_path.config.durations import Clock, Duration
from dino_path.config.evaluation import (
    COMPARISON_SPECS,
    PROTOCOL_TITLES,
    BaselineConfig,
    EvaluationConfig,
    FeatureProtocol,
    FrozenProtocol,
    IndexKind,
    ShiftName,
)
from dino_path.config.model import ModelConfig
from dino_path.config.monitor import MonitorConfig, WandbConfig
from dino_path.config.objective import (
    DinoConfig,
    DistillConfig,
    HeadConfig,
    IbotConfig,
    KdeConfig,
    KoleoConfig,
    MasksConfig,
    ObjectiveConfig,
    TargetsConfig,
)
from dino_path.config.section import Section
from dino_path.config.suite import PrimaryConfig, SuiteConfig, SuiteProtocol, SuiteSet
from dino_path.config.tiling import SlidesConfig, TilesConfig
from dino_path.config.training import OptimConfig, TrainingConfig
from dino_path.config.views import DINO_RECIPE, RECIPES, ViewsConfig

__all__ = [
    "COMPARISON_SPECS",
    "DINO_RECIPE",
    "PROTOCOL_TITLES",
    "RECIPES",
    "Aggregator",
    "BaselineConfig",
    "CaseUnit",
    "Clock",
    "ClusterConfig",
    "CohortConfig",
    "Config",
    "CpuStage",
    "DinoConfig",
    "DistillConfig",
    "Duration",
    "EvaluationConfig",
    "FeatureProtocol",
    "FrozenProtocol",
    "GpuStage",
    "HeadConfig",
    "IbotConfig",
    "IndexKind",
    "KdeConfig",
    "KoleoConfig",
    "MasksConfig",
    "ModelConfig",
    "MonitorConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PrimaryConfig",
    "Section",
    "ShiftName",
    "SlidesConfig",
    "StageConfig",
    "SuiteConfig",
    "SuiteProtocol",
    "SuiteSet",
    "TargetsConfig",
    "Task",
    "TilesConfig",
    "TrainingConfig",
    "ViewsConfig",
    "WandbConfig",
]


class Config(Section):
    """One run: from slides to report."""

    store: Path | None = Field(None, description="tile store, or a folder of images")
    out: Path | None = Field(None, description="run folder")
    slides: SlidesConfig = SlidesConfig()
    tiles: TilesConfig | None = None
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig | None = None
    monitor: MonitorConfig = MonitorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    baseline: BaselineConfig = BaselineConfig()
    cohort: CohortConfig = CohortConfig()
    wandb: WandbConfig = WandbConfig()
    cluster: ClusterConfig = ClusterConfig()
