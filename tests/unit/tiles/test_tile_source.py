import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from dino_path.errors import TileStoreError
from dino_path.tiles.images import ImageFiles, decode_tile, image_files
from dino_path.tiles.source import Subset, TileSource, open_readable_tiles, open_tiles, refuse_no_tiles
from dino_path.tiles.store import TileStore


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, name in enumerate(("b/2.png", "a/1.JPG", "a/3.tif", "a/.hidden.png", ".trash/4.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = np.full((8, 10, 3), (10 * number, 100, 200), dtype=np.uint8)  # BGR
        (tmp_path / name).write_bytes(cv2.imencode(Path(name).suffix.lower(), image)[1].tobytes())
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_of_images_is_a_source_in_sorted_order(pictures: Path) -> None:
    source: TileSource = open_tiles(pictures)
    assert [Path(source.name(i)).name for i in range(len(source))] == ["1.JPG", "3.tif", "2.png"]
    assert decode_tile(source.read_bytes(2), "x")[0, 0].tolist() == [200, 100, 0]
    assert source.mpp is None
    assert len(open_tiles(pictures, exclude=["3.tif"])) == 2


def test_a_store_opens_as_a_store(store_path: Path) -> None:
    source = open_tiles(store_path, split="test")
    assert isinstance(source, TileStore)
    assert source.mpp == 0.5


def test_what_holds_nothing_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TileStoreError, match=r"neither store\.json nor images"):
        open_tiles(tmp_path / "empty")
    with pytest.raises(TileStoreError, match="no such folder"):
        open_tiles(tmp_path / "none")
    with pytest.raises(TileStoreError, match="Only the slides of a tile store have splits"):
        open_tiles(pictures, split="train")
    with pytest.raises(TileStoreError, match="none were given"):
        ImageFiles([])
    with pytest.raises(TileStoreError, match=r"gone\.png"):
        ImageFiles([tmp_path / "gone.png"])


def test_links_that_lead_nowhere_are_refused_or_told_and_can_be_excluded(pictures: Path) -> None:
    (pictures / "a/5.png").symlink_to("/not_mounted/5.png")
    (pictures / "notes.lnk.txt").symlink_to("/not_mounted/notes")
    with pytest.raises(TileStoreError, match=r"1 folder.*5\.png: a link to /not_mounted/5\.png, which is not there"):
        open_tiles(pictures)
    assert len(open_tiles(pictures, exclude=["5.png"])) == 3
    source, unreadable = open_readable_tiles(pictures)
    assert len(source) == 3
    assert [one.path.name for one in unreadable] == ["5.png"]


def test_images_behind_linked_folders_are_found_once(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    for name in ("one", "two"):
        (tmp_path / "study" / name).symlink_to(pictures / "a")
    assert [file.parent.name for file in image_files(tmp_path / "study")] == ["one", "one"]


def test_the_digest_of_a_folder_follows_its_files(pictures: Path) -> None:
    before = open_tiles(pictures).digest
    assert open_tiles(pictures).digest == before
    (pictures / "a/3.tif").unlink()
    assert open_tiles(pictures).digest != before


def test_a_subset_reads_its_indices_in_its_order_and_can_be_pickled(pictures: Path) -> None:
    source = open_tiles(pictures)
    subset = pickle.loads(pickle.dumps(Subset(source, np.array([2, 0]))))
    assert len(subset) == 2
    assert subset.read_bytes(0) == source.read_bytes(2)
    assert subset.name(1) == source.name(0)
    assert subset.digest != Subset(source, np.array([0, 2])).digest
    assert len(Subset(source, np.zeros(0, dtype=int))) == 0
    with pytest.raises(IndexError):
        Subset(source, np.array([3]))


def test_transparent_pixels_are_white_and_grey_and_16_bit_images_are_rgb() -> None:
    bgra = np.zeros((1, 3, 4), dtype=np.uint8)
    bgra[0] = [(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 51)]
    decoded = decode_tile(cv2.imencode(".png", bgra)[1].tobytes(), "x")
    assert decoded.tolist() == [[[30, 20, 10], [255, 255, 255], [204, 204, 204]]]
    grey = decode_tile(cv2.imencode(".png", np.full((2, 2), 77, dtype=np.uint8))[1].tobytes(), "x")
    assert (grey == 77).all()
    assert grey.shape == (2, 2, 3)
    deep = decode_tile(cv2.imencode(".png", np.full((2, 2, 3), 65535, dtype=np.uint16))[1].tobytes(), "x")
    assert (deep == 255).all()


@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_pixels_that_are_no_colours_are_refused_and_not_taken_for_black(kind: type) -> None:
    pixels = np.full((4, 4, 3), 0.5 if kind is np.float32 else -3, dtype=kind)
    encoded = cv2.imencode(".tiff", pixels, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()  # 1: none
    with pytest.raises(TileStoreError, match=rf"(?s)cohort/7\.tif: cannot be read \(its pixels are {kind.__name__}"):
        decode_tile(encoded, "cohort/7.tif")


@pytest.mark.parametrize("spoil", ["empty", "text", "cut"])
@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_an_unreadable_image_is_refused_by_name_and_never_half_grey(spoil: str, extension: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = cv2.imencode(extension, noise)[1].tobytes()
    encoded = {"empty": b"", "text": b"no image at all", "cut": whole[: len(whole) // 2]}[spoil]
    with pytest.raises(TileStoreError, match=r"cohort/7\.img: cannot be read"):
        decode_tile(encoded, "cohort/7.img")


@pytest.mark.parametrize("is_link", [False, True], ids=["lost", "a loop of links"])
def test_a_store_without_its_first_file_is_not_taken_for_a_folder_of_images(
    store_path: Path, tmp_path: Path, is_link: bool
) -> None:
    """Its contact sheets and overlays are images too."""
    path = shutil.copytree(store_path, tmp_path / "store")
    (path / "store.json").unlink()
    if is_link:
        (path / "store.json").symlink_to("store.json")
    for opened in (open_tiles, open_readable_tiles, refuse_no_tiles):
        with pytest.raises((TileStoreError, OSError), match=r"store\.json"):
            opened(path)
