"""Which images look alike."""

import io

import numpy as np
from PIL import Image

from deconvnet.datasets.synthetic import generate
from deconvnet.datasets.validation import duplicates
from deconvnet.datasets.validation.image_statistics import ImageStatistics
from deconvnet.datasets.validation.perceptual_hash import perceptual_hash
from proposals.image_codec import decode_image, encode_jpeg


def scene(seed):
    return generate(seed, 5, 80, 100)[0]


def test_hashes_differ_between_images_and_not_by_exif_orientation():
    hashes = [perceptual_hash(encode_jpeg(scene(i))) for i in range(30)]
    differ = [int(np.bitwise_count(a ^ b).sum()) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(differ) > 40
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    Image.fromarray(np.rot90(scene(0)).copy()).save(sink, "PNG", exif=exif)
    assert np.array_equal(decode_image(sink.getvalue()), scene(0))
    assert int(np.bitwise_count(perceptual_hash(sink.getvalue()) ^ hashes[0]).sum()) < 12
    assert perceptual_hash(encode_jpeg(np.full((40, 60, 3), 90, np.uint8))) is None


def test_near_duplicates_are_found_in_every_block(monkeypatch, rng):
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 3)  # one val image at a time
    hashes = rng.integers(0, 2**63, (5, 4), dtype=np.uint64)
    train = [ImageStatistics(f"t{i}", "train", perceptual_hash=hashes[i]) for i in range(3)]
    val = [ImageStatistics(f"v{i}", "val", perceptual_hash=hashes[k]) for i, k in enumerate((3, 1, 4, 0))]
    found = duplicates.find_near_duplicates([*train, *val])
    assert [(one.image_id, other.image_id, bits) for one, other, bits in found] == [("t0", "v3", 0), ("t1", "v1", 0)]
