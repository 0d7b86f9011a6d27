"""Choose the images and training crops that the report shows, and draw the figures of them as PNGs, 1,200 px wide."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from deconvnet.datasets.objects import make_object_mask
from deconvnet.evaluation.breakdowns import SMALLEST_SIDE
from deconvnet.evaluation.comparison import DECISIVE_RESULT
from deconvnet.inference.scaling import scale_down
from deconvnet.reporting import panels
from deconvnet.reporting.activations import decoder_maps
from infra.storage import tables
from proposals.boxes import crop, enlarge
from proposals.image_codec import decode_image, decode_mask
from proposals.job import iter_proposals
from proposals.mining.rules import AnnotatedObject, find_objects, rarest

if TYPE_CHECKING:
    from deconvnet.inference.predictor import Predictor, PredictorOptions

MeanIou = Mapping[str, Mapping[str, float | None]]
"""Mean IoU of each image on its own, by image_id and result name, 0 to 1. It is None if the image's annotation is all void."""

STEPS = (1, 5, 10, 20, 50)
"""Numbers of boxes from which DeconvNet's prediction is shown, as in Figure 6 of Noh et al. (ICCV 2015)."""
CANDIDATES = 10  # number of images that are searched for one with several objects


@dataclass(frozen=True)
class Sample:
    """An image with its annotation and its proposals (boxes that may contain an object).

    Attributes:
        image_id: id of the image in the table `images`.
        image: uint8 (H, W, 3), RGB.
        truth: annotated class ids, uint8 (H, W), where 255 is void; None if the image is not annotated.
        objects: annotated object ids, uint8 or uint16 (H, W), where 0 is the background; None if the image is not annotated.
        boxes: proposals x1, y1, x2, y2 in pixels, (N, 4), best first.
        background: whether class 0 is the background.
    """

    image_id: str
    image: np.ndarray
    truth: np.ndarray | None
    objects: np.ndarray | None
    boxes: np.ndarray
    background: bool = True

    @property
    def annotated(self) -> list[AnnotatedObject]:
        """Find the annotated objects whose bounding box is at least 4 pixels wide and high. [] if there is no annotation."""
        if self.truth is None or self.objects is None:
            return []
        return find_objects(self.truth, self.objects, SMALLEST_SIDE, self.background)

    @property
    def largest(self) -> AnnotatedObject | None:
        """Find the annotated object with the largest bounding box. The value is None if there is no annotated object."""
        return max(self.annotated, key=lambda o: np.ptp(np.reshape(o.box, (2, 2)), 0).prod(), default=None)


def best_median_worst(mean_iou: MeanIou, each: int = 2) -> list[tuple[str, str]]:
    """Choose the images with the best, the median and the worst mean IoU of EDeconvNet+CRF (the ensemble with the CRF).

    Args:
        mean_iou: mean IoU of each image, by image_id and result name. Images whose value is None are never chosen.
        each: number of best images, of median images and of worst images.

    Returns:
        Pairs of a word ("best", "median" or "worst") and an image_id, from the best to the worst. Images with equal IoU are in
        order of their ids. No image occurs twice, even if there are fewer than 3 * `each` images.
    """
    order = _ranked(mean_iou, lambda row: row[DECISIVE_RESULT])
    count, middle = len(order), (len(order) - each) // 2
    ranks = {"best": range(each), "median": range(middle, middle + each), "worst": range(count - each, count)}
    words: dict[int, str] = {}
    for word, numbers in ranks.items():
        for number in numbers:
            if 0 <= number < count:
                words.setdefault(number, word)
    return [(word, order[number][1]) for number, word in sorted(words.items())]


