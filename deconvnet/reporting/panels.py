"""Pictures of photographs, as PNG bytes of 1,200 px width. Masks are painted in VOC's colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from deconvnet.reporting.figure import TITLES, grid, picture

COMPARED = ("fcn8s", "deconvnet", "edeconvnet", "edeconvnet_crf")
_NEW_BOX, _OLD_BOX = (255, 176, 0), (255, 255, 255)


def comparison(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> bytes:
    """Photograph | truth | FCN-8s | DeconvNet | EDeconvNet | EDeconvNet+CRF, a row for each photograph, and a legend (Figures 7–9).

    rows: `image` uint8 H×W×3 RGB; `truth` and the results of COMPARED uint8 H×W class ids (255 void), None where there is none (a
    photograph without truth); `title`, text; `mean_iou`, fractions by result, which stand above the masks. Raises ValueError for
    no rows.
    """
    columns = {"image": "photograph", "truth": "truth"} | {name: TITLES[name] for name in COMPARED}
    cells = [[picture(row.get(name)) for name in columns] for row in rows]
    masks = [row[name] for row in rows for name in columns if name != "image" and row.get(name) is not None]
    titles = [[str(row.get("title", "")), "", *(_score(row, name) for name in COMPARED)] for row in rows]
    return grid(cells, titles, masks, classes, list(columns.values()))


def _score(row: Mapping[str, Any], name: str) -> str:
    score = row.get("mean_iou", {}).get(name)
    return "" if score is None else f"mean IoU {100 * score:.0f} %"


def examples_sheet(examples: Sequence[Mapping[str, Any]], classes: Sequence[str], columns: int = 4) -> bytes:
    """Training crops beside their labels, `columns` pairs a row.

    examples: `image` uint8 S×S×3 RGB, `mask` uint8 S×S class ids (255 void), `title` text. Raises ValueError for none.
    """
    cells: list[list[np.ndarray | None]] = []
    titles = []
    for start in range(0, len(examples), columns):
        line = examples[start : start + columns]
        row = [pixels for e in line for pixels in (picture(e["image"]), picture(e["mask"]))]
        cells.append(row + [None] * (2 * columns - len(row)))
        titles.append([str(e.get("title", "")) for e in line] + [""] * (columns - len(line)))
    return grid(cells, titles, [e["mask"] for e in examples], classes, ["crop", "label"] * columns)


def instances(
    image: np.ndarray,
    truth: np.ndarray | None,
    boxes: np.ndarray,
    steps: Mapping[int, np.ndarray],
    classes: Sequence[str],
    title: str = "",
) -> bytes:
    """The segmentation as it grows with the proposals (Figure 6): the boxes so far on the photograph, the labels below.

    image uint8 H×W×3 RGB; boxes (N, 4) in the order they are segmented; steps: for some numbers of boxes, rising, the labels uint8
    H×W after as many; truth uint8 H×W, shown last, or None. Boxes that came with a step are orange, the earlier ones white.
    """
    panels: list[tuple[str, np.ndarray | None, np.ndarray | None]] = []
    before = 0
    for count, labels in steps.items():
        name = f"{count} proposal{'' if count == 1 else 's'}"
        panels.append((name, _boxed(image, boxes[:before], boxes[before:count]), picture(labels)))
        before = count
    if truth is not None:
        panels.append(("truth", picture(image), picture(truth)))
    cells, titles = [], []
    columns = 3 if image.shape[0] < 0.9 * image.shape[1] else 6  # high ones would make a page to scroll through
    for start in range(0, len(panels), columns):
        line = panels[start : start + columns]
        line += [("", None, None)] * (columns - len(line))
        cells += [[above for _, above, _ in line], [below for _, _, below in line]]
        titles += [[f"{title}  {name}" if title and not (start or i) else name for i, (name, _, _) in enumerate(line)], []]
    masks = [*steps.values(), *([] if truth is None else [truth])]
    return grid(cells, titles, masks, classes)


def _boxed(image: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """`image`, no larger than it can be seen, with boxes in its pixels drawn."""
    small = picture(image)
    assert small is not None
    drawn = Image.fromarray(np.ascontiguousarray(small))
    draw = ImageDraw.Draw(drawn)
    scale = small.shape[1] / image.shape[1]
    for boxes, colour, width in ((old, _OLD_BOX, 1), (new, _NEW_BOX, 2)):
        for x1, y1, x2, y2 in (np.asarray(boxes, np.float64).reshape(-1, 4) * scale).round().astype(int).tolist():
            draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
    return np.asarray(drawn)


def unpooling(
    crop: np.ndarray, maps: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str], title: str = "input"
) -> bytes:
    """What DeconvNet's decoder makes of a crop (Figure 4): its input, a map of each layer, brighter where more active, its labels.

    crop uint8 S×S×3 RGB; maps: layer → float (h, w), not negative, in the decoder's order; labels uint8 S×S.
    """
    from matplotlib import colormaps

    panels: list[tuple[str, np.ndarray | None]] = [(title, picture(crop))]
    for name, values in maps.items():
        bright = np.asarray(values, np.float64) / (values.max() or 1)
        panels.append((f"{name}, {values.shape[1]}×{values.shape[0]}", colormaps["inferno"](bright, bytes=True)[..., :3]))
    panels.append(("labels", picture(labels)))
    columns = 4
    panels += [("", None)] * (-len(panels) % columns)
    lines = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    cells = [[pixels for _, pixels in line] for line in lines]
    return grid(cells, [[name for name, _ in line] for line in lines], [labels], classes)
