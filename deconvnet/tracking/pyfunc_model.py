"""The registered model's own code: MLflow runs this file when it loads the model (models from code).

It is copied into the model beside `code/` (deconvnet, proposals, infra) and needs neither Ray nor this project installed.
"""

import base64
import binascii
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc import PythonModel


class Ensemble(PythonModel):
    """EDeconvNet+CRF: encoded photographs in, label masks out; proposals and CRF are part of it."""

    def load_context(self, context: Any) -> None:
        """Build both networks from the artifact `ensemble` (deconvnet/, fcn8s/, options.json)."""
        import torch

        from deconvnet.inference.saved_ensemble import SavedEnsemble

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.ensemble = SavedEnsemble(context.artifacts["ensemble"], device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row for each photograph of the column `image` (file's bytes, or base64 text): `mask`, `error`.

        `mask` is a paletted PNG of class ids (VOC's colours) at the photograph's size as displayed; `error` says why there is none.
        """
        answers = [self._answer(value) for value in model_input["image"]]
        return pd.DataFrame(answers, columns=["mask", "error"], index=model_input.index, dtype=object)

    def _answer(self, value: Any) -> tuple[bytes | None, str | None]:
        from deconvnet.datasets.palette import VOC_PALETTE
        from infra.errors import BadInput
        from proposals.image_codec import encode_mask

        try:
            return encode_mask(self.ensemble.predict(_encoded(value)).mask, VOC_PALETTE), None
        except BadInput as error:
            return None, str(error)


def _encoded(value: Any) -> bytes:
    """The photograph's bytes. Raises BadInput."""
    from infra.errors import BadInput

    if isinstance(value, str):
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            raise BadInput("text that is not base64: give a photograph's bytes, or their base64") from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise BadInput(f"expected a photograph's bytes, got {type(value).__name__}")


mlflow.models.set_model(Ensemble())