def largest_leads(mean_iou: MeanIou, each: int = 2) -> list[tuple[str, str]]:
    """Choose images with the largest leads in mean IoU, either of one network over the other or of the ensemble over both.

    Args:
        mean_iou: mean IoU of each image, by image_id and result name. Images with a value of None are not compared.
        each: largest number of images for each of the three comparisons below.

    Returns:
        Pairs of a comparison and an image_id. The comparison is "DeconvNet over FCN-8s", "FCN-8s over DeconvNet" or "EDeconvNet
        over both" (the ensemble). The pairs of a comparison follow each other, largest lead first. Images without a lead are
        left out.
    """
    contests = {
        "DeconvNet over FCN-8s": ("deconvnet", "fcn8s"),
        "FCN-8s over DeconvNet": ("fcn8s", "deconvnet"),
        "EDeconvNet over both": ("edeconvnet", "fcn8s", "deconvnet"),
    }
    found = []
    for title, names in contests.items():

        def lead(row: Mapping[str, float | None], names: Sequence[str] = names) -> float | None:
            values = [value for name in names if (value := row[name]) is not None]
            return values[0] - max(values[1:]) if len(values) == len(names) else None

        found += [(title, image_id) for ahead, image_id in _ranked(mean_iou, lead)[:each] if ahead > 0]
    return found


def best_of_deconvnet(mean_iou: MeanIou) -> list[str]:
    """Choose up to ten images on which DeconvNet has the highest mean IoU.

    Args:
        mean_iou: mean IoU of each image, by image_id and result name. Images whose value is None are never chosen.

    Returns:
        The image_ids. The image with the highest mean IoU comes first.
    """
    return [image_id for _, image_id in _ranked(mean_iou, lambda row: row["deconvnet"])[:CANDIDATES]]


def _ranked(mean_iou: MeanIou, score: Callable[[Mapping[str, float | None]], float | None]) -> list[tuple[float, str]]:
    """Rank images by a score. Images whose score is None are left out.

    Args:
        mean_iou: mean IoU of each image, by image_id and result name.
        score: function that takes one image's mean IoU by result name. It returns the image's score, or None if the image is
            to be left out.

    Returns:
        Pairs of a score and an image_id, highest score first. Images with equal scores are in order of their ids.
    """
    scored = [(value, image_id) for image_id, row in mean_iou.items() if (value := score(row)) is not None]
    return sorted(scored, key=lambda pair: (-pair[0], pair[1]))


def with_several_objects(samples: Iterable[Sample]) -> Sample:
    """Return the first sample (annotated image) with at least two objects.

    If there is no such sample, return the first sample with one object. If there is none of these either, return the first
    sample. There must be at least one sample.
    """
    return max(samples, key=lambda sample: min(len(sample.annotated), 2))


def read_samples(
    images_uri: str, proposals_uri: str | None, image_ids: Iterable[str], background: bool = True
) -> dict[str, Sample]:
    """Read images with their annotations and proposals from the tables `images` and `proposals`.

    Args:
        images_uri: URI of the table `images`.
        proposals_uri: URI of the table `proposals`, with the boxes found in these images; None to read no boxes.
        image_ids: ids of the images to read. Unknown ids are skipped.
        background: whether class 0 is the background.

    Returns:
        The samples by image_id, in the order of the table `images`.
    """
    wanted = set(image_ids)
    found: dict[str, Sample] = {}
    parts = tables.require_commit(images_uri).parts
    proposals = tables.require_commit(proposals_uri).parts if proposals_uri else [None] * len(parts)
    for part, boxes_part in zip(parts, proposals, strict=True):
        if not any(part.first <= image_id <= part.last for image_id in wanted):
            continue
        proposed = iter_proposals(proposals_uri, boxes_part) if proposals_uri and boxes_part else ()
        boxes = {image_id: found_boxes for image_id, found_boxes, _ in proposed}
        for row in tables.iter_rows(images_uri, ["image_id", "image", "class_mask", "object_mask"], part):
            if row["image_id"] not in wanted:
                continue
            truth = decode_mask(row["class_mask"]) if row["class_mask"] else None
            objects = decode_mask(row["object_mask"]) if row["object_mask"] else None
            if truth is not None and objects is None:
                objects = make_object_mask(truth, None, background)
            own = boxes.get(row["image_id"], np.zeros((0, 4), np.float32))
            found[row["image_id"]] = Sample(row["image_id"], decode_image(row["image"]), truth, objects, own, background)
    return found


