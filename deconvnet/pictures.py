"""The pictures of a run: which photographs and crops are shown, and the figures made of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deconvnet import figures
from infra import tables
from infra.images import decode_image, decode_mask
from proposals.propose import iter_proposals

if TYPE_CHECKING:
    from deconvnet.segmenter import Segmenter

SHOWN_BY = "edeconvnet_crf"


def choose(mean_iou: Mapping[str, Mapping[str, float | None]], count: int = 6) -> list[str]:
    """`count` photographs from the best to the worst by EDeconvNet+CRF's mean IoU, evenly spread; ties by image_id."""
    ranked = [(row[SHOWN_BY], image_id) for image_id, row in mean_iou.items() if row[SHOWN_BY] is not None]
    order = [image_id for _, image_id in sorted(ranked, key=lambda pair: (-float(pair[0] or 0), pair[1]))]
    if len(order) <= count:
        return order
    return [order[i] for i in np.linspace(0, len(order) - 1, count).round().astype(int)]


def compared(
    segmenter: "Segmenter",
    images_uri: str,
    proposals_uri: str,
    image_ids: Sequence[str],
    classes: Sequence[str],
    mean_iou: Mapping[str, Mapping[str, float | None]],
) -> bytes:
    """PNG of the photographs `image_ids`, in this order: photograph, truth, FCN-8s, DeconvNet, EDeconvNet+CRF."""
    rows: dict[str, dict[str, Any]] = {}
    pairs = zip(tables.require_commit(images_uri).parts, tables.require_commit(proposals_uri).parts, strict=True)
    for images, proposals in pairs:
        if not any(images.first <= image_id <= images.last for image_id in image_ids):
            continue
        found = {r["image_id"]: r for r in _chosen(images_uri, images, image_ids)}
        if not found:
            continue
        boxes = {name: b for name, b, _ in iter_proposals(proposals_uri, proposals) if name in found}
        for image_id, row in found.items():
            image = decode_image(row["image"])
            labels = segmenter.segment(image, boxes.get(image_id, np.zeros((0, 4), np.float32)))
            score = mean_iou[image_id][SHOWN_BY]
            title = image_id if score is None else f"{image_id}\nmean IoU {100 * score:.0f} %"
            rows[image_id] = {"image": image, "truth": decode_mask(row["class_mask"]), "title": title, **labels}
    return figures.comparison([rows[i] for i in image_ids], classes)


def compared_by(models: tuple[str, str], options: Mapping[str, Any], gpu: bool, *arguments: Any) -> bytes:
    """`compared` by the networks in two model folders (DeconvNet, FCN-8s); options: keywords of Segmenter."""
    from deconvnet.segmenter import Segmenter

    return compared(Segmenter.load(*models, "cuda" if gpu else "cpu", **options), *arguments)


def _chosen(images_uri: str, part: tables.Part, image_ids: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `image_ids` in a part: only the row groups that hold one are read whole."""
    found = []
    for group in range(len(part.row_groups)):
        ids = tables.read_row_group(images_uri, part.name, group, ["image_id"])["image_id"].to_pylist()
        if not set(ids).isdisjoint(image_ids):
            rows = tables.read_row_group(images_uri, part.name, group, ["image_id", "image", "class_mask"]).to_pylist()
            found += [row for row in rows if row["image_id"] in image_ids]
    return found


def examples(examples_uri: str, classes: Sequence[str], count: int = 16) -> bytes:
    """PNG of `count` training crops with their labels, evenly spread over an examples table."""
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
    return figures.examples_sheet(shown, classes)
