"""COCO's run lengths, as lists and compressed, and malformed ones."""

from contextlib import suppress

import numpy as np
import pytest

from deconvnet.datasets.importing.regions import Region, parse_run_lengths, run_length_region
from infra.errors import BadInput

HEIGHT, WIDTH = 30, 40


def to_mask(region: Region, height=HEIGHT, width=WIDTH):
    """The region's pixels as a bool array (height, width)."""
    mask = np.zeros((height, width), bool)
    mask[region.window] = region.pixels
    return mask


def compressed(lengths):
    """Run lengths as text, as pycocotools' rleToString writes them."""
    text = ""
    for i, length in enumerate(lengths):
        rest = length - (lengths[i - 2] if i > 2 else 0)
        while True:
            bits, rest = rest & 0x1F, rest >> 5
            more = rest != -1 if bits & 0x10 else rest != 0
            text += chr((bits | (0x20 if more else 0)) + 48)
            if not more:
                break
    return text


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999, 1])
def test_run_lengths_give_the_mask_they_were_made_from(share, rng):
    mask = rng.random((HEIGHT, WIDTH)) < share
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.T.ravel()]))).tolist()
    lengths = np.diff([0, *edges, HEIGHT * WIDTH]).tolist()
    for counts in (lengths, compressed(lengths)):
        assert np.array_equal(to_mask(run_length_region(1, counts, HEIGHT, WIDTH)), mask)


def test_text_written_by_pycocotools_is_read():
    """`pycocotools.mask.encode` (2.0.11): rows 1–2, columns 1–3 of 4×5; and a block with a gap and a bar in 12×9."""
    assert parse_run_lengths("5220003").tolist() == [5, 2, 2, 2, 2, 2, 5]
    mask = np.zeros((12, 9), bool)
    mask[2:11, 1:8] = True
    mask[5] = False
    mask[:, 4] = True
    assert np.array_equal(to_mask(run_length_region(1, ">3122NN22NN2071GO22NN22NN2<", 12, 9), 12, 9), mask)


@pytest.mark.parametrize(
    "counts", ["", "abc", "zzzzzzzz", "é", "P" * 60, [5, 10], [-5, HEIGHT * WIDTH + 5], [1.5, 2], [True, 3], None, 7, [2**70]]
)
def test_malformed_run_lengths_are_refused(counts):
    """pycocotools reads outside its memory, or crashes, for some of these."""
    with pytest.raises(BadInput):
        run_length_region(1, counts, HEIGHT, WIDTH)


def test_any_text_is_read_or_refused(rng):
    for _ in range(500):
        text = "".join(chr(c) for c in rng.integers(48, 112, rng.integers(0, 40)))
        with suppress(BadInput):
            assert run_length_region(1, text, HEIGHT, WIDTH).pixels.size <= HEIGHT * WIDTH
