"""A file with a checksum at its end: every change is seen, and NumPy reads the array as ever."""

from pathlib import Path

import numpy as np
import pytest

from dino_path.atomic import atomic_write
from dino_path.checksum import is_intact, seal


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    with atomic_write(tmp_path / "a.npy", "w+b") as stream:
        np.save(stream, np.arange(12.0, dtype=np.float32).reshape(3, 4))
        seal(stream)
    return tmp_path / "a.npy"


@pytest.mark.parametrize("mmap", [None, "r"])
def test_numpy_reads_the_array_before_the_checksum(sealed: Path, mmap: str | None) -> None:
    assert is_intact(sealed)
    assert np.load(sealed, mmap_mode=mmap).tolist() == np.arange(12.0).reshape(3, 4).tolist()


def test_every_flipped_bit_and_every_cut_is_seen(sealed: Path) -> None:
    content = sealed.read_bytes()
    for number in range(len(content)):
        sealed.write_bytes(content[:number] + bytes([content[number] ^ 1]) + content[number + 1 :])
        assert not is_intact(sealed)
        sealed.write_bytes(content[:number])
        assert not is_intact(sealed)
    sealed.write_bytes(content + b"0")
    assert not is_intact(sealed)
