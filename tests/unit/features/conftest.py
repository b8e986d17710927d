"""Fixtures of the features room."""

from pathlib import Path

import numpy as np
import pytest
from feature_samples import Images, write_model_folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def noise_images() -> Images:
    random = np.random.default_rng(1)
    return Images([random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(7)])
