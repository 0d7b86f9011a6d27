"""Benchmark of what a replica of the server does with an image: networks of `voc_sample_cpu.yaml`'s size, one thread, by part.

The weights are random, so more classes reach the CRF than with trained networks (10 to 17 of 21), and it takes longer.
"""

import statistics
import time
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
    """An image by part, in CPU time, against convolutions by torch alone: medians over images, the two in turns; and equal pixels."""
    import cv2
    import torch

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
    with patch.object(fusion, "_as_product", lambda layer: layer):
        before = Predictor(*networks, options)
    found: list[tuple[dict[str, float], dict[str, float], float]] = []
    for image in sample_images(IMAGES + 1):
        data = encode_jpeg(image, 90)
        (old, expected), (new, mask) = (_predict(predictor, data) for predictor in (before, now))
        found.append((old, new, float((expected == mask).mean())))
    found = found[1:]  # what is compiled was compiled for the first one

    def median(run: int, name: str) -> float:
        return statistics.median(each[run][name] for each in found)

    ratio = statistics.median(new["total"] / old["total"] for old, new, _ in found)
    return [
        ("an image of a replica, `voc_sample_cpu.yaml`'s sizes, one thread, CPU time", f"{median(1, 'total'):.2f} s"),
        *((f"  {name}", f"{median(1, name):.3f} s, with torch's convolutions {median(0, name):.3f}") for name in PARTS),
        ("  of the time with torch's convolutions", f"{ratio:.2f} ({median(0, 'total'):.2f} s)"),
        ("  pixels whose class is equal, in the image with the fewest", f"{100 * min(equal for *_, equal in found):.3f} %"),
    ]


def _predict(predictor, data: bytes) -> tuple[dict[str, float], np.ndarray]:  # type: ignore[no-untyped-def]
    """The seconds of CPU time of each part of a prediction, and in `total`, and the mask."""
    from deconvnet.datasets.palette import class_palette
    from infra.stopwatch import measured_parts, part
    from proposals import edge_boxes
    from proposals.image_codec import decode_image, encode_mask

    started = time.thread_time()
    with patch("infra.stopwatch.time", SimpleNamespace(perf_counter=time.thread_time)), measured_parts() as seconds:
        with part("decode"):
            image = decode_image(data)
        with part("proposals"):
            boxes = edge_boxes(image)[0]
        mask = predictor.predict(image, boxes).mask
        with part("encode"):
            encode_mask(mask, class_palette(True))
    total = time.thread_time() - started
    return {**seconds, "other": total - sum(seconds.values()), "total": total}, mask
