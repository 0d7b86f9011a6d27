"""Settings of proposals and of the training examples cut from them."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from infra.settings import Section


class ProposalSettings(Section):
    """EdgeBox (Zitnick, Dollár 2014); the defaults are the paper's."""

    edge_model: str | None = Field(
        None, description="OpenCV structured-forest file (.yml.gz; path, https or s3); empty: colour gradients"
    )
    max_boxes: PositiveInt = Field(2000, le=10_000, description="boxes kept a photograph")
    alpha: float = Field(0.65, gt=0, lt=1, description="step size of the sliding window search")
    beta: float = Field(0.75, gt=0, lt=1, description="IoU of the non-maximum suppression")
    eta: float = Field(1.0, gt=0, le=1, description="adaptation rate of the suppression")
    min_score: float = Field(0.01, ge=0, lt=1, description="lowest objectness kept")
    edge_min_mag: float = Field(0.1, ge=0, lt=1, description="edges weaker than this are dropped")
    edge_merge_thr: float = Field(0.5, gt=0, description="edges are grouped until their turns add up to this, in units of π")
    min_box_area: float = Field(1000.0, ge=25, description="smallest box, px²")
    max_aspect_ratio: float = Field(3.0, ge=1, le=10, description="longest side over shortest")
    gamma: PositiveFloat = Field(2.0, description="affinity sensitivity")
    kappa: PositiveFloat = Field(1.5, description="scale sensitivity")
    max_side: int = Field(1024, ge=32, le=8192, description="larger photographs are searched at this side, px")


class ExampleSettings(Section):
    """Training crops, stage 1 and stage 2 (DeconvNet §4.2–4.3)."""

    context: float = Field(1.2, ge=1, description="factor a box is scaled by about its centre")
    window: Literal["square", "stretched"] = Field(
        "square", description="square windows keep the aspect ratio; stretched ones don't"
    )
    min_iou: float = Field(0.5, gt=0, le=1, description="stage 2: least IoU of a proposal with a ground-truth object")
    min_object_side: PositiveInt = Field(4, description="objects whose box is shorter than this (px) are left out")
    max_per_image: PositiveInt | None = Field(
        None, description="stage 2: most crops a photograph, best IoU spread by seed; empty: all"
    )
    balance: bool = Field(True, description="repeat examples of rare classes")
    max_repeats: PositiveInt = Field(10, description="most times one example is repeated in an epoch")
    jpeg_quality: int = Field(95, ge=50, le=100, description="JPEG quality of the stored crops")
