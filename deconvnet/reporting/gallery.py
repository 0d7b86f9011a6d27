"""The pictures of a run: which photographs and crops are shown, and the figures made of them."""

from collections.abc import Iterable, Mapping, Sequence
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
"""By image_id and result, as in `Evaluation.mean_iou`."""

RANKED_BY = "edeconvnet_crf"
STEPS = (1, 5, 10, 20, 50)
"""Numbers of proposals after which a segmentation is shown (Figure 6)."""
_LOOKED_AT = 10  # photographs that are tried before one without an object is shown


@dataclass(frozen=True)
class Photograph:
    """A row of the tables: image uint8 H×W×3 RGB; truth uint8 H×W and objects (`make_object_mask`), or None; boxes (N, 4), best first."""

    image_id: str
    image: np.ndarray
    truth: np.ndarray | None
    objects: np.ndarray | None
    boxes: np.ndarray


def best_median_worst(mean_iou: MeanIou, each: int = 2) -> list[tuple[str, str]]:
    """(word, image_id) of the best, the median and the worst photographs by EDeconvNet+CRF's mean IoU, `each` of them; ties by image_id."""
    order = _ranked(mean_iou, lambda row: row[RANKED_BY])
    count, middle = len(order), (len(order) - each) // 2
    places = {"best": range(each), "median": range(middle, middle + each), "worst": range(count - each, count)}
    words: dict[int, str] = {}
    for word, numbers in places.items():
        for number in numbers:
            if 0 <= number < count:
                words.setdefault(number, word)
    return [(word, order[number][1]) for number, word in sorted(words.items())]


def winners(mean_iou: MeanIou, each: int = 2) -> list[tuple[str, str]]:
    """(who wins, image_id) of the photographs where a network is furthest before the other, or the ensemble before both; `each` at most."""
    contests = {
        "DeconvNet over FCN-8s": ("deconvnet", ("fcn8s",)),
        "FCN-8s over DeconvNet": ("fcn8s", ("deconvnet",)),
        "EDeconvNet over both": ("edeconvnet", ("fcn8s", "deconvnet")),
    }
    found = []
    for title, (first, others) in contests.items():

        def lead(row: Mapping[str, float | None], first: str = first, others: Sequence[str] = others) -> float | None:
            values = [row[name] for name in (first, *others)]
            known = [value for value in values if value is not None]
            return known[0] - max(known[1:]) if len(known) == len(values) else None

        found += [(title, image_id) for ahead, image_id in _ranked(mean_iou, lead)[:each] if ahead > 0]
    return found


def _ranked(mean_iou: MeanIou, score: Any) -> list[tuple[float, str]]:
    """(score, image_id), the highest first; photographs without a score are left out."""
    scored = [(value, image_id) for image_id, row in mean_iou.items() if (value := score(row)) is not None]
    return sorted(scored, key=lambda pair: (-pair[0], pair[1]))


def photographs(images_uri: str, proposals_uri: str | None, image_ids: Iterable[str]) -> dict[str, Photograph]:
    """Those of `image_ids` that the tables have, by id; without boxes where there is no table of proposals."""
    wanted = set(image_ids)
    found: dict[str, Photograph] = {}
    parts = tables.require_commit(images_uri).parts
    proposals = tables.require_commit(proposals_uri).parts if proposals_uri else [None] * len(parts)
    for part, boxes_part in zip(parts, proposals, strict=True):
        if not any(part.first <= image_id <= part.last for image_id in wanted):
            continue
        if not (rows := _chosen(images_uri, part, wanted)):
            continue
        boxes = (
            {name: each for name, each, _ in iter_proposals(proposals_uri, boxes_part)} if proposals_uri and boxes_part else {}
        )
        for row in rows:
            truth = decode_mask(row["class_mask"]) if row["class_mask"] else None
            objects = decode_mask(row["object_mask"]) if row["object_mask"] else None
            if truth is not None and objects is None:
                objects = make_object_mask(truth)
            own = boxes.get(row["image_id"], np.zeros((0, 4), np.float32))
            found[row["image_id"]] = Photograph(row["image_id"], decode_image(row["image"]), truth, objects, own)
    return found


