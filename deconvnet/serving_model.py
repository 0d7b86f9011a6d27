"""The registered model's own code: MLflow runs this file when it loads the model (models from code).

It is copied into the model beside `code/` (deconvnet, proposals, infra) and needs neither Ray nor this project installed.
"""

import base64
import binascii
import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc import PythonModel


class Ensemble(PythonModel):
    """EDeconvNet+CRF: encoded photographs in, label masks out; proposals and CRF are part of it."""

    def load_context(self, context: Any) -> None:
        """Build both networks from the artifact `ensemble` (deconvnet/, fcn8s/, options.json)."""
        import numba
        import torch

        try:
            importlib.import_module("deconvnet.crf")
        except RuntimeError:  # neither this code's folder nor the home is writable, and numba insists on keeping what it compiles
            self.cache = tempfile.TemporaryDirectory(prefix="numba-")
            numba.config.CACHE_DIR = self.cache.name
        from deconvnet import DeconvNet, FCN8s
        from deconvnet.checkpoints import load_model
        from deconvnet.segmenter import Segmenter

        folder = Path(context.artifacts["ensemble"])
        self.options: dict[str, Any] = json.loads((folder / "options.json").read_text())
        self.edges: dict[str, Any] = dict(self.options["proposals"])
        if self.edges.get("edge_model"):
            self.edges["edge_model"] = str(folder / self.edges["edge_model"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        deconvnet, fcn8s = (load_model(str(folder / name), device)[0] for name in ("deconvnet", "fcn8s"))
        assert isinstance(deconvnet, DeconvNet) and isinstance(fcn8s, FCN8s)
        self.segmenter = Segmenter(deconvnet, fcn8s, **self.options["segment"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row for each photograph of the column `image` (file's bytes, or base64 text): `mask`, `error`.

        `mask` is an 8-bit PNG of class ids at the photograph's size as displayed; `error` says why there is none.
        """
        answers = [self._answer(value) for value in model_input["image"]]
        return pd.DataFrame(answers, columns=["mask", "error"], index=model_input.index, dtype=object)

    def _answer(self, value: Any) -> tuple[bytes | None, str | None]:
        import cv2

        from infra.errors import BadInput
        from infra.images import decode_image, encode_mask
        from proposals import edge_boxes

        try:
            image = decode_image(_encoded(value), self.options["max_pixels"])
            boxes, _ = edge_boxes(image, **self.edges)
            return encode_mask(self.segmenter.best(image, boxes)), None
        except (BadInput, cv2.error) as error:
            return None, str(error).strip().splitlines()[0]


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