def draw_gallery(
    predictor: "Predictor", images_uri: str, proposals_uri: str, classes: Sequence[str], mean_iou: MeanIou
) -> dict[str, bytes]:
    """Draw the report's figures of images.

    Args:
        predictor: predicts the masks that are shown.
        images_uri: URI of the table `images`.
        proposals_uri: URI of the table `proposals`, with the boxes found in these images.
        classes: class names, ordered by id.
        mean_iou: mean IoU of each image, by image_id and result name, from which the images to show are chosen.

    Returns:
        Contents of PNGs by name: "comparison" (best, median and worst images), "wins" (images on which one network is ahead of
        the other, left out if there is none), "instances" (DeconvNet's prediction from more and more boxes) and "unpooling"
        (activation maps of DeconvNet's decoder). Empty if no image has a mean IoU.
    """
    chosen = {"comparison": best_median_worst(mean_iou), "wins": largest_leads(mean_iou)}
    candidates = best_of_deconvnet(mean_iou)
    ids = {image_id for pairs in chosen.values() for _, image_id in pairs}
    samples = read_samples(images_uri, proposals_uri, ids | set(candidates), predictor.options.background)
    drawn = {
        name: draw_comparison(predictor, [(word, samples[image_id]) for word, image_id in pairs], classes, mean_iou)
        for name, pairs in chosen.items()
        if pairs
    }
    if candidates:
        sample = with_several_objects(samples[image_id] for image_id in candidates)
        drawn["instances"] = draw_instances(predictor, sample, classes)
        drawn["unpooling"] = draw_unpooling(predictor, sample, classes)
    return drawn


def load_and_draw_gallery(
    models: tuple[str, str], options: "PredictorOptions", gpu: bool, *arguments: Any
) -> list[tuple[str, bytes]]:
    """Load the networks and call `draw_gallery`. An executor runs this function in the process that draws.

    Args:
        models: folders of a trained DeconvNet and a trained FCN-8s.
        options: options for predicting with the networks.
        gpu: whether to predict on a GPU.
        *arguments: the other arguments of `draw_gallery`: images_uri, proposals_uri, classes and mean_iou.

    Returns:
        Pairs of a figure's name and the content of its PNG, see `draw_gallery`.
    """
    from deconvnet.inference.predictor import Predictor

    predictor = Predictor.load(*models, "cuda" if gpu else "cpu", replace(options, int8=False))  # activations are shown
    return list(draw_gallery(predictor, *arguments).items())


def draw_comparison(
    predictor: "Predictor", samples: Iterable[tuple[str, Sample]], classes: Sequence[str], mean_iou: MeanIou
) -> bytes:
    """Draw images beside their ground truth and their predictions, one row per image.

    Args:
        predictor: predicts the masks.
        samples: pairs of a word and a sample, from top to bottom. The word says why the image was chosen; "" shows no word.
        classes: class names, ordered by id.
        mean_iou: mean IoU of each image, by image_id and result name, shown above the masks. Images may be missing.

    Returns:
        The content of a PNG file, 1,200 px wide.
    """
    rows = [
        panels.ComparisonRow(
            sample.image,
            sample.truth,
            predictor.masks(sample.image, sample.boxes, panels.COMPARED),
            f"{word}: {sample.image_id}" if word else sample.image_id,
            mean_iou.get(sample.image_id, {}),
        )
        for word, sample in samples
    ]
    return panels.comparison(rows, classes, background=predictor.options.background)


