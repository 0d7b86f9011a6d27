"""Benchmarks of inference: DeconvNet on 50 boxes, the dense CRF, EdgeBox, uncertainty, and the measures of an evaluation."""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar
from unittest.mock import patch

import numpy as np

from tests.benchmarks.common import Row, median_seconds, sample_images

BOXES = 50
CLASSES = 21
T = TypeVar("T")


def segmentation() -> list[Row]:
    """`segment_instances` at full width, against one box at a time as in the authors' code, and against plain float32."""
    import torch

    from deconvnet import DeconvNet
    from deconvnet.inference.instances import segment_instances
    from deconvnet.models.fusion import for_inference
    from infra.device import fast_bf16
    from proposals import edge_boxes

    device = "cuda" if torch.cuda.is_available() else "cpu"
    image = sample_images(1)[0]
    boxes = edge_boxes(image, max_boxes=BOXES)[0]
    network = DeconvNet(CLASSES).to(device).eval()
    converted, converted_float32 = for_inference(network), for_inference(network, bf16=False)
    runs = ((converted, 25), (converted_float32, 25), (network, 25), (network, 1))
    ours, float32, unconverted, one_by_one = median_seconds(
        [partial(segment_instances, model, image, boxes, batch=batch) for model, batch in runs]
    )
    kind = "bfloat16" if fast_bf16(device) else "float32"
    return [
        (f"segment_instances, {len(boxes)} boxes, full width, {kind}", f"{ours:.2f} s per image"),
        ("  against one box at a time (float32, not converted)", f"{one_by_one / ours:.1f}× as fast"),
        ("  against 25 boxes at a time (float32, not converted)", f"{unconverted / ours:.1f}× as fast"),
        ("  converted for inference against not converted, both float32", f"{unconverted / float32:.2f}× as fast"),
    ]


def crf() -> list[Row]:
    """`dense_crf` against pydensecrf2 on 20 images, with random probabilities in which every class wins somewhere.

    If DECONVNET_MODELS names the folder `models` of a workspace, also with the probabilities of its networks.
    """
    from deconvnet.inference.predictor import Predictor
    from proposals import edge_boxes

    images = sample_images(20)
    rows = _crf_rows("every class wins somewhere", [(image, _random_probabilities(image, n)) for n, image in enumerate(images)])
    if folder := os.environ.get("DECONVNET_MODELS"):
        predictor = Predictor.load(f"{folder}/stage2", f"{folder}/fcn8s")
        found = [predictor.probabilities(image, edge_boxes(image)[0], ("edeconvnet",))["edeconvnet"] for image in images]
        rows += _crf_rows(f"EDeconvNet's probabilities, {folder}", list(zip(images, found, strict=True)))
    return rows


def gpu_crf() -> list[Row]:
    """`dense_crf` on a GPU, with random probabilities in which every class wins somewhere, and with few classes."""
    import torch

    from deconvnet.crf import dense_crf

    if not torch.cuda.is_available():
        return [("dense_crf on a GPU", "there is no GPU that torch can use here")]
    rows: list[Row] = []
    image = sample_images(1)[0]
    many = _random_probabilities(image, 0)
    few = np.concatenate([many[:3], np.zeros_like(many[3:])]) / many[:3].sum(0)
    for classes, probabilities in ((CLASSES, many), (3, few)):
        on_gpu = partial(dense_crf, image, probabilities, device=torch.device("cuda"))
        (seconds,) = median_seconds([on_gpu], times=20)  # the result is on the CPU, so the GPU has finished
        equal = (on_gpu().argmax(0) == dense_crf(image, probabilities).argmax(0)).mean()
        title = (
            f"dense_crf on {torch.cuda.get_device_name()}, {image.shape[1]}×{image.shape[0]}, {classes} classes, 10 iterations"
        )
        rows.append((title, f"{1000 * seconds:.1f} ms; {100 * equal:.3f} % of pixels have the CPU's class"))
    return rows


