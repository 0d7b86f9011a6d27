"""What the benchmarks share: timing, the images that they run on, and a description of the machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

SHARED = Path(os.environ.get("DECONVNET_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
"""Folder with a sample of VOC 2012 in `voc-sample`."""

Row = tuple[str, str]
"""A line of the result: what was measured, and the measurement."""


def seconds(work: Callable[[], object]) -> float:
    """Call a function once and return the wall-clock time that it took."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(works: Sequence[Callable[[], object]], times: int = 3, warm: bool = True) -> list[float]:
    """Time functions in turns, so that changes of the machine's speed affect all of them.

    Args:
        works: the functions.
        times: measured calls of each.
        warm: call each once before, without measuring.

    Returns:
        The median time of each function.
    """
    if warm:
        for work in works:
            work()
    taken = [[seconds(work) for work in works] for _ in range(times)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def sample_images(count: int) -> list[np.ndarray]:
    """Images to measure on, uint8 (H, W, 3), RGB: val images of the VOC sample, or generated ones of the same size."""
    from proposals.image_codec import decode_image

    folder = SHARED / "voc-sample"
    if folder.is_dir():
        names = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
        chosen = names[:: max(1, len(names) // count)][:count]
        return [decode_image((folder / "JPEGImages" / f"{name}.jpg").read_bytes()) for name in chosen]
    from deconvnet.datasets.synthetic import generate

    return [generate(i, 0, 375, 500)[0] for i in range(count)]


@cache
def peak_flops(bf16: bool, device: str = "cpu") -> float:
    """The machine's floating-point operations per second: the best of five large matrix products, in bfloat16 or float32."""
    import torch

    side = 8192 if device == "cuda" else 4096
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))

    def work() -> None:
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    return 2 * side**3 / min(seconds(work) for _ in range(5))


def machine() -> str:
    """One line that describes the machine and the versions of Python and torch."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    gpus = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cpu = names[0] if names else platform.machine()
    return f"{cpu}, {os.cpu_count()} cores{gpus}, Python {platform.python_version()}, torch {torch.__version__}"
