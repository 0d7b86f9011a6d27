"""Load a saved ensemble (DeconvNet and FCN-8s, with their options) and predict the masks of image files.

Prediction includes the object proposals (EdgeBox), both networks and the CRF. The model registered in MLflow,
`workflows/predict.py` and the server all predict with `SavedEnsemble`, so they give the same results. This module needs neither
Ray nor pydantic.
"""

import importlib
import tempfile
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from deconvnet.inference.uncertainty import Segmentation
from infra import storage
from infra.errors import BadInput, UserError
from infra.stopwatch import timed
from proposals import edge_boxes
from proposals.image_codec import decode_image

OPTIONS = "options.json"
NETWORKS = ("deconvnet", "fcn8s")
_BEFORE_FORESTS = {"edges": "gradient", "edge_gain": 1.0, "soft_nms_strength": 0.0}
"""Options of `edge_boxes` for ensembles that were saved before these options existed. The present defaults are different."""
_REQUIRED = {"classes", "proposals", "segment", "max_pixels"}


@dataclass(frozen=True)
class Prediction(Segmentation):
    """A predicted mask, how sure it is, and the decoded image.

    Attributes:
        image: uint8 (H, W, 3), RGB, turned as the file's EXIF orientation says.
    """

    image: np.ndarray

    @property
    def confidence(self) -> float:
        """Return the probability of the predicted class after the CRF, averaged over the pixels, 0 to 1."""
        return self.uncertainty.image.confidence


class SavedEnsemble:
    """A complete predictor of masks from image files: EdgeBox proposals, DeconvNet, FCN-8s and the CRF.

    It is loaded from a folder that contains the two networks, in `deconvnet/` and `fcn8s/`, and their options in `options.json`.

    Attributes:
        classes: class names, ordered by id.
        max_pixels: images with more pixels are refused.
        background: whether class 0 is the background.
    """

    def __init__(self, folder: str, device: str = "cpu", max_pixels: int | None = None) -> None:
        """Load the ensemble. Nothing in the folder is unpickled or executed, and nothing is read from it later.

        Args:
            folder: the ensemble's folder, local or in a bucket.
            device: torch device to predict on, "cpu" or "cuda".
            max_pixels: largest number of pixels of an image; None for the limit stored with the ensemble.

        Raises:
            UserError: if the folder does not hold a complete ensemble.
        """
        options = read_options(folder)
        self.classes: tuple[str, ...] = tuple(options["classes"])
        self.max_pixels: int = options["max_pixels"] if max_pixels is None else max_pixels
        defaults = {} if "edges" in options["proposals"] else _BEFORE_FORESTS
        self._edge_boxes: dict[str, Any] = {**defaults, **options["proposals"]}
        self._search = self._edge_boxes.pop("kind", "edgebox") != "windows"
        self._numba_cache = _numba_cache()
        from deconvnet.inference.predictor import Predictor, PredictorOptions  # after numba's cache is set
        from proposals.edges.forest_file import load_forest

        if self._search and (forest := self._edge_boxes.get("edge_model")):
            self._edge_boxes |= {"edges": "forest", "edge_model": load_forest(storage.join(folder, forest))}
        deconvnet, fcn8s = (storage.join(folder, name) for name in NETWORKS)
        self._predictor = Predictor.load(deconvnet, fcn8s, device, PredictorOptions(**options["segment"]))
        self.background: bool = self._predictor.options.background

    def predict(self, data: bytes) -> Prediction:
        """Predict the mask of an image file.

        Args:
            data: content of the file, such as a JPEG or PNG, in any format that `proposals.image_codec.decode_image` reads.

        Returns:
            The decoded image, its mask, and how sure it is.

        Raises:
            BadInput: if the image cannot be decoded, has too many pixels, or cannot be segmented; the message gives the reason.
        """
        with timed("decode"):
            image = decode_image(data, self.max_pixels)
        try:
            with timed("proposals"):
                boxes = edge_boxes(image, **self._edge_boxes)[0] if self._search else np.zeros((0, 4), np.float32)
            found = self._predictor.predict(image, boxes)
            return Prediction(**vars(found), image=image)
        except cv2.error as error:
            raise BadInput(f"can't be segmented: {' '.join(str(error).split())}") from error


def read_options(folder: str) -> dict[str, Any]:
    """Read the options of a saved ensemble and check that the folder is complete.

    Args:
        folder: the ensemble's folder, local or in a bucket.

    Returns:
        The content of `options.json`: a dict with `classes` (class names, ordered by id), `proposals` (keyword arguments of
        `proposals.edge_boxes`, and `kind` as in `ProposalSettings`), `segment` (fields of `PredictorOptions`) and `max_pixels`
        (largest number of pixels of an image).

    Raises:
        UserError: if the folder does not hold a complete ensemble.
    """
    try:
        options = storage.read_json(storage.join(folder, OPTIONS))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        options = None
    complete = all(storage.exists(storage.join(folder, name, "model.json")) for name in NETWORKS)
    if not complete or not isinstance(options, dict) or not options.keys() >= _REQUIRED:
        raise UserError(f"{folder} is not an ensemble of this project: it needs {OPTIONS}, {' and '.join(NETWORKS)}")
    return options


def _numba_cache() -> tempfile.TemporaryDirectory[str] | None:
    """Make sure that numba can cache the functions that it compiles, by giving it a temporary folder if necessary.

    Importing `deconvnet.crf` raises RuntimeError if numba can write neither to the folder of the source code nor to the home
    folder. In that case, numba's cache folder is set to a new temporary folder.

    Returns:
        The temporary folder, or None if numba needs none. The folder exists as long as the returned object.
    """
    import numba

    try:
        importlib.import_module("deconvnet.crf")
    except RuntimeError:
        folder = tempfile.TemporaryDirectory(prefix="numba-")
        numba.config.CACHE_DIR = folder.name
        return folder
    return None
