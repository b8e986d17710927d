"""Squares of a slide: the right pixels, from the right level, for many threads at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import stained_image, write_slide_file

from dino_path.errors import SlideError
from dino_path.slides.images.decoding import decode_image
from dino_path.slides.region import level_for, read_scaled
from dino_path.slides.slide import Slide
from dino_path.viewing import deep_zoom
from dino_path.viewing.deep_zoom import DeepZoom, OpenSlides, read_square
from dino_path.viewing.viewer import Viewer


def test_squares_side_by_side_are_the_slide(tmp_path: Path) -> None:
    image = stained_image(1100, 700)
    with Slide.open(write_slide_file(tmp_path / "s.tif", [image])) as slide:
        rows = [np.concatenate([read_square(slide, 0, column, row) for column in range(3)], axis=1) for row in range(2)]
    assert np.array_equal(np.concatenate(rows), image)


@pytest.mark.parametrize("num_levels", [1, 2])
def test_a_coarse_square_is_the_mean_of_what_it_covers(tmp_path: Path, num_levels: int) -> None:
    image = stained_image(1536, 1280)
    mean = image.reshape(640, 2, 768, 2, 3).mean(axis=(1, 3))
    levels = [image, np.rint(mean).astype(np.uint8)][:num_levels]
    with Slide.open(write_slide_file(tmp_path / "s.tif", levels)) as slide:
        assert level_for(slide, 2) == num_levels - 1
        found = read_square(slide, 1, 1, 1)
    assert found.shape == (128, 256, 3)  # what is left of 768 x 640 px beyond 512
    assert np.abs(found - mean[512:, 512:]).max() <= 1


def test_what_lies_outside_or_cannot_be_read_at_once_is_refused(tmp_path: Path) -> None:
    with Slide.open(write_slide_file(tmp_path / "s.tif", [stained_image(600, 600)])) as slide:
        for place in ((0, 2, 0), (0, 0, 2), (99, 0, 0)):
            with pytest.raises(SlideError, match="has no image square"):
                read_square(slide, *place)
        with pytest.raises(SlideError, match="needs 5,000 x 5,000 px"):
            read_scaled(slide, (0, 0), (5000, 5000), (100, 100))


def test_a_region_may_reach_over_the_edge_and_grow(tmp_path: Path) -> None:
    image = stained_image(300, 300)
    with Slide.open(write_slide_file(tmp_path / "s.tif", [image])) as slide:
        found = read_scaled(slide, (200, 200), (200, 200), (200, 200))
        assert np.array_equal(found[:100, :100], image[200:, 200:])
        assert (found[100:] == 255).all()
        grown = read_scaled(slide, (10, 20), (50, 50), (100, 100))
        assert np.array_equal(grown, cv2.resize(image[20:70, 10:60], (100, 100), interpolation=cv2.INTER_CUBIC))


def test_a_slide_without_coarse_levels_ends_where_a_square_would_be_too_large(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoom = DeepZoom(OpenSlides(viewer.records))
    assert zoom.coarsest(0) == 1  # 1024 px in one square of 512
    assert zoom.coarsest(2) == 0  # 300 px
    monkeypatch.setattr(deep_zoom, "MOST_READ_PX", 511)
    assert zoom.coarsest(0) == 0


def test_threads_get_the_squares_they_ask_for(viewer: Viewer, slides: dict[str, np.ndarray]) -> None:
    zoom = DeepZoom(OpenSlides(viewer.records))
    images = [slides[record.path] for record in viewer.records]
    wanted = [(number, column) for _ in range(6) for number in (0, 1) for column in (0, 1)]
    with ThreadPoolExecutor(8) as threads:
        found = [*threads.map(lambda one: zoom.square(one[0], 0, one[1], 0), wanted)]
    for (number, column), encoded in zip(wanted, found, strict=True):
        expected = images[number][:512, 512 * column : 512 * (column + 1)]
        square = decode_image(encoded)
        assert square.shape == expected.shape
        assert np.abs(square.astype(int) - expected).mean() < 12  # JPEG of noise
    assert len(set(found)) == 4


def test_few_slides_stay_open_and_little_is_kept(viewer: Viewer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_zoom, "MOST_IDLE", 1)
    monkeypatch.setattr(deep_zoom, "CACHE_BYTES", 1)
    slides = OpenSlides(viewer.records)
    zoom = DeepZoom(slides)
    assert zoom.square(0, 0, 0, 0) != zoom.square(1, 0, 0, 0)
    assert [number for number, _ in slides._idle] == [1]
    assert len(zoom._kept) == 0
    slides.close()
    assert slides._idle == []


def test_a_slide_that_was_replaced_is_refused(viewer: Viewer) -> None:
    other = replace(viewer.records[0], content_digest="0" * 64, stamp="")
    with pytest.raises(SlideError, match="is not the file that was tiled"), OpenSlides([other]).lend(0):
        pass
