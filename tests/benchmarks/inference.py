"""Labelling photographs: DeconvNet's 50 boxes, and the CRF."""

import os
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tests.benchmarks.common import Row, paired, photographs, seconds

BOXES = 50
CLASSES = 21
T = TypeVar("T")


def segmentation() -> list[Row]:
    """`segment_instances` at full size against the forward a box of the released code, and against contiguous float32."""
    import torch

    from deconvnet import DeconvNet
    from deconvnet.inference.instances import segment_instances
    from deconvnet.models.fusion import for_inference
    from infra.runtime.device import fast_bf16
    from proposals import edge_boxes

    device = "cuda" if torch.cuda.is_available() else "cpu"
    image = photographs(1)[0]
    boxes = edge_boxes(image, max_boxes=BOXES)[0]
    network = DeconvNet(CLASSES).to(device).eval()
    ready, single = for_inference(network), for_inference(network, bf16=False)

    def work(model: DeconvNet, batch: int) -> Callable[[], object]:
        return lambda: segment_instances(model, image, boxes, batch=batch)

    ours, folded, contiguous, released = paired([work(ready, 25), work(single, 25), work(network, 25), work(network, 1)], 3)
    kind = "bfloat16" if fast_bf16(device) else "float32"
    return [
        (f"segment_instances, {len(boxes)} boxes, full size, {kind}", f"{ours:.2f} s a photograph"),
        ("  against a forward a box (float32)", f"{released / ours:.1f}× as fast"),
        ("  against contiguous float32, 25 boxes at once", f"{contiguous / ours:.1f}× as fast"),
        ("  in float32 against contiguous, 25 boxes at once", f"{contiguous / folded:.2f}× as fast"),
    ]


def crf() -> list[Row]:
    """`dense_crf` against pydensecrf2 on 20 photographs: probabilities of trained networks, and with every class alive.

    DECONVNET_MODELS: a folder with trained networks (the `models` of a workspace); without it there are no trained ones.
    """
    from deconvnet.inference.predictor import Predictor
    from proposals import edge_boxes

    pictures = photographs(20)
    rows = _crf_rows("every class alive everywhere", [(image, _alive(image, n)) for n, image in enumerate(pictures)])
    if folder := os.environ.get("DECONVNET_MODELS"):
        predictor = Predictor.load(f"{folder}/stage2", f"{folder}/fcn8s")
        made = [predictor.probabilities(image, edge_boxes(image)[0], ("edeconvnet",))["edeconvnet"] for image in pictures]
        rows += _crf_rows(f"EDeconvNet's of {folder}", list(zip(pictures, made, strict=True)))
    return rows


def _alive(image: np.ndarray, seed: int) -> np.ndarray:
    """Smooth random probabilities under which each of the classes wins somewhere, before and after the CRF."""
    import torch

    height, width = image.shape[:2]
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(0, 2, (1, CLASSES, height // 32 + 1, width // 32 + 1)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").softmax(1)[0].numpy()


def _crf_rows(name: str, cases: list[tuple[np.ndarray, np.ndarray]]) -> list[Row]:
    from deconvnet.crf import dense_crf

    dense_crf(*cases[0])
    taken, ratios, equal, left = [], [], [], []
    for image, probabilities in cases:
        ours, spent = _timed(lambda image=image, p=probabilities: dense_crf(image, p))  # type: ignore[misc]
        taken.append(spent)
        left.append(np.count_nonzero(ours.any(axis=(1, 2))))
        if (theirs := _pydensecrf(image, probabilities)) is not None:
            ratios.append(theirs[1] / spent)
            equal.append(float((theirs[0].argmax(0) == ours.argmax(0)).mean()))
    title = f"dense_crf, {len(cases)} photographs, 21 classes, 10 iterations, one core; {name}"
    rows = [(title, f"{statistics.median(taken):.2f} s a photograph, {statistics.median(left):.0f} classes left at the end")]
    if not ratios:
        return [*rows, ("  against pydensecrf2", "not installed")]
    return [
        *rows,
        ("  against pydensecrf2", f"{statistics.median(ratios):.1f}× as fast ({min(ratios):.1f}–{max(ratios):.1f})"),
        ("  equal labels", f"{100 * statistics.mean(equal):.2f} % (least {100 * min(equal):.2f} %)"),
    ]


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the seconds of this thread's CPU time that it took: the better of two."""
    best = float("inf")
    for _ in range(2):
        started = time.thread_time()
        made = work()
        best = min(best, time.thread_time() - started)
    return made, best


def _pydensecrf(image: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, float] | None:
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


def proposals() -> list[Row]:
    from proposals import edge_boxes

    taken = [min(seconds(lambda image=image: edge_boxes(image)) for _ in range(2)) for image in photographs(10)]  # type: ignore[misc]
    return [("edge_boxes, 2000 boxes, one core", f"{statistics.median(taken):.2f} s a photograph")]
