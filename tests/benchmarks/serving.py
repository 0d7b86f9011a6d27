"""Benchmark of what a replica of the server does with an image: networks of `voc_sample_cpu.yaml`'s size, one thread, by part.

The weights are random, so more classes reach the CRF than with trained networks (10 to 17 of 21), and it takes longer. And each
box changes much of the mask: an early exit is measured with the limit 1, which lets it end after 20 boxes, the most that it can
save.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import yaml

from tests.benchmarks.common import Row, sample_images

CONFIG = Path(__file__).resolve().parents[2] / "workflows" / "configs" / "voc_sample_cpu.yaml"
CLASSES, IMAGES = 21, 3
PARTS = ("decode", "proposals", "fcn8s", "deconvnet", "crf", "encode", "other")


def serving() -> list[Row]:
    """CPU time of the parts of an image, against convolutions by torch alone, in turns: medians over images; and equal pixels."""
    import cv2
    import torch

    from deconvnet.inference.int8.conversion import computes_int8
    from deconvnet.inference.int8.ranges import recording
    from deconvnet.inference.predictor import Predictor, PredictorOptions
    from deconvnet.models import fusion
    from deconvnet.models.architectures import DECONVNET, FCN8S
    from deconvnet.models.factory import build_network
    from deconvnet.settings import ModelSettings, SegmentSettings
    from proposals.image_codec import encode_jpeg
    from tests.deconvnet.ensembles import randomised

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    config = yaml.safe_load(CONFIG.read_text())
    model = ModelSettings(**{**config["model"], "vgg16": None})
    networks = [randomised(build_network(kind, model, CLASSES), seed) for seed, kind in enumerate((DECONVNET, FCN8S))]
    options = PredictorOptions(**SegmentSettings(**config["segment"]).model_dump(mode="json"))
    now = Predictor(*networks, options)
    with patch.object(fusion, "_fast_convolution", lambda layer: layer):
        before = Predictor(*networks, options)
    early = Predictor(*networks, replace(options, early_exit=1.0))
    first, *images = sample_images(IMAGES + 1)
    with recording(now.deconvnet) as deconvnet, recording(now.fcn8s) as fcn8s:
        _predict(now, encode_jpeg(first, 90))
    predictors = [now, before, early, *([Predictor(*networks, options, (deconvnet, fcn8s))] if computes_int8("cpu") else [])]
    for predictor in predictors:
        _predict(predictor, encode_jpeg(first, 90))  # compiles what is to be compiled
    found = [[_predict(predictor, encode_jpeg(image, 90)) for predictor in predictors] for image in images]

    def median(run: int, name: str) -> float:
        return statistics.median(each[run][0][name] for each in found)

    def ratio(run: int, other: int) -> float:
        return statistics.median(each[run][0]["total"] / each[other][0]["total"] for each in found)

    def equal(run: int) -> str:
        return f"{100 * min(float((each[0][1] == each[run][1]).mean()) for each in found):.3f} % of the pixels equal"

    return [
        ("an image of a replica, `voc_sample_cpu.yaml`'s sizes, one thread, CPU time", f"{median(0, 'total'):.2f} s"),
        *((f"  {name}", f"{median(0, name):.3f} s, with torch's convolutions {median(1, name):.3f}") for name in PARTS),
        ("  of the time with torch's convolutions", f"{ratio(0, 1):.2f} ({median(1, 'total'):.2f} s), at least {equal(1)}"),
        ("  an early exit after 20 of 50 boxes, of the time with all", f"{ratio(2, 0):.2f}, at least {equal(2)}"),
        *(_int8_rows(median, ratio) if len(predictors) > 3 else []),
    ]


def _int8_rows(median: Callable[[int, str], float], ratio: Callable[[int, int], float]) -> list[Row]:
    """How long an image takes in 8-bit integers. With random weights, masks are too noisy to be compared."""
    parts = ", ".join(f"{name} {median(3, name):.3f}" for name in PARTS)
    return [
        ("  in 8-bit integers", f"{median(3, 'total'):.2f} s ({parts})"),
        ("  of the time in floats, and of that with torch's convolutions", f"{ratio(3, 0):.2f}, {ratio(3, 1):.2f}"),
    ]


def _predict(predictor, data: bytes) -> tuple[dict[str, float], np.ndarray]:  # type: ignore[no-untyped-def]
    """The seconds of CPU time of each part of a prediction, and in `total`, and the mask."""
    from deconvnet.datasets.palette import class_palette
    from infra.stopwatch import collect_timings, timed
    from proposals import edge_boxes
    from proposals.image_codec import decode_image, encode_mask

    started = time.thread_time()
    with patch("infra.stopwatch.time", SimpleNamespace(perf_counter=time.thread_time)), collect_timings() as seconds:
        with timed("decode"):
            image = decode_image(data)
        with timed("proposals"):
            boxes = edge_boxes(image)[0]
        mask = predictor.predict(image, boxes).mask
        with timed("encode"):
            encode_mask(mask, class_palette(True))
    total = time.thread_time() - started
    return {**seconds, "other": total - sum(seconds.values()), "total": total}, mask
