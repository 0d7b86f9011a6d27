"""`make bench`: what the parts cost on this machine, each the median of several runs; ratios are paired in one run.

make bench                       all
make bench ARGS='crf training'   some
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHARED = Path(os.environ.get("DECONVNET_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))


def median(work: Callable[[], object], times: int = 5) -> float:
    """Median seconds of `times` calls, after one that is not counted."""
    work()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def photographs(count: int) -> list[np.ndarray]:
    """Real photographs where there are any, else generated ones of the same size."""
    from infra.images import decode_image

    folder = SHARED / "voc-sample" / "JPEGImages"
    if folder.is_dir():
        return [decode_image(p.read_bytes()) for p in sorted(folder.iterdir())[: count * 7 : 7]]
    from deconvnet.data.generated import generate

    return [generate(i, 0, 375, 500)[0] for i in range(count)]


def proposals() -> list[tuple[str, str]]:
    from proposals import edge_boxes

    seconds = [median(lambda image=image: edge_boxes(image), 1) for image in photographs(10)]  # type: ignore[misc]
    return [("edge_boxes, 2000 boxes, one core", f"{statistics.median(seconds):.2f} s a photograph")]


def crf() -> list[tuple[str, str]]:
    import torch

    from deconvnet.crf import dense_crf

    rows, ratios, ours = [], [], []
    rng = np.random.default_rng(0)
    for image in photographs(5):
        height, width = image.shape[:2]
        coarse = torch.from_numpy(rng.normal(0, 2, (1, 21, height // 32 + 1, width // 32 + 1)).astype(np.float32))
        smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").softmax(1)[0].numpy()
        ours.append(median(lambda image=image, p=smooth: dense_crf(image, p), 3))  # type: ignore[misc]
        if theirs := _pydensecrf(image, smooth):
            ratios.append(theirs / ours[-1])
    rows.append(("dense_crf, 21 classes alive, 10 iterations", f"{statistics.median(ours):.2f} s a photograph"))
    rows.append(("  against pydensecrf2", f"{statistics.median(ratios):.1f}× as fast" if ratios else "not installed"))
    return rows


def _pydensecrf(image: np.ndarray, probabilities: np.ndarray) -> float | None:
    try:
        import pydensecrf.densecrf as reference
    except ImportError:
        return None
    classes, height, width = probabilities.shape
    unary = np.ascontiguousarray(-np.log(np.clip(probabilities, 1e-5, 1)).reshape(classes, -1))

    def work() -> None:
        field = reference.DenseCRF2D(width, height, classes)
        field.setUnaryEnergy(unary)
        field.addPairwiseGaussian(sxy=3, compat=3)
        field.addPairwiseBilateral(sxy=20, srgb=3, rgbim=np.ascontiguousarray(image), compat=5)
        field.inference(10)

    return median(work, 3)


def training() -> list[tuple[str, str]]:
    import torch
    import torch.nn.functional as F

    from deconvnet import DeconvNet

    rows = []
    for width, size in ((0.25, 32), (0.25, 64)):
        model = DeconvNet(21, width, size).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(64, 3, size, size).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 21, (64, size, size))

        def step(model: torch.nn.Module = model, images: torch.Tensor = images, labels: torch.Tensor = labels) -> None:
            F.cross_entropy(model(images), labels).backward()

        rows.append((f"DeconvNet width {width}, {size} px, forward and backward", f"{64 / median(step, 3):.0f} crops/s"))
    return rows


def segmentation() -> list[tuple[str, str]]:
    from deconvnet import DeconvNet
    from deconvnet.segment import segment_instances
    from proposals import edge_boxes

    model = DeconvNet(21, 0.25, 64).eval()
    image = photographs(1)[0]
    boxes = edge_boxes(image)[0][:50]
    together = median(lambda: segment_instances(model, image, boxes), 3)
    single = median(lambda: segment_instances(model, image, boxes, batch=1), 3)
    return [
        ("segment_instances, 50 boxes, width 0.25, 64 px", f"{together:.2f} s a photograph"),
        ("  against a forward a box", f"{single / together:.1f}× as fast"),
    ]


BENCHMARKS = {f.__name__: f for f in (proposals, crf, training, segmentation)}


def main() -> int:
    wanted = sys.argv[1:] or list(BENCHMARKS)
    if unknown := set(wanted) - set(BENCHMARKS):
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | measured |\n|---|---|")
    for name in wanted:
        for what, measured in BENCHMARKS[name]():
            print(f"| {what} | {measured} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
