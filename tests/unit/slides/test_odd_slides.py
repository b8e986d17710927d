"""What folders and tables hold besides plain slides: DICOM series, links, copies, formats that nobody reads."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dino_path.errors import SlideError
from dino_path.slides.find import find_slides, holds_slides, search_slides
from dino_path.slides.readers.dicom import SLIDE_CLASS, read_dicom_header

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


def write_dicom(
    file: Path, *, series: str = "1.2.3", kind: str = "VOLUME", width: int = 512, storage: str = SLIDE_CLASS
) -> Path:
    """A DICOM header without pixels."""
    content = Dataset()
    content.SOPClassUID, content.SOPInstanceUID, content.SeriesInstanceUID = storage, f"1.2.3.{width}", series
    content.ImageType = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    content.TotalPixelMatrixColumns, content.TotalPixelMatrixRows = width, 100
    content.file_meta = FileMetaDataset()
    content.file_meta.MediaStorageSOPClassUID, content.file_meta.MediaStorageSOPInstanceUID = storage, f"1.2.3.{width}"
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.parent.mkdir(parents=True, exist_ok=True)
    content.save_as(file, enforce_file_format=True)
    return file


def write_bytes(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def noise(num_bytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(num_bytes)


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    """One slide of two levels, with label and thumbnail; the largest level's name is the third."""
    return [
        write_dicom(tmp_path / "s" / "a.dcm", kind="LABEL", width=9000),
        write_dicom(tmp_path / "s" / "b.dcm", width=256),
        write_dicom(tmp_path / "s" / "c.dcm", width=1024),
        write_dicom(tmp_path / "s" / "d.dcm", kind="THUMBNAIL", width=64),
    ]


