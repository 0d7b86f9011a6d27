"""The CRF in torch, which runs on GPUs, against the CRF on CPUs. Here torch computes on the CPU too."""

import numpy as np
import pytest
import torch

from deconvnet.crf import dense_crf, permutohedral, torch_lattice, torch_mean_field
from deconvnet.datasets import synthetic

OTHER = {
    "iterations": 3,
    "xy_sigma": 2.0,
    "xy_weight": 1.0,
    "bilateral_xy_sigma": 50.0,
    "bilateral_rgb_sigma": 10.0,
    "bilateral_weight": 8.0,
}


@pytest.fixture
def torch_crf(monkeypatch):
    """`dense_crf` as it runs with a GPU, except that torch's tensors are on the CPU."""
    real = torch_mean_field.refine
    monkeypatch.setattr(torch_mean_field, "refine", lambda *arguments: real(*arguments[:-1], torch.device("cpu")))
    return lambda *arguments, **options: dense_crf(*arguments, **options, device=torch.device("cuda"))


def random_case(rng, height, width, classes):
    """A smooth image with noise, and random probabilities. At most 8 classes: then the CRF on CPUs removes none in between."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([3 * y, 2 * x, 60 * (x > width // 2)], -1) + rng.integers(0, 9, (height, width, 3))
    return image.astype(np.uint8), rng.dirichlet(np.ones(classes), (height, width)).transpose(2, 0, 1).astype(np.float32)


@pytest.mark.parametrize("options", [{}, OTHER, {"xy_weight": 0.0}, {"bilateral_weight": 0.0}])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (37, 1), (40, 53)])
def test_probabilities_are_those_of_the_crf_on_cpus(torch_crf, rng, size, options):
    image, p = random_case(rng, *size, 5)
    expected = dense_crf(image, p, **options)
    np.testing.assert_allclose(torch_crf(image, p, **options), expected, atol=1e-4)


def test_arrays_may_have_negative_strides(torch_crf, rng):
    image, p = random_case(rng, 12, 14, 3)
    turned = [np.flip(np.ascontiguousarray(np.flip(each, axis)), axis) for each, axis in ((image, 1), (p, 2))]
    np.testing.assert_array_equal(torch_crf(*turned), torch_crf(image, p))


def test_labels_are_those_of_the_crf_on_cpus_where_it_removes_classes(torch_crf, rng):
    image, mask, _ = synthetic.generate(0, 0, 96, 128)
    scores = rng.normal(size=(21, 96, 128)) + 4 * (np.arange(21)[:, None, None] == mask)
    p = (np.exp(scores) / np.exp(scores).sum(0)).astype(np.float32)
    ours, theirs = torch_crf(image, p), dense_crf(image, p)
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.9999
    assert (ours.argmax(0) != p.argmax(0)).mean() > 0.002, "the CRF must change something"


def test_classes_removed_at_first_stay_0(torch_crf, rng):
    image, p = random_case(rng, 12, 14, 3)
    with_absent = np.concatenate([p[:1] * 0.99, p[:1] * 0.01, p[1:]])
    assert with_absent[1].max() < 0.15
    ours = torch_crf(image, with_absent)
    assert not ours[1].any()
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-5)
    assert (torch_crf(image, np.ones((1, 12, 14), np.float32)) == 1).all()


@pytest.mark.parametrize("dimensions", [2, 5])
def test_the_filter_is_that_of_the_lattice_on_cpus(rng, dimensions):
    points = (4 * rng.normal(size=(600, dimensions))).astype(np.float32)
    values = rng.random((600, 3)).astype(np.float32)
    lattice = torch_lattice.build(torch.from_numpy(points))
    reference = permutohedral.build(points)
    assert lattice.size == reference.size
    np.testing.assert_allclose(lattice.weights.numpy(), reference.weights, atol=1e-5)
    ours = torch_lattice.Filter(lattice, lattice.weights)(torch.from_numpy(values)).numpy() / lattice.gain
    np.testing.assert_allclose(ours, permutohedral.smooth(reference, values), rtol=1e-4, atol=1e-5)
