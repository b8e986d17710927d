import logging
from pathlib import Path

import pytest

from dino_path.errors import SlideError
from dino_path.slides.find import LONGEST_ID_BYTES, SlideRow, find_slides, safe_id


def make_files(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return [root / name for name in names]


def test_a_folder_is_searched_with_its_subfolders_and_ids_are_relative_paths(tmp_path: Path) -> None:
    make_files(tmp_path, "b/x.SVS", "a/y.ndpi", "x.tif", "b/x_mask.png", "notes.txt", ".hidden.svs", ".trash/z.svs")
    rows = find_slides([tmp_path])
    assert [row.slide_id for row in rows] == ["a__y", "b__x", "x"]
    assert [row.path.name for row in rows] == ["y.ndpi", "x.SVS", "x.tif"]


def test_ids_hold_no_dots_so_that_webdataset_keys_work(tmp_path: Path) -> None:
    make_files(tmp_path, "TCGA-A7-A0CE-01Z-00-DX1.9fce0b2a.svs", "my slide.ome.tif")
    assert [row.slide_id for row in find_slides([tmp_path])] == ["TCGA-A7-A0CE-01Z-00-DX1_9fce0b2a", "my_slide_ome"]


def test_two_slides_with_one_id_are_refused_by_name(tmp_path: Path) -> None:
    make_files(tmp_path, "a.1.svs", "a_1.svs")
    with pytest.raises(SlideError, match=r"a_1\.svs.*'a_1' is also that of .*a\.1\.svs"):
        find_slides([tmp_path])


def test_a_very_long_id_is_shortened_and_stays_unique(tmp_path: Path) -> None:
    one, other = safe_id("ä" * 200 + "1"), safe_id("ä" * 200 + "2")
    assert one != other
    assert len(one.encode()) <= LONGEST_ID_BYTES


def test_a_slide_named_twice_counts_once_and_the_csv_knows_more(tmp_path: Path) -> None:
    (slide,) = make_files(tmp_path, "a.svs")
    (tmp_path / "slides.csv").write_text("path,patient_id\na.svs,P1\n")
    rows = find_slides([slide, tmp_path, tmp_path / "slides.csv"])
    assert rows == [SlideRow(slide, "a", patient_id="P1")]


def test_a_csv_gives_centre_and_scanner(tmp_path: Path) -> None:
    (slide,) = make_files(tmp_path, "a.svs")
    (tmp_path / "slides.csv").write_text("path,center,Scanner\na.svs,Utrecht,NanoZoomer\n")
    assert find_slides([tmp_path / "slides.csv"]) == [SlideRow(slide, "a", centre="Utrecht", scanner="NanoZoomer")]


def test_a_csv_gives_ids_patients_mpp_and_split_and_may_hold_other_columns(tmp_path: Path) -> None:
    make_files(tmp_path, "s/a.svs", "s/b.svs")
    (tmp_path / "slides.csv").write_bytes(
        b"\xef\xbb\xbfPath, slide_id,patient_id,mpp,split,site\r\ns/a.svs,one.1,P1,0.5,train,X\r\ns/b.svs,,,,,\r\n\r\n"
    )
    assert find_slides([tmp_path / "slides.csv"]) == [
        SlideRow(tmp_path / "s/b.svs", "b"),
        SlideRow(tmp_path / "s/a.svs", "one_1", "P1", 0.5, "train"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("file,mpp\na.svs,1\n", "`file` is unknown; did you mean `path`"),
        ("site,mpp\na.svs,1\n", "no column `path`"),
        ("path\n", "lists no slides"),
        ("path,mpp\na.svs,half\n", "line 2: mpp 'half' is no number"),
        ("path,mpp\na.svs\n", "line 2 has 1 cells, its header 2"),
        ("path,mpp\na.svs,\na.svs,\n", "lines 2 and 3 name the same slide"),
        ("path\nnone.svs\n", "line 2 names .*none.svs, which is not a file"),
        ("path\nslides.csv\n", "no slide extension"),
        ("path,mpp\n,0.5\n", "line 2 has no path"),
        ("path,path\na.svs,a.svs\n", "names a column twice"),
    ],
)
def test_a_malformed_csv_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    make_files(tmp_path, "a.svs")
    (tmp_path / "slides.csv").write_text(text)
    with pytest.raises(SlideError, match=complaint):
        find_slides([tmp_path / "slides.csv"])


def test_missing_paths_empty_folders_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (picture,) = make_files(tmp_path, "a.png")
    for path, complaint in (
        (tmp_path / "none", "no such file"),
        (tmp_path / "empty", "holds no slides"),
        (picture, r"\.png is not a slide format"),
    ):
        with pytest.raises(SlideError, match=complaint):
            find_slides([path])
    with pytest.raises(SlideError, match="none were given"):
        find_slides([])


def test_excluded_slides_are_left_out_by_id_or_file_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_files(tmp_path, "a.svs", "b.svs", "c.svs")
    with caplog.at_level(logging.WARNING):
        rows = find_slides([tmp_path], exclude=["a", "b.svs", "typo"])
    assert [row.slide_id for row in rows] == ["c"]
    assert "typo" in caplog.text
    with pytest.raises(SlideError, match="leaves none of 3"):
        find_slides([tmp_path], exclude=["a", "b", "c"])


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    make_files(tmp_path, "disk/a.svs", "study/b.svs")
    (tmp_path / "study/link").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/loop").symlink_to(tmp_path / "study")
    assert [row.slide_id for row in find_slides([tmp_path / "study"])] == ["b", "link__a"]


def test_the_files_of_one_dicom_series_are_one_slide(shared_data: Path, tmp_path: Path) -> None:
    content = (shared_data / "slides-dicom/highdicom_sm_image_50px.dcm").read_bytes()
    for name in ("level0.dcm", "level1.dcm"):
        (tmp_path / name).write_bytes(content)
    assert [row.slide_id for row in find_slides([tmp_path])] == ["level0"]
