"""Photographs and masks of every kind are decoded, or the reason is said."""

import io

import numpy as np
import pytest
from PIL import Image

from infra.errors import BadInput
from proposals.image_codec import decode_image, decode_mask, encode_jpeg, encode_mask, image_size


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


def test_exif_orientation_is_applied() -> None:
    picture = Image.fromarray(RED)
    exif = picture.getexif()
    exif[0x0112] = 6
    assert decode_image(data(picture, "JPEG", exif=exif)).shape == (6, 4, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"hello, I am a text", "not an image"), (data(Image.fromarray(RED.repeat(40, 0)))[:-40], "truncated")],
)
def test_broken_files_say_why(content: bytes, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        decode_image(content)


def test_too_large_is_said_before_decoding() -> None:
    with pytest.raises(BadInput, match="6×4 is larger than 20 pixels"):
        decode_image(data(Image.fromarray(RED)), max_pixels=20)


def test_masks_keep_their_ids() -> None:
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    palette = np.arange(768).reshape(256, 3) % 256
    assert (decode_mask(encode_mask(ids, palette)) == ids).all()
    assert (decode_mask(encode_mask(ids)) == ids).all()
    wide = ids.astype(np.uint16) * 300
    assert (decode_mask(encode_mask(wide)) == wide).all()


def test_a_colour_mask_is_refused() -> None:
    with pytest.raises(BadInput, match="paletted or grey"):
        decode_mask(data(Image.fromarray(RED)))


def test_jpeg_of_a_flat_colour_is_close() -> None:
    assert np.abs(decode_image(encode_jpeg(RED)).astype(int) - RED).max() <= 3


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_is_a_reason_and_found_when_preparing(rng: np.random.Generator) -> None:
    picture = Image.fromarray(RED)
    exif = picture.getexif()
    exif[0x0112] = 6
    good = data(picture, "JPEG", exif=exif)
    start = good.index(b"Exif")
    refused = 0
    for _ in range(2000):
        broken = bytearray(good)
        for place in rng.integers(start + 6, start + 32, size=4):
            broken[place] = rng.integers(256)
        try:
            image_size(bytes(broken))
        except BadInput:
            refused += 1
            continue
        decode_image(bytes(broken))  # what was found usable must be
    assert refused
