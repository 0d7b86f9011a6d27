"""Choose the images and training crops that the report shows, and draw the figures of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from deconvnet.datasets.objects import make_object_mask
from deconvnet.evaluation.breakdowns import SMALLEST_SIDE
from deconvnet.reporting import panels
from deconvnet.reporting.activations import decoder_maps
from infra.storage import tables
from proposals.boxes import crop, enlarge
from proposals.image_codec import decode_image, decode_mask
from proposals.job import iter_proposals
from proposals.mining.rules import AnnotatedObject, find_objects

if TYPE_CHECKING:
    from deconvnet.inference.predictor import Predictor, PredictorOptions

MeanIou = Mapping[str, Mapping[str, float | None]]
"""Mean IoU of each image on its own, by image_id and result name, 0 to 1. It is None if the image's annotation is all void."""

RANKED_BY = "edeconvnet_crf"
STEPS = (1, 5, 10, 20, 50)
"""Numbers of proposals after which DeconvNet's prediction is shown, as in the paper's Figure 6."""
_CANDIDATES = 10  # number of images that are searched for one with several objects


@dataclass(frozen=True)
class Sample:
    """An image with its annotation and its proposals, as read from the tables.

    Attributes:
        image_id: id of the image in the table `images`.
        image: uint8 (H, W, 3), RGB.
        truth: annotated class ids, uint8 (H, W), where 255 is void; None if the image is not annotated.
        objects: annotated object ids, (H, W), where 0 is the background; None if the image is not annotated.
        boxes: proposals x1, y1, x2, y2 in pixels, (N, 4), best first.
    """

    image_id: str
    image: np.ndarray
    truth: np.ndarray | None
    objects: np.ndarray | None
    boxes: np.ndarray

    @property
    def annotated(self) -> list[AnnotatedObject]:
        """Find the annotated objects that are large enough to count in the evaluation."""
        return [] if self.truth is None or self.objects is None else find_objects(self.truth, self.objects, SMALLEST_SIDE)

    @property
    def largest(self) -> AnnotatedObject | None:
        """Find the annotated object with the largest bounding box. None if there is no object."""
        return max(self.annotated, key=lambda o: np.ptp(np.reshape(o.box, (2, 2)), 0).prod(), default=None)


def best_median_worst(mean_iou: MeanIou, each: int = 2) -> list[tuple[str, str]]:
    """Choose the images with the best, the median and the worst mean IoU of EDeconvNet+CRF.

    Args:
        mean_iou: mean IoU of each image, by image_id and result name. Images whose value is None are never chosen.
        each: number of images of each kind.

    Returns:
        Pairs of "best", "median" or "worst" and an image_id, from the best to the worst. Images with equal IoU are in order of
        their ids. Each image occurs once, even if there are too few images for all kinds.
    """
    order = _ranked(mean_iou, lambda row: row[RANKED_BY])
    count, middle = len(order), (len(order) - each) // 2
    ranks = {"best": range(each), "median": range(middle, middle + each), "worst": range(count - each, count)}
    words: dict[int, str] = {}
    for word, numbers in ranks.items():
        for number in numbers:
            if 0 <= number < count:
                words.setdefault(number, word)
    return [(word, order[number][1]) for number, word in sorted(words.items())]


def largest_leads(mean_iou: MeanIou, each: int = 2) -> list[tuple[str, str]]:
    """Choose the images on which one network is furthest ahead of another.

    There are three kinds: DeconvNet ahead of FCN-8s, FCN-8s ahead of DeconvNet, and the ensemble ahead of both.

    Args:
        mean_iou: mean IoU of each image, by image_id and result name.
        each: largest number of images of each kind.

    Returns:
        Pairs of a text that names the kind, such as "DeconvNet over FCN-8s", and an image_id. The largest lead of each kind comes
        first.
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
    """Return the ids of up to ten images with DeconvNet's highest mean IoU, highest first."""
    return [image_id for _, image_id in _ranked(mean_iou, lambda row: row["deconvnet"])[:_CANDIDATES]]