def uncertainty() -> list[Row]:
    """The cost of measuring uncertainty, above finding the mask and the mean confidence alone as numpy does, on one thread."""
    import torch

    from deconvnet.inference.perceptual_hash import perceptual_hash
    from deconvnet.inference.pixels import average_measures, scan_pixels
    from proposals.image_codec import encode_mask

    torch.set_num_threads(1)
    image = sample_images(1)[0]
    one, other = (_random_probabilities(image, seed) for seed in range(2))
    ensemble = (one + other) / 2
    refined = ensemble**8 / (ensemble**8).sum(axis=0)
    confidence_map = np.rint(255 * scan_pixels(refined, ensemble, one, other).before_crf).astype(np.uint8)
    works = (
        lambda: (refined.argmax(axis=0).astype(np.uint8), float(refined.max(axis=0).mean(dtype=np.float64))),
        lambda: (average_measures(scan_pixels(refined, ensemble, one, other)), perceptual_hash(image)),
        lambda: encode_mask(confidence_map, level=1),
    )
    before, after, encoding = (1000 * each for each in median_seconds(works, times=25))
    title = f"how sure a prediction is, {image.shape[1]}×{image.shape[0]}, {CLASSES} classes, one thread"
    return [
        (title, f"{after - before:+.1f} ms an image: {after:.1f} with the mask, in place of {before:.1f} for the mask alone"),
        ("  a confidence map as PNG", f"{encoding:+.1f} ms"),
    ]


def proposals() -> list[Row]:
    """EdgeBox on ten images, and its edges, against the same with OpenCV's detector: medians over the images, one core."""
    import cv2

    from proposals import edge_boxes
    from proposals.edges.detector import PRETRAINED_FOREST, forest_edges

    forest = str(PRETRAINED_FOREST)
    opencv = cv2.ximgproc.createStructuredEdgeDetection(forest)
    their_edges = patch(
        "proposals.edges.structured_forest.evaluate_forest", lambda _, image: opencv.detectEdges(image.astype(np.float32) / 255)
    )
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as in the pipeline, where each core has its own image
    found: list[list[float]] = []
    try:
        for image in sample_images(10):
            works = (partial(forest_edges, image, forest), partial(edge_boxes, image))
            ours = [_timed(work) for work in works]
            with their_edges:
                theirs = [_timed(work) for work in works]
            found.append([*(spent for _, spent in ours + theirs), float(np.abs(ours[0][0] - theirs[0][0]).max())])
    finally:
        cv2.setNumThreads(threads)
    edges, boxes, cv_edges, cv_boxes, _ = (statistics.median(column) for column in zip(*found, strict=True))
    return [
        ("edges of the structured forest, one core", f"{edges:.3f} s per image (OpenCV's detector {cv_edges:.3f})"),
        ("  against OpenCV's detector", f"{cv_edges / edges:.1f}× as fast, greatest difference {max(f[4] for f in found):.1g}"),
        ("edge_boxes, 2000 boxes, one core", f"{boxes:.3f} s per image (with OpenCV's edges {cv_boxes:.3f})"),
    ]


