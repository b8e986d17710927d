import hashlib
import hmac
import json
import os
import stat
from pathlib import Path

import pytest
from slide_files import tissue_image, write_jpeg_slide, write_slide_file

from dino_path.cli import main
from dino_path.config import TilesConfig
from dino_path.errors import ConfigError, SlideError
from dino_path.records.pseudonyms import Entry, read_mapping
from dino_path.records.slide import SlideRecord
from dino_path.slides.find import SlideRow
from dino_path.slides.pseudonyms import PseudonymFiles, kept_private, pseudonym, pseudonymise, without_names
from dino_path.tiles.layout import StoreFolder, write_record

KEY = bytes(range(32))


def files_in(folder: Path, key: bytes | None = KEY) -> PseudonymFiles:
    files = PseudonymFiles(folder / "private/map.csv", folder / "private/key")
    if key is not None:
        files.key.parent.mkdir(exist_ok=True)
        files.key.write_text(key.hex())
        files.key.chmod(0o600)
    return files


def row(folder: Path, name: str, patient_id: str | None = None) -> SlideRow:
    return SlideRow(folder / f"{name}.svs", name, patient_id)


def test_a_pseudonym_is_the_keyed_hash_of_the_id_in_crockfords_letters() -> None:
    number = int(hmac.new(KEY, b"slide\0John Doe", hashlib.sha256).hexdigest(), 16) % 2**60
    letters = "0123456789abcdefghjkmnpqrstvwxyz"
    digits = "".join(letters[number // 32**place % 32] for place in range(12))
    assert pseudonym(KEY, "slide", "John Doe") == f"s-{digits[:4]}-{digits[4:8]}-{digits[8:]}"
    assert pseudonym(KEY, "patient", "John Doe")[2:] != pseudonym(KEY, "slide", "John Doe")[2:]
    assert pseudonym(KEY, "slide", "Mu\u0308ller") == pseudonym(KEY, "slide", "M\u00fcller")


def test_the_same_key_gives_the_same_names_and_another_key_others(tmp_path: Path) -> None:
    rows = [row(tmp_path, "a", "P1"), row(tmp_path, "b", "P1")]
    first, check = pseudonymise(rows, files_in(tmp_path))
    again, same_check = pseudonymise(rows, PseudonymFiles(tmp_path / "other.csv", tmp_path / "private/key"))
    assert (first, check) == (again, same_check)
    assert len({one.slide_id for one in first}) == 2
    assert len({one.patient_id for one in first}) == 1
    new, new_check = pseudonymise(rows, PseudonymFiles(tmp_path / "third.csv", tmp_path / "new.key"))
    assert new_check != check
    assert {one.slide_id for one in new}.isdisjoint(one.slide_id for one in first)


def test_mapping_and_key_are_for_their_owner_alone_and_hold_what_the_names_stand_for(tmp_path: Path) -> None:
    files = files_in(tmp_path, key=None)
    rows, _ = pseudonymise([row(tmp_path, "a", "P1")], files)
    for file in (files.mapping, files.key):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert rows[0].patient_id is not None
    assert read_mapping(files.mapping) == [
        Entry(rows[0].slide_id, "a", rows[0].patient_id, "P1", str(tmp_path / "a.svs"))
    ]
    assert rows[0].recorded_path == f"{rows[0].slide_id}.svs"


def test_a_slide_keeps_its_name_when_the_search_begins_elsewhere_and_when_it_moves(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    ((first,), _) = pseudonymise([SlideRow(tmp_path / "x/a.svs", "x__a")], files)
    ((again,), _) = pseudonymise([SlideRow(tmp_path / "x/a.svs", "a")], files)
    ((moved,), _) = pseudonymise([SlideRow(tmp_path / "y/a.svs", "x__a")], files)
    assert first.slide_id == again.slide_id == moved.slide_id
    assert [entry.path for entry in read_mapping(files.mapping)] == [str(tmp_path / "y/a.svs")]


def test_a_file_name_in_no_encoding_has_its_row_and_keeps_its_pseudonym(tmp_path: Path) -> None:
    files, slide = files_in(tmp_path), SlideRow(Path(os.fsdecode(b"/slides/M\xfcller.svs")), "M_ller")
    first, again = (pseudonymise([slide], files)[0][0].slide_id for _ in range(2))
    assert first == again
    assert [entry.path for entry in read_mapping(files.mapping)] == ["/slides/M\\xfcller.svs"]


def test_two_slides_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    files = files_in(tmp_path)
    pseudonymise([row(tmp_path, "a")], files)
    with pytest.raises(SlideError, match="which stands for"):
        pseudonymise([SlideRow(tmp_path / "other/a.svs", "a")], files)


def test_two_ids_with_one_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_path.slides.pseudonyms.pseudonym", lambda key, kind, name: f"{kind[0]}-0000")
    with pytest.raises(SlideError, match="s-0000, which stands for"):
        pseudonymise([row(tmp_path, "a"), row(tmp_path, "b")], files_in(tmp_path))
    with pytest.raises(SlideError, match="its patient would have the pseudonym p-0000"):
        pseudonymise([row(tmp_path, "a", "P1"), row(tmp_path, "a", "P2")], files_in(tmp_path))


def test_a_mapping_of_another_key_and_a_file_that_is_no_key_are_refused(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    pseudonymise([row(tmp_path, "a")], files)
    files.key.write_text(bytes(32).hex())
    with pytest.raises(ConfigError, match="is not the key"):
        pseudonymise([row(tmp_path, "a")], files)
    files.key.write_text("short")
    with pytest.raises(ConfigError, match="holds no key"):
        pseudonymise([row(tmp_path, "a")], files)


def test_files_that_others_may_read_or_that_lie_in_the_output_are_refused(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    pseudonymise([row(tmp_path, "a")], files)
    files.refuse_unsafe(tmp_path / "store")
    with pytest.raises(ConfigError, match="lies inside"):
        files.refuse_unsafe(tmp_path)
    files.mapping.chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 640.*\n.*mode 600"):
        files.refuse_unsafe(tmp_path / "store")
    files.mapping.chmod(0o600)
    files.key.unlink()
    with pytest.raises(ConfigError, match="The key is needed"):
        files.refuse_unsafe(tmp_path / "store")


def test_messages_lose_names_of_files_and_folders(tmp_path: Path) -> None:
    slide = tmp_path / "Jane Roe/ROE 17.mrxs"
    (slide.with_suffix("")).mkdir(parents=True)
    slide.touch()
    (slide.with_suffix("") / "Slidedat.ini").touch()
    ((shown,), _) = pseudonymise([SlideRow(slide, "Jane_Roe__ROE_17")], files_in(tmp_path))
    name = shown.slide_id
    message = f"{slide}: ROE 17 cannot be read ({slide.with_suffix('')}/Slidedat.ini, '/mnt/Roe/x.svs') at 0.5 um/px."
    assert without_names(shown, message) == f"{name}.mrxs: {name} cannot be read ({name}.ini, '(a file)') at 0.5 um/px."
    assert without_names(SlideRow(slide, "a"), message) == message


def call(*words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dino-path", *words])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


def test_a_store_keeps_to_its_key_and_the_files_and_messages_hold_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    slides = tmp_path / "SECRET folder"
    write_jpeg_slide(slides / "SECRET one.tif", [tissue_image()])
    (slides / "SECRET two.svs").write_bytes(b"SECRET, and no slide")
    (slides / "SECRET three.kfb").touch()
    (slides / "masks").mkdir()
    table = tmp_path / "slides.csv"
    table.write_text("path,patient_id,mask\nSECRET folder/SECRET one.tif,SECRET patient,mask SECRET.geojson\n")
    square = [[0, 0], [900, 0], [900, 700], [0, 700], [0, 0]]
    (tmp_path / "mask SECRET.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    words = ("tile", "SECRET folder", "slides.csv", "--out", "store", "tiles.mpp=0.5", "tiles.size_px=256",
             "--workers", "1", "--layout", "trident,clam")  # fmt: skip
    named = ("--pseudonymise", "private/map.csv")
    assert call(*words, *named) == 3
    told = "".join(capfd.readouterr())
    assert "SECRET" not in told
    assert "1 notes on the search for slides name files" in told
    assert "SECRET" in (tmp_path / "private/map.csv.log").read_text()
    found = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert [file for file in found if b"SECRET" in file.read_bytes() or "SECRET" in file.name] == []
    before = {file: file.stat().st_mtime_ns for file in found if file.suffix == ".tar"}
    assert call(*words, *named) == 3
    assert before == {file: file.stat().st_mtime_ns for file in before}, "it goes on where it was"
    capfd.readouterr()
    assert call(*words) == 2
    assert "its slides have pseudonyms" in capfd.readouterr().err
    assert call(*words, "--pseudonymise", "private/other.csv") == 2
    assert "another key" in capfd.readouterr().err
    assert not (tmp_path / "private/other.csv").exists()


def test_notes_of_two_tasks_at_once_are_all_kept_and_there_is_no_file_without_a_note(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    with kept_private(files) as note:
        with kept_private(files):
            pass
        assert not files.notes.exists()
        note("SECRET one")
        with kept_private(files) as other:
            other("SECRET two")
    assert [line.partition("SECRET ")[2] for line in files.notes.read_text().splitlines()][:2] == ["one", "two"]
    assert stat.S_IMODE(files.notes.stat().st_mode) == 0o600


def test_slides_with_their_own_names_and_stores_of_coordinates_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_slide_file(tmp_path / "a.tif", [tissue_image()])
    words = ("tile", "a.tif", "--out", "store", "tiles.mpp=0.5", "--workers", "1")
    assert call(*words, "--pseudonymise", "map.csv", "tiles.coordinates_only=true") == 2
    assert "coordinates_only" in capfd.readouterr().err
    assert call(*words, "--pseudonymise", "store/map.csv") == 2
    assert "lies inside store" in capfd.readouterr().err
    assert call(*words, "--key", "key") == 2
    assert "goes with --pseudonymise" in capfd.readouterr().err
    assert not os.path.exists("map.csv")  # noqa: PTH110
    StoreFolder(Path("store")).prepare(TilesConfig(mpp=0.5))
    write_record(StoreFolder(Path("store")), SlideRecord("a", str(tmp_path / "a.tif"), "failed", "of an earlier call"))
    assert call(*words, "--pseudonymise", "map.csv") == 2
    assert "have their own names" in capfd.readouterr().err
