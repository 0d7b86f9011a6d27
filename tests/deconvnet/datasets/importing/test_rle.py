"""COCO's run lengths, as lists and compressed, and malformed ones."""

from contextlib import suppress

import numpy as np
import pytest

from deconvnet.datasets.importing.regions import parse_run_lengths, run_length_region
from infra.errors import BadInput
from tests.deconvnet.datasets.formats.inputs import compressed, runs

HEIGHT, WIDTH = 30, 40


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999, 1])
def test_run_lengths_give_the_mask_they_were_made_from(share, rng):
    mask = rng.random((HEIGHT, WIDTH)) < share
    lengths = runs(mask.T)
    for counts in (lengths, compressed(lengths)):
        assert np.array_equal(run_length_region(1, counts, HEIGHT, WIDTH).in_image(HEIGHT, WIDTH), mask)


def test_text_written_by_pycocotools_is_read():
    """`pycocotools.mask.encode` (2.0.11): rows 1–2, columns 1–3 of 4×5; and a block with a gap and a bar in 12×9."""
    assert parse_run_lengths("5220003").tolist() == [5, 2, 2, 2, 2, 2, 5]
    mask = np.zeros((12, 9), bool)
    mask[2:11, 1:8] = True
    mask[5] = False
    mask[:, 4] = True
    assert np.array_equal(run_length_region(1, ">3122NN22NN2071GO22NN22NN2<", 12, 9).in_image(12, 9), mask)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ("", "cover 0 px, the image has 1,200"),
        ("abc", "compressed run lengths are damaged"),
        ("zzzzzzzz", "compressed run lengths are damaged"),
        ("é", "compressed run lengths are damaged"),
        ("P" * 60, "compressed run lengths are damaged"),
        ([5, 10], "cover 15 px, the image has 1,200"),
        ([-5, HEIGHT * WIDTH + 5], "not whole numbers from 0 on"),
        ([HEIGHT * WIDTH - 0.5, 1], "not whole numbers from 0 on"),  # would fit if it was cut
        ([True, HEIGHT * WIDTH - 1], "not whole numbers from 0 on"),
        ([2**70], "not whole numbers from 0 on"),
        (None, "are a NoneType, a list or text is needed"),
        (7, "are a int, a list or text is needed"),
    ],
)
def test_malformed_run_lengths_are_refused(counts, words):
    """pycocotools reads outside its memory, or crashes, for some of these."""
    with pytest.raises(BadInput, match=words):
        run_length_region(1, counts, HEIGHT, WIDTH)


def test_any_text_is_read_or_refused(rng):
    for _ in range(500):
        text = "".join(chr(c) for c in rng.integers(48, 112, rng.integers(0, 40)))
        with suppress(BadInput):
            assert run_length_region(1, text, HEIGHT, WIDTH).pixels.size <= HEIGHT * WIDTH