def measures() -> list[Row]:
    """What an evaluation does with an image beside predicting it, against its two CRFs, which are a part of the predicting.

    The annotation is made up of 21 classes with a line of void around each region; the five predictions are other such masks.
    """
    import cv2

    from deconvnet.crf import dense_crf
    from deconvnet.datasets.overlay import side_by_side
    from deconvnet.datasets.palette import VOC_CLASSES
    from deconvnet.evaluation.boundaries import boundary_counts
    from deconvnet.evaluation.calibration import calibration_counts
    from proposals.image_codec import encode_jpeg

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    found: list[list[float]] = []
    try:
        for number, image in enumerate(sample_images(20)):
            every = [_random_probabilities(image, 10 * number + k) for k in range(6)]
            truth, *predictions = (each.argmax(0).astype(np.uint8) for each in every)
            edges = cv2.dilate(truth, np.ones((5, 5), np.uint8)) != cv2.erode(truth, np.ones((5, 5), np.uint8))
            truth[edges] = 255
            confidence = every[-1].max(0)
            works: tuple[Callable[[], object], ...] = (
                partial(dense_crf, image, every[-1]),
                partial(boundary_counts, truth, predictions, CLASSES),
                partial(calibration_counts, truth, predictions[-1], confidence),
                lambda: encode_jpeg(side_by_side(image, (truth, predictions[-1]), VOC_CLASSES), 85),  # noqa: B023
            )
            found.append([1000 * _timed(work)[1] for work in works])
    finally:
        cv2.setNumThreads(threads)
    crf, boundaries, calibration, picture = (statistics.median(column) for column in zip(*found, strict=True))
    share = (boundaries + calibration) / (2 * crf)
    return [
        ("boundary F and Boundary IoU of five masks, 21 classes, one core", f"{boundaries:.1f} ms per image"),
        ("  calibration of one of them; the picture of the image", f"{calibration:.1f} and {picture:.1f} ms per image"),
        ("  boundary measures and calibration against the image's two CRFs", f"{100 * share:.1f} % of their {2 * crf:.0f} ms"),
    ]


def _random_probabilities(image: np.ndarray, seed: int) -> np.ndarray:
    """Smooth random class probabilities (C, H, W) in which each class wins somewhere, before and after the CRF."""
    import torch

    height, width = image.shape[:2]
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(0, 2, (1, CLASSES, height // 32 + 1, width // 32 + 1)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").softmax(1)[0].numpy()


def _crf_rows(name: str, cases: list[tuple[np.ndarray, np.ndarray]]) -> list[Row]:
    """The rows of one kind of probabilities, given as pairs of image and probabilities."""
    from deconvnet.crf import dense_crf

    dense_crf(*cases[0])
    taken, ratios, equal, left = [], [], [], []
    for image, probabilities in cases:
        ours, spent = _timed(partial(dense_crf, image, probabilities))
        taken.append(spent)
        left.append(np.count_nonzero(ours.any(axis=(1, 2))))
        if (theirs := _pydensecrf(image, probabilities)) is not None:
            ratios.append(theirs[1] / spent)
            equal.append(float((theirs[0].argmax(0) == ours.argmax(0)).mean()))
    title = f"dense_crf, {len(cases)} images, 21 classes, 10 iterations, one core; {name}"
    rows = [(title, f"{statistics.median(taken):.2f} s per image, {statistics.median(left):.0f} classes left at the end")]
    if not ratios:
        return [*rows, ("  against pydensecrf2", "not installed")]
    return [
        *rows,
        ("  against pydensecrf2", f"{statistics.median(ratios):.1f}× as fast ({min(ratios):.1f}–{max(ratios):.1f})"),
        ("  pixels with the same class", f"{100 * statistics.mean(equal):.2f} % (least {100 * min(equal):.2f} %)"),
    ]


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """A function's result, and the CPU time in seconds that it took in this thread: the better of two calls."""
    best = float("inf")
    for _ in range(2):
        started = time.thread_time()
        result = work()
        best = min(best, time.thread_time() - started)
    return result, best


def _pydensecrf(image: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, float] | None:
    """pydensecrf2's probabilities and its CPU time in seconds, or None if it is not installed."""
    try:
        import pydensecrf.densecrf as reference
    except ImportError:
        return None
    classes, height, width = probabilities.shape
    unary = np.ascontiguousarray(-np.log(np.clip(probabilities, 1e-5, 1)).reshape(classes, -1))
    pixels = np.ascontiguousarray(image)

    def work() -> np.ndarray:
        field = reference.DenseCRF2D(width, height, classes)
        field.setUnaryEnergy(unary)
        field.addPairwiseGaussian(sxy=3, compat=3)
        field.addPairwiseBilateral(sxy=20, srgb=3, rgbim=pixels, compat=5)
        return np.array(field.inference(10)).reshape(probabilities.shape)

    return _timed(work)