def _ranked(mean_iou: MeanIou, score: Callable[[Mapping[str, float | None]], float | None]) -> list[tuple[float, str]]:
    """Rank images by a score. Images whose score is None are left out.

    Args:
        mean_iou: mean IoU of each image, by image_id and result name.
        score: computes the score of an image from its mean IoU by result.

    Returns:
        Pairs of a score and an image_id, highest score first. Images with equal scores are in order of their ids.
    """
    scored = [(value, image_id) for image_id, row in mean_iou.items() if (value := score(row)) is not None]
    return sorted(scored, key=lambda pair: (-pair[0], pair[1]))


def with_several_objects(samples: Iterable[Sample]) -> Sample:
    """Return the first sample with at least two annotated objects.

    If there is none, return the first with one, or else the first.
    """
    return max(samples, key=lambda sample: min(len(sample.annotated), 2))


def read_samples(images_uri: str, proposals_uri: str | None, image_ids: Iterable[str]) -> dict[str, Sample]:
    """Read images by id, with their annotations and proposals.

    Args:
        images_uri: URI of the table `images`.
        proposals_uri: URI of the table `proposals` that was made from these images; None to read no boxes.
        image_ids: ids of the images to read. Unknown ids are skipped.

    Returns:
        The samples by image_id.
    """
    wanted = set(image_ids)
    found: dict[str, Sample] = {}
    parts = tables.require_commit(images_uri).parts
    proposals = tables.require_commit(proposals_uri).parts if proposals_uri else [None] * len(parts)
    for part, boxes_part in zip(parts, proposals, strict=True):
        if not any(part.first <= image_id <= part.last for image_id in wanted):
            continue
        if not (rows := _read_rows(images_uri, part, wanted)):
            continue
        boxes = {}
        if proposals_uri and boxes_part:
            boxes = {image_id: found_boxes for image_id, found_boxes, _ in iter_proposals(proposals_uri, boxes_part)}
        for row in rows:
            truth = decode_mask(row["class_mask"]) if row["class_mask"] else None
            objects = decode_mask(row["object_mask"]) if row["object_mask"] else None
            if truth is not None and objects is None:
                objects = make_object_mask(truth)
            own = boxes.get(row["image_id"], np.zeros((0, 4), np.float32))
            found[row["image_id"]] = Sample(row["image_id"], decode_image(row["image"]), truth, objects, own)
    return found


def _read_rows(images_uri: str, part: tables.Part, image_ids: set[str]) -> list[dict[str, Any]]:
    """Read the rows of some images from one part of the table `images`.

    The column of ids is read first. The other columns are read only from row groups that contain one of the ids.

    Args:
        images_uri: URI of the table `images`.
        part: the part of the table.
        image_ids: ids of the images to read.

    Returns:
        The rows as dicts, with the encoded image and masks.
    """
    found = []
    columns = ["image_id", "image", "class_mask", "object_mask"]
    for group in range(len(part.row_groups)):
        ids = tables.read_row_group(images_uri, part.name, group, ["image_id"])["image_id"].to_pylist()
        if not image_ids.isdisjoint(ids):
            rows = tables.read_row_group(images_uri, part.name, group, columns).to_pylist()
            found += [row for row in rows if row["image_id"] in image_ids]
    return found


def draw_gallery(
    predictor: "Predictor", images_uri: str, proposals_uri: str, classes: Sequence[str], mean_iou: MeanIou
) -> dict[str, bytes]:
    """Draw the report's figures of images.

    Args:
        predictor: predicts the masks that are shown.
        images_uri: URI of the table `images`.
        proposals_uri: URI of the table `proposals` that was made from these images.
        classes: class names, ordered by id.
        mean_iou: mean IoU of each image, by image_id and result name, from which the images to show are chosen.

    Returns:
        PNGs by name: "comparison" (best, median and worst images), "wins" (images on which one network is ahead of another, left
        out if there is none), "instances" (DeconvNet's prediction proposal by proposal) and "unpooling" (maps of DeconvNet's
        decoder). Empty if no image has a mean IoU.
    """
    chosen = {"comparison": best_median_worst(mean_iou), "wins": largest_leads(mean_iou)}
    candidates = best_of_deconvnet(mean_iou)
    ids = {image_id for pairs in chosen.values() for _, image_id in pairs}
    samples = read_samples(images_uri, proposals_uri, ids | set(candidates))
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
    """Load the networks and call `draw_gallery`. `Executor.stream` runs this function in the process that draws.

    Args:
        models: folders of a trained DeconvNet and a trained FCN-8s.
        options: options of the predictor.
        gpu: whether to predict on a GPU.
        *arguments: the arguments of `draw_gallery` after `predictor`.

    Returns:
        Pairs of a figure's name and its PNG.
    """
    from deconvnet.inference.predictor import Predictor

    predictor = Predictor.load(*models, "cuda" if gpu else "cpu", options)
    return list(draw_gallery(predictor, *arguments).items())


