"""Define the settings of export.py."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from deconvnet.tracking.settings import StoreSettings
from infra.settings import Location
from workflows.cli import CommandSettings
from workflows.settings import MODEL_FORMS


class ExportSettings(CommandSettings):
    """Settings of export.py."""

    format: Literal["coco", "cvat", "fiftyone", "labelme", "labelstudio", "onnx", "voc", "yolo"] = Field(
        description="what to write: labels for a tool, a data set to look at (fiftyone), or the networks (onnx; formats.md)"
    )
    to: Location = Field(min_length=1, description="new local folder to write")
    predictions: Location | None = Field(None, description="output folder of predict.py, local or in a bucket; not onnx")
    only: Location | None = Field(
        None,
        description="text file with the names or paths of the images to export, one per line; empty: all (predicted, evaluated)",
    )
    shapes: Literal["polygons", "masks"] | None = Field(
        None,
        description="polygons, or exact masks (run lengths, bitmaps); empty: polygons, but masks for voc and fiftyone. yolo has "
        "only polygons",
    )
    tolerance: NonNegativeFloat = Field(
        0.75, description="how far a polygon may lie from the edges of the pixels, px; 0: it follows them exactly"
    )
    min_area: NonNegativeInt = Field(0, description="objects with fewer pixels are left out")
    image_url: str = Field(
        "/data/local-files/?d=images/", description="labelstudio: address of an image without its name, which is appended"
    )
    max_rejects: float = Field(0.05, ge=0, le=1, description="share of images that may be unusable before the export fails")
    threads: PositiveInt | None = Field(None, description="threads; empty: one per CPU")
    model: str = Field("models:/edeconvnet@champion", description=f"onnx: registered model: {MODEL_FORMS}")
    workspace: Location | None = Field(
        None,
        description="onnx: workspace of a pipeline, whose own MLflow store (SQLite) has the model; fiftyone: in place of "
        "predictions, the workspace whose evaluated images are exported",
    )
    evaluation: str = Field(
        "report",
        description="fiftyone: folder of the evaluation in the workspace: report (val images), or evaluations/dev and the like",
    )
    tracking: StoreSettings = StoreSettings()

    @model_validator(mode="after")
    def _complete(self) -> "ExportSettings":
        """Check that --predictions and --workspace fit the format. Raise ValueError if they don't."""
        if self.format == "fiftyone":
            if bool(self.predictions) == bool(self.workspace):
                raise ValueError(
                    "fiftyone shows either new images or evaluated ones: name the output folder of predict.py by --predictions, "
                    "or a workspace by --workspace"
                )
            return self
        if self.format != "onnx" and not self.predictions:
            raise ValueError("predictions is not given: name the output folder of predict.py by --predictions")
        if self.format == "onnx" and self.predictions:
            raise ValueError("predictions are for labels, and onnx exports the networks: leave predictions out")
        return self

    @model_validator(mode="after")
    def _possible_shapes(self) -> "ExportSettings":
        """Check that the format supports `shapes` and `min_area`. Raise ValueError if it doesn't."""
        if (self.format, self.shapes) in (("yolo", "masks"), ("voc", "polygons"), ("fiftyone", "polygons")):
            other = "polygons" if self.format == "yolo" else "masks"
            raise ValueError(
                f"shapes {self.shapes} is not possible for format {self.format}: leave shapes out, which means {other}"
            )
        if self.format == "fiftyone" and self.min_area:
            raise ValueError("min_area is for labels, and fiftyone gets the masks as they are: leave min_area out")
        return self
