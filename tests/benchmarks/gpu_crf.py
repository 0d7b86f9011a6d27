"""Time the CRF on a GPU, and count the pixels with the same class as on the CPU: python tests/benchmarks/gpu_crf.py.

Needs torch, numpy, numba and OpenCV.
"""

import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deconvnet.crf import dense_crf

HEIGHT, WIDTH, CLASSES = 375, 500, 21


def case(present: int) -> tuple[np.ndarray, np.ndarray]:
    """A random image of smooth colours with noise, and probabilities of 21 classes, of which `present` win somewhere."""
    rng = np.random.default_rng(present)
    smooth = cv2.resize(rng.uniform(0, 255, (6, 8, 3)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    image = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    coarse = rng.normal(0, 3, (CLASSES, 12, 16)).astype(np.float32)
    coarse[present:] -= 30
    odds = np.exp([cv2.resize(each, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for each in coarse])
    return image, (odds / odds.sum(0)).astype(np.float32)


def main() -> int:
    """Print a line for many classes and one for few. Exit code 2 where there is no GPU."""
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use here; this benchmark needs one.", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    for present in (CLASSES, 3):
        image, probabilities = case(present)
        found, taken = dense_crf(image, probabilities, device=device), []
        for _ in range(20):
            torch.cuda.synchronize()
            started = time.perf_counter()
            dense_crf(image, probabilities, device=device)
            torch.cuda.synchronize()
            taken.append(1000 * (time.perf_counter() - started))
        equal = (found.argmax(0) == dense_crf(image, probabilities).argmax(0)).mean()
        print(
            f"{torch.cuda.get_device_name()}: {WIDTH}x{HEIGHT}, {present} classes: {statistics.median(taken):.1f} ms, "
            f"{100 * equal:.3f} % of the pixels have the CPU's class"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
