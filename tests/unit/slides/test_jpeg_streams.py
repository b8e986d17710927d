import io

import cv2
import numpy as np
import pytest
from PIL import Image
from slide_files import stained_image

from dino_path.slides.images.jpeg import (
    SAYS_YCBCR,
    BadJpeg,
    decode_jpeg,
    frame_size,
    table_segments,
    whole_jpeg,
    without_metadata,
)

PIXELS = stained_image(64, 48)


def encoded(**options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "jpeg", **{"quality": 95, **options})
    return stream.getvalue()


def decoded(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def without(stream: bytes, *markers: int) -> bytes:
    kept, at = [stream[:2]], 2
    while stream[at + 1] != 0xDA:
        stop = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] not in markers:
            kept.append(stream[at:stop])
        at = stop
    return b"".join([*kept, stream[at:]])


def test_a_stream_without_tables_and_its_tables_make_the_picture_again() -> None:
    full = encoded()
    whole = whole_jpeg(without(full, 0xDB, 0xC4, 0xE0), table_segments(full), is_rgb=False)
    np.testing.assert_array_equal(decoded(whole), decoded(full))
    assert frame_size(whole) == (64, 48, 3)


@pytest.mark.parametrize("decoder", [decoded, lambda jpeg: cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1)[..., ::-1]])
def test_colours_are_those_the_tiff_names_whatever_markers_the_stream_has(decoder: object) -> None:
    rgb = encoded(keep_rgb=True, subsampling="4:4:4")
    contradicted = rgb[:2] + SAYS_YCBCR + without(rgb, 0xEE)[2:]  # JFIF: YCbCr, and the TIFF says RGB
    assert np.abs(decoder(contradicted).astype(int) - PIXELS).mean() > 20  # type: ignore[operator]
    mended = whole_jpeg(contradicted, b"", is_rgb=True)
    assert np.abs(decoder(mended).astype(int) - PIXELS).mean() < 2  # type: ignore[operator]


def test_comments_and_application_segments_do_not_come_along() -> None:
    stream = encoded(comment=b"John Doe", exif=b"Exif\0\0John Doe", icc_profile=b"John Doe" * 20)
    assert b"John Doe" in stream
    whole = whole_jpeg(stream, b"", is_rgb=False)
    assert b"John Doe" not in whole
    np.testing.assert_array_equal(decoded(whole), decoded(stream))


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_nothing_that_may_name_a_person_comes_along_wherever_it_stands(options: dict[str, object]) -> None:
    stream = encoded(**options)
    name, trailer = b"John Doe", b"\xff\xd9 and John Doe again " + encoded(comment=b"John Doe")
    planted = b"".join([segment(marker, name) for marker in (*range(0xE0, 0xF0), 0xFE, 0xF3, 0x42)])
    scan = stream.rindex(b"\xff\xda")  # of a progressive stream the last one, between its pixels
    full = stream[:2] + planted + stream[2:scan] + planted + stream[scan:-2] + planted + stream[-2:] + trailer
    for one in (full, whole_jpeg(full, b"", is_rgb=False)):
        clean = without_metadata(one)
        assert name not in clean
        assert clean == without_metadata(stream)
        np.testing.assert_array_equal(decode_jpeg(clean, shrink=1), decode_jpeg(stream, shrink=1))


def test_segments_that_name_the_colours_keep_nothing_else() -> None:
    rgb = encoded(keep_rgb=True, subsampling="4:4:4")
    adobe = rgb.index(b"Adobe")
    noted = rgb[: adobe + 5] + b"BOB!" + rgb[adobe + 9 :]  # its version and flags
    clean = without_metadata(noted)
    assert b"BOB!" not in clean
    np.testing.assert_array_equal(decoded(clean), decoded(rgb))


def test_padding_after_the_end_marker_is_cut_off() -> None:
    stream = encoded()
    assert whole_jpeg(stream + b"\0\0\0", b"", is_rgb=False) == whole_jpeg(stream, b"", is_rgb=False)


def test_a_damaged_stream_is_refused() -> None:
    stream = encoded()
    for damaged, message in [
        (b"\0" * 500, "no end marker"),
        (b"\x89PNG\r\n" + stream, "does not start as a JPEG"),
        (stream[:-2], "no end marker"),
        (stream[:25] + b"\xff\xd9", "ends within a segment|do not join"),
        (stream[:2] + b"\xff\xd9", "no scan"),
        (stream[:20] + b"\0" * 30 + stream[50:], "do not join"),
    ]:
        with pytest.raises(BadJpeg, match=message):
            whole_jpeg(damaged, b"", is_rgb=False)
    with pytest.raises(BadJpeg, match="frame header"):
        frame_size(without(stream, 0xC0))


# --- strict decoding ----------------------------------------------------------------------------------------------

OPENCV = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
SCAN = encoded().find(b"\xff\xda") + 14


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "options", [{}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"progressive": True}, {"keep_rgb": True}]
)
def test_whole_pictures_have_the_pixels_of_opencvs_libjpeg_turbo(shrink: int, options: dict[str, object]) -> None:
    jpeg = encoded(**options)
    theirs = cv2.imdecode(np.frombuffer(jpeg, np.uint8), OPENCV[shrink])[..., ::-1]
    np.testing.assert_array_equal(decode_jpeg(jpeg, shrink=shrink), theirs)


@pytest.mark.parametrize("shrink", [1, 4])
@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda jpeg: jpeg[: len(jpeg) // 2], "Premature end of JPEG file"),
        (lambda jpeg: jpeg[:-2], "Premature end of JPEG file"),  # all pixels, no end marker
        (lambda jpeg: jpeg[: SCAN + 300] + bytes(len(jpeg) - SCAN - 302) + jpeg[-2:], "Corrupt JPEG data"),
        (lambda jpeg: jpeg[:SCAN] + jpeg[SCAN + 900 :], "Corrupt JPEG data"),
        (lambda jpeg: jpeg[:-2] + bytes(40) + jpeg[-2:], "extraneous bytes before marker"),
        (lambda jpeg: b"", "."),
    ],
    ids=["cut", "no end marker", "zeroed", "a part missing", "bytes left over", "empty"],
)
def test_a_warning_of_libjpegs_is_an_error_and_no_grey_rows(spoil: object, found: str, shrink: int) -> None:
    with pytest.raises(BadJpeg, match=found):
        decode_jpeg(spoil(encoded()), shrink=shrink)  # type: ignore[operator]


@pytest.mark.parametrize("trailer", [b"\0" * 512, bytes(range(256)) * 40, encoded(quality=30)[:300]])
def test_what_follows_the_end_marker_is_no_part_of_the_picture(trailer: bytes) -> None:
    np.testing.assert_array_equal(decode_jpeg(encoded() + trailer, shrink=1), decoded(encoded()))
