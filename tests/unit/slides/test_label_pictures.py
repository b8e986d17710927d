import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from dino_path.errors import SlideError
from dino_path.slides import label_pictures
from dino_path.slides.label_pictures import labels_of_colours, read_labels, read_picture

SIZE = (1024, 512)  # of the slide, level-0 px


def quarters(width: int, height: int, *numbers: int) -> np.ndarray:
    """Four upright stripes of these class numbers."""
    return np.repeat(np.array(numbers, np.uint8), width // 4)[None].repeat(height, axis=0)


def write_pyramid(file: Path, *levels: np.ndarray, **options: object) -> Path:
    with tifffile.TiffWriter(file) as tiff:
        for number, level in enumerate(levels):
            tiff.write(level, subfiletype=1 if number else 0, metadata=None, **options)
    return file


def test_the_level_that_suits_is_read_and_no_number_is_averaged(tmp_path: Path) -> None:
    # Each level says by its numbers which it is.
    levels = [quarters(SIZE[0] // 2**n, SIZE[1] // 2**n, 0, 1 + n, 100 + n, 200 + n) for n in range(3)]
    file = write_pyramid(tmp_path / "m.tif", *levels, tile=(64, 64), compression="zlib")
    for enough_px, level in (((256, 128), 2), ((257, 128), 1), ((512, 256), 1), ((4000, 2000), 0)):
        picture = read_picture(file, "a", SIZE, enough_px=enough_px)
        assert np.unique(picture).tolist() == [0, 1 + level, 100 + level, 200 + level]
        assert picture.shape[1] >= min(enough_px[0], SIZE[0] >> level)
        assert [picture[0, int((q + 0.5) * picture.shape[1] / 4)] for q in range(4)] == np.unique(picture).tolist()


@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"rowsperstrip": 7}, {"rowsperstrip": 512}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.bool_])
def test_one_level_alone_is_thinned_out_block_by_block(tmp_path: Path, options: dict, dtype: type) -> None:
    whole = quarters(1000, 500, 0, 1, 0, 1).astype(dtype)
    photometric = {"photometric": "minisblack"}
    file = write_pyramid(tmp_path / "m.tif", whole, **options, **photometric)
    picture = read_picture(file, "a", SIZE, enough_px=(100, 50))
    np.testing.assert_array_equal(picture, whole[::10, ::10])
    np.testing.assert_array_equal(read_picture(file, "a", SIZE, enough_px=(1000, 1)), whole)


def test_labels_of_a_large_picture_are_thinned_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_pyramid(tmp_path / "m.tif", quarters(1024, 512, 0, 3, 1, 2), tile=(64, 64))
    assert read_labels(file, "a", SIZE).shape == (512, 1024)
    monkeypatch.setattr(label_pictures, "ENOUGH_FOR_LABELS_PX", 1024 * 512 // 64)
    labels = read_labels(file, "a", SIZE)
    np.testing.assert_array_equal(labels, quarters(128, 64, 0, 3, 1, 2))


def test_tiles_that_a_sparse_tiff_leaves_out_are_background(tmp_path: Path) -> None:
    stream = zlib.compress(np.full((256, 256), 7, np.uint8).tobytes())
    tiles = (stream if number == 5 else b"" for number in range(8))
    with tifffile.TiffWriter(tmp_path / "m.tif") as tiff:
        tiff.write(tiles, shape=(512, 1024), dtype=np.uint8, tile=(256, 256), compression="zlib")
    labels = read_labels(tmp_path / "m.tif", "a", SIZE)
    assert (labels == 7).sum() == 256**2
    assert (labels[256:, 256:512] == 7).all()


def test_labels_in_the_red_channel_are_read_and_colours_that_share_a_red_are_refused(tmp_path: Path) -> None:
    labels = quarters(1024, 512, 0, 1, 2, 3)
    panda = np.dstack([labels, labels * 0, labels * 0])
    for planar in ("contig", "separate"):
        stored = panda if planar == "contig" else np.moveaxis(panda, -1, 0)
        file = write_pyramid(tmp_path / f"{planar}.tif", stored, tile=(64, 64), photometric="rgb", planarconfig=planar)
        np.testing.assert_array_equal(read_labels(file, "a", SIZE), labels)
    green = write_pyramid(tmp_path / "g.tif", panda[..., [1, 0, 2]], tile=(64, 64), photometric="rgb")
    with pytest.raises(SlideError, match="is a colour picture"):
        read_labels(green, "a", SIZE)
    assert labels_of_colours(panda.astype(np.uint16)) is None


def test_what_is_damaged_has_another_shape_or_would_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_pyramid(tmp_path / "m.tif", quarters(1024, 512, 0, 1, 2, 3), tile=(64, 64), compression="zlib")
    with pytest.raises(SlideError, match="differs in shape from a"):
        read_labels(file, "a", (512, 1024))
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"II*\0" + b"\xff" * 100, whole[:-40]):
        (tmp_path / "d.tif").write_bytes(damaged)
        with pytest.raises(SlideError, match=r"d\.tif: the mask cannot be read"):
            read_labels(tmp_path / "d.tif", "a", SIZE)
    floats = write_pyramid(tmp_path / "f.tif", np.zeros((512, 1024), np.float32), tile=(64, 64))
    with pytest.raises(SlideError, match="its pixels are float32"):
        read_labels(floats, "a", SIZE)
    strip = write_pyramid(tmp_path / "s.tif", quarters(1024, 512, 0, 1, 2, 3), rowsperstrip=512)
    monkeypatch.setattr(label_pictures, "LARGEST_BYTES", 2**16)
    monkeypatch.setattr(label_pictures, "ENOUGH_FOR_LABELS_PX", 2**12)
    assert read_labels(file, "a", SIZE).any()
    with pytest.raises(SlideError, match="the mask has 1024 x 512 pixels"):
        read_labels(strip, "a", SIZE)


def test_a_pyramid_of_labels_as_it_is_published(shared_data: Path) -> None:
    file = shared_data / "slides-odd" / "masks" / "karolinska-mask.tif"
    labels = read_labels(file, "a", (4096, 1024))
    assert np.unique(labels).tolist() == [0, 2]
    assert (labels == 2).mean() == 0.25
