"""Predict an image's five results: FCN-8s, DeconvNet, DeconvNet with a dense CRF, the ensemble, and the ensemble with the CRF.

A result is a way of predicting the pixels' classes. The paper on DeconvNet, Noh et al. (ICCV 2015), compares these five:

    fcn8s           softmax of FCN-8s' scores for the whole image
    deconvnet       softmax of DeconvNet's scores, merged over the proposals, boxes that may contain objects (module `instances`)
    deconvnet_crf   dense CRF applied to `deconvnet`
    edeconvnet      ensemble of `deconvnet` and `fcn8s` (module `ensemble`)
    edeconvnet_crf  dense CRF applied to `edeconvnet`; the final result

Source: Noh et al. (ICCV 2015), §5, "Inference". The CRF is the fully connected one of Krähenbühl and Koltun (NIPS 2011) with the
unary potential -log p (`deconvnet.crf`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deconvnet.crf import dense_crf
from deconvnet.inference.ensemble import Ensemble, combine, softmax
from deconvnet.inference.instances import OnBox, choose_boxes, device_of, segment_instances, whole_image_scores
from deconvnet.inference.int8.conversion import computes_int8, to_int8
from deconvnet.inference.int8.ranges import Ranges, required_ranges
from deconvnet.inference.pixels import average_measures, scan_pixels
from deconvnet.inference.scaling import resize_nearest, scale_down
from deconvnet.inference.score_maps import Aggregation
from deconvnet.inference.uncertainty import Segmentation
from deconvnet.models.checkpoint import load_model
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fcn8s import FCN8s
from deconvnet.models.fusion import for_inference
from infra.errors import UserError
from proposals.boxes import WindowShape, make_windows

if TYPE_CHECKING:
    from deconvnet.settings import DataSettings, SegmentSettings
    from proposals.settings import ExampleSettings, ProposalSettings

Image = NDArray[np.uint8]
Mask = NDArray[np.uint8]
Floats = NDArray[np.float32]

RESULTS = ("fcn8s", "deconvnet", "deconvnet_crf", "edeconvnet", "edeconvnet_crf")
"""Names of the five results (ways of predicting), in the order of Table 1 of Noh et al. (ICCV 2015)."""


@dataclass(frozen=True)
class PredictorOptions:
    """The options for computing the five results (`RESULTS`) of an image with the two networks and the CRF.

    `dataclasses.asdict` turns them into values that JSON can store.

    Attributes:
        proposals: largest number of boxes that DeconvNet is run on; the best boxes are taken.
        min_side: lower limit of the shorter side of an enlarged box, in pixels. Smaller boxes are skipped and do not
            count towards `proposals`.
        aggregation: how overlapping score maps of boxes are merged: "max" takes the largest score, "sum" adds the scores, "mean"
            takes their mean.
        ensemble: how the two networks are combined: "mean" of their probabilities, or "product" of their scores, see
            `ensemble.combine`.
        fcn_weight: weight of FCN-8s in the ensemble "mean", 0 to 1.
        flip: whether both networks also see the mirrored image, and their scores are averaged. It takes twice the time.
        batch: number of boxes in one forward pass.
        early_exit: an image's remaining boxes are left out after ten boxes that have changed the class of at most this share of
            the pixels, see `segment_instances`.
        bf16: whether the networks compute in bfloat16 on devices that are fast at it, instead of float32.
        int8: whether the networks compute in 8-bit integers on CPUs that are fast at it, see `int8.conversion`.
        max_side: upper limit of the longer side of an image, in pixels. A larger image is scaled down to it, and its masks are
            scaled back up. `min_side` and the widths (sigmas) of the CRF's Gaussians then refer to pixels of the smaller image.
        crf: keyword arguments of `deconvnet.crf.dense_crf`; empty for its defaults.
        context: factor by which boxes are enlarged; the same as for training crops.
        window: shape of an enlarged box, "square" or "stretched", see `proposals.boxes.enlarge`; the same as for training crops.
        window_sizes: sizes of the windows that DeconvNet is run on before the boxes, see `proposals.boxes.make_windows`.
        window_overlap: smallest overlap of neighbouring windows, as a share of their side.
        background: whether class 0 is the background.
    """

    proposals: int = 50
    min_side: float = 0.0
    aggregation: Aggregation = "max"
    ensemble: Ensemble = "mean"
    fcn_weight: float = 0.5
    flip: bool = False
    batch: int = 50
    early_exit: float | None = None
    bf16: bool = True
    int8: bool = False
    max_side: int = 1024
    crf: Mapping[str, Any] = field(default_factory=dict)
    context: float = 1.2
    window: WindowShape = "square"
    window_sizes: Sequence[float] = ()
    window_overlap: float = 0.5
    background: bool = True

    def __post_init__(self) -> None:
        """Make the sizes of windows, which are a list if they come from JSON, a tuple."""
        object.__setattr__(self, "window_sizes", tuple(self.window_sizes))

    @classmethod
    def from_settings(
        cls, segment: "SegmentSettings", examples: "ExampleSettings", proposals: "ProposalSettings", data: "DataSettings"
    ) -> Self:
        """Build the options from the user's settings.

        Args:
            segment: the settings section `segment`, which says how images are predicted.
            examples: the settings section `examples`, which says how training crops are cut. Its `context` and `window` are used
                for prediction, too.
            proposals: the settings section `proposals`, which says whether there are windows.
            data: the settings section `data`, which says whether there is a background.

        Returns:
            The options.
        """
        return cls(
            **segment.model_dump(mode="json"),
            context=examples.context,
            window=examples.window,
            **proposals.windows,
            background=data.has_background,
        )


class Predictor:
    """A predictor of an image's pixel classes that uses DeconvNet, FCN-8s and a dense CRF.

    Attributes:
        deconvnet: copy of DeconvNet that was converted for fast inference by `deconvnet.models.fusion`.
        fcn8s: copy of FCN-8s that was converted in the same way.
        options: the options of prediction, see `PredictorOptions`.
        in_int8: whether the networks compute in 8-bit integers.
    """

    def __init__(
        self, deconvnet: DeconvNet, fcn8s: FCN8s, options: PredictorOptions | None = None, ranges: Sequence[Ranges] = ()
    ) -> None:
        """Create a predictor with copies of the networks that are converted for inference. The given networks are not changed.

        Args:
            deconvnet: a trained DeconvNet.
            fcn8s: a trained FCN-8s on the same device.
            options: the options of prediction; None for the defaults.
            ranges: ranges of both networks' activations, with which they compute in 8-bit integers; otherwise empty.

        Raises:
            ValueError: if the networks have different numbers of classes.
        """
        if deconvnet.num_classes != fcn8s.num_classes:
            raise ValueError(f"DeconvNet has {deconvnet.num_classes} classes, FCN-8s {fcn8s.num_classes}")
        self.options, self.in_int8 = options or PredictorOptions(), bool(ranges)
        self.deconvnet = to_int8(deconvnet, ranges[0]) if ranges else for_inference(deconvnet, bf16=self.options.bf16)
        self.fcn8s = to_int8(fcn8s, ranges[1]) if ranges else for_inference(fcn8s, bf16=self.options.bf16)

    @classmethod
    def load(cls, deconvnet_uri: str, fcn8s_uri: str, device: str = "cpu", options: PredictorOptions | None = None) -> Self:
        """Load both networks from their folders and create a predictor with them.

        Args:
            deconvnet_uri: folder of a DeconvNet written by `deconvnet.models.checkpoint.save_model`, local or in a bucket.
            fcn8s_uri: folder of an FCN-8s written in the same way.
            device: torch device to predict on, "cpu" or "cuda".
            options: the options of prediction; None for the defaults.

        Returns:
            The predictor.

        Raises:
            UserError: if a folder holds no model, another kind of network, or no ranges, which `options.int8` needs.
        """
        options = options or PredictorOptions()
        deconvnet, fcn8s = (load_model(uri, device)[0] for uri in (deconvnet_uri, fcn8s_uri))
        if not (isinstance(deconvnet, DeconvNet) and isinstance(fcn8s, FCN8s)):
            raise UserError(f"{deconvnet_uri} and {fcn8s_uri} should hold a DeconvNet and an FCN-8s, and hold other networks")
        ranges = required_ranges((deconvnet_uri, fcn8s_uri)) if options.int8 and computes_int8(device) else ()
        return cls(deconvnet, fcn8s, options, ranges)

    def probabilities(
        self, image: Image, boxes: Floats, results: Collection[str] = RESULTS, on_box: OnBox | None = None
    ) -> dict[str, Floats]:
        """Compute the class probabilities of an image's pixels.

        Args:
            image: uint8 (H, W, 3), RGB.
            boxes: proposals x1, y1, x2, y2 in pixels, float32 (N, 4), best first.
            results: names from `RESULTS`, such as "deconvnet". Only these results, and results that they depend on, are computed.
            on_box: function called after DeconvNet's scores of each box have been merged, with the number of boxes so far and the
                scores of the image, see `instances.OnBox`; None for none.

        Returns:
            A dict from result name to probabilities, float32 (C, h, w), in the order of `RESULTS`. C is the number of classes.
            (h, w) is the size of the image, or its reduced size if its longer side exceeds `options.max_side`.

        Raises:
            ValueError: if a name is not in `RESULTS`, the image has another dtype or shape, or `boxes` does not hold valid boxes.
        """
        if unknown := set(results) - set(RESULTS):
            raise ValueError(f"unknown results: {', '.join(sorted(unknown))}; there are {', '.join(RESULTS)}")
        image, boxes = scale_down(image, boxes, self.options.max_side)
        fcn, deconvnet = self._scores(image, boxes, results, on_box)
        o = self.options
        computed: dict[str, Floats] = {}
        if fcn is not None and "fcn8s" in results:
            computed["fcn8s"] = softmax(fcn)
        if deconvnet is not None and set(results) & {"deconvnet", "deconvnet_crf"}:
            computed["deconvnet"] = softmax(deconvnet)
        if fcn is not None and deconvnet is not None:
            computed["edeconvnet"] = combine(deconvnet, fcn, o.ensemble, o.fcn_weight)
        for name in ("deconvnet", "edeconvnet"):
            if f"{name}_crf" in results:
                computed[f"{name}_crf"] = dense_crf(image, computed[name], **o.crf, device=device_of(self.deconvnet))
        return {name: computed[name] for name in RESULTS if name in results}

    def _scores(
        self, image: Image, boxes: Floats, results: Collection[str], on_box: OnBox | None = None
    ) -> tuple[Floats | None, Floats | None]:
        """Compute the scores of FCN-8s and of DeconvNet that results need.

        Args:
            image: uint8 (H, W, 3), RGB, not larger than `options.max_side`.
            boxes: proposals x1, y1, x2, y2 in pixels, float32 (N, 4), best first.
            results: names from `RESULTS`.
            on_box: function called after the scores of each box have been merged, see `instances.OnBox`; None for none.

        Returns:
            The scores of FCN-8s and those of DeconvNet, each float32 (C, H, W), or None if no result needs them.
        """
        o = self.options
        fcn = deconvnet = None
        if set(results) & {"fcn8s", "edeconvnet", "edeconvnet_crf"}:
            fcn = whole_image_scores(self.fcn8s, image, flip=o.flip)
        if set(results) - {"fcn8s"}:
            deconvnet = segment_instances(
                self.deconvnet,
                image,
                self.best_boxes(boxes),
                windows=self.windows(*image.shape[:2]),
                background=o.background,
                context=o.context,
                window=o.window,
                aggregation=o.aggregation,
                flip=o.flip,
                batch=o.batch,
                early_exit=o.early_exit,
                on_box=on_box,
            )
        return fcn, deconvnet

    def masks(self, image: Image, boxes: Floats, results: Collection[str] = RESULTS) -> dict[str, Mask]:
        """Predict the class of every pixel of an image.

        Args:
            image: uint8 (H, W, 3), RGB.
            boxes: proposals x1, y1, x2, y2 in pixels, float32 (N, 4), best first.
            results: names from `RESULTS`, such as "deconvnet", of the results to predict.

        Returns:
            A dict from result name to class ids, uint8 (H, W), in the order of `RESULTS`.

        Raises:
            ValueError: if a name is not in `RESULTS`, the image has another dtype or shape, or `boxes` does not hold valid boxes.
        """
        return self.predict_with_box_counts(image, boxes, (), results)[0]

    def predict_with_box_counts(
        self, image: Image, boxes: Floats, counts: Collection[int], results: Collection[str] = RESULTS
    ) -> tuple[dict[str, Mask], dict[int, Mask], dict[str, Floats]]:
        """Predict the class of every pixel, and also the masks that DeconvNet alone predicts from fewer boxes.

        Args:
            image: uint8 (H, W, 3), RGB.
            boxes: proposals x1, y1, x2, y2 in pixels, float32 (N, 4), best first.
            counts: numbers of boxes, in any order. For each number k, DeconvNet's mask is predicted from the first k boxes that
                it is run on: the windows, then the boxes (see `best_boxes`). Neither the CRF nor `flip` is applied.
            results: names from `RESULTS`. "deconvnet" must be one of them if `counts` is not empty.

        Returns:
            Three dicts: the masks by result name (see `masks`); DeconvNet's masks by number of boxes, in ascending order (if
            fewer boxes are used, the mask from these); the class probabilities by result name (see `probabilities`).

        Raises:
            ValueError: if a name is not in `RESULTS`, the image has another dtype or shape, or `boxes` does not hold valid boxes.
        """
        size = image.shape[:2]
        after: dict[int, Mask] = {}
        last: Tensor | None = None

        def mask_of(canvas: Tensor) -> Mask:
            # torch's `max` is four times as fast as `argmax` here and resolves ties in the same way.
            return resize_nearest(canvas.max(dim=0).indices.byte().cpu().numpy(), size)

        def keep(number: int, canvas: Tensor) -> None:
            nonlocal last
            last = canvas
            if number in counts:
                after[number] = mask_of(canvas)

        found = self.probabilities(image, boxes, results, keep)
        # Ties go to the lowest class id, so the background wins.
        masks = {name: resize_nearest(p.argmax(axis=0).astype(np.uint8), size) for name, p in found.items()}
        if missing := set(counts) - after.keys():
            after |= dict.fromkeys(missing, masks["deconvnet"] if last is None else mask_of(last))
        return masks, dict(sorted(after.items())), found

    def predict(self, image: Image, boxes: Floats) -> Segmentation:
        """Predict an image's mask with the ensemble of both networks and the CRF (the result "edeconvnet_crf").

        Args:
            image: uint8 (H, W, 3), RGB.
            boxes: proposals x1, y1, x2, y2 in pixels, float32 (N, 4), best first.

        Returns:
            The mask, and how sure it is.
        """
        size, o = image.shape[:2], self.options
        image, boxes = scale_down(image, boxes, o.max_side)
        numbers = [0]
        fcn, deconvnet = self._scores(image, boxes, ("edeconvnet_crf",), lambda number, canvas: numbers.append(number))
        assert fcn is not None and deconvnet is not None
        ensemble = combine(deconvnet, fcn, o.ensemble, o.fcn_weight)
        refined = dense_crf(image, ensemble, **o.crf, device=device_of(self.deconvnet))
        pixels = scan_pixels(refined, ensemble, deconvnet, fcn)
        confidence_map = np.rint(pixels.before_crf * 255).astype(np.uint8)
        return Segmentation(
            resize_nearest(pixels.mask, size), resize_nearest(confidence_map, size), average_measures(pixels), numbers[-1]
        )

    def best_boxes(self, boxes: Floats) -> Floats:
        """Select the boxes that DeconvNet is run on.

        Args:
            boxes: proposals x1, y1, x2, y2 in pixels, (N, 4), best first.

        Returns:
            The first `options.proposals` boxes that are large enough for `options.min_side`, float32 (M, 4).
        """
        o = self.options
        return choose_boxes(boxes, o.proposals, min_side=o.min_side, context=o.context, window=o.window)

    def windows(self, height: int, width: int) -> Floats:
        """Return the windows (N, 4) that DeconvNet is run on before the boxes, for an image of this size in pixels."""
        return make_windows(height, width, self.options.window_sizes, self.options.window_overlap)
