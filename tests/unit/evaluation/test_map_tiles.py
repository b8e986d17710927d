"""Which tiles a map shows, what it knows of them, and how large their thumbnails are."""

import base64
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.results.map_tiles import Table, draw, even_quotas, tiles_of_labelled, tiles_of_source


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True)
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype(np.uint8)
        (folder / f"{number:02d}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return [f"{folder.name}/{number:02d}.png" for number in range(count)]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Thirty images: label, patient, and a site that is not known of some."""
    rows = [
        f"{path},{'AB'[number % 2]},p{number // 3},{('Oslo', 'Bonn', '')[number % 3]}"
        for number, path in enumerate(write_images(tmp_path / "images", 30))
    ]
    (tmp_path / "set.csv").write_text("path,label,patient_id,site\n" + "\n".join(rows) + "\n")
    return tmp_path / "set.csv"


def test_quotas_are_even_and_use_up_what_they_may() -> None:
    def quotas(counts: list[int], total: int) -> list[int]:
        return even_quotas(np.array(counts), total, np.random.default_rng(0)).tolist()

    assert quotas([100, 100, 100], 30) == [10, 10, 10]
    assert quotas([2, 100, 50], 30) == [2, 14, 14]
    assert quotas([2, 100, 50], 31) in ([2, 15, 14], [2, 14, 15])
    assert quotas([5, 5], 100) == [5, 5]
    assert sorted(quotas([9, 9, 9, 9], 2)) == [0, 0, 1, 1]


def test_single_images_are_drawn_from_the_whole_set() -> None:
    rows = draw(np.arange(1000), 100, seed=0)
    assert len(rows) == 100
    assert 400 < rows.mean() < 600


def test_draws_are_repeatable_without_repetition_and_even() -> None:
    group = np.repeat(np.arange(4), [3, 200, 50, 1000])
    rows = draw(group, 103, seed=5)
    assert sorted(np.bincount(group[rows])) == [3, 33, 33, 34]
    assert len(np.unique(rows)) == 103
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, draw(group, 103, seed=5))
    assert not np.array_equal(rows, draw(group, 103, seed=6))
    assert draw(group, 5000, seed=0).tolist() == list(range(len(group)))


def test_a_manifest_brings_classes_patients_split_and_its_further_columns(manifest: Path) -> None:
    labelled = load_labelled(str(manifest), EvaluationConfig())
    tiles = tiles_of_labelled(str(manifest), labelled, None, None, 100, seed=0)
    assert list(tiles.columns) == ["class", "patient", "split", "site"]
    assert tiles.columns["site"][:4] == ["Oslo", "Bonn", "not given", "Oslo"]
    assert (tiles.unit, len(np.unique(tiles.group_M))) == ("patient", 10)
    assert tiles.content == labelled.content_digest, "features of an evaluation are found again"
    some = tiles_of_labelled(str(manifest), labelled, None, None, 20, seed=0)
    assert np.bincount(some.group_M).tolist() == [2] * 10
    assert some.content == hashlib.sha256(labelled.content[some.rows].tobytes()).hexdigest()
    train = tiles_of_labelled(str(manifest), labelled, None, "train", 100, seed=0)
    assert "split" not in train.columns
    assert train.rows.tolist() == labelled.part("train").tolist()
    with pytest.raises(DataError, match="0 tiles are available; its splits are test, train"):
        tiles_of_labelled(str(manifest), labelled, None, "val", 100, seed=0)


def test_a_table_adds_columns_by_path_or_by_patient_and_must_fit(manifest: Path, tmp_path: Path) -> None:
    labelled = load_labelled(str(manifest), EvaluationConfig())

    def columns_with(name: str, text: str) -> dict[str, object]:
        (tmp_path / name).write_text(text)
        return dict(tiles_of_labelled(str(manifest), labelled, Table.read(tmp_path / name), None, 100, seed=0).columns)

    assert (
        columns_with("patients.csv", "patient_id,scanner\np0,Aperio\n")["scanner"]
        == ["Aperio"] * 3 + ["not given"] * 27
    )
    assert columns_with("paths.csv", "path,stain\nimages/01.png,HE\n")["stain"][1] == "HE"  # type: ignore[index]
    for text, found in (
        ("patient_id,scanner\nx,Aperio\n", "no tile has a row"),
        ("slide_id,scanner\nx,Aperio\n", "the data do not have"),
        ("scanner\nAperio\n", "it has the columns scanner"),
        ("patient_id,label\np0,A\n", "it has the columns patient_id, label"),
    ):
        with pytest.raises(DataError, match=found):
            columns_with("bad.csv", text)


def test_images_of_a_folder_are_each_their_own_unit(tmp_path: Path) -> None:
    write_images(tmp_path / "all" / "a", 8)
    write_images(tmp_path / "all" / "b", 4)
    tiles = tiles_of_source(tmp_path / "all", None, None, 100, seed=0)
    assert tiles.columns == {"folder": ["a"] * 8 + ["b"] * 4}
    assert (tiles.unit, tiles.group_M.tolist()) == ("image", list(range(12)))
    with pytest.raises(DataError, match="4 tiles are available"):
        tiles_of_source(tmp_path / "all" / "b", None, None, 100, seed=0)


def test_thumbnails_are_as_large_as_the_budget_allows_and_then_fewer(tmp_path: Path) -> None:
    from dino_path.evaluation.results.feature_map import SHEET_ROWS, thumbnails
    from dino_path.records.feature_map import unpacked
    from dino_path.tiles.source import open_tiles

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(700):
        image = np.full((40, 48, 3), (number % 256, number // 256 * 80, 90), np.uint8)
        (folder / f"{number:03d}.png").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    source = open_tiles(folder)
    large, small, few = (thumbnails(source, budget, num_workers=0) for budget in (10_000_000, 100_000, 5_000))
    assert large.edge_px == 96
    assert large.tiles == ""
    assert small.edge_px < 96
    assert few.edge_px == 16
    shown = unpacked(few.tiles, "u2")
    assert 0 < len(shown) < 700
    assert shown[-1] == 699
    for pictures, budget in ((large, 10_000_000), (small, 100_000), (few, 5_000)):
        assert sum(map(len, pictures.sheets)) < budget
        assert budget > 1_000_000 or sum(map(len, pictures.sheets)) > budget / 4
    sheets = [
        cv2.imdecode(np.frombuffer(base64.b64decode(sheet), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        for sheet in large.sheets
    ]
    for number in (0, 1, SHEET_ROWS, 575, 576, 699):
        row, column = divmod(number % SHEET_ROWS**2, SHEET_ROWS)
        seen = sheets[number // SHEET_ROWS**2][row * 96 + 48, column * 96 + 48].astype(int)
        assert np.abs(seen - (number % 256, number // 256 * 80, 90)).max() < 6
