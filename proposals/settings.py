"""Settings of object proposals, of training crops, and of training an edge detector."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from infra.settings import Location, Section

WINDOW_SETTINGS = ("kind", "window_sizes", "window_overlap")
"""Names of the settings of proposals that are not options of EdgeBox."""
_WindowSize = Annotated[float, Field(ge=0.01, le=1)]


class ProposalSettings(Section):
    """Object proposals by EdgeBox (Zitnick, Dollár 2014), or windows that cover the image.

    Proposals are boxes that are likely to contain an object. They are found by `proposals.edgebox.find_boxes`, whose defaults
    are tuned for recall on the train split of voc-sample. Windows are made by `proposals.boxes.make_windows`.
    """

    kind: Literal["edgebox", "windows", "both"] = Field(
        "edgebox",
        description="edgebox: boxes that may contain an object; windows: squares that cover the image, for scenes without "
        "objects (there is no training stage 1); both: boxes and windows",
    )
    window_sizes: tuple[_WindowSize, ...] = Field(
        (1.0, 0.5), min_length=1, description="windows: their sides, as shares of the image's shorter side"
    )
    window_overlap: float = Field(
        0.5, ge=0, le=0.95, description="windows: neighbours of the same size overlap by at least this share of their side"
    )
    edges: Literal["forest", "gradient"] = Field(
        "forest", description="edge detector: a structured forest, or colour gradients, which need no model file"
    )
    edge_model: Location | None = Field(
        None,
        description="file of the structured forest in OpenCV's format (.yml.gz; path, https, s3); empty: the one in the package",
    )
    multiscale: bool = Field(False, description="average the edges at half, full and double image size; about six times as slow")
    edge_gain: float = Field(
        1.5, gt=0, le=10, description="factor on edge strengths (clipped at 1) before EdgeBox's thresholds are applied"
    )
    max_boxes: PositiveInt = Field(2000, le=10_000, description="largest number of boxes kept per image")
    alpha: float = Field(0.65, gt=0, lt=1, description="step size of the sliding window search")
    beta: float = Field(0.75, gt=0, lt=1, description="IoU above which non-maximum suppression removes a box")
    eta: float = Field(1.0, gt=0, le=1, description="adaptation rate of beta during the suppression; 1: constant")
    min_score: float = Field(0.01, ge=0, lt=1, description="lowest objectness of a box that is kept")
    edge_min_mag: float = Field(0.1, ge=0, lt=1, description="edges weaker than this are ignored")
    edge_merge_thr: float = Field(
        0.5, gt=0, description="edge pixels are grouped until their changes of orientation sum to this, in units of π"
    )
    min_box_area: float = Field(1000.0, ge=25, description="smallest area of a box, px²")
    max_aspect_ratio: float = Field(3.0, ge=1, le=10, description="largest ratio of a box's longer to its shorter side")
    gamma: PositiveFloat = Field(4.0, description="exponent of the affinity between edge groups; paper: 2")
    kappa: PositiveFloat = Field(1.3, description="exponent of the perimeter that scores are divided by; paper: 1.5")
    max_side: int = Field(1024, ge=32, le=8192, description="larger images are shrunk to this longer side for the search, px")

    soft_nms_strength: float = Field(
        0.9, ge=0, le=1, description="Soft-NMS: how much a box lowers the score of an identical one; 0: off, 1: to zero"
    )
    soft_nms_power: float = Field(
        5.5, gt=0, description="Soft-NMS: exponent of the IoU; high values spare boxes with an IoU below about 0.5"
    )
    soft_nms_first: PositiveInt = Field(200, description="Soft-NMS: number of top-ranked boxes that lower the scores of others")

    @property
    def edge_box(self) -> dict[str, Any]:
        """Return the options of EdgeBox: the fields of `proposals.edgebox.EdgeBoxOptions` by name, as JSON values."""
        return self.model_dump(mode="json", exclude=set(WINDOW_SETTINGS))

    @property
    def windows(self) -> dict[str, Any]:
        """Return the sizes and the overlap of windows as JSON values by name. They are empty if `kind` is "edgebox"."""
        names = set() if self.kind == "edgebox" else {"window_sizes", "window_overlap"}
        return self.model_dump(mode="json", include=names)

    @model_validator(mode="after")
    def _one_source(self) -> "ProposalSettings":
        """Check that no model file is given for the gradient detector, which would ignore it.

        Returns:
            These settings, unchanged.

        Raises:
            ValueError: if `edges` is "gradient" and `edge_model` is given.
        """
        if self.edges == "gradient" and self.edge_model:
            raise ValueError(
                f"proposals.edge_model {self.edge_model} is not used with proposals.edges gradient: leave one of them out"
            )
        return self


class ForestSettings(Section):
    """Training of an edge detector, a structured forest (Dollár, Zitnick 2013).

    The forest is trained on image patches, by `proposals.edges.training`.
    """

    photographs: PositiveInt = Field(
        2000, description="about how many images with masks the forest learns from (drawn at random by the seed)"
    )
    trees: int = Field(8, ge=1, le=64, description="number of trees; detection evaluates half of them at each position")
    patches: int = Field(
        400_000,
        ge=1000,
        le=5_000_000,
        description="largest number of patches per tree; each takes 2 kB of memory when a quarter of the features is used",
    )
    positives: float = Field(0.5, gt=0, lt=1, description="share of the patches with a boundary near their centre")
    feature_share: float = Field(0.25, gt=0, le=1, description="share of the features that each tree may use")
    pairs: int = Field(256, ge=8, le=4096, description="number of random pixel pairs with which a node compares segmentations")
    min_child: int = Field(8, ge=1, description="smallest number of patches in a node")
    max_depth: int = Field(64, ge=1, le=64, description="greatest depth of a tree")

    @model_validator(mode="after")
    def _enough(self) -> "ForestSettings":
        """Check that there are enough patches to split at least one node of a tree.

        Returns:
            These settings, unchanged.

        Raises:
            ValueError: if `patches` is less than twice `min_child`.
        """
        if 2 * self.min_child > self.patches:
            raise ValueError(
                f"forest.min_child {self.min_child} is more than half of forest.patches {self.patches}: no tree can grow"
            )
        return self


class ExampleSettings(Section):
    """Training crops of stages 1 and 2 (DeconvNet, Noh et al. 2015, §4.2 and §6.1).

    Training stage 1 uses crops of annotated objects. Stage 2 uses crops of object proposals that overlap annotated objects.
    """

    context: float = Field(1.2, ge=1, description="factor by which a box is enlarged about its centre")
    window: Literal["square", "stretched"] = Field(
        "square", description="square windows keep the aspect ratio of the image; stretched ones keep that of the box"
    )
    min_iou: float = Field(0.5, gt=0, le=1, description="stage 2: lowest IoU of a proposal with an annotated object")
    min_object_side: PositiveInt = Field(4, description="objects whose box has a shorter side than this are left out, px")
    max_per_image: PositiveInt | None = Field(
        None,
        description="stage 2: largest number of crops of an image; the best crop of each object is kept, the others are drawn at "
        "random; with proposals.kind both, up to as many windows are added; empty: all",
    )
    balance: bool = Field(True, description="repeat examples of rare classes")
    max_repeats: PositiveInt = Field(10, description="how often one example is repeated in an epoch at most")
    jpeg_quality: int = Field(95, ge=50, le=100, description="JPEG quality of the stored crops")
