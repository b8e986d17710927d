"""Every kind of image that may come as a tile: known pixels, those of a second decoder, or a refusal."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps
from slide_files import stained_image, write_jpeg_slide

from dino_path.slides.images.decoding import BadImage, decode_image

RGB = stained_image(80, 48)
GREY = RGB[..., 1].copy()
ALPHA = stained_image(80, 48, seed=1)[..., 0]
DEEP = (RGB.astype(np.uint16) << 8) + RGB[::-1]
ON_WHITE = np.rint(RGB * (ALPHA[..., None] / 255) + 255 * (1 - ALPHA[..., None] / 255)).astype(np.uint8)
AS_RGB = np.repeat(GREY[..., None], 3, axis=2)
DEEP_AS_8 = np.rint(DEEP / 257).astype(np.uint8)
LOSSLESS = ["none", "lzw", "deflate", "packbits", "zstd", "lzma", "jpeg2000", 33005, "png"]


def tiff(pixels: NDArray[np.generic], **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, metadata=None, **{"photometric": "rgb", **options})  # type: ignore[arg-type]
    return stream.getvalue()


def tiff_of_bits(values: NDArray[np.uint8], bits: int, photometric: str) -> bytes:
    """Pixels of 1, 2 or 4 bits, every row from a new byte on. tifffile cannot pack 2 and 4 with every imagecodecs."""
    bits_of_values = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :]
    packed = np.packbits(bits_of_values.reshape(len(values), -1), axis=1)
    stream = io.BytesIO()
    tifffile.imwrite(
        stream, iter([packed.tobytes()]), shape=values.shape, dtype=np.uint8, bitspersample=bits,
        photometric=photometric, rowsperstrip=len(values), metadata=None,
    )  # fmt: skip
    return stream.getvalue()


def saved(pixels: NDArray[np.uint8] | Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, kind, **options)
    return stream.getvalue()


def by_pillow(encoded: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(encoded)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def refusal(encoded: bytes) -> str:
    with pytest.raises(BadImage) as refused:
        decode_image(encoded)
    return str(refused.value)


# --- TIFF ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
@pytest.mark.parametrize("compression", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 16])
def test_lossless_tiffs_have_their_pixels(
    bits: int, compression: str | int, tile: tuple[int, int] | None, planes: str
) -> None:
    lossless = {"reversible": True} if compression in ("jpeg2000", 33005) else {}
    pixels = RGB if bits == 8 else DEEP
    encoded = tiff(
        np.moveaxis(pixels, -1, 0) if planes == "separate" else pixels,
        compression=compression,
        compressionargs=lossless or None,
        tile=tile,
        rowsperstrip=None if tile else 16,
        planarconfig=planes,
    )
    np.testing.assert_array_equal(decode_image(encoded), RGB if bits == 8 else DEEP_AS_8)


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_predictors_byte_orders_and_bigtiff_change_nothing(predictor: bool, byteorder: str, bigtiff: bool) -> None:
    encoded = tiff(DEEP, compression="lzw", predictor=predictor, byteorder=byteorder, bigtiff=bigtiff)
    np.testing.assert_array_equal(decode_image(encoded), DEEP_AS_8)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_tiffs_of_all_depths(bits: int, photometric: str) -> None:
    values = (DEEP[..., 1] >> (16 - bits)).astype(np.uint16 if bits == 16 else np.uint8)
    encoded = tiff(values, photometric=photometric) if bits >= 8 else tiff_of_bits(values, bits, photometric)
    expected = np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)
    expected = 255 - expected if photometric == "miniswhite" else expected
    np.testing.assert_allclose(decode_image(encoded).astype(int), np.repeat(expected[..., None], 3, 2), atol=1)
    if bits <= 8:
        np.testing.assert_array_equal(decode_image(encoded), by_pillow(encoded))


def test_palette_tiffs() -> None:
    encoded = saved(Image.fromarray(RGB).quantize(120), "TIFF")
    np.testing.assert_array_equal(decode_image(encoded), by_pillow(encoded))


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_a_fourth_channel_of_a_tiff(kind: str) -> None:
    straight = np.dstack([RGB, ALPHA])
    premultiplied = np.dstack([np.rint(RGB * (ALPHA[..., None] / 255)).astype(np.uint8), ALPHA])
    encoded = tiff(premultiplied if kind == "assocalpha" else straight, extrasamples=[kind])
    expected = RGB if kind == "unspecified" else ON_WHITE
    np.testing.assert_allclose(decode_image(encoded).astype(int), expected, atol=1 if kind == "assocalpha" else 0)


@pytest.mark.parametrize("shared_tables", [False, True])
@pytest.mark.parametrize("colours", ["ycbcr", "rgb", "grey"])
def test_jpeg_in_tiff_has_pillows_pixels(tmp_path: Path, colours: str, shared_tables: bool) -> None:
    if shared_tables:  # libtiff's way: Pillow writes with it
        image = Image.fromarray(GREY if colours == "grey" else RGB).convert(
            {"ycbcr": "YCbCr", "rgb": "RGB", "grey": "L"}[colours]
        )
        encoded = saved(image, "TIFF", compression="jpeg", quality=90)
    elif colours == "grey":
        encoded = tiff(GREY, photometric="minisblack", compression="jpeg", compressionargs={"level": 90}, tile=(32, 32))
    else:
        encoded = write_jpeg_slide(tmp_path / "a.tif", [RGB], tile_px=32, colours=colours).read_bytes()  # type: ignore
    np.testing.assert_allclose(decode_image(encoded).astype(int), by_pillow(encoded), atol=3)
    assert np.abs(decode_image(encoded).astype(int) - (AS_RGB if colours == "grey" else RGB)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_is_pillows(orientation: int) -> None:
    encoded = tiff(RGB, extratags=[(274, 3, 1, orientation, True)])
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decode_image(encoded), np.asarray(expected))


def test_smaller_copies_of_the_image_may_follow_in_a_tiff_and_other_images_may_not() -> None:
    def pages(*subfiletypes: int) -> bytes:
        stream = io.BytesIO()
        with tifffile.TiffWriter(stream) as file:
            for kind in subfiletypes:
                pixels = RGB if kind == 0 else np.ascontiguousarray(RGB[::2, ::2])
                file.write(pixels, photometric="rgb", subfiletype=kind, metadata=None)
        return stream.getvalue()

    np.testing.assert_array_equal(decode_image(pages(0, 1)), RGB)
    assert refusal(pages(0, 0, 1)) == "a TIFF of 2 images; a single image is needed"
    stack = io.BytesIO()
    tifffile.imwrite(stack, np.stack([GREY] * 3), imagej=True)
    assert refusal(stack.getvalue()) == "a TIFF of 3 images; a single image is needed"


@pytest.mark.parametrize(
    ("encoded", "found"),
    [
        (lambda: tiff(RGB.astype(np.float32) / 255), "its pixels are float32"),
        (lambda: tiff(RGB.astype(np.int16)), "its pixels are int16"),
        (lambda: tiff(np.dstack([RGB, ALPHA]), photometric="separated"), "whose colours are SEPARATED"),
        (lambda: tiff(RGB, photometric="cielab"), "whose colours are CIELAB"),
        (lambda: tiff(RGB, photometric="ycbcr", subsampling=(1, 1)), "whose colours are YCBCR"),
        (lambda: tiff(RGB, compression=33003, photometric="rgb"), "with compression APERIO_JP2000_YCBC"),
        (lambda: tiff(RGB, compression="jpegxl"), "with compression JPEGXL"),
        (lambda: tiff(RGB, compression="jpegxr"), "with compression JPEGXR"),
        (lambda: tiff(np.dstack([RGB, RGB[..., :2]]), extrasamples=[0, 0]), "a TIFF of 5 channels"),
        (lambda: tiff(RGB)[:6000], "truncated"),
    ],
)
def test_tiffs_whose_pixels_nobody_can_vouch_for_are_refused(encoded: object, found: str) -> None:
    assert found in refusal(encoded())  # type: ignore[operator]


@pytest.mark.parametrize("compression", [*LOSSLESS, "jpeg"])
def test_a_tiff_whose_data_are_damaged_is_never_black_or_grey(compression: str | int) -> None:
    whole = tiff(stained_image(256, 256), compression=compression, tile=(64, 64))
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        offset, length = file.pages.first.dataoffsets[5], file.pages.first.databytecounts[5]
        directory = [tag.valueoffset + 4 * 5 for tag in file.pages.first.tags if tag.name == "TileByteCounts"]
    short = bytearray(whole)  # the tile's data end half way, by the directory: no decoder may fill in the rest
    short[directory[0] : directory[0] + 4] = struct.pack("<I", length // 2)
    never_written = bytearray(whole)
    never_written[directory[0] : directory[0] + 4] = bytes(4)
    assert refusal(bytes(short))
    assert refusal(bytes(never_written))
    if compression not in ("none", "packbits"):  # which have nothing to tell zeros from pixels by
        zeroed = whole[: offset + length // 3] + bytes(length - length // 3) + whole[offset + length :]
        assert refusal(zeroed)


# --- JPEG ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"progressive": True}, {"keep_rgb": True}])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_jpegs_have_pillows_pixels(pixels: NDArray[np.uint8], options: dict[str, object]) -> None:
    encoded = saved(pixels, "JPEG", quality=90, **({} if pixels.ndim == 2 else options))
    np.testing.assert_array_equal(decode_image(encoded), by_pillow(encoded))


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    "inserted",
    [
        segment(0xE1, b"Exif\0\0" + bytes(range(60))),
        segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
        segment(0xE2, b"ICC_PROFILE\0\x05\x02" + bytes(20)),
        segment(0xED, b"Photoshop 3.0\0" + bytes(9)),
        segment(0xFE, b"a comment"),
    ],
    ids=["torn EXIF", "endless EXIF", "ICC of other parts", "Photoshop", "comment"],
)
def test_broken_notes_in_a_jpeg_are_no_damage_to_its_picture(inserted: bytes) -> None:
    plain = saved(RGB, "JPEG", quality=90)
    np.testing.assert_array_equal(decode_image(plain[:2] + inserted + plain[2:]), by_pillow(plain))
    odd_version = plain.replace(b"JFIF\0\x01", b"JFIF\0\x07", 1)
    np.testing.assert_array_equal(decode_image(odd_version), by_pillow(plain))


def test_a_jpeg_with_data_after_its_end_is_read_and_a_damaged_one_with_a_whole_thumbnail_is_not() -> None:
    plain = saved(RGB, "JPEG", quality=90)
    film = np.random.default_rng(0).integers(0, 256, 400_000, dtype=np.uint8).tobytes()  # a phone's motion photo
    assert b"\xff\xda" in film
    np.testing.assert_array_equal(decode_image(plain + film), by_pillow(plain))
    np.testing.assert_array_equal(decode_image(plain + plain), by_pillow(plain))
    thumbnail = saved(RGB[::4, ::4].copy(), "JPEG")
    noted = plain[:2] + segment(0xE1, b"Exif\0\0" + thumbnail) + plain[2:]
    assert "no end marker" in refusal(noted[:-700])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_pillows(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    encoded = saved(RGB, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    np.testing.assert_array_equal(decode_image(encoded), np.asarray(expected.convert("RGB")))


def test_cmyk_jpegs_are_refused() -> None:
    assert "CMYK" in refusal(saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"))


# --- PNG, BMP, WebP -----------------------------------------------------------------------------------------------


def png(pixels: NDArray[np.generic], depth: int, colour_type: int, *chunks: bytes) -> bytes:
    """A PNG made by hand: `pixels` (H, W * channels) are its samples; depths below 8 are packed."""
    rows = np.unpackbits(pixels.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :] if depth < 8 else None
    lines = [
        np.packbits(rows[y].ravel()).tobytes() if rows is not None else pixels[y].astype(f">u{depth // 8}").tobytes()
        for y in range(len(pixels))
    ]
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    size = pixels.shape[1] // channels, len(pixels)
    head = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + line for line in lines))
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_pngs_of_all_depths(depth: int) -> None:
    values = DEEP[..., 1] >> (16 - depth)
    expected = np.rint(values * (255 / (2**depth - 1))).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(png(values, depth, 0)), np.repeat(expected[..., None], 3, 2))


@pytest.mark.parametrize("gamma", [(), (chunk(b"gAMA", struct.pack(">I", 100_000)),)])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour_type", [2, 4, 6])
def test_colour_and_transparent_pngs(colour_type: int, depth: int, gamma: tuple[bytes, ...]) -> None:
    colours, grey, alpha = (one * np.uint16(257 if depth == 16 else 1) for one in (RGB, GREY, ALPHA))
    samples = {2: colours, 4: np.dstack([grey, alpha]), 6: np.dstack([colours, alpha])}
    over_white = {2: RGB, 6: ON_WHITE, 4: np.rint(AS_RGB * (ALPHA / 255)[..., None] + 255 - ALPHA[..., None])}
    encoded = png(samples[colour_type].reshape(48, -1).astype(np.uint16), depth, colour_type, *gamma)
    np.testing.assert_allclose(decode_image(encoded).astype(int), over_white[colour_type], atol=1)
    np.testing.assert_allclose(decode_image(encoded).astype(int), by_pillow(encoded), atol=1)


PALETTE = Image.fromarray(RGB).quantize(16)


@pytest.mark.parametrize(
    "encoded",
    [
        saved(PALETTE, "PNG"),
        saved(PALETTE, "PNG", bits=4),
        saved(PALETTE, "PNG", transparency=3),
        saved(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
        saved(GREY, "PNG", transparency=int(GREY[0, 0])),
        saved(RGB, "PNG", transparency=tuple(RGB[0, 0].tolist())),
        saved(RGB, "PNG", icc_profile=b"no profile" * 20),
        saved(RGB, "BMP"),
        saved(GREY, "BMP"),
        saved(PALETTE, "BMP"),
        saved(Image.fromarray(GREY).convert("1"), "BMP"),
        saved(RGB, "WEBP", quality=80),
        saved(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True),
    ],
    ids=lambda encoded: f"{encoded[:2]!r} {len(encoded)}",
)
def test_pngs_bmps_and_webps_have_pillows_pixels(encoded: bytes) -> None:
    np.testing.assert_allclose(decode_image(encoded).astype(int), by_pillow(encoded), atol=1)


@pytest.mark.parametrize("masks", [None, (0xF800, 0x7E0, 0x1F)])
def test_bmps_of_16_bits_reach_white(masks: tuple[int, int, int] | None) -> None:
    data = np.full((4, 4), 0xFFFF if masks else 0x7FFF, "<u2").tobytes()
    extra = struct.pack("<III", *masks) if masks else b""
    info = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 3 if masks else 0, len(data), 0, 0, 0, 0) + extra
    encoded = b"BM" + struct.pack("<IHHI", 14 + len(info + data), 0, 0, 14 + len(info)) + info + data
    assert (decode_image(encoded) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - RGB)]}
    assert refusal(saved(RGB, kind, **frames)) == "an animation; a single image is needed"


@pytest.mark.parametrize("encoded", [saved(RGB, "PNG"), saved(RGB, "BMP"), saved(RGB, "WEBP", lossless=True)])
def test_cut_images_are_refused_and_so_are_flipped_bits_where_there_is_a_checksum(encoded: bytes) -> None:
    for tenths in range(10):
        assert refusal(encoded[: len(encoded) * tenths // 10])
    if encoded[1:4] == b"PNG":
        for at in range(45, len(encoded) - 20, 101):
            assert refusal(encoded[:at] + bytes([encoded[at] ^ 64]) + encoded[at + 1 :])


# --- what no tile is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG"])
def test_huge_images_are_refused_by_their_header(kind: str) -> None:
    size = struct.pack(">HH", 30_000, 30_000)
    plain = saved(RGB, "JPEG")
    at = plain.find(b"\xff\xc0") + 5
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    wide = struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    encoded = {
        "PNG": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))),
        "TIFF": tiff(np.zeros((1, 1, 3), np.uint8)),
        "BMP": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + wide + bytes(46),
        "JPEG": plain[:at] + size + plain[at + 4 :],
    }[kind]
    if kind == "TIFF":
        stream = io.BytesIO()
        tifffile.imwrite(stream, shape=(30_000, 30_000, 3), dtype=np.uint8, photometric="rgb", tile=(16384, 16384),
                         compression="deflate", data=iter([b"\0"] * 4), metadata=None)  # fmt: skip
        encoded = stream.getvalue()
    assert "more than the 80,000,000" in refusal(encoded)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"no image at all",
        saved(RGB, "GIF"),
        imagecodecs.jpeg2k_encode(RGB),
        cv2.imencode(".ppm", RGB)[1].tobytes(),
    ],
    ids=["empty", "text", "GIF", "JPEG 2000", "PPM"],
)
def test_other_kinds_are_refused_whatever_their_name_says(encoded: bytes) -> None:
    assert "not a JPEG, PNG, TIFF, BMP or WebP" in refusal(encoded)