def test_a_dicom_series_is_one_slide_whatever_names_it(series: list[Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,patient_id\n" + "".join(f"s/{file.name},P1\n" for file in series))
    (largest,) = [file for file in series if file.name == "c.dcm"]
    for inputs in ([tmp_path / "s"], series, series[::-1], [series[0]], [series[3], series[1]], [tmp_path / "t.csv"]):
        rows = find_slides(inputs)
        assert [(row.slide_id, row.path) for row in rows] == [("c", largest)]
    assert rows[0].patient_id == "P1"


def test_rows_that_contradict_each_other_about_a_series_are_refused(series: list[Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,patient_id\ns/b.dcm,P1\ns/c.dcm,P2\n")
    with pytest.raises(SlideError, match="lines 2 and 3 name the same slide"):
        find_slides([tmp_path / "t.csv"])


def test_the_same_series_in_two_folders_is_two_slides_unless_the_bytes_agree(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a" / "x.dcm", width=100)
    write_dicom(tmp_path / "b" / "x.dcm", width=200)
    assert [row.slide_id for row in find_slides([tmp_path])] == ["a__x", "b__x"]
    write_dicom(tmp_path / "b" / "x.dcm", width=100)
    assert [row.slide_id for row in find_slides([tmp_path])] == ["a__x"]


def test_dicom_objects_that_are_no_slides_are_passed_over_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dicom(tmp_path / "slide.dcm")
    segmentation = write_dicom(tmp_path / "seg.dcm", series="1.9", storage=SEGMENTATION)
    write_dicom(tmp_path / "label.dcm", series="1.8", kind="LABEL")
    assert [row.slide_id for row in find_slides([tmp_path])] == ["slide"]
    assert "seg.dcm (Segmentation Storage)" in caplog.text
    assert "label.dcm (label)" in caplog.text
    with pytest.raises(SlideError, match="none of the given files is a slide"):
        find_slides([segmentation])


def test_dicom_without_an_extension_is_found_and_its_numbers_stay_in_the_id(tmp_path: Path) -> None:
    write_dicom(tmp_path / "1.2.840.113", series="1.1", width=300)
    write_dicom(tmp_path / "IM_0001", series="1.4")
    write_bytes(tmp_path / "README", b"no slide")
    assert holds_slides(tmp_path)
    assert [row.slide_id for row in find_slides([tmp_path])] == ["1_2_840_113", "IM_0001"]
    assert [row.slide_id for row in find_slides([tmp_path / "IM_0001"])] == ["IM_0001"]


def test_a_damaged_dicom_header_is_none_and_its_file_still_a_slide_to_fail(tmp_path: Path) -> None:
    content = write_dicom(tmp_path / "a.dcm").read_bytes()
    for length in range(0, len(content), 7):
        read_dicom_header(write_bytes(tmp_path / "b.dcm", content[:length]))
    write_bytes(tmp_path / "b.dcm", content[:150])
    assert read_dicom_header(tmp_path / "b.dcm") is None
    assert [row.slide_id for row in find_slides([tmp_path])] == ["a", "b"]


def test_links_and_copies_of_a_slide_are_named_and_count_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slide = write_bytes(tmp_path / "study/m.svs", noise(100_000))
    (tmp_path / "study/a.svs").symlink_to(slide)
    os.link(slide, tmp_path / "study/n.svs")
    write_bytes(tmp_path / "study/z.svs", slide.read_bytes())
    write_bytes(tmp_path / "study/other.svs", noise(100_000, seed=1))
    with caplog.at_level(logging.WARNING):
        rows = find_slides([tmp_path / "study"])
    assert [row.slide_id for row in rows] == ["m", "other"]
    for name, how in (("a", "a link"), ("n", "a hard link"), ("z", "a copy")):
        assert f"{name}.svs is {how} of {slide}" in caplog.text


def test_large_slides_that_differ_in_one_sampled_place_are_two(tmp_path: Path) -> None:
    content = bytearray(noise(9_000_000))
    write_bytes(tmp_path / "a.svs", bytes(content))
    write_bytes(tmp_path / "b.svs", bytes(content))
    assert len(find_slides([tmp_path])) == 1
    content[-1] ^= 1
    write_bytes(tmp_path / "b.svs", bytes(content))
    assert len(find_slides([tmp_path])) == 2


def test_mirax_is_compared_by_its_index_and_empty_files_are_like_no_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bytes(tmp_path / f"{name}.mrxs", b"the same little picture")
        write_bytes(tmp_path / name / "Slidedat.ini", f"SLIDE_ID = {name}".encode())
        write_bytes(tmp_path / f"empty_{name}.svs", b"")
    assert len(find_slides([tmp_path])) == 4
    write_bytes(tmp_path / "b" / "Slidedat.ini", b"SLIDE_ID = a")
    assert [row.slide_id for row in find_slides([tmp_path])] == ["a", "empty_a", "empty_b"]


def test_copies_of_other_patients_are_refused_unless_their_masks_tell_them_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bytes(tmp_path / f"{name}.svs", b"one slide")
        write_bytes(tmp_path / f"{name}.png", b"")
    (tmp_path / "t.csv").write_text("path,patient_id\na.svs,P1\nb.svs,P2\n")
    with pytest.raises(SlideError, match=r"is a copy of .*with another patient_id \(P2 and P1\)"):
        find_slides([tmp_path / "t.csv"])
    (tmp_path / "t.csv").write_text("path,patient_id,mask\na.svs,P1,a.png\nb.svs,P2,b.png\n")
    assert len(find_slides([tmp_path / "t.csv"])) == 2


def test_slides_of_formats_that_are_not_read_are_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.kfb", "b.KFB", "c.sdpc", "notes.txt"):
        write_bytes(tmp_path / name, b"")
    with pytest.raises(SlideError, match=r"holds no slides in a supported format \(skipped: 2 \.kfb, 1 \.sdpc\)"):
        find_slides([tmp_path])
    write_bytes(tmp_path / "d.svs", b"")
    assert len(find_slides([tmp_path])) == 1
    assert "skipped, unsupported formats: 2 .kfb, 1 .sdpc" in caplog.text


def test_a_dead_link_to_a_slide_is_a_row_and_one_to_a_folder_is_named(tmp_path: Path) -> None:
    write_bytes(tmp_path / "s/a.svs", b"")
    (tmp_path / "s/b.svs").symlink_to("/not_mounted/b.svs")
    (tmp_path / "s/colleague").symlink_to("/not_mounted/colleague")
    search = search_slides([tmp_path / "s"])
    assert [row.slide_id for row in search.rows] == ["a", "b"]
    assert [one.path.name for one in search.unreadable] == ["colleague"]
    with pytest.raises(
        SlideError, match=r"1 folder\(s\) or link\(s\) cannot be read.*colleague: a link to /not_mounted"
    ):
        find_slides([tmp_path / "s"])
    assert search_slides([tmp_path / "s"], exclude=["colleague"]).unreadable == ()


def test_na_is_no_patient_and_no_split_of_a_slides_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_bytes(tmp_path / "a.svs", b"")
    (tmp_path / "t.csv").write_text("path;patient;split;mpp;site\na.svs;NA;#N/A;0,5;X\n;;;;\n")
    (row,) = find_slides([tmp_path / "t.csv"])
    assert (row.patient_id, row.split, row.mpp) == (None, None, 0.5)
    assert "column `patient_id` is empty in every row: treated as unknown" in caplog.text
    assert "columns that are not used: `site`" in caplog.text


def test_decimal_commas_count_in_the_settings_of_one_slide_too(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.svs", b"")
    (tmp_path / "t.csv").write_text("path;tiles.min_saturation;tiles.mask_classes\na.svs;0,05;[T,N,S]\n")
    (row,) = find_slides([tmp_path / "t.csv"])
    assert row.overrides == {"tiles.min_saturation": "0.05", "tiles.mask_classes": "[T,N,S]"}


def test_a_dicom_series_in_which_wsidicom_finds_no_level_is_a_slide_that_cannot_be_read(tmp_path: Path) -> None:
    reader = pytest.importorskip("dino_path.slides.readers.wsidicom_reader")
    with pytest.raises(SlideError, match="cannot be read"):
        reader.WsidicomReader(write_dicom(tmp_path / "a.dcm"))
