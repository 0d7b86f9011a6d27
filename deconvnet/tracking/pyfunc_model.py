"""The code of the registered model: MLflow runs this file when it loads the model ("models from code").

The file is copied into the model beside `code/` (deconvnet, proposals, infra), and needs neither Ray nor this project installed.
"""

import base64
import binascii
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc import PythonModel


class Ensemble(PythonModel):
    """EDeconvNet+CRF with its box proposals: predicts the mask of encoded images."""

    def load_context(self, context: Any) -> None:
        """Load both networks from the model's artifact `ensemble`, a folder with deconvnet/, fcn8s/ and options.json.

        Args:
            context: MLflow's context of the model, with the paths of its artifacts.
        """
        import torch

        from deconvnet.inference.saved_ensemble import SavedEnsemble

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.ensemble = SavedEnsemble(context.artifacts["ensemble"], device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict a mask for every image.

        Args:
            context: not used.
            model_input: frame with a column `image`: the bytes of an image file, or the same as base64 text.
            params: not used.

        Returns:
            Frame with the same index. `mask`: bytes of a paletted PNG of class ids (VOC's colours) in the image's displayed size,
            or None; `error`: None, or why there is no mask.
        """
        predictions = [self._predict(value) for value in model_input["image"]]
        return pd.DataFrame(predictions, columns=["mask", "error"], index=model_input.index, dtype=object)

    def _predict(self, value: Any) -> tuple[bytes | None, str | None]:
        """Predict the mask of one image; returns the PNG, or None and the reason."""
        from deconvnet.datasets.palette import VOC_PALETTE
        from infra.errors import BadInput
        from proposals.image_codec import encode_mask

        try:
            return encode_mask(self.ensemble.predict(_image_bytes(value)).mask, VOC_PALETTE), None
        except BadInput as error:
            return None, str(error)


def _image_bytes(value: Any) -> bytes:
    """Return the bytes of an image given as bytes or base64 text; raise BadInput for anything else."""
    from infra.errors import BadInput

    if isinstance(value, str):
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            raise BadInput("text that is not base64: give the bytes of an image file, or their base64") from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise BadInput(f"expected the bytes of an image file, got {type(value).__name__}")


mlflow.models.set_model(Ensemble())
