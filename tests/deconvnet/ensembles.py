"""A tiny ensemble with random weights, and how to register it, for the tests of inference, tracking, serving and the commands."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from deconvnet import DeconvNet, FCN8s
from deconvnet.evaluation.drift import PredictionStatistics
from deconvnet.inference.pixels import PixelMeasures, average_measures
from deconvnet.inference.saved_ensemble import Prediction
from deconvnet.models.checkpoint import save_model
from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.register import Ensemble, register

CLASSES = ("background", "circle", "bar")
EDGES = {"max_boxes": 50, "min_box_area": 200.0, "edges": "forest", "edge_model": None}
SEGMENT = {"proposals": 4, "batch": 2, "max_side": 96, "crf": {"iterations": 2}, "context": 1.3}
CARD = "# shapes\n\nKreise und Balken, 100 % künstlich.\n"
RESULTS = {
    "dataset": "generated",
    "images": 60,
    "classes": list(CLASSES),
    "rows": {
        "fcn8s": {"mean_iou": 0.6221, "pixel_accuracy": 0.9, "iou": {"background": 0.9, "circle": None, "bar": 0.3}},
        "edeconvnet_crf": {"mean_iou": 0.725, "pixel_accuracy": None, "iou": {"background": 0.9, "circle": None, "bar": 0.5}},
    },
}


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    """An RGB image of coloured rectangles with noise, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 255, (4, 5, 3)), np.ones((height // 4 + 1, width // 5 + 1, 1)))[:height, :width]
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def randomised(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The network with random weights that let it predict several classes, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(0, (2 / fan) ** 0.5, generator=generator)
    return network.eval()


def random_networks(num_classes: int = 3, seed: int = 1, width: float = 0.1) -> tuple[DeconvNet, FCN8s]:
    """A tiny DeconvNet and a tiny FCN-8s with random weights, in evaluation mode."""
    networks = DeconvNet(num_classes, width, 32), FCN8s(num_classes, width, batch_norm=True, convention="torchvision")
    for number, network in enumerate(networks):
        randomised(network, seed + number)
    return networks


def prediction(image: np.ndarray, mask: np.ndarray, confidence: float) -> Prediction:
    """A prediction of which every pixel has the same confidence, and for which the networks agree."""
    level = np.full(mask.shape, confidence, np.float32)
    confidence_map = np.rint(255 * level).astype(np.uint8)
    pixels = PixelMeasures(mask, level, level - np.float32(0.125), 1 - level, np.zeros(mask.shape, bool))
    return Prediction(mask, confidence_map, average_measures(pixels), boxes=50, image=image)


def save_networks(
    folder: Path,
    classes: Sequence[str] = CLASSES,
    *,
    names: tuple[str, str] = ("deconvnet", "fcn8s"),
    seed: int = 1,
    width: float = 0.1,
) -> tuple[DeconvNet, FCN8s]:
    """Save `random_networks` for these classes in folders with these names below a folder, and return them."""
    networks = random_networks(len(classes), seed, width)
    for network, name in zip(networks, names, strict=True):
        save_model(network, str(folder / name), classes)
    return networks


def ensemble_in(folder: Path, **changes) -> Ensemble:
    """The networks in deconvnet/ and fcn8s/ below a folder, with options; keywords replace fields."""
    statistics = PredictionStatistics(40, dict.fromkeys(CLASSES, 1 / len(CLASSES)), (0.5,), (0.5, 0.5))
    fields = {"classes": CLASSES, "proposals": EDGES, "segment": SEGMENT, "statistics": statistics, "card": CARD} | changes
    return Ensemble(str(folder / "deconvnet"), str(folder / "fcn8s"), **fields)


def register_ensemble(tracker: MlflowTracker, folder: Path, **changes) -> tuple[str, int]:
    """Register `ensemble_in(folder, …)` as shapes@challenger; returns the id of the run and the version."""
    with tracker.pipeline("p", {}) as parent, parent.stage("register") as run:
        return run.run_id, register(run, tracker.uri, "shapes", ensemble_in(folder, **changes), RESULTS)
