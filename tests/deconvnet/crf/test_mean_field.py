"""The CRF against the authors' code (pydensecrf2), against the mean field written out, and its edges."""

import cv2
import numpy as np
import pytest

from deconvnet.crf import dense_crf, mean_field
from proposals.image_codec import decode_image, decode_mask

CLASSES = 21


def as_network(mask, rng, classes=CLASSES, noise=20.0):
    """Probabilities such as a network's: the truth blurred, with smooth noise over every class."""
    truth = np.where(mask == 255, 0, mask)
    scores = [6 * cv2.GaussianBlur((truth == c).astype(np.float32), (0, 0), 8) for c in range(classes)]
    scores = [s + noise * cv2.GaussianBlur(rng.normal(size=s.shape).astype(np.float32), (0, 0), 6) for s in scores]
    odds = np.exp(np.stack(scores))
    return (odds / odds.sum(0)).astype(np.float32)


def authors(image, probabilities, iterations=10, xy_sigma=3, xy_weight=3, bxy=20, rgb=3, weight=5):
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed")
    classes, height, width = probabilities.shape
    crf = dcrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(-np.log(np.maximum(probabilities, 1e-5)).reshape(classes, -1))
    crf.addPairwiseGaussian(sxy=xy_sigma, compat=xy_weight)
    crf.addPairwiseBilateral(sxy=bxy, srgb=rgb, rgbim=np.ascontiguousarray(image), compat=weight)
    return np.array(crf.inference(iterations)).reshape(probabilities.shape)


def photographs(shared, count):
    files = sorted((shared / "voc-sample" / "SegmentationClass").glob("*.png"))
    for file in files[:: len(files) // count][:count]:
        image = decode_image((shared / "voc-sample" / "JPEGImages" / f"{file.stem}.jpg").read_bytes())
        yield image, decode_mask(file.read_bytes())


def test_labels_as_the_authors_code_on_photographs(shared, rng):
    for image, mask in photographs(shared, 3):
        probabilities = as_network(mask, rng)
        ours, theirs = dense_crf(image, probabilities), authors(image, probabilities)
        assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.999
        assert (ours.argmax(0) != probabilities.argmax(0)).mean() > 0.002, "the CRF does something"
        assert (np.abs(ours - theirs) > 0.01).mean() < 1e-3
        assert np.count_nonzero(ours.any(axis=(1, 2))) < CLASSES, "classes that have lost are dropped"


def test_labels_as_the_authors_code_where_classes_are_left_out(shared, rng):
    """Most classes are next to impossible in a photograph; ours leaves them out, theirs doesn't."""
    for image, mask in photographs(shared, 2):
        probabilities = as_network(mask, rng, noise=30)
        absent = [c for c in range(CLASSES) if c not in mask]
        probabilities[absent] = np.minimum(probabilities[absent], 5e-4)
        probabilities[0] += 1 - probabilities.sum(0)
        ours, theirs = dense_crf(image, probabilities), authors(image, probabilities)
        assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.995
        assert not ours[absent].any()
        np.testing.assert_allclose(ours.sum(0), 1, atol=1e-4)


def test_labels_as_the_authors_code_with_other_parameters(shared, rng):
    image, mask = next(photographs(shared, 1))
    probabilities = as_network(mask, rng)
    ours = dense_crf(
        image,
        probabilities,
        iterations=3,
        xy_sigma=2,
        xy_weight=1,
        bilateral_xy_sigma=50,
        bilateral_rgb_sigma=10,
        bilateral_weight=8,
    )
    theirs = authors(image, probabilities, 3, 2, 1, 50, 10, 8)
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.995


def test_near_the_mean_field_written_out(rng):
    """All pairs, no lattice: q ∝ p · exp(Σ w k q), kernels normalised symmetrically. The lattice blurs the same to a tenth."""
    image = np.zeros((14, 16, 3), np.uint8)
    image[:, 8:] = 90
    image += rng.integers(0, 3, image.shape).astype(np.uint8)
    p = rng.random((3, 14, 16)) + 2 * np.stack([image[..., 0] < 45, image[..., 0] >= 45, image[..., 0] < 0])
    p = (p / p.sum(0)).astype(np.float32)
    y, x = np.mgrid[:14, :16]
    place = np.stack([x, y], -1).reshape(-1, 2)
    unary, message = np.log(p).reshape(3, -1), 0
    kernels = []
    for weight, features in ((3, place / 3), (5, np.hstack([place / 20, image.reshape(-1, 3) / 3]))):
        k = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
        norm = 1 / np.sqrt(k.sum(1))
        kernels.append(weight * k * norm * norm[:, None])
    q = p.reshape(3, -1)
    for _ in range(10):
        message = sum(q @ k for k in kernels)
        q = np.exp(unary + message - (unary + message).max(0))
        q /= q.sum(0)
    ours = dense_crf(image, p).reshape(3, -1)
    assert (ours.argmax(0) == q.argmax(0)).mean() > 0.97
    assert np.abs(ours - q).mean() < 0.03


def test_one_alive_class_wins_everywhere_and_small_photographs_do_no_harm():
    image = np.zeros((5, 4, 3), np.uint8)
    sure = np.zeros((3, 5, 4), np.float32)
    sure[1] = 1
    assert (dense_crf(image, sure) == sure).all()
    pixel = dense_crf(image[:1, :1], np.array([[[0.6]], [[0.4]]], np.float32))
    assert pixel.shape == (2, 1, 1) and pixel.sum() == pytest.approx(1, abs=1e-5) and pixel[0] > 0.6
    assert dense_crf(image[:0], sure[:, :0]).shape == (3, 0, 4)


def test_without_kernels_nothing_changes(rng):
    p = rng.dirichlet(np.ones(4), (6, 7)).transpose(2, 0, 1).astype(np.float32)
    image = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
    np.testing.assert_allclose(dense_crf(image, p, xy_weight=0, bilateral_weight=0), p, atol=1e-4)


def test_inputs_are_left_alone_and_float64_is_taken(rng):
    p = rng.dirichlet(np.ones(4), (9, 9)).transpose(2, 0, 1)
    image = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
    before = p.copy(), image.copy()
    found = dense_crf(image, p)
    assert found.dtype == np.float32 and (p == before[0]).all() and (image == before[1]).all()


@pytest.mark.parametrize(
    ("image", "shape", "keywords"),
    [
        (np.zeros((4, 4), np.uint8), (2, 4, 4), {}),
        (np.zeros((4, 4, 3), np.float32), (2, 4, 4), {}),
        (np.zeros((4, 4, 3), np.uint8), (2, 4, 5), {}),
        (np.zeros((4, 4, 3), np.uint8), (0, 4, 4), {}),
        (np.zeros((4, 4, 3), np.uint8), (2, 4, 4), {"xy_sigma": 0}),
        (np.zeros((4, 4, 3), np.uint8), (2, 4, 4), {"iterations": 0}),
        (np.zeros((4, 4, 3), np.uint8), (2, 4, 4), {"bilateral_weight": -1}),
    ],
)
def test_what_does_not_fit_is_refused(image, shape, keywords):
    with pytest.raises(ValueError):
        dense_crf(image, np.full(shape, 0.5, np.float32), **keywords)


def test_probabilities_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        dense_crf(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 2), np.nan, np.float32))


