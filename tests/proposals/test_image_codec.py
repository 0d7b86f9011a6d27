"""Images and masks of every kind are decoded, or refused with the reason."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, features

from infra.errors import BadInput
from proposals.image_codec import (
    decode_alpha,
    decode_example,
    decode_image,
    decode_mask,
    encode_jpeg,
    encode_mask,
    image_size,
)
from tests.proposals.grey_png import grey_png


def data(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


RED = np.zeros((4, 6, 3), np.uint8) + np.uint8([200, 10, 20])


@pytest.mark.parametrize(
    "make",
    [
        lambda: data(Image.fromarray(RED)),
        lambda: data(Image.fromarray(RED).convert("RGBA")),
        lambda: data(Image.fromarray(RED).quantize(4)),
        lambda: data(Image.fromarray(RED), "JPEG", quality=100, subsampling=0),
        lambda: data(Image.fromarray(RED).convert("CMYK"), "JPEG", quality=100, subsampling=0),
    ],
)
def test_colour_files_become_rgb(make) -> None:
    image = decode_image(make())
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - RED).max() <= 8


@pytest.mark.parametrize(("values", "expected"), [(np.full((3, 5), 40000, np.uint16), 156), (np.full((3, 5), 90, np.uint8), 90)])
def test_grey_and_16_bit_become_rgb(values: np.ndarray, expected: int) -> None:
    image = decode_image(data(Image.fromarray(values)))
    assert image.shape == (3, 5, 3)
    assert (image == expected).all()


RAMP = np.linspace(0, 1, 40, dtype=np.float32).reshape(4, 10)


@pytest.mark.parametrize(
    "values",
    [RAMP, (RAMP * 255), (RAMP * 4095).astype(np.uint16), (RAMP * 1023).astype(np.uint16), (RAMP * 65535).astype(np.int32)],
    ids=["float to 1", "float to 255", "12 bits", "10 bits", "32 bits"],
)
def test_values_of_any_usual_range_keep_their_contrast(values: np.ndarray) -> None:
    image = data(Image.fromarray(values), "TIFF")
    assert np.abs(decode_image(image)[..., 0] - RAMP * 255).max() <= 1 and image_size(image) == (10, 4)


@pytest.mark.parametrize(
    "values",
    [RAMP * 3, RAMP - 0.5, RAMP * np.nan, RAMP * 1e6, (RAMP * 1e6).astype(np.int32), -(RAMP * 99).astype(np.int32)],
    ids=["float to 3", "negative float", "nan", "float to a million", "int to a million", "negative int"],
)
def test_values_of_no_usual_range_are_refused(values: np.ndarray) -> None:
    for function in (decode_image, image_size):
        with pytest.raises(BadInput, match=r"its values run from .*save it with 8 bits"):
            function(data(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_colours_of_12_bits_in_16_are_refused_as_they_would_be_black(suffix: str) -> None:
    colours = np.repeat((RAMP * 4095).astype(np.uint16)[..., None], 3, axis=2)
    for function in (decode_image, image_size):
        with pytest.raises(BadInput, match="16 bits and use 12"):
            function(cv2.imencode(suffix, colours)[1].tobytes())
    full = decode_image(cv2.imencode(suffix, colours * 16)[1].tobytes())
    assert np.abs(full[..., 1] - RAMP * 255).max() <= 2


def test_a_gif_is_an_image_and_a_grey_mask_unless_it_has_frames() -> None:
    black_and_white = Image.fromarray(RAMP > 0.5)
    white_first = Image.fromarray((RAMP < 0.5).astype(np.uint8)).convert("P")
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    assert np.unique(decode_mask(data(black_and_white, "GIF"))).tolist() == [0, 255]
    expected = np.where(RAMP < 0.5, 0, 255)
    np.testing.assert_array_equal(decode_mask(data(white_first, "GIF")), expected)
    assert decode_image(data(black_and_white, "GIF")).shape == (4, 10, 3)
    with pytest.raises(BadInput, match="has colours"):
        decode_mask(data(Image.fromarray(RED).quantize(4), "GIF"))
    frames = data(black_and_white, "GIF", save_all=True, append_images=[Image.fromarray(RAMP > 0.2)])
    with pytest.raises(BadInput, match="a GIF of 2 frames"):
        decode_image(frames)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    image = Image.fromarray(RED)
    image.putpixel((0, 0), (0, 0, 250))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"subsampling": 0, "quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    content = data(image, kind, exif=exif, **options)
    pixels = decode_image(content)
    top, left = orientation in (1, 2, 5, 6), orientation in (1, 4, 5, 8)  # where the first stored pixel is displayed
    assert pixels.shape == ((6, 4, 3) if orientation >= 5 else (4, 6, 3)) and image_size(content) == pixels.shape[1::-1]
    assert pixels[0 if top else -1, 0 if left else -1, 2] > 100


def test_the_orientation_of_a_tiff_mask_is_applied_as_that_of_an_image_is() -> None:
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = data(Image.fromarray(ids), "TIFF", exif=exif)
    np.testing.assert_array_equal(decode_mask(content), np.rot90(ids, -1))
    np.testing.assert_array_equal(decode_mask(content), decode_image(content)[..., 0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"hello, I am a text", "not an image"), (data(Image.fromarray(RED.repeat(40, 0)))[:-40], "truncated")],
)
def test_files_that_cannot_be_decoded_are_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        decode_image(content)


def test_too_large_images_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(BadInput, match="6×4 is larger than 20 pixels"):
        decode_image(data(Image.fromarray(RED)), max_pixels=20)


def test_masks_keep_their_ids() -> None:
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    palette = np.arange(768).reshape(256, 3) % 256
    assert (decode_mask(encode_mask(ids, palette)) == ids).all()
    assert (decode_mask(encode_mask(ids)) == ids).all()
    wide = ids.astype(np.uint16) * 300
    assert (decode_mask(encode_mask(wide)) == wide).all()


@pytest.mark.parametrize(("bits", "text"), [(2, "0, 1, … 3 or 0, 85, … 255"), (4, "0, 1, … 15 or 0, 17, … 255")])
def test_a_grey_mask_of_few_bits_is_refused_as_its_ids_are_unclear(bits: int, text: str) -> None:
    """GDAL stores ids as they are; optipng stores 8-bit ids that are all multiples of 17, such as 0, 17 and 255, in 4 bits."""
    ids = np.zeros((4, 6), np.uint8)
    assert not decode_mask(grey_png(ids, bits)).any(), "0 is 0 in any case"
    ids[1:, 2:4], ids[2:, 4:] = 1, 2
    with pytest.raises(BadInput, match=f"grey with {bits} bits, so its ids may be {text}: save it with 8 bits, or paletted"):
        decode_mask(grey_png(ids, bits))
    assert decode_image(grey_png(ids, bits)).max() == (170 if bits == 2 else 34)
    paletted = Image.fromarray(ids).convert("P")
    paletted.putpalette([9, 9, 9, 0, 0, 0, 255, 0, 0])
    np.testing.assert_array_equal(decode_mask(data(paletted, bits=bits)), ids)


def test_a_mask_of_colours_is_refused() -> None:
    with pytest.raises(BadInput, match="paletted or grey"):
        decode_mask(data(Image.fromarray(RED)))


def test_an_image_of_lab_colours_is_refused() -> None:
    with pytest.raises(BadInput, match="its colours are LAB; save it as RGB"):
        image_size(data(Image.new("LAB", (6, 4)), "TIFF"))


def test_jpeg_keeps_colours_of_single_columns() -> None:
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0] = stripes[:, 1::2, 2] = 200
    assert np.abs(decode_image(encode_jpeg(stripes)).astype(int) - stripes).max() <= 20


def test_jpeg_keeps_a_flat_colour_to_3_levels() -> None:
    assert np.abs(decode_image(encode_jpeg(RED)).astype(int) - RED).max() <= 3


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_is_refused_by_image_size_if_decoding_would_fail(rng: np.random.Generator) -> None:
    image = Image.fromarray(RED)
    exif = image.getexif()
    exif[0x0112] = 6
    good = data(image, "JPEG", exif=exif)
    start = good.index(b"Exif")
    refused = 0
    for _ in range(400):
        broken = bytearray(good)
        for index in rng.integers(start + 6, start + 32, size=4):
            broken[index] = rng.integers(256)
        try:
            image_size(bytes(broken))
        except BadInput:
            refused += 1
            continue
        decode_image(bytes(broken))  # must not raise
    assert 20 < refused < 380


@pytest.mark.parametrize(("tag", "other"), [(0x132, 0x128), (0x132, 0x11A), (0x11A, 0x132)])
def test_exif_data_with_a_value_of_another_kind_is_refused(tag: int, other: int) -> None:
    """Pillow fails with a struct.error, a TypeError or an AttributeError."""
    exif = Image.Exif()
    exif[0x0112], exif[tag] = 6, "2020" if tag == 0x132 else 72.5
    good = data(Image.fromarray(np.dstack([RED, RED[..., 0]])), "WEBP", exif=exif)
    broken = good.replace(tag.to_bytes(2, "big"), other.to_bytes(2, "big"), 1)
    for function in (decode_image, image_size, decode_alpha):
        function(good)
        with pytest.raises(BadInput, match="damaged EXIF data"):
            function(broken)


def test_a_tiff_with_a_damaged_second_frame_is_read() -> None:
    good = data(Image.fromarray(RED), "TIFF")
    directory = int.from_bytes(good[4:8], "little")
    end = directory + 2 + 12 * int.from_bytes(good[directory : directory + 2], "little")  # where the offset of the second is
    broken = good[:end] + len(good).to_bytes(4, "little") + good[end + 4 :] + bytes(6)
    np.testing.assert_array_equal(decode_image(good), RED)
    np.testing.assert_array_equal(decode_image(broken), RED)


def test_examples_decode_to_the_same_pixels_as_other_images(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (40, 40, 3), np.uint8)
    mask = rng.integers(0, 21, (40, 40), np.uint8)
    data, mask_data = encode_jpeg(image), encode_mask(mask)
    rgb, ids = decode_example(data, mask_data)
    np.testing.assert_array_equal(rgb, decode_image(data))
    np.testing.assert_array_equal(ids, mask)
    for bad in (b"", mask_data[:40], encode_mask(mask[:30]), data):
        with pytest.raises(BadInput):
            decode_example(data, bad)


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


@needs_avif
def test_a_damaged_avif_is_refused() -> None:
    """Pillow fails with a RuntimeError, unlike for other formats."""
    good = data(Image.fromarray(RED.repeat(8, 0)), "AVIF")
    start = good.index(b"mdat") + 4
    assert image_size(good) == (6, 32)
    for decode in (decode_image, image_size, decode_mask):
        with pytest.raises(BadInput, match="truncated or damaged"):
            decode(good[:start] + bytes(len(good) - start))


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_files_of_several_frames_are_refused_and_thumbnails_are_no_frames(kind):
    frames = [Image.fromarray(np.full((9, 12), value, np.uint8)) for value in (0, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], lossless=True)
    for decode in (decode_mask, decode_image):
        with pytest.raises(BadInput, match=f"a {kind} of 2 frames; save the frame that is meant as PNG"):
            decode(buffer.getvalue())
    for kind_of_thumbnail in ("TIFF", "MPO"):
        buffer = io.BytesIO()
        frames[1].save(buffer, kind_of_thumbnail, save_all=True, append_images=[frames[0].resize((4, 3))])
        assert decode_image(buffer.getvalue()).shape == (9, 12, 3) and decode_image(buffer.getvalue()).min() > 195
