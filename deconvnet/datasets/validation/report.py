"""The check of a data set in words and tables (Markdown), and which photographs deserve a look."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deconvnet.datasets.validation.measure import (
    LARGE,
    MUCH_VOID,
    ONE_CLASS,
    SMALL,
    SPECKLE,
    Measured,
    Search,
    copies,
    look_alikes,
    overlapping,
)
from proposals.masks import VOID_ID

SPLITS = ("train", "val")
FEW = 5  # training photographs of a class
_EXAMPLES = 5
_ALIKE = "twin"
KINDS = {
    "unusable": "training would set these aside",
    "soft edges": "masks resized with interpolation, antialiased or saved as JPEG: make them anew, with nearest-neighbour scaling",
    _ALIKE: "the same or nearly the same photograph in train and val: the final table would be flattered",
    "one class": f"one class covers over {ONE_CLASS:.0%}: is it labelled, or filled in?",
    "empty": "nothing is labelled: fine where nothing is there",
    "void": f"over {MUCH_VOID:.0%} is void: little to learn from",
    "speckles": f"objects under {SPECKLE} px: slips of the brush, or scraps that an overlap left",
}
"""What can be wrong with a photograph, the gravest first."""


@dataclass(frozen=True)
class Report:
    """The check's text, and the suspicious photographs by id, the gravest first: what about each, by kind, in words."""

    text: str
    marked: Mapping[str, Mapping[str, str]]


def make_report(
    photographs: Sequence[Measured], classes: Sequence[str], search: Search, title: str, imported: Mapping[str, Any] | None = None
) -> Report:
    """The check of `photographs`, those that can't be used included. imported: import.json's content, where there is one."""
    pairs = look_alikes(photographs)
    suspicions: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for each in photographs:
        for kind, words in each.suspicions.items():
            suspicions[kind][each.image_id] = words
    for train, val, bits in pairs:
        how = "same file" if train.digest == val.digest else f"{bits} of 256 bits differ"
        suspicions[_ALIKE].setdefault(val.image_id, f"{train.image_id} in train ({how})")
    marked: dict[str, dict[str, str]] = {}
    for kind, found in suspicions.items():
        for image_id, words in found.items():
            marked.setdefault(image_id, {})[kind] = words
    usable = [each for each in photographs if "unusable" not in each.suspicions]
    sections = [
        f"# Check of {title}",
        _photographs(photographs, usable),
        "## Classes\n\n" + _classes(usable, classes, search),
        "## Overlaps\n\n" + _overlaps(usable, imported),
        "## To look at\n\n" + _to_look_at(photographs, usable, classes, suspicions),
    ]
    if imported and imported.get("notes"):
        sections.insert(2, "\n".join(f"* {note}" for note in imported["notes"]))
    return Report("\n\n".join(sections) + "\n", marked)


