"""What turns an encoded photograph into labels: decoding, proposals, both networks, CRF. The ensemble of a registered model, loaded.

The registered model and `workflows/predict.py` both label with it, so they can't differ. Neither Ray nor pydantic is needed.
"""

import importlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from infra import storage
from infra.errors import BadInput, UserError
from proposals import edge_boxes
from proposals.image_codec import decode_image

if TYPE_CHECKING:
    from deconvnet.inference.predictor import Segmenter

OPTIONS = "options.json"
NETWORKS = ("deconvnet", "fcn8s")
# What ensembles were registered by that say nothing of these.
_BEFORE_FORESTS = {"edges": "gradient", "edge_gain": 1.0, "soft_nms_strength": 0.0}
_KNOWN = {"classes", "proposals", "segment", "max_pixels"}


@dataclass(frozen=True)
class Labelled:
    """A photograph and what was seen in it.

    image: uint8 (H, W, 3), RGB, as displayed. mask: uint8 (H, W), class ids. confidence: the mean over the pixels of the
    probability of the class chosen, 0–1.
    """

    image: np.ndarray
    mask: np.ndarray
    confidence: float


class Labeller:
    """EDeconvNet+CRF, loaded from the folder of an ensemble (local or s3): deconvnet/, fcn8s/, options.json.

    max_pixels: larger photographs are refused; None: the ensemble's own bound. `classes` are its names by id.
    """

    def __init__(self, folder: str, device: str = "cpu", max_pixels: int | None = None) -> None:
        """Raises UserError where the folder holds no such ensemble. Nothing in it is unpickled or run."""
        options = read_options(folder)
        self.classes: tuple[str, ...] = tuple(options["classes"])
        self.max_pixels: int = max_pixels or options["max_pixels"]
        before = {} if "edges" in options["proposals"] else _BEFORE_FORESTS
        self._edges: dict[str, Any] = {**before, **options["proposals"]}
        if self._edges.get("edge_model"):
            self._edges["edges"] = "forest"
            self._edges["edge_model"] = storage.join(folder, self._edges["edge_model"])
        self._compiled = _place_to_compile()
        self._segmenter = _segmenter(folder, device, options["segment"])

    def label(self, data: bytes) -> Labelled:
        """The labels of a photograph's file. Raises BadInput, with the reason, where it can't be used."""
        image = decode_image(data, self.max_pixels)
        try:
            boxes, _ = edge_boxes(image, **self._edges)
            return Labelled(image, *self._segmenter.best_and_confidence(image, boxes))
        except cv2.error as error:
            raise BadInput(f"can't be labelled: {' '.join(str(error).split())}") from error


def read_options(folder: str) -> dict[str, Any]:
    """The ensemble's options: `classes`, `proposals`, `segment`, `max_pixels`. Raises UserError where `folder` holds no ensemble."""
    try:
        options = storage.read_json(storage.join(folder, OPTIONS))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        options = None
    whole = all(storage.exists(storage.join(folder, name, "model.json")) for name in NETWORKS)
    if not whole or not isinstance(options, dict) or not options.keys() >= _KNOWN:
        raise UserError(f"{folder} is not an ensemble of this project's: it needs {OPTIONS}, {' and '.join(NETWORKS)}")
    return options


def _segmenter(folder: str, device: str, options: Mapping[str, Any]) -> "Segmenter":
    from deconvnet.inference.predictor import Segmenter

    deconvnet, fcn8s = (storage.join(folder, name) for name in NETWORKS)
    return Segmenter.load(deconvnet, fcn8s, device, **options)


def _place_to_compile() -> tempfile.TemporaryDirectory[str] | None:
    """Where numba keeps what it compiles, if neither this code's folder nor the home is writable: it insists on a place."""
    import numba

    try:
        importlib.import_module("deconvnet.crf")
    except RuntimeError:
        made = tempfile.TemporaryDirectory(prefix="numba-")
        numba.config.CACHE_DIR = made.name
        return made
    return None
