"""A disk that is full while HDF5 is written: one error, nothing printed, nothing left."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from dino_path.features.hdf5 import new_hdf5

NUMBERS = np.random.default_rng(0).normal(size=(4000, 384)).astype(np.float32)  # 6.1 MB


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Files of this process may not grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(file: Path, *, asks: bool) -> None:
    with new_hdf5(file) as (h5, check):
        stored = h5.create_dataset("features", NUMBERS.shape, np.float32, chunks=(256, 384), fletcher32=True)
        stored[:] = NUMBERS
        if asks:
            check()
            pytest.fail("it was not told")


@pytest.mark.parametrize(
    ("num_bytes", "asks"), [(1000, True), (100_000, True), (3_000_000, True), (1000, False), (NUMBERS.nbytes, False)]
)
def test_a_full_disk_is_told_once_and_leaves_nothing(
    tmp_path: Path, num_bytes: int, asks: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="File too large") as refusal, room_for(num_bytes):
        write(tmp_path / "a.h5", asks=asks)
    assert (refusal.value.errno, refusal.value.filename) == (errno.EFBIG, str(tmp_path / "a.h5"))
    assert not [*tmp_path.iterdir()]
    assert capfd.readouterr().err == ""


def test_a_whole_file_is_read_back(tmp_path: Path) -> None:
    with new_hdf5(tmp_path / "a.h5") as (h5, check):
        h5["features"] = NUMBERS
        check()
    with h5py.File(tmp_path / "a.h5") as h5:
        np.testing.assert_array_equal(h5["features"], NUMBERS)
