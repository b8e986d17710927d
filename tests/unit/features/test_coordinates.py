"""Coordinate files, read by the arithmetic of TRIDENT's and CLAM's own readers.

`trident_reads` restates WSIPatcher.py and WSI.py of mahmoodlab/TRIDENT a91fa84, `clam_reads` restates dataset_h5.py and
extract_features_fp.py of mahmoodlab/CLAM 53e2409, from reading them.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from dino_path.config import TilesConfig
from dino_path.errors import SlideError
from dino_path.features.coordinates import CoordinateSummary, write_coordinate_files
from dino_path.features.layouts import job_folder_name, read_layouts
from dino_path.records.slide import SlideRecord
from dino_path.slides.slide import Level
from dino_path.tiles.geometry import tile_spec
from dino_path.tiles.layout import StoreFolder, write_record
from dino_path.tiles.tile_table import TileRow, TileTable, limits_of, write_tile_table

JOB = "20x_256px_0px_overlap"
CORNERS = [(0, 0), (512, 0), (512, 1024)]
NATIVE = ((4096, 4096),)
PYRAMID = ((4096, 4096), (1024, 1024), (256, 256))


@dataclass(frozen=True)
class Pyramid:
    """What OpenSlide says of a slide; `sizes` are (width, height) of its levels."""

    mpp: float
    sizes: tuple[tuple[int, int], ...]

    @property
    def downsamples(self) -> list[float]:
        (width, height), *_ = self.sizes
        return [(width / w + height / h) / 2 for w, h in self.sizes]

    @property
    def levels(self) -> list[Level]:
        return [Level(w, h, d, self.mpp * d) for (w, h), d in zip(self.sizes, self.downsamples, strict=True)]


def add_slide(
    store: Path, path: str, pyramid: Pyramid, corners: list[tuple[int, int]], *, slide_id: str | None = None
) -> int:
    """Note a slide as tiled, or as empty where there are no corners; returns the edge of its tiles in level-0 px."""
    folder = StoreFolder(store)
    config, slide_id = folder.read_config(), slide_id or Path(path).stem
    spec = tile_spec(
        pyramid.levels, name=path, mpp=config.mpp, size_px=config.size_px, stride_px=config.size_px, tolerance=0.05
    )
    level = pyramid.levels[spec.level]
    record = SlideRecord(
        slide_id, path, "done" if corners else "empty", "" if corners else "no tissue", mpp=pyramid.mpp,
        tile_mpp=spec.tile_mpp, width_level0=pyramid.sizes[0][0], height_level0=pyramid.sizes[0][1], level=spec.level,
        level_width=level.width, level_height=level.height, read_px=spec.read_px, limits=limits_of(config),
        num_tiles=len(corners),
    )  # fmt: skip
    rows = [TileRow(x, y, spec.size_level0, 1.0, 9.0, 0.0, 0.0, 0.0, 0, 0) for x, y in corners]
    write_tile_table(folder.table_file(slide_id), TileTable.from_rows(rows))
    write_record(folder, record)
    return spec.size_level0


def add_failed(store: Path, path: str) -> None:
    write_record(StoreFolder(store), SlideRecord(Path(path).stem, path, "failed", "is no slide"))


def new_store(path: Path, *, mpp: float = 0.5, stride_px: int | None = None) -> Path:
    StoreFolder(path).prepare(TilesConfig(mpp=mpp, size_px=256, stride_px=stride_px, coordinates_only=True))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Slide a with three tiles, glass without any, torn that could not be read."""
    path = new_store(tmp_path / "store")
    add_slide(path, "/slides/a.svs", Pyramid(0.25, PYRAMID), CORNERS)
    add_slide(path, "/slides/glass.svs", Pyramid(0.25, PYRAMID), [])
    add_failed(path, "/slides/torn.svs")
    return path


