"""Settings of proposals and of the training examples cut from them."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from infra.settings import Section


class ProposalSettings(Section):
    """EdgeBox (Zitnick, Dollár 2014). Where the defaults are not the paper's (`PAPER`) they were chosen by recall on voc-sample's train."""

    edges: Literal["forest", "gradient"] = Field(
        "forest", description="what finds edges: a structured forest, or colour gradients, which need nothing"
    )
    edge_model: str | None = Field(
        None,
        description="the forest's file, OpenCV's format (.yml.gz; path, https or s3); empty: the one that comes with the package",
    )
    multiscale: bool = Field(
        False, description="edges are the mean of those at half, one and double size; about six times as slow"
    )
    edge_gain: float = Field(
        1.5, gt=0, le=10, description="edges are raised by this (to 1 at most) before EdgeBox's thresholds meet them"
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
    gamma: PositiveFloat = Field(4.0, description="affinity sensitivity; paper: 2")
    kappa: PositiveFloat = Field(1.3, description="scale sensitivity, larger for smaller boxes; paper: 1.5")
    max_side: int = Field(1024, ge=32, le=8192, description="larger photographs are searched at this side, px")

    soft_nms_strength: float = Field(
        0.9,
        ge=0,
        le=1,
        description="how far boxes are put back that overlap better ones, so that the first are a good choice; 0: not",
    )
    soft_nms_power: float = Field(
        5.5, gt=0, description="overlap counts by this power: a high one leaves boxes alone under IoU 0.5 or so"
    )
    soft_nms_first: PositiveInt = Field(200, description="the first boxes that others are put back for")

    @model_validator(mode="after")
    def _one_source(self) -> "ProposalSettings":
        if self.edges == "gradient" and self.edge_model:
            raise ValueError(
                f"proposals.edge_model {self.edge_model} is not used by proposals.edges gradient: leave one of them out"
            )
        return self


PAPER: dict[str, Any] = {
    "edges": "gradient", "edge_model": None, "multiscale": False, "edge_gain": 1.0, "max_boxes": 2000, "alpha": 0.65, "beta": 0.75, "eta": 1.0,
    "min_score": 0.01, "edge_min_mag": 0.1, "edge_merge_thr": 0.5, "min_box_area": 1000.0, "max_aspect_ratio": 3.0, "gamma": 2.0,
    "kappa": 1.5, "max_side": 1024, "soft_nms_strength": 0.0, "soft_nms_power": 5.0, "soft_nms_first": 200,
}  # fmt: skip
"""EdgeBox as its paper sets it, on edges that need nothing: what proposals are compared with."""


class ForestSettings(Section):
    """Training a structured forest (Dollár, Zitnick 2013)."""

    photographs: PositiveInt = Field(2000, description="about this many photographs with masks are learned from (drawn by seed)")
    trees: int = Field(8, ge=1, le=64, description="detection asks half of them at each place")
    patches: int = Field(
        400_000,
        ge=1000,
        le=5_000_000,
        description="patches a tree sees, if the photographs have as many; of a quarter of the features each takes 2 kB of memory",
    )
    positives: float = Field(0.5, gt=0, lt=1, description="share of the patches with a boundary in their middle")
    feature_share: float = Field(0.25, gt=0, le=1, description="share of the features that a tree may ask")
    pairs: int = Field(256, ge=8, le=4096, description="pairs of pixels that labels are compared by in a node")
    min_child: int = Field(8, ge=1, description="least patches in a node")
    max_depth: int = Field(64, ge=1, le=64, description="of a tree")

    @model_validator(mode="after")
    def _enough(self) -> "ForestSettings":
        if 2 * self.min_child > self.patches:
            raise ValueError(
                f"forest.min_child {self.min_child} is more than half of forest.patches {self.patches}: no tree can grow"
            )
        return self


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
