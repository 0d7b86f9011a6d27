"""What the benchmarks share: medians, paired ratios, what they are measured on, and the machine's peak."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

SHARED = Path(os.environ.get("DECONVNET_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))

Row = tuple[str, str]
"""What was measured, and the figure."""


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def paired(works: Sequence[Callable[[], object]], times: int = 3, warm: bool = True) -> list[float]:
    """Median seconds of each of `works`, which take turns `times` times, after one turn that is not counted."""
    if warm:
        for work in works:
            work()
    taken = [[seconds(work) for work in works] for _ in range(times)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def photographs(count: int) -> list[np.ndarray]:
    """Real photographs of val where there are any, else generated ones of the same size."""
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
    """Floating-point operations a second of the best of several large matrix products, in bfloat16 or float32."""
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
    """The machine in a line."""
    import torch

    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    gpus = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores{gpus}, Python {platform.python_version()}, torch {torch.__version__}"