def trident_reads(file: Path, pyramid: Pyramid) -> tuple[int, float]:
    """The level that TRIDENT reads a tile from, and the edge that it reads, in level-0 px."""
    with h5py.File(file) as h5:
        told = dict(h5["coords"].attrs)
    source_mpp, target_mpp = 10 / told["level0_magnification"], 10 / told["target_magnification"]
    ratio = target_mpp / source_mpp
    edge_level0 = round(told["patch_size"] * ratio)
    near = [level for level, downsample in enumerate(pyramid.downsamples) if abs(downsample - ratio) <= 0.1]
    finer = [level for level, downsample in enumerate(pyramid.downsamples) if downsample <= ratio]
    level = near[0] if near else finer[-1]
    edge_px = round(edge_level0 / int(pyramid.downsamples[level]))
    return level, edge_px * pyramid.downsamples[level]


def clam_reads(file: Path, pyramid: Pyramid) -> tuple[int, float]:
    """The level that CLAM reads a tile from, and the edge that it reads, in level-0 px."""
    with h5py.File(file) as h5:
        level, edge_px = (int(h5["coords"].attrs[key]) for key in ("patch_level", "patch_size"))
    return level, edge_px * pyramid.downsamples[level]


def clam_finds(out: Path, slides: set[str], extension: str) -> list[str]:
    """Names of the slides of which CLAM opens both files; asserts that each is there and has tiles."""
    found = []
    with (out / "clam" / "process_list_autogen.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            name = row["slide_id"].split(extension)[0]
            assert name + extension in slides
            with h5py.File(out / "clam" / "patches" / f"{name}.h5") as h5:
                assert len(h5["coords"]) > 0  # with none, CLAM makes no features and then looks for them
            found.append(name)
    return found


def write(store: Path, out: Path, layouts: str = "trident,clam") -> CoordinateSummary:
    return write_coordinate_files(store, read_layouts(layouts), out)


@pytest.mark.parametrize(
    ("level0_mpp", "sizes", "tile_mpp", "level"),
    [
        (0.265, NATIVE, 0.5, 0),
        (0.35, NATIVE, 0.5, 0),
        (0.25, NATIVE, 0.5, 0),
        (0.5, NATIVE, 0.5, 0),
        (0.265, PYRAMID, 0.5, 0),
        (0.2527, PYRAMID, 0.5, 0),
        (0.25, PYRAMID, 1.0, 1),
        (0.25, PYRAMID, 1.5, 1),
        (0.25, ((4099, 4099), (1024, 1024)), 1.0, 1),  # downsample 4.0029, cut to 4: no harm
    ],
)
def test_trident_and_clam_read_the_square_that_was_tiled(
    tmp_path: Path, level0_mpp: float, sizes: tuple[tuple[int, int], ...], tile_mpp: float, level: int
) -> None:
    store, pyramid = new_store(tmp_path / "store", mpp=tile_mpp), Pyramid(level0_mpp, sizes)
    size_level0 = add_slide(store, "/slides/a.svs", pyramid, CORNERS)
    summary = write(store, tmp_path / "out")
    trident = trident_reads(summary.folders[0] / "patches" / "a_patches.h5", pyramid)
    clam = clam_reads(summary.folders[1] / "patches" / "a.h5", pyramid)
    assert (trident[0], clam[0]) == (level, level)
    assert trident[1] == pytest.approx(size_level0, abs=1)
    assert clam[1] == pytest.approx(size_level0, abs=1)
    assert size_level0 == pytest.approx(256 * tile_mpp / level0_mpp, rel=0.05)  # tiles.mpp_tolerance
    assert summary.misread == ()
    assert summary.notes == ()


def test_a_downsample_that_trident_cuts_to_the_integer_below_is_told_and_clam_reads_it_right(tmp_path: Path) -> None:
    store, pyramid = new_store(tmp_path / "store", mpp=1.0), Pyramid(0.25, ((4099, 4099), (1025, 1025)))
    assert pyramid.downsamples[1] == pytest.approx(3.9990, abs=1e-4)
    size_level0 = add_slide(store, "/slides/a.svs", pyramid, CORNERS)
    summary = write(store, tmp_path / "out")
    level, edge_level0 = trident_reads(summary.folders[0] / "patches" / "a_patches.h5", pyramid)
    assert (level, round(edge_level0 / pyramid.downsamples[1])) == (1, 341)  # and not 256
    assert summary.misread == (("a", pytest.approx(edge_level0 / size_level0)),)
    assert "TRIDENT will read the tiles of 1 slides too large, at worst 1.33 times (a)" in summary.text()
    assert clam_reads(summary.folders[1] / "patches" / "a.h5", pyramid)[1] == pytest.approx(size_level0, abs=1)
    assert write(store, tmp_path / "clam only", "clam").misread == ()


def test_a_trident_file_has_all_that_trident_writes(store: Path, tmp_path: Path) -> None:
    assert write(store, tmp_path, "trident").folders == (tmp_path / "trident" / JOB,)
    with h5py.File(tmp_path / "trident" / JOB / "patches" / "a_patches.h5") as h5:
        coords = h5["coords"]
        assert (coords.dtype, coords.maxshape) == (np.int64, (None, 2))
        assert [tuple(corner) for corner in coords[()].tolist()] == CORNERS
        assert dict(coords.attrs) == {
            "patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40.0, "target_magnification": 20.0,
            "overlap": 0, "name": "a", "savetodir": "", "level0_width": 4096, "level0_height": 4096,
        }  # fmt: skip
        assert isinstance(coords.attrs["patch_size_level0"], np.integer)  # slide encoders take it as a number of px
        assert isinstance(coords.attrs["level0_magnification"], np.floating)
    assert not (tmp_path / "clam").exists()


def test_a_clam_file_has_all_that_clam_writes(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", mpp=1.0)
    add_slide(store, "/slides/a.svs", Pyramid(0.25, ((4100, 2050), (1025, 512))), CORNERS)
    write(store, tmp_path, "clam")
    with h5py.File(tmp_path / "clam" / "patches" / "a.h5") as h5:
        assert h5["coords"].dtype == np.int64
        assert [tuple(corner) for corner in h5["coords"][()].tolist()] == CORNERS
        attributes = {key: np.asarray(value).tolist() for key, value in h5["coords"].attrs.items()}
    assert attributes == {
        "patch_size": 256, "patch_level": 1, "downsample": [4.0, 2050 / 512], "downsampled_level_dim": [1025, 512],
        "level_dim": [1025, 512], "name": "a", "save_path": "",
    }  # fmt: skip


def test_a_slide_without_tiles_has_no_rows_for_trident_and_stays_out_of_clams_list(store: Path, tmp_path: Path) -> None:
    summary = write(store, tmp_path)
    with h5py.File(tmp_path / "trident" / JOB / "patches" / "glass_patches.h5") as h5:
        assert (h5["coords"].shape, h5["coords"].dtype) == ((0, 2), np.int64)
        assert h5["coords"].attrs["patch_size_level0"] == 512
    assert clam_finds(tmp_path, {"a.svs", "glass.svs", "torn.svs"}, ".svs") == ["a"]
    assert [file.name for file in (tmp_path / "clam" / "patches").iterdir()] == ["a.h5"]
    assert (summary.written, summary.empty) == (("a", "glass"), ("glass",))
    assert write(store, tmp_path / "clam only", "clam").written == ("a",)


def test_a_store_of_glass_alone_gives_files_without_rows(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    add_slide(store, "/slides/glass.svs", Pyramid(0.25, PYRAMID), [])
    summary = write(store, tmp_path / "out")
    assert (summary.num_tiles, summary.written, summary.notes) == (0, ("glass",), ())
    assert clam_finds(tmp_path / "out", set(), ".svs") == []


def test_failed_slides_are_listed_and_have_no_file(store: Path, tmp_path: Path) -> None:
    summary = write(store, tmp_path)
    assert summary.failed == (("torn", "is no slide"),)
    assert summary.num_tiles == 3
    assert summary.text().splitlines()[:2] == [
        "failed   torn: is no slide",
        "coordinates of 2 slides written, 0 already there, 1 without tiles, 1 failed; 3 tiles",
    ]
    assert list(tmp_path.rglob("torn*")) == [store / "slides" / "torn.json"]


def test_a_second_call_rewrites_only_what_changed(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    add_slide(store, "/slides/b.svs", Pyramid(0.25, PYRAMID), CORNERS)
    write(store, out)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("*") if file.is_file()}
    assert write(store, out).kept == ("a", "b", "glass")
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before
    add_slide(store, "/slides/b.svs", Pyramid(0.25, PYRAMID), CORNERS[:2])
    summary = write(store, out)
    assert (summary.written, summary.kept) == (("b",), ("a", "glass"))
    changed = {file.name for file in before if file.stat().st_mtime_ns != before[file][1]}
    assert changed == {"b_patches.h5", "b.h5"}
    again = tmp_path / "again"
    write(store, again)
    assert all((again / file.relative_to(out)).read_bytes() == file.read_bytes() for file in before)


def test_a_slide_that_has_failed_since_loses_its_files(store: Path, tmp_path: Path) -> None:
    write(store, tmp_path)
    add_failed(store, "/slides/a.svs")
    write(store, tmp_path)
    assert [file.name for file in tmp_path.rglob("*.h5")] == ["glass_patches.h5"]
    assert clam_finds(tmp_path, set(), ".svs") == []


def test_files_are_named_as_the_readers_look_for_them_and_not_by_slide_id(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    add_slide(store, "/s/one/TCGA-1.2f.svs", Pyramid(0.25, PYRAMID), CORNERS, slide_id="one__TCGA-1_2f")
    add_slide(store, "/s/two/b c.ome.tif", Pyramid(0.25, PYRAMID), CORNERS, slide_id="two__b_c_ome")
    summary = write(store, tmp_path / "out")
    names = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.h5")}
    assert names == {
        # TRIDENT takes .ome.tif as one extension, CLAM does not
        f"trident/{JOB}/patches/TCGA-1.2f_patches.h5", f"trident/{JOB}/patches/b c_patches.h5",
        "clam/patches/TCGA-1.2f.h5", "clam/patches/b c.ome.h5",
    }  # fmt: skip
    assert summary.written == ("one__TCGA-1_2f", "two__b_c_ome")
    assert "files of 2 slides are named after their slide file" in summary.notes[0]
    assert "these have .svs, .tif" in summary.notes[1]
    assert "these are in 2" in summary.notes[2]
    assert "one --slide_ext" not in write(store, tmp_path / "trident only", "trident").text()


@pytest.mark.parametrize("other", ["/slides/two/a.svs", "/slides/one/a.ndpi"])
def test_two_slides_of_one_name_are_refused_before_anything_is_written(tmp_path: Path, other: str) -> None:
    store = new_store(tmp_path / "store")
    add_slide(store, "/slides/one/a.svs", Pyramid(0.25, PYRAMID), CORNERS, slide_id="one__a")
    write_record(StoreFolder(store), SlideRecord("two__a", other, "failed", "is no slide"))
    with pytest.raises(SlideError, match=r"with those of /slides/one/a.svs[^$]*both are 'a'"):
        write(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mpp", "stride_px", "name"),
    [(0.5, None, JOB), (0.4, 240, "25x_256px_16px_overlap"), (0.46, 300, "21.7391x_256px_0px_overlap")],
)
def test_the_job_folder_is_named_by_magnification(mpp: float, stride_px: int | None, name: str) -> None:
    assert job_folder_name(TilesConfig(mpp=mpp, size_px=256, stride_px=stride_px)) == name
