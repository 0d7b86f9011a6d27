"""Images of other formats, and names that can't be ids."""

import io

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.importing.dataset import AnnotatedDataset
from deconvnet.datasets.importing.images import as_layout_file
from proposals.image_codec import decode_image


def test_images_of_other_formats_become_png(rng):
    pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "BMP")
    data, suffix = as_layout_file(sink.getvalue(), "a.BMP")
    assert suffix == ".png" and np.array_equal(decode_image(data), pixels)
    assert as_layout_file(b"unchanged", "a.JPEG") == (b"unchanged", ".jpeg")


@pytest.mark.parametrize("name", [" a.jpg", "a\n.jpg", "a .jpg"])
def test_names_that_a_list_of_ids_can_not_hold_are_rejected(name):
    dataset = AnnotatedDataset(("background", "cat"))
    dataset.add(name, "f", None, lambda: None)
    assert not dataset.entries and len(dataset.rejects) == 1