def _photographs(photographs: Sequence[Measured], usable: Sequence[Measured]) -> str:
    rows = []
    for split in SPLITS:
        there = [each for each in usable if each.split == split]
        sides = sorted((each.width * each.height, f"{each.width}×{each.height}") for each in there) or [(0, "–")]
        unusable = sum(each.split == split for each in photographs) - len(there)
        objects = sum(len(each.objects) for each in there)
        sizes = [sides[0][1], sides[len(sides) // 2][1], sides[-1][1]]
        rows.append([split, f"{len(there):,}", f"{unusable:,}", f"{objects:,}", *sizes])
    return table(["split", "photographs", "unusable", "objects", "smallest", "middle", "largest"], rows)


def _classes(usable: Sequence[Measured], classes: Sequence[str], search: Search) -> str:
    """A row a class: photographs and objects by split, its share of the pixels, and how large its objects are."""
    pixels: Counter[int] = Counter()
    seen: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    for each in usable:
        pixels.update(each.pixels)
        seen[each.split].update(each.pixels.keys())
    everything = np.concatenate([np.zeros((0, 3)), *(_sizes(each, search) for each in usable)])
    split_of = np.repeat([SPLITS.index(each.split) for each in usable], [len(each.objects) for each in usable])
    total = max(sum(pixels.values()), 1)
    rows = []
    for class_id, name in [*enumerate(classes), (VOID_ID, "(void)")]:
        mine = everything[:, 0] == class_id
        by_split = (
            [f"{int((mine & (split_of == i)).sum()):,}" for i in range(len(SPLITS))] if 0 < class_id < VOID_ID else ["", ""]
        )
        photographs = [f"{seen[split][class_id]:,}" for split in SPLITS]
        rows.append([name, *photographs, *by_split, _percent(pixels[class_id] / total), *_shares(everything[mine], class_id)])
    rows.append(["all objects", *(f"{sum(each.split == s for each in usable):,}" for s in SPLITS),
                 *(f"{int((split_of == i).sum()):,}" for i in range(len(SPLITS))), "", *_shares(everything, 1)])  # fmt: skip
    heads = ["class", "photographs train", "val", "objects train", "val", "pixels", "small", "medium", "large", "unfindable"]
    return (
        f"{table(heads, rows)}\n\nSmall, medium, large: objects of under {SMALL:.0%}, up to {LARGE:.0%} and over {LARGE:.0%} of their "
        f"photograph. Unfindable: their box is under {search.min_box_area:,.0f} px², the smallest that EdgeBox proposes "
        "(proposals.min_box_area); larger boxes may still cover them."
    )


def _sizes(each: Measured, search: Search) -> np.ndarray:
    """Class id, share of the photograph, and whether it is unfindable, of each object: float64 (n, 3)."""
    return np.stack([each.objects[:, 0], each.shares, each.unfindable(search)], axis=1).astype(np.float64)


def _shares(objects: np.ndarray, class_id: int) -> list[str]:
    if not len(objects) or class_id in (0, VOID_ID):
        return [""] * 4
    share = objects[:, 1]
    parts = [share < SMALL, (share >= SMALL) & (share <= LARGE), share > LARGE, objects[:, 2] > 0]
    return [_percent(part.mean()) for part in parts]


def _overlaps(usable: Sequence[Measured], imported: Mapping[str, Any] | None) -> str:
    objects = sum(len(each.objects) for each in usable)
    crowded = sum(overlapping(each.objects) for each in usable)
    lines = [f"{crowded:,} of {objects:,} objects have a box that another's covers by half (IoU 0.5) or more."]
    if imported and (found := imported.get("overlaps")):
        lines.append(
            f"As annotated, objects claim the same pixels in {found['photographs']:,} photographs "
            f"({_percent(found['share_of_pixels'])} of all pixels); {found['hidden_objects']:,} objects are wholly hidden by others."
        )
    return " ".join(lines)


def _to_look_at(
    photographs: Sequence[Measured],
    usable: Sequence[Measured],
    classes: Sequence[str],
    suspicions: Mapping[str, Mapping[str, str]],
) -> str:
    lines = _of_classes(usable, classes)
    for same in copies(photographs)[:_EXAMPLES]:
        lines.append(
            f"* the same file {len(same)} times in {same[0].split}: {', '.join(each.image_id for each in same[:_EXAMPLES])}"
        )
    for kind, found in suspicions.items():
        if found:
            examples = "; ".join(f"{image_id}: {words}" for image_id, words in list(found.items())[:_EXAMPLES])
            more = "; …" if len(found) > _EXAMPLES else ""
            lines.append(f"* **{kind}**, {_photographs_of(len(found))} ({KINDS[kind]}): {examples}{more}")
    return "\n".join(lines) or "Nothing suspicious was found."


def _of_classes(usable: Sequence[Measured], classes: Sequence[str]) -> list[str]:
    lines = []
    for class_id, name in enumerate(classes[1:], start=1):
        train, val = (sum(class_id in each.pixels for each in usable if each.split == split) for split in SPLITS)
        if not train and not val:
            lines.append(f"* class **{name}** is in no photograph: is it in the list by mistake?")
        elif not train:
            lines.append(f"* class **{name}** is in val alone ({_photographs_of(val)}): it can't be learned")
        elif not val:
            lines.append(f"* class **{name}** is in train alone ({_photographs_of(train)}): it can't be measured")
        elif train < FEW:
            lines.append(f"* class **{name}** is in {_photographs_of(train)} of train: few to learn from")
    return lines


def _photographs_of(count: int) -> str:
    return f"{count:,} photograph{'' if count == 1 else 's'}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too; the first is flush left, the others right."""
    wide = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    rule = [f":{'-' * (wide[0] - 1)}", *(f"{'-' * (w - 1)}:" for w in wide[1:])]
    lines = [[heads[0].ljust(wide[0]), *(h.rjust(w) for h, w in zip(heads[1:], wide[1:], strict=True))], rule]
    lines += [[row[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(row[1:], wide[1:], strict=True))] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: float) -> str:
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.1f} %"
