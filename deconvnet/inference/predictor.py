"""Two trained networks as one thing that labels photographs, in the five ways the paper compares."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deconvnet.crf import dense_crf
from deconvnet.inference.ensemble import Ensemble, combine, softmax
from deconvnet.inference.instances import Aggregation, choose_boxes, segment_instances, whole_image_scores
from deconvnet.models.checkpoint import load_model
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fcn8s import FCN8s
from deconvnet.models.fusion import for_inference
from infra.errors import UserError
from proposals.boxes import Window

if TYPE_CHECKING:
    from deconvnet.settings import SegmentSettings
    from proposals.settings import ExampleSettings

Photograph = NDArray[np.uint8]
Labels = NDArray[np.uint8]
Floats = NDArray[np.float32]

RESULTS = ("fcn8s", "deconvnet", "deconvnet_crf", "edeconvnet", "edeconvnet_crf")
"""The rows of the paper's table, in its order."""


def segmenter_options(segment: "SegmentSettings", examples: "ExampleSettings") -> dict[str, Any]:
    """The settings as keywords of `Segmenter`, JSON values all; the window's rule is the training examples'."""
    return {**segment.model_dump(mode="json"), "context": examples.context, "window": examples.window}


class Segmenter:
    """DeconvNet, FCN-8s, their ensemble, and the CRF after them.

    Photographs are uint8 (H, W, 3) RGB; boxes float32 (N, 4) in their pixels, best first. One whose longer side is over
    `max_side` is worked at that side (min_side and the CRF's sigmas count its pixels then), and its labels come back at full
    size.

    It works with copies of the networks (`for_inference`, which `bf16` is for). proposals: best boxes used. aggregation, batch,
    min_side, context, window: see `segment_instances`. ensemble, fcn_weight: see `combine`. crf: keywords of `dense_crf`.
    """

    def __init__(
        self,
        deconvnet: DeconvNet,
        fcn8s: FCN8s,
        *,
        proposals: int = 50,
        aggregation: Aggregation = "max",
        ensemble: Ensemble = "mean",
        fcn_weight: float = 0.5,
        batch: int = 50,
        min_side: float = 0.0,
        max_side: int = 1024,
        context: float = 1.2,
        window: Window = "square",
        bf16: bool = True,
        crf: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises ValueError where the networks know different numbers of classes."""
        if deconvnet.num_classes != fcn8s.num_classes:
            raise ValueError(f"DeconvNet has {deconvnet.num_classes} classes, FCN-8s {fcn8s.num_classes}")
        self.deconvnet, self.fcn8s = for_inference(deconvnet, bf16=bf16), for_inference(fcn8s, bf16=bf16)
        self.proposals, self.aggregation, self.ensemble, self.fcn_weight = proposals, aggregation, ensemble, fcn_weight
        self.batch, self.min_side, self.max_side = batch, min_side, max_side
        self.context, self.window, self.crf = context, window, dict(crf or {})

    @classmethod
    def load(cls, deconvnet_uri: str, fcn8s_uri: str, device: str = "cpu", **options: Any) -> Self:
        """From two model folders. Raises UserError where they hold other networks, or none."""
        deconvnet, fcn8s = (load_model(uri, device)[0] for uri in (deconvnet_uri, fcn8s_uri))
        if not (isinstance(deconvnet, DeconvNet) and isinstance(fcn8s, FCN8s)):
            raise UserError(f"{deconvnet_uri} and {fcn8s_uri} should hold a DeconvNet and an FCN-8s, and hold other networks")
        return cls(deconvnet, fcn8s, **options)

    def probabilities(
        self,
        image: Photograph,
        boxes: Floats,
        wanted: Collection[str] = RESULTS,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> dict[str, Floats]:
        """Class probabilities float32 (C, h, w) by result, in the order of RESULTS, at the size the photograph is worked at.

        Only the `wanted` results are computed, and what they rest on. watch: see `segment_instances`. Raises ValueError for unknown
        names.
        """
        if unknown := set(wanted) - set(RESULTS):
            raise ValueError(f"unknown results: {', '.join(sorted(unknown))}; there are {', '.join(RESULTS)}")
        image, boxes = self._working(image, boxes)
        fcn = deconvnet = None
        if set(wanted) & {"fcn8s", "edeconvnet", "edeconvnet_crf"}:
            fcn = whole_image_scores(self.fcn8s, image)
        if set(wanted) - {"fcn8s"}:
            deconvnet = self._instances(image, boxes, watch)

        found: dict[str, Floats] = {}
        if fcn is not None:
            found["fcn8s"] = softmax(fcn)
        if deconvnet is not None:
            found["deconvnet"] = softmax(deconvnet)
        if fcn is not None and deconvnet is not None:
            found["edeconvnet"] = combine(deconvnet, fcn, self.ensemble, self.fcn_weight)
        for name in ("deconvnet", "edeconvnet"):
            if f"{name}_crf" in wanted:
                found[f"{name}_crf"] = dense_crf(image, found[name], **self.crf)
        return {name: found[name] for name in RESULTS if name in wanted}

    def segment(self, image: Photograph, boxes: Floats, wanted: Collection[str] = RESULTS) -> dict[str, Labels]:
        """Labels uint8 (H, W) by result, in the order of RESULTS, at the photograph's full size."""
        size = image.shape[:2]
        return {name: _resize(_labels(p), size) for name, p in self.probabilities(image, boxes, wanted).items()}

    def segment_stepwise(
        self, image: Photograph, boxes: Floats, counts: Collection[int], wanted: Collection[str] = RESULTS
    ) -> tuple[dict[str, Labels], dict[int, Labels]]:
        """`segment`, and DeconvNet's labels uint8 (H, W) after the first k boxes, for each k of `counts`.

        `wanted` must name deconvnet. Where there are fewer than k boxes it is the labels after all of them.
        """
        size = image.shape[:2]
        after: dict[int, Labels] = {}

        def watch(number: int, canvas: Tensor) -> None:
            if number in counts:  # `max` is four times as fast as `argmax` here, and of equals takes the first, too
                after[number] = _resize(canvas.max(dim=0).indices.byte().cpu().numpy(), size)

        found = self.probabilities(image, boxes, wanted, watch)
        labels = {name: _resize(_labels(p), size) for name, p in found.items()}
        return labels, {k: after.get(k, labels["deconvnet"]) for k in sorted(counts)}

    def best(self, image: Photograph, boxes: Floats) -> Labels:
        """Labels uint8 (H, W) of the ensemble after the CRF, at the photograph's full size."""
        return self.best_and_confidence(image, boxes)[0]

    def best_and_confidence(self, image: Photograph, boxes: Floats) -> tuple[Labels, float]:
        """`best`, and the mean over the pixels, where the photograph is worked at, of the chosen class's probability."""
        found = self.probabilities(image, boxes, ("edeconvnet_crf",))["edeconvnet_crf"]
        return _resize(_labels(found), image.shape[:2]), float(found.max(axis=0).mean(dtype=np.float64))

    def _instances(self, image: Photograph, boxes: Floats, watch: Callable[[int, Tensor], None] | None) -> Floats:
        chosen = choose_boxes(boxes, self.proposals, min_side=self.min_side, context=self.context, window=self.window)
        return segment_instances(
            self.deconvnet,
            image,
            chosen,
            context=self.context,
            window=self.window,
            aggregation=self.aggregation,
            batch=self.batch,
            watch=watch,
        )

    def _working(self, image: Photograph, boxes: Floats) -> tuple[Photograph, Floats]:
        """The photograph and its boxes at the size they are worked at."""
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        height, width = image.shape[:2]
        if max(height, width) <= self.max_side:
            return image, boxes
        scale = self.max_side / max(height, width)
        w, h = max(1, round(width * scale)), max(1, round(height * scale))
        factors = np.array([w / width, h / height] * 2, np.float32)
        return cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), boxes * factors


def _labels(probabilities: Floats) -> Labels:
    """The likeliest class of each pixel; of equals the first, so background before others."""
    return probabilities.argmax(axis=0).astype(np.uint8)


def _resize(labels: Labels, size: tuple[int, ...]) -> Labels:
    """`labels` (h, w) at `size` (H, W): each pixel takes the nearest."""
    if labels.shape == size:
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