def draw_comparison(
    predictor: "Predictor", samples: Iterable[tuple[str, Sample]], classes: Sequence[str], mean_iou: MeanIou
) -> bytes:
    """Draw images beside their ground truth and their predictions, one row per image. Return a PNG of 1,200 px width.

    Args:
        predictor: predicts the masks.
        samples: pairs of a word and a sample, from top to bottom. The word is shown as the reason for choosing the image and may
            be "".
        classes: class names, ordered by id.
        mean_iou: mean IoU of each image, by image_id and result name, shown above the masks. Images may be missing.
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
    return panels.comparison(rows, classes)


def draw_instances(predictor: "Predictor", sample: Sample, classes: Sequence[str]) -> bytes:
    """Draw DeconvNet's prediction after 1, 5, 10, 20 and 50 proposals and after all of them, as in the paper's Figure 6.

    The best boxes are selected, and then merged from the largest to the smallest. The result is a PNG of 1,200 px width.

    Args:
        predictor: predicts the masks and limits the number of boxes.
        sample: the image.
        classes: class names, ordered by id.
    """
    chosen = predictor.best_boxes(sample.boxes)
    sides = chosen[:, 2:] - chosen[:, :2]
    chosen = chosen[np.argsort(-sides.prod(axis=1), kind="stable")]
    counts = sorted({k for k in STEPS if k < len(chosen)} | {len(chosen)})
    _, steps = predictor.masks_by_box_count(sample.image, chosen, counts, ("deconvnet",))
    return panels.instances(sample.image, sample.truth, chosen, steps, classes, sample.image_id)


def draw_unpooling(predictor: "Predictor", sample: Sample, classes: Sequence[str]) -> bytes:
    """Draw the most active map of each decoder layer for the largest annotated object, as in the paper's Figure 4.

    The object is cropped as for training. If there is no annotated object, the whole image is used. The result is a PNG of 1,200
    px width.

    Args:
        predictor: contains the DeconvNet that is shown.
        sample: the image.
        classes: class names, ordered by id.
    """
    height, width = sample.image.shape[:2]
    largest, options = sample.largest, predictor.options
    window = enlarge(np.array([largest.box if largest else (0, 0, width, height)]), options.context, options.window)[0]
    side = predictor.deconvnet.input_size
    seen, where = crop(sample.image, window, side), None
    if largest and sample.objects is not None:
        where = crop(sample.objects, window, side, 0, cv2.INTER_NEAREST) == largest.object_id
    title = f"{sample.image_id}, {classes[largest.class_id]}" if largest else sample.image_id
    return panels.unpooling(seen, *decoder_maps(predictor.deconvnet, seen, where), classes, title)


def draw_examples(examples_uri: str, classes: Sequence[str], count: int = 16) -> bytes:
    """Draw training crops beside their masks.

    Args:
        examples_uri: URI of a table of training crops.
        classes: class names, ordered by id.
        count: number of crops to draw, spread evenly over the table.

    Returns:
        A PNG of 1,200 px width.

    Raises:
        ValueError: if the table is empty.
    """
    commit = tables.require_commit(examples_uri)
    groups = [(part, group) for part in commit.parts for group in range(len(part.row_groups))]
    chosen = _spread(len(groups), count)
    rows: list[dict[str, Any]] = []
    for number, index in enumerate(chosen):
        part, group = groups[index]
        crops = tables.read_row_group(examples_uri, part.name, group).to_pylist()
        share = count * (number + 1) // len(chosen) - count * number // len(chosen)
        rows += [crops[i] for i in _spread(len(crops), share)]
    shown = [
        panels.ExampleCrop(
            decode_image(row["image"]),
            decode_mask(row["mask"]),
            f"{classes[row['class_id']]}, IoU {row['iou']:.2f}, ×{row['repeats']}",
        )
        for row in rows
    ]
    return panels.example_crops(shown, classes)


def _spread(length: int, count: int) -> list[int]:
    """Return at most `count` indices that are spread evenly over range(length), in ascending order."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))
