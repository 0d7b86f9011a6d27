"""Segment an image with exported networks: DeconvNet on overlapping squares, FCN-8s on the whole image, and their mean.

python workflows/export.py --format onnx --workspace runs/quickstart --model models:/edeconvnet@challenger --to networks
python examples/segment_onnx.py networks photo.jpg mask.png     # needs onnxruntime, OpenCV and NumPy alone
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def probabilities(network: onnxruntime.InferenceSession, pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return the class probabilities (height, width, classes) of RGB pixels (H, W, 3) that were scaled."""
    scores = network.run(None, {"images": pixels.transpose(2, 0, 1)[None]})[0][0]
    scores = cv2.resize(np.ascontiguousarray(scores.transpose(1, 2, 0)), (width, height))
    exponentials = np.exp(scores - scores.max(axis=2, keepdims=True))
    return exponentials / exponentials.sum(axis=2, keepdims=True)


folder, image_file, mask_file = map(Path, sys.argv[1:])
about = json.loads((folder / "networks.json").read_text())
deconvnet, fcn8s = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("deconvnet", "fcn8s"))
size, longest = about["input_size"]["deconvnet"], about["input_size"]["fcn8s"]
image = cv2.imread(str(image_file), cv2.IMREAD_COLOR_RGB)
height, width = image.shape[:2]
scale = min(1.0, longest / max(height, width)) if longest else 1.0
whole = probabilities(fcn8s, cv2.resize(image, None, fx=scale, fy=scale), width, height)
total, side = np.zeros_like(whole), min(height, width)
for top in np.linspace(0, height - side, -(-2 * height // side) - 1).astype(int):
    for left in np.linspace(0, width - side, -(-2 * width // side) - 1).astype(int):
        square = np.s_[top : top + side, left : left + side]
        total[square] += probabilities(deconvnet, cv2.resize(image[square], (size, size)), side, side)
mask = (total / total.sum(axis=2, keepdims=True) + whole).argmax(axis=2).astype(np.uint8)
cv2.imwrite(str(mask_file), mask)  # class ids
for name, pixels in zip(about["classes"], np.bincount(mask.ravel(), minlength=len(about["classes"])), strict=True):
    print(f"{name:<16}{pixels / mask.size:7.1%}")