def test_a_faint_class_is_left_out_unless_it_leads_somewhere():
    image = np.full((24, 32, 3), 120, np.uint8)
    probabilities = np.full((12, 24, 32), 0.02, np.float32)
    probabilities[0] = 1 - probabilities[1:].sum(0)
    probabilities[1] = 0.1  # nowhere near the lead
    probabilities[2:, 4, 5] = 0.1 - 1e-4
    probabilities[:2, 4, 5] = 0
    probabilities[7, 4, 5] = 0.1  # faint, and the most likely there
    assert set(np.flatnonzero(mean_field._leaders(probabilities))) == {0, 7}
    assert list(mean_field._begins(probabilities)) == [0, 7]
    assert not dense_crf(image, probabilities)[1].any()


def test_a_class_that_leads_nowhere_may_still_win_unless_it_is_faint():
    """Two classes take turns, pixel by pixel; a third is close behind everywhere, and smoothing makes it the winner."""
    image = np.full((24, 24, 3), 128, np.uint8)
    turns = np.indices((24, 24)).sum(0) % 2
    behind, faint = np.full((24, 24), 0.4, np.float32), np.full((24, 24), 0.05, np.float32)
    strong = 0.55 * turns, 0.55 * (1 - turns)
    found = dense_crf(image, np.stack([*strong, behind, faint]).astype(np.float32))
    assert (found.argmax(0) == 2).all()
    assert not found[3].any(), "left out from the start"


def test_of_equal_classes_the_first_leads():
    assert mean_field._leaders(np.full((3, 2, 2), 0.1, np.float32)).tolist() == [True, False, False]
