"""Images and masks of the wrong kind are refused in a sentence that says what they are and what to do, or converted."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from proposals import edge_boxes
from proposals.edges.boundary_metrics import edge_counts
from proposals.edges.channels import feature_channels
from proposals.edges.detector import edge_map
from proposals.edges.training.segmentations import segments_from_masks
from proposals.image_codec import encode_jpeg, encode_mask, encode_png
from proposals.masks import as_rgb, check_image, check_masks, void_id
from proposals.mining.rules import ExampleWindow, cut_example, find_objects

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = RGB[..., 0]

WRONG: list[tuple[object, str]] = [
    (RGB / 255, r"image is float64 \(20, 30, 3\), values 0 to 1; .*np.rint\(image \* 255\)"),
    (RGB.astype(np.float32), r"float32 .*values 0 to 255.*np.rint\(image\).astype\(np.uint8\)"),
    (RGB.astype(np.float16) / 255, r"float16 .*\* 255"),
    (RGB.astype(np.float32) / 127.5 - 1, "negative values: undo the normalisation"),
    (np.full((20, 30, 3), np.nan), "finite numbers"),
    (RGB.astype(np.uint16) * 257, r"uint16 .*65535.*/ 257"),
    (RGB.astype(np.int64), r"int64 .*np.rint\(image\)"),
    (RGB > 100, r"bool .*\.astype\(np.uint8\) \* 255"),
    (RGB.transpose(2, 0, 1), r"uint8 \(3, 20, 30\).*channels come first.*transpose\(1, 2, 0\)"),
    (RGB.transpose(2, 0, 1) / 255, "channels come first"),
    (GREY[None], "channels come first"),
    (RGB[None], r"batch: pass its images one by one, image\[0\] first"),
    (RGB[..., :2], "not have the shape of an image"),
    (RGB.tobytes(), "image is a bytes; expected a numpy array"),
    (Image.fromarray(RGB), r'np.asarray\(image.convert\("RGB"\)\)'),
    (RGB.tolist(), "image is a list"),
    (RGB.astype(object), "finite numbers from 0 to 255"),
    (np.dstack([RGB, GREY]), "alpha channel is not opaque"),
]
"""Images that nothing converts, and what the message about each says."""


@pytest.mark.parametrize(("image", "message"), WRONG)
def test_an_image_of_another_kind_is_refused_with_the_way_to_convert_it(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_rgb(image)


def test_what_the_message_advises_gives_the_image() -> None:
    for given in (RGB / 255, RGB.astype(np.float32) / 255, RGB.astype(np.uint16) * 257, RGB.transpose(2, 0, 1), RGB[None], GREY):
        with pytest.raises(ValueError) as error:
            check_image(given)
        advice = str(error.value).split("pass ")[-1].split("Pass ")[-1]
        advice = "image[0]" if "one by one" in advice else advice
        expected = np.dstack([GREY] * 3) if given is GREY else RGB
        np.testing.assert_array_equal(eval(advice, {"image": given, "np": np}), expected)


@pytest.mark.parametrize("grey", [GREY, GREY[..., None]])
def test_grey_images_become_rgb(grey: np.ndarray) -> None:
    np.testing.assert_array_equal(as_rgb(grey), np.dstack([GREY] * 3))


def test_an_opaque_alpha_channel_is_dropped_and_rgb_is_not_copied() -> None:
    np.testing.assert_array_equal(as_rgb(np.dstack([RGB, np.full_like(GREY, 255)])), RGB)
    assert as_rgb(RGB) is RGB


def test_edge_boxes_of_a_grey_or_opaque_image_are_those_of_the_rgb_image() -> None:
    grey = np.full((120, 160), 60, np.uint8)
    grey[30:90, 40:120] = 200
    rgb = np.dstack([grey] * 3)
    expected = edge_boxes(rgb, 20)[0]
    assert len(expected)
    for same in (grey, grey[..., None], np.dstack([rgb, np.full_like(grey, 255)])):
        np.testing.assert_array_equal(edge_boxes(same, 20)[0], expected)


def test_edge_boxes_of_an_image_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        edge_boxes(RGB / 255)


def test_an_image_without_pixels_has_no_boxes() -> None:
    for shape in ((0, 0, 3), (0, 9, 3), (9, 0, 3)):
        assert edge_boxes(np.zeros(shape, np.uint8))[0].shape == (0, 4)


@pytest.mark.parametrize("function", [check_image, edge_map, feature_channels, encode_jpeg, encode_png])
@pytest.mark.parametrize("image", [RGB / 255, GREY, RGB.transpose(2, 0, 1)])
def test_other_functions_of_images_refuse_them_too(function: Callable[[np.ndarray], object], image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        function(image)


MASK = np.zeros((20, 30), np.uint8)


@pytest.mark.parametrize(
    ("class_mask", "object_mask", "message"),
    [
        (MASK.astype(np.int64), MASK, r"class_mask is int64 \(20, 30\); expected ids, uint8"),
        (MASK.astype(np.uint16), MASK, "class_mask is uint16"),
        (MASK, MASK.astype(np.int32), "object_mask is int32 .*uint8 or uint16"),
        (MASK, MASK.astype(np.float32), "object_mask is float32"),
        (MASK > 0, MASK, "class_mask is bool"),
        (RGB, MASK, r"class_mask is uint8 \(20, 30, 3\)"),
        (MASK, MASK[:10], r"class_mask is \(20, 30\), object_mask \(10, 30\)"),
        (MASK, MASK.T, "height and width must be the same"),
    ],
)
def test_masks_of_another_kind_or_size_are_refused(class_mask: np.ndarray, object_mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_masks(class_mask, object_mask)


@pytest.mark.parametrize("function", [find_objects, segments_from_masks])
def test_functions_of_masks_refuse_them_too(function: Callable[..., object]) -> None:
    for class_mask, object_mask in ((MASK > 0, MASK), (MASK, MASK.T)):
        with pytest.raises(ValueError, match="class_mask is"):
            function(class_mask, object_mask)


def test_void_is_known_of_8_and_16_bits_alone() -> None:
    assert (void_id(MASK), void_id(MASK.astype(np.uint16))) == (255, 65535)
    for dtype in (np.int32, np.int64, np.float32, bool):
        with pytest.raises(ValueError, match="must be uint8"):
            void_id(MASK.astype(dtype))


def test_a_crop_is_not_cut_from_an_image_and_masks_of_different_sizes() -> None:
    window = ExampleWindow((0, 0, 10, 10), (1,), 1, 1.0)
    with pytest.raises(ValueError, match=r"image \(10, 30, 3\)"):
        cut_example(RGB[:10], MASK, MASK, window, 2, 8)
    with pytest.raises(ValueError, match="float64"):
        cut_example(RGB / 255, MASK, MASK, window, 2, 8)
    with pytest.raises(ValueError, match="stage is 3"):
        cut_example(RGB, MASK, MASK, window, 3, 8)


@pytest.mark.parametrize("mask", [RGB, MASK.astype(np.int32), MASK > 0, MASK / 2])
def test_only_masks_of_ids_are_encoded_as_masks(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected ids"):
        encode_mask(mask)


def test_a_mask_of_16_bits_has_no_palette() -> None:
    with pytest.raises(ValueError, match="palettes have 256 colours"):
        encode_mask(MASK.astype(np.uint16), np.zeros((256, 3), np.uint8))


@pytest.mark.parametrize("boundary", [MASK, MASK.astype(np.float32), np.zeros((10, 30), bool)])
def test_boundary_maps_are_bool_and_of_the_size_of_the_edges(boundary: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a boundary map is"):
        edge_counts(np.zeros((20, 30), np.float32), [boundary])


@pytest.mark.parametrize("edges", [np.full((20, 30), 255.0), np.full((20, 30), -0.1), np.full((20, 30), np.nan)])
def test_edge_strengths_are_from_0_to_1(edges: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected strengths from 0 to 1"):
        edge_counts(edges, [np.zeros((20, 30), bool)])
