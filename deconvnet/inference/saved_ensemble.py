"""A saved ensemble: takes an encoded image and returns its mask, doing proposals, both networks and the CRF.

The registered MLflow model, `workflows/predict.py` and the server all predict with `SavedEnsemble`, so their results are the
same. It needs neither Ray nor pydantic.
"""

import importlib
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from infra import storage
from infra.errors import BadInput, UserError
from proposals import edge_boxes
from proposals.image_codec import decode_image

if TYPE_CHECKING:
    from deconvnet.inference.predictor import Predictor

OPTIONS = "options.json"
NETWORKS = ("deconvnet", "fcn8s")
_BEFORE_FORESTS = {"edges": "gradient", "edge_gain": 1.0, "soft_nms_strength": 0.0}
"""Options of `edge_boxes` for ensembles that were registered before these options existed."""
_REQUIRED = {"classes", "proposals", "segment", "max_pixels"}


@dataclass(frozen=True)
class Prediction:
    """An image and its predicted mask.

    Attributes:
        image: uint8 (H, W, 3), RGB, with the file's EXIF orientation applied.
        mask: class ids, uint8 (H, W).
        confidence: mean over the pixels of the predicted class's probability, 0 to 1.
    """

    image: np.ndarray
    mask: np.ndarray
    confidence: float


class SavedEnsemble:
    """EDeconvNet+CRF loaded from a folder that holds `deconvnet/`, `fcn8s/` and `options.json`.

    Attributes:
        classes: class names by id.
        max_pixels: images with more pixels are refused.
    """

    def __init__(self, folder: str, device: str = "cpu", max_pixels: int | None = None) -> None:
        """Load the ensemble. Nothing in the folder is unpickled or executed.

        Args:
            folder: the ensemble's folder, local or s3.
            device: torch device to predict on.
            max_pixels: largest image accepted; None for the limit stored with the ensemble.

        Raises:
            UserError: if the folder holds no such ensemble.
        """
        options = read_options(folder)
        self.classes: tuple[str, ...] = tuple(options["classes"])
        self.max_pixels: int = max_pixels or options["max_pixels"]
        defaults = {} if "edges" in options["proposals"] else _BEFORE_FORESTS
        self._edge_boxes: dict[str, Any] = {**defaults, **options["proposals"]}
        if self._edge_boxes.get("edge_model"):
            self._edge_boxes["edges"] = "forest"
            self._edge_boxes["edge_model"] = storage.join(folder, self._edge_boxes["edge_model"])
        self._numba_cache = _numba_cache()
        self._predictor = _load_predictor(folder, device, options["segment"])

    def predict(self, data: bytes) -> Prediction:
        """Predict the mask of an image file.

        Args:
            data: the file's bytes, in any format that `proposals.image_codec.decode_image` reads.

        Returns:
            The decoded image, its mask and the confidence.

        Raises:
            BadInput: if the image cannot be used; its message says why.
        """
        image = decode_image(data, self.max_pixels)
        try:
            boxes, _ = edge_boxes(image, **self._edge_boxes)
            return Prediction(image, *self._predictor.mask_and_confidence(image, boxes))
        except cv2.error as error:
            raise BadInput(f"can't be segmented: {' '.join(str(error).split())}") from error


def read_options(folder: str) -> dict[str, Any]:
    """Read the options of a saved ensemble.

    Args:
        folder: the ensemble's folder, local or s3.

    Returns:
        `classes` (names by id), `proposals` (keywords of `edge_boxes`), `segment` (fields of `PredictorOptions`), `max_pixels`.

    Raises:
        UserError: if the folder holds no ensemble.
    """
    try:
        options = storage.read_json(storage.join(folder, OPTIONS))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        options = None
    complete = all(storage.exists(storage.join(folder, name, "model.json")) for name in NETWORKS)
    if not complete or not isinstance(options, dict) or not options.keys() >= _REQUIRED:
        raise UserError(f"{folder} is not an ensemble of this project: it needs {OPTIONS}, {' and '.join(NETWORKS)}")
    return options


def _load_predictor(folder: str, device: str, options: dict[str, Any]) -> "Predictor":
    """The predictor of an ensemble's folder, with the fields of `PredictorOptions` as stored."""
    from deconvnet.inference.predictor import Predictor, PredictorOptions

    deconvnet, fcn8s = (storage.join(folder, name) for name in NETWORKS)
    return Predictor.load(deconvnet, fcn8s, device, PredictorOptions(**options))


def _numba_cache() -> tempfile.TemporaryDirectory[str] | None:
    """A temporary folder for numba's cache if neither the code's folder nor the home is writable, else None.

    Numba refuses to compile cached functions, at import, if it has nowhere to write.
    """
    import numba

    try:
        importlib.import_module("deconvnet.crf")
    except RuntimeError:
        folder = tempfile.TemporaryDirectory(prefix="numba-")
        numba.config.CACHE_DIR = folder.name
        return folder
    return None
