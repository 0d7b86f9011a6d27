"""Define the registered model as MLflow loads it. MLflow runs this file for that purpose ("models from code").

Registering the model copies this file into it, together with the packages deconvnet, proposals and infra in the folder `code`.
Therefore a machine that loads the model needs neither Ray nor an installation of this project.
"""

import base64
import binascii
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc import PythonModel

_MEASURES = ("confidence", "confidence_before_crf", "entropy", "disagreement", "boundary_doubt")
UNCERTAINTY_COLUMNS = ("confidence_map", "classes", *_MEASURES, *(f"class_{name}" for name in _MEASURES))
"""Columns that say how sure the predictions are."""


class EnsembleModel(PythonModel):
    """A registered model that predicts the masks of encoded images.

    It is EDeconvNet+CRF: an ensemble of DeconvNet and FCN-8s, refined by a dense CRF. It finds its own box proposals.
    """

    def load_context(self, context: Any) -> None:
        """Load the networks from the model's artifact `ensemble`, to the GPU if there is one. MLflow calls this method once.

        The artifact is a folder with deconvnet/ and fcn8s/ (the weights) and options.json.

        Args:
            context: context that MLflow passes. It has the paths of the model's artifacts.
        """
        import torch

        from deconvnet.inference.saved_ensemble import SavedEnsemble

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.ensemble = SavedEnsemble(context.artifacts["ensemble"], device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict a mask for each image. An image that can't be used does not stop the others.

        Args:
            context: not used.
            model_input: DataFrame with a column `image`. Each value is the content of an image file, as bytes or as base64 text.
            params: `{"uncertainty": True}` for further columns; None for the two columns of the signature.

        Returns:
            A DataFrame with the index of `model_input` and two columns. `mask` is a paletted PNG of class ids with PASCAL VOC's
            colours, as bytes, or None. It has the size of the image after its EXIF orientation is applied. `error` is None, or
            the reason why there is no mask.

            On request, further columns say how sure the predictions are. They are None where there is no mask.

            * `confidence_map`: a grey PNG of the probability of each pixel's class before the CRF (255 is 1), as bytes.
            * `classes`: names of the classes in the mask, in the order of their ids.
            * `confidence`, `confidence_before_crf`, `entropy`, `disagreement`, `boundary_doubt`: measures of the image, as in the
              table `predictions` (see `deconvnet.inference.uncertainty.Measures`).
            * `class_confidence` …: lists of the same measures of each class, in the order of `classes`.

        Raises:
            ValueError: if `model_input` is not a DataFrame with a column `image`.
        """
        if not isinstance(model_input, pd.DataFrame) or "image" not in model_input.columns:
            found = list(model_input.columns) if isinstance(model_input, pd.DataFrame) else type(model_input).__name__
            raise ValueError(
                f'model_input is {found}; expected a pandas frame with a column "image" of image files: '
                'pd.DataFrame({"image": [Path("photo.jpg").read_bytes()]})'
            )
        uncertainty = bool((params or {}).get("uncertainty"))
        columns = ["mask", "error", *(UNCERTAINTY_COLUMNS if uncertainty else ())]
        rows = [dict.fromkeys(columns) | self._predict(value, uncertainty) for value in model_input["image"]]
        return pd.DataFrame(rows, columns=columns, index=model_input.index, dtype=object)

    def _predict(self, value: Any, uncertainty: bool) -> dict[str, Any]:
        """Predict the mask of one image.

        Args:
            value: content of an image file, as bytes or as base64 text.
            uncertainty: whether the row says how sure the prediction is.

        Returns:
            A row: the mask as PNG, and on request how sure it is; or the reason why the image can't be used.
        """
        from deconvnet.datasets.palette import class_palette
        from infra.errors import BadInput
        from proposals.image_codec import encode_mask

        try:
            found = self.ensemble.predict(_image_bytes(value))
        except BadInput as error:
            return {"error": str(error)}
        row: dict[str, Any] = {"mask": encode_mask(found.mask, class_palette(self.ensemble.background))}
        if uncertainty:
            row["confidence_map"] = encode_mask(found.confidence_map, level=1)
            row["classes"] = [self.ensemble.classes[i] for i in found.uncertainty.classes]
            row |= found.uncertainty.columns()
        return row


def _image_bytes(value: Any) -> bytes:
    """Return the content of an image file that is given as bytes or as base64 text.

    Args:
        value: the bytes, or text in base64 with or without line breaks.

    Returns:
        The content of the file.

    Raises:
        BadInput: if the value is neither bytes nor valid base64 text.
    """
    from infra.errors import BadInput

    if isinstance(value, str):
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            raise BadInput("text that is not base64: give the bytes of an image file, or their base64") from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise BadInput(f"expected the bytes of an image file, got {type(value).__name__}")


mlflow.models.set_model(EnsembleModel())
