"""The id that a user gives a slide names its feature files; an id that was made of its path does not."""

from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from feature_samples import CPU, write_store
from tiny import ALONE

from dino_path.errors import SlideError
from dino_path.features.embed import embed_store
from dino_path.features.extractor import load_extractor
from dino_path.features.layouts import ClamLayout, TridentLayout, has_given_id, refuse_shared_names
from dino_path.records.slide import SlideRecord
from dino_path.tiles.layout import StoreFolder, write_record
from dino_path.tiles.store import TileStore


@pytest.mark.parametrize(
    ("path", "slide_id", "is_given"),
    [
        ("/data/ward/Doe 1.svs", "Doe_1", False),
        ("/data/ward/Doe 1.svs", "ward__Doe_1", False),
        ("/data/ward/Doe 1.svs", "data__ward__Doe_1", False),
        ("/data/x.ome.tif", "x_ome", False),
        ("/data/x.ome.tif", "x", False),  # as `embed` calls slides that nobody has tiled
        ("/data/1.2.840.113", "1_2_840_113", False),
        ("s-4k7q-m2xd-9tbr.svs", "s-4k7q-m2xd-9tbr", False),
        ("/data/ward/Doe 1.svs", "case-7", True),
        ("/data/ward/Doe 1.svs", "Doe_12", True),
    ],
)
def test_an_id_is_given_where_it_is_no_end_of_the_path(path: str, slide_id: str, is_given: bool) -> None:
    assert has_given_id(path, slide_id) is is_given
    record = SlideRecord(slide_id, path, "done")
    expected = slide_id if is_given else Path(path).name.removesuffix(Path(path).suffix).removesuffix(".ome")
    assert TridentLayout.feature_name(record) == expected
    assert (ClamLayout.feature_name(record) == slide_id) is (is_given or slide_id == Path(path).stem)


def test_given_ids_name_all_files_of_features_and_no_file_holds_the_name_of_the_slides(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", {"case-1": 2, "case-2": 3})
    for record in store.slides:  # two slides of one name, as scanners give them
        write_record(StoreFolder(store.path), replace(record, path=f"/wards/{record.slide_id[-1]}/DOE.svs"))
    out = tmp_path / "features"
    summary = embed_store(
        load_extractor("mean-colour", device=CPU), TileStore.open(store.path), out, layouts=("trident", "clam"),
        batch_size=4, world=ALONE,
    )  # fmt: skip
    assert summary.written == ("case-1", "case-2")
    files = [file for file in out.rglob("*") if file.is_file()]
    assert {file.name for file in files if "case-1" in file.name} == {"case-1.h5", "case-1.pt", "case-1_patches.h5"}
    assert [file for file in files if b"DOE" in file.read_bytes() or "DOE" in file.name] == []
    with h5py.File(summary.folders[0] / "case-1.h5") as h5:
        assert h5["coords"].attrs["name"] == "case-1"


def test_a_given_id_that_is_the_name_of_another_slides_file_is_refused() -> None:
    with pytest.raises(SlideError, match="both are 'b'"):
        refuse_shared_names([("/data/a.svs", "b"), ("/data/b.svs", None)], ("trident",))
