"""Identity: what tells a replaced file from the one before, and a copy from another file."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from dino_path.identity import (
    DIGITS,
    WHOLE_UP_TO_BYTES,
    Identity,
    content_digest,
    files_of,
    identity_of,
    is_same_content,
    stamp_of,
)
from dino_path.slides.duplicates import same_slides


def is_unchanged(file: Path, known: Identity) -> bool:
    return identity_of(file, known).digest == known.digest


def noise(path: Path, size: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


def dicom(path: Path, series: str, seed: int = 0) -> Path:
    """The start of a DICOM file: preamble, and the tag of its series in explicit little endian."""
    value = series.encode()
    head = b"\0" * 128 + b"DICM" + b"\x20\x00\x0e\x00UI" + len(value).to_bytes(2, "little") + value
    path.write_bytes(head + np.random.default_rng(seed).bytes(5000))
    return path


@pytest.mark.parametrize("size", [0, 10, WHOLE_UP_TO_BYTES, 5 * WHOLE_UP_TO_BYTES + 17])
def test_copies_links_and_renamed_files_have_one_digest(tmp_path: Path, size: int) -> None:
    file = noise(tmp_path / "a.svs", size)
    copy = Path(shutil.copy(file, tmp_path / "b.tif"))
    (tmp_path / "link.svs").symlink_to(file)
    assert content_digest(file) == content_digest(copy) == content_digest(tmp_path / "link.svs")


@pytest.mark.parametrize("size", [1000, WHOLE_UP_TO_BYTES, 5 * WHOLE_UP_TO_BYTES + 17])
def test_other_pixels_of_the_same_size_have_another_digest(tmp_path: Path, size: int) -> None:
    assert content_digest(noise(tmp_path / "a.svs", size)) != content_digest(noise(tmp_path / "b.svs", size, seed=1))


@pytest.mark.parametrize("size", [1000, 5 * WHOLE_UP_TO_BYTES])
def test_a_file_cut_short_or_with_another_end_has_another_digest(tmp_path: Path, size: int) -> None:
    file = noise(tmp_path / "a.svs", size)
    before, content = content_digest(file), file.read_bytes()
    file.write_bytes(content[:-1])
    cut = content_digest(file)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert len({before, cut, content_digest(file)}) == 3


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(("tag", "value"), [("NewSubfileType", 0), ("ImageDescription", "0.2500 um per pixel")])
def test_a_header_that_lies_between_the_samples_counts(tmp_path: Path, bigtiff: bool, tag: str, value: object) -> None:
    """As Aperio's: the directory follows the pixels. Digests of earlier versions do not know it, and stay valid."""
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    slide, copy = tmp_path / "a.tif", tmp_path / "b.tif"
    with tifffile.TiffWriter(slide, bigtiff=bigtiff) as file:
        for level, description in ((pixels[:600], None), (pixels, "0.5000 um per pixel")):
            file.write(level, description=description, subfiletype=1, metadata=None)
    before = content_digest(slide)
    shutil.copy(slide, copy)
    assert content_digest(copy) == before
    assert {*same_slides([slide, copy])} == {copy}
    with tifffile.TiffFile(copy, mode="r+b") as file:
        file.pages[1].tags[tag].overwrite(value)
    after = content_digest(copy)
    assert copy.stat().st_size == slide.stat().st_size
    assert after[:DIGITS] == before[:DIGITS]
    assert not is_same_content(before, after)
    assert not same_slides([slide, copy])
    assert is_same_content(before[:DIGITS], after)


def test_a_damaged_directory_of_a_large_tiff_is_no_obstacle(tmp_path: Path) -> None:
    file = noise(tmp_path / "a.tif", 2 * WHOLE_UP_TO_BYTES)
    for start in (
        b"II*\0\xff\xff\xff\xff",
        b"MM\0+\0\x08\0\0" + b"\xff" * 8,
        b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 12,
    ):
        file.write_bytes(start + file.read_bytes()[len(start) :])
        assert content_digest(file) == content_digest(file)
        assert len(content_digest(file)) > DIGITS


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    huge = tmp_path / "huge.svs"
    with huge.open("wb") as stream:
        stream.truncate(50 * 2**30)  # sparse
    start_s = time.perf_counter()
    content_digest(huge)
    assert time.perf_counter() - start_s < 5


def test_a_known_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = noise(tmp_path / "a.svs", 1000)
    known = identity_of(file)
    monkeypatch.setattr("dino_path.identity.content_digest", lambda _: pytest.fail("it was read"))
    assert identity_of(file, known) == known
    assert is_unchanged(file, known)


def test_a_touched_file_is_unchanged_and_a_replaced_one_is_not_even_with_its_date(tmp_path: Path) -> None:
    file = noise(tmp_path / "a.bmp", 1000)
    known, look = identity_of(file), file.stat()
    os.utime(file, (1, 1))
    assert is_unchanged(file, known)
    assert stamp_of(file) != known.stamp
    noise(file, 1000, seed=1)
    os.utime(file, ns=(look.st_atime_ns, look.st_mtime_ns))
    assert not is_unchanged(file, known)


def test_an_identity_that_is_not_known_is_read(tmp_path: Path) -> None:
    file = noise(tmp_path / "a.svs", 1000)
    assert identity_of(file, Identity()) == identity_of(file)


@pytest.mark.parametrize(("slide", "part"), [("s.mrxs", "s/Data0001.dat"), ("s.vsi", "_s_/stack1/frame_t.ets")])
def test_the_folder_of_a_slide_belongs_to_it(tmp_path: Path, slide: str, part: str) -> None:
    file, data = noise(tmp_path / slide, 100), noise(tmp_path / part, 2 * WHOLE_UP_TO_BYTES)
    known = identity_of(file)
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, moved)
    assert content_digest(moved / slide) == known.digest
    noise(data, 2 * WHOLE_UP_TO_BYTES, seed=1)
    assert not is_unchanged(file, known)


def test_the_files_that_a_vms_names_belong_to_it(tmp_path: Path) -> None:
    picture, other = noise(tmp_path / "s_0.jpg", 1000), noise(tmp_path / "other.jpg", 1000)
    slide = tmp_path / "s.vms"
    slide.write_text("[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=s_0.jpg\nMapFile=gone.jpg\nMacroImage=\n")
    assert files_of(slide) == (slide, picture)
    known = identity_of(slide)
    noise(other, 1000, seed=1)
    assert identity_of(slide) == known
    noise(picture, 1000, seed=1)
    assert not is_unchanged(slide, known)


def test_a_dicom_series_is_one_slide_whichever_file_names_it(tmp_path: Path) -> None:
    first, second = dicom(tmp_path / "1.dcm", "1.2.3", seed=1), dicom(tmp_path / "2.dcm", "1.2.3", seed=2)
    other = dicom(tmp_path / "3.dcm", "1.2.4", seed=3)
    assert identity_of(first) == identity_of(second)
    assert files_of(other) == (other,)
    assert content_digest(other) != content_digest(first)
    known = identity_of(first)
    dicom(second, "1.2.3", seed=4)
    assert not is_unchanged(first, known)


def test_a_missing_file_has_no_identity(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        identity_of(tmp_path / "gone.svs")
