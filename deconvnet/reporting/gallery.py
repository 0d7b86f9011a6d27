"""The report's figures of images: which images and crops are shown, and the figures drawn of them."""

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
"""Mean IoU of each image, 0 to 1 or None, by image_id and result (see `deconvnet.evaluation.evaluator.Evaluation`)."""

RANKED_BY = "edeconvnet_crf"
STEPS = (1, 5, 10, 20, 50)
"""Numbers of proposals after which DeconvNet's prediction is shown (the paper's Figure 6)."""
_CANDIDATES = 10  # images that are searched for one with several objects


@dataclass(frozen=True)
class Sample:
    """An image with its annotation and its proposals, as read from the tables.

    Attributes:
        image_id: id in the table `images`.
        image: uint8 (H, W, 3), RGB.
        truth: annotated class ids, uint8 (H, W), 255 void; None without annotation.
        objects: annotated object ids, (H, W), 0 background; None without annotation.
        boxes: (N, 4) proposals x1, y1, x2, y2 in pixels, best first.
    """

    image_id: str
    image: np.ndarray
    truth: np.ndarray | None
    objects: np.ndarray | None
    boxes: np.ndarray

    @property
    def annotated(self) -> list[AnnotatedObject]:
        """The annotated objects that are large enough to count in the evaluation."""
        return [] if self.truth is None or self.objects is None else find_objects(self.truth, self.objects, SMALLEST_SIDE)

    @property
    def largest(self) -> AnnotatedObject | None:
        """The annotated object with the largest box, or None."""
        return max(self.annotated, key=lambda o: np.ptp(np.reshape(o.box, (2, 2)), 0).prod(), default=None)


def best_median_worst(mean_iou: MeanIou, each: int = 2) -> list[tuple[str, str]]:
    """Choose the images with the best, the median and the worst mean IoU of EDeconvNet+CRF.

    Args:
        mean_iou: by image and result.
        each: images of each kind.

    Returns:
        Pairs ("best" | "median" | "worst", image_id), best first; ties are in order of image_id. Each image occurs once.
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
    """Choose the images where DeconvNet is furthest ahead of FCN-8s, FCN-8s of DeconvNet, and the ensemble of both.

    Args:
        mean_iou: by image and result.
        each: images of each kind, at most.

    Returns:
        Pairs (text that names the better network, image_id).
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
    """Choose images that DeconvNet predicts well.

    Args:
        mean_iou: by image and result.

    Returns:
        The ids of the ten images with DeconvNet's highest mean IoU, highest first.
    """
    return [image_id for _, image_id in _ranked(mean_iou, lambda row: row["deconvnet"])[:_CANDIDATES]]


def _ranked(mean_iou: MeanIou, score: Callable[[Mapping[str, float | None]], float | None]) -> list[tuple[float, str]]:
    """Pairs (score, image_id), highest first; images whose score is None are left out."""
    scored = [(value, image_id) for image_id, row in mean_iou.items() if (value := score(row)) is not None]
    return sorted(scored, key=lambda pair: (-pair[0], pair[1]))


def with_several_objects(samples: Iterable[Sample]) -> Sample:
    """Choose a sample with several objects, if there is one.

    Args:
        samples: at least one sample.

    Returns:
        The first with two annotated objects or more, else the first with one, else the first.
    """
    return max(samples, key=lambda sample: min(len(sample.annotated), 2))


def read_samples(images_uri: str, proposals_uri: str | None, image_ids: Iterable[str]) -> dict[str, Sample]:
    """Read images by id.

    Args:
        images_uri: the table `images`.
        proposals_uri: the table `proposals` made from it; None to read no boxes.
        image_ids: ids to read; unknown ones are skipped.

    Returns:
        Samples by image_id.
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
    """The rows of `image_ids` in a part; only row groups that hold one of them are read whole."""
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
        images_uri: the table `images`.
        proposals_uri: the table `proposals`.
        classes: class names by id.
        mean_iou: by image and result; decides which images are shown.

    Returns:
        PNGs by name: "comparison", "wins" (if a network is ahead on some image), "instances" and "unpooling"; empty if no image
        has a mean IoU.
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
    """`draw_gallery` as work for `Executor.stream`, with a predictor loaded by the process that draws.

    Args:
        models: model folders of DeconvNet and FCN-8s.
        options: options of the predictor.
        gpu: predict on a GPU.
        *arguments: the arguments of `draw_gallery` after the predictor.

    Returns:
        Pairs of a figure's name and its PNG.
    """
    from deconvnet.inference.predictor import Predictor

    predictor = Predictor.load(*models, "cuda" if gpu else "cpu", options)
    return list(draw_gallery(predictor, *arguments).items())


def draw_comparison(
    predictor: "Predictor", samples: Iterable[tuple[str, Sample]], classes: Sequence[str], mean_iou: MeanIou
) -> bytes:
    """Draw images beside their truth and predictions.

    Args:
        predictor: predicts the masks.
        samples: pairs of a word that says why the image is shown (or "") and the sample, top to bottom.
        classes: class names by id.
        mean_iou: by image and result; images may be missing.

    Returns:
        A PNG of 1,200 px width.
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
    """Draw DeconvNet's prediction after 1, 5, 10, 20, 50 proposals, from the largest box to the smallest (the paper's Figure 6).

    Args:
        predictor: predicts the masks.
        sample: the image.
        classes: class names by id.

    Returns:
        A PNG of 1,200 px width.
    """
    chosen = predictor.best_boxes(sample.boxes)
    sides = chosen[:, 2:] - chosen[:, :2]
    chosen = chosen[np.argsort(-sides.prod(axis=1), kind="stable")]
    counts = sorted({k for k in STEPS if k < len(chosen)} | {len(chosen)})
    _, steps = predictor.masks_by_box_count(sample.image, chosen, counts, ("deconvnet",))
    return panels.instances(sample.image, sample.truth, chosen, steps, classes, sample.image_id)


def draw_unpooling(predictor: "Predictor", sample: Sample, classes: Sequence[str]) -> bytes:
    """Draw the decoder's most active maps for the largest annotated object, cropped as for training (the paper's Figure 4).

    Args:
        predictor: whose DeconvNet is shown.
        sample: the image; the whole of it is shown if it has no annotated object.
        classes: class names by id.

    Returns:
        A PNG of 1,200 px width.
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
    """Draw training crops with their masks.

    Args:
        examples_uri: a table of training crops.
        classes: class names by id.
        count: number of crops, spread evenly over the table.

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
    """At most `count` indices, spread evenly over range(length)."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))
