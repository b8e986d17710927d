"""Fixtures of tests that start programs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, why_not


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A SLURM with two nodes; the test runs in its environment."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, pytest.MonkeyPatch.context() as patch:
        cluster = Cluster(Path(folder))
        patch.setenv("SLURM_CONF", str(cluster.conf))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("OMP_NUM_THREADS", "1")
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
