"""Files of torch's: damage and zip bombs are seen before anything is built."""

import zipfile
from pathlib import Path

import pytest
import torch

from dino_path.model.torch_file import UNREADABLE, load_torch_file


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(5)}, tmp_path / "a.pt")
    assert load_torch_file(tmp_path / "a.pt")["a"].tolist() == [0, 1, 2, 3, 4]


def test_a_flipped_bit_of_a_tensor_is_an_error(tmp_path: Path) -> None:
    torch.save(torch.zeros(1000), tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[2000] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    assert torch.load(tmp_path / "a.pt").count_nonzero() == 1, "torch itself takes it"
    with pytest.raises(UNREADABLE, match="checksum"):
        load_torch_file(tmp_path / "a.pt")


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save(torch.zeros(10_000_000), tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as archive,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(UNREADABLE, match=r"would unpack to 0.04 GB"):
        load_torch_file(tmp_path / "bomb.pt")