def draw_instances(predictor: "Predictor", sample: Sample, classes: Sequence[str]) -> bytes:
    """Draw DeconvNet's prediction from 1, 5, 10, 20, 50 and all boxes, as in Figure 6 of Noh et al. (ICCV 2015).

    Args:
        predictor: predicts the masks. Its options say which windows and how many of the best boxes are used. The windows are
            added first, then the boxes from the largest to the smallest. All are used: `early_exit` is not applied.
        sample: the image and its boxes. An image that is larger than the predictor's limit is drawn as it is scaled down for it.
        classes: class names, ordered by id.

    Returns:
        The content of a PNG file, 1,200 px wide.
    """
    predictor = copy(predictor)
    predictor.options = replace(predictor.options, early_exit=None)
    image, boxes = scale_down(sample.image, sample.boxes, predictor.options.max_side)
    chosen = predictor.best_boxes(boxes)
    chosen = chosen[np.argsort(-np.prod(chosen[:, 2:] - chosen[:, :2], axis=1), kind="stable")]
    shown = np.concatenate([predictor.windows(*image.shape[:2]), chosen])
    counts = sorted({k for k in STEPS if k < len(shown)} | {len(shown)})
    _, steps, _ = predictor.predict_with_box_counts(image, chosen, counts, ("deconvnet",))
    return panels.instances(image, sample.truth, shown, steps, classes, sample.image_id, predictor.options.background)


def draw_unpooling(predictor: "Predictor", sample: Sample, classes: Sequence[str]) -> bytes:
    """Draw DeconvNet's most active map of each decoder layer for one object, as in Figure 4 of Noh et al. (ICCV 2015).

    The largest annotated object is cropped as for training. If there is none, the whole image is used.

    Args:
        predictor: contains DeconvNet.
        sample: the image and its annotation.
        classes: class names, ordered by id.

    Returns:
        The content of a PNG file, 1,200 px wide.
    """
    height, width = sample.image.shape[:2]
    largest, options = sample.largest, predictor.options
    window = enlarge(np.array([largest.box if largest else (0, 0, width, height)]), options.context, options.window)[0]
    side = predictor.deconvnet.input_size
    seen, where = crop(sample.image, window, side), None
    if largest and sample.objects is not None:
        where = crop(sample.objects, window, side, 0, cv2.INTER_NEAREST) == largest.object_id
    title = f"{sample.image_id}, {classes[largest.class_id]}" if largest else sample.image_id
    return panels.unpooling(seen, *decoder_maps(predictor.deconvnet, seen, where), classes, title, options.background)


def draw_examples(examples_uri: str, classes: Sequence[str], count: int = 16, background: bool = True) -> bytes:
    """Draw training crops beside their masks.

    Args:
        examples_uri: URI of a table of training crops, such as `examples/stage1` in the workspace.
        classes: class names, ordered by id.
        count: largest number of crops to draw. They are from a quarter as many row groups, spread evenly over the table.
        background: whether class 0 is the background.

    Returns:
        The content of a PNG file, 1,200 px wide.

    Raises:
        ValueError: if the table is empty.
    """
    commit = tables.require_commit(examples_uri)
    groups = [(part, group) for part in commit.parts for group in range(len(part.row_groups))]
    chosen = _spread(len(groups), -(-count // 4))  # few, as each is read as a whole
    rows: list[dict[str, Any]] = []
    for number, index in enumerate(chosen):
        part, group = groups[index]
        crops = tables.read_row_group(examples_uri, part.name, group).to_pylist()
        share = count * (number + 1) // len(chosen) - count * number // len(chosen)
        rows += [crops[i] for i in _spread(len(crops), share)]
    repeats = {int(class_id): number for class_id, number in commit.extra["repeats_by_class"].items()}
    shown = []
    for row in rows:
        class_id = rarest(row["class_ids"], repeats)
        kind = f"IoU {row['iou']:.2f}" if row["iou"] else "window"
        shown.append((f"{classes[class_id]}, {kind}, ×{repeats[class_id]}", decode_image(row["image"]), decode_mask(row["mask"])))
    return panels.example_crops(shown, classes, background)


def _spread(length: int, count: int) -> list[int]:
    """Return at most `count` indices from 0 to `length` - 1, spread evenly and in ascending order."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))
