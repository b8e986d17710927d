"""`dino-path map` on a store of synthetic slides, with a model and with its feature files; and what it refuses."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import ALONE, write_tiles

from dino_path import cli
from dino_path.features.embed import embed_store
from dino_path.features.extractor import load_extractor
from dino_path.records.feature_map import NONE, read_feature_map, unpacked
from dino_path.settings import load_config
from dino_path.slides.find import find_slides
from dino_path.slides.synthetic import SyntheticSlide, make_slides
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import tile_slides

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store` with the tiles of three slides of 512 px, `slides/regions`, `centres.csv`, `features`, and `images`."""
    folder = tmp_path_factory.mktemp("map")
    slides = [SyntheticSlide(f"slide_{one}", "train" if one else "test", one, 512) for one in range(3)]
    table = make_slides(folder / "slides", slides, num_workers=0)
    settings = ["tiles.mpp=0.5", "tiles.size_px=32", "tiles.mask_mpp=4", "tiles.min_area_um2=500"]
    config = load_config(None, settings, needs=("tiles",))
    assert config.tiles is not None
    tile_slides(find_slides([table]), config.tiles, folder / "store", num_workers=0)
    (folder / "centres.csv").write_text("slide_id,centre\nslide_0,Oslo\nslide_1,Bonn\nslide_2,Oslo\n")
    extractor = load_extractor("mean-colour", device=ALONE.device)
    embed_store(extractor, TileStore.open(folder / "store"), folder / "embedded", batch_size=64, world=ALONE)
    (folder / "features").symlink_to(next((folder / "embedded").glob("*/features_mean-colour")))
    write_tiles(folder / "images", 12)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: Path) -> Run:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dino-path", "map", "--quiet", "--workers", "0", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capfd.readouterr()
        return int(end.value.code or 0), out, err

    return call


def test_a_store_becomes_a_page_and_feature_files_give_the_same_map(run: Run, place: Path) -> None:
    words = ("--store", "store", "--columns", "centres.csv", "--max-tiles", "90", "--method", "pca", "--clusters", "3")
    code, out, err = run("mean-colour", *words, "--out", "map.html", "--json")
    assert code == 0, err
    summary = json.loads(out)
    record, store = read_feature_map(place / "map.html"), TileStore.open(place / "store")
    assert (summary["num_tiles"], summary["num_all_tiles"], summary["unit"]) == (90, len(store), "slide")
    assert summary["bytes"] == (place / "map.html").stat().st_size < 15_000_000
    assert [column.title for column in record.columns] == ["slide", "patient", "split", "centre", "cluster"]
    slide = unpacked(record.columns[0].codes, "u2")
    assert np.bincount(slide).tolist() == [30, 30, 30]
    # The tile's place and slide are those of the store, and its neighbours are of other slides.
    corners = {
        (store.slide_id(number), int(store.x_level0[number]), int(store.y_level0[number]))
        for number in range(len(store))
    }
    names = [record.columns[0].names[one] for one in slide]
    places = zip(names, unpacked(record.x_level0 or "", "i4"), unpacked(record.y_level0 or "", "i4"), strict=True)
    assert {(name, int(x), int(y)) for name, x, y in places} <= corners
    neighbours = unpacked(record.neighbours, "u2").reshape(90, 10)
    assert (neighbours != NONE).all()
    assert (slide[neighbours] != slide[:, None]).all()
    assert record.columns[1].alike is None, "every patient has one slide"
    centre = unpacked(record.columns[3].codes, "u2")
    assert record.columns[3].alike == pytest.approx((centre[neighbours] == centre[:, None]).mean())

    assert run("features", *words, "--out", "again.html")[0] == 0
    assert read_feature_map(place / "again.html") == record


def test_labelled_tiles_are_coloured_by_class_and_the_text_gives_the_numbers(run: Run, place: Path) -> None:
    words = ("evaluation.regions=slides/regions", "--data", "store:store", "--method", "pca")
    code, out, err = run("mean-colour", *words, "--out", "labelled.html")
    assert code == 0, err
    record = read_feature_map(place / "labelled.html")
    assert [column.title for column in record.columns] == ["class", "patient", "split", "slide", "cluster"]
    assert f"kept: {record.kept:.1%}" in out
    assert f"class: {record.columns[0].alike:.1%} of neighbours from other slides" in out
    assert "map: labelled.html (" in out


def test_images_of_a_folder_have_a_map(run: Run, place: Path) -> None:
    code, _, err = run("mean-colour", "--store", "images", "--out", "images.html")
    assert code == 0, err
    record = read_feature_map(place / "images.html")
    assert (record.unit, record.num_tiles, record.names) == ("image", 12, tuple(f"{one:03d}.png" for one in range(12)))


STORE = ("--store", "store")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("mean-colour", "--out", "m.html"), "neither is given"),
        (("mean-colour", *STORE, "--data", "images", "--out", "m.html"), "both are given"),
        (("mean-colour", "other", *STORE, "--out", "m.html"), "2 models are given"),
        (("mean-colour", *STORE, "--out", "m.png"), "does not end in .html"),
        (("mean-colour", "--store", "nowhere", "--out", "m.html"), "nowhere"),
        (("mean-colour", *STORE, "--split", "val", "--out", "m.html"), "val"),
        (("mean-colour", *STORE, "--columns", "nowhere.csv", "--out", "m.html"), "nowhere.csv"),
        (("mean-color", *STORE, "--out", "m.html"), "mean-color"),
        (("features", "--store", "images", "--out", "m.html"), "is a folder of feature files"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_mistakes_are_refused_in_four_parts(run: Run, words: tuple[str, ...], named: str) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert named in err
    lines = err[err.rindex("Error: ") :].strip().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("  ") for line in lines[1:])