def _chosen(images_uri: str, part: tables.Part, image_ids: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of `image_ids` in a part: only the row groups that hold one are read whole."""
    found = []
    columns = ["image_id", "image", "class_mask", "object_mask"]
    for group in range(len(part.row_groups)):
        ids = tables.read_row_group(images_uri, part.name, group, ["image_id"])["image_id"].to_pylist()
        if not set(ids).isdisjoint(image_ids):
            rows = tables.read_row_group(images_uri, part.name, group, columns).to_pylist()
            found += [row for row in rows if row["image_id"] in image_ids]
    return found


def gallery(
    predictor: "Predictor", images_uri: str, proposals_uri: str, classes: Sequence[str], mean_iou: MeanIou
) -> dict[str, bytes]:
    """PNGs by name: comparison, wins (where any network wins), instances and unpooling, of photographs chosen by `mean_iou`."""
    chosen = {"comparison": best_median_worst(mean_iou), "wins": winners(mean_iou)}
    some = likely(mean_iou)
    ids = {image_id for pairs in chosen.values() for _, image_id in pairs}
    known = photographs(images_uri, proposals_uri, ids | set(some))
    drawn = {
        name: compared(predictor, [(word, known[image_id]) for word, image_id in pairs], classes, mean_iou)
        for name, pairs in chosen.items()
        if pairs
    }
    if some:
        shown = with_object(known[image_id] for image_id in some)
        drawn |= {"instances": instances(predictor, shown, classes), "unpooling": unpooling(predictor, shown, classes)}
    return drawn


def gallery_by(models: tuple[str, str], options: "PredictorOptions", gpu: bool, *arguments: Any) -> dict[str, bytes]:
    """`gallery` by the networks in two model folders (DeconvNet, FCN-8s); options: of Predictor."""
    from deconvnet.inference.predictor import Predictor

    return gallery(Predictor.load(*models, "cuda" if gpu else "cpu", options), *arguments)


def compared(predictor: "Predictor", shown: Iterable[tuple[str, Photograph]], classes: Sequence[str], mean_iou: MeanIou) -> bytes:
    """PNG of photographs, each with a word on why it is shown (or ""), side by side with their truth and labels, in this order."""
    rows = [
        {
            "image": each.image,
            "truth": each.truth,
            "title": f"{word}: {each.image_id}" if word else each.image_id,
            "mean_iou": mean_iou.get(each.image_id, {}),
            **predictor.masks(each.image, each.boxes, panels.COMPARED),
        }
        for word, each in shown
    ]
    return panels.comparison(rows, classes)


def likely(mean_iou: MeanIou) -> list[str]:
    """The photographs that DeconvNet labels best, of which one is shown at work."""
    return [image_id for _, image_id in _ranked(mean_iou, lambda row: row["deconvnet"])[:_LOOKED_AT]]


def with_object(candidates: Iterable[Photograph]) -> Photograph:
    """The first with several annotated objects, which show more, else with one, else the first; there must be one."""
    return max(candidates, key=lambda each: min(len(_objects(each)), 2))


def instances(predictor: "Predictor", shown: Photograph, classes: Sequence[str]) -> bytes:
    """PNG of DeconvNet's labels as they grow with the photograph's proposals, from the largest box to the smallest (Figure 6)."""
    chosen = predictor.best_boxes(shown.boxes)
    sides = chosen[:, 2:] - chosen[:, :2]
    chosen = chosen[np.argsort(-sides.prod(axis=1), kind="stable")]
    counts = sorted({k for k in STEPS if k < len(chosen)} | {len(chosen)})
    _, steps = predictor.masks_by_box_count(shown.image, chosen, counts, ("deconvnet",))
    return panels.instances(shown.image, shown.truth, chosen, steps, classes, shown.image_id)


def unpooling(predictor: "Predictor", shown: Photograph, classes: Sequence[str]) -> bytes:
    """PNG of the decoder's maps of the photograph's largest object, cut as for training (Figure 4).

    The maps are those most active on the object; of all the photograph where it has none.
    """
    height, width = shown.image.shape[:2]
    largest = _largest_object(shown)
    window = enlarge(
        np.array([largest.box if largest else (0, 0, width, height)]), predictor.options.context, predictor.options.window
    )[0]
    side = predictor.deconvnet.input_size
    seen, where = crop(shown.image, window, side), None
    if largest and shown.objects is not None:
        where = crop(shown.objects, window, side, 0, cv2.INTER_NEAREST) == largest.object_id
    title = f"{shown.image_id}, {classes[largest.class_id]}" if largest else shown.image_id
    return panels.unpooling(seen, *decoder_maps(predictor.deconvnet, seen, where), classes, title)


def _largest_object(shown: Photograph) -> AnnotatedObject | None:
    """The annotated object with the largest box."""
    return max(_objects(shown), key=lambda each: np.ptp(np.reshape(each.box, (2, 2)), 0).prod(), default=None)


def _objects(shown: Photograph) -> list[AnnotatedObject]:
    return [] if shown.truth is None or shown.objects is None else find_objects(shown.truth, shown.objects, SMALLEST_SIDE)


def examples(examples_uri: str, classes: Sequence[str], count: int = 16) -> bytes:
    """PNG of `count` training crops with their labels, evenly spread over an examples table. Raises ValueError where it is empty."""
    commit = tables.require_commit(examples_uri)
    places = [(part, group) for part in commit.parts for group in range(len(part.row_groups))]
    chosen = sorted(set(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int).tolist()))
    rows: list[dict[str, Any]] = []
    for number, place in enumerate(chosen):
        part, group = places[place]
        there = tables.read_row_group(examples_uri, part.name, group).to_pylist()
        share = count * (number + 1) // len(chosen) - count * number // len(chosen)
        picks = sorted(set(np.linspace(0, len(there) - 1, min(share, len(there))).round().astype(int).tolist()))
        rows += [there[i] for i in picks]
    shown = [
        {
            "image": decode_image(row["image"]),
            "mask": decode_mask(row["mask"]),
            "title": f"{classes[row['class_id']]}, IoU {row['iou']:.2f}, ×{row['repeats']}",
        }
        for row in rows
    ]
    return panels.examples_sheet(shown, classes)
