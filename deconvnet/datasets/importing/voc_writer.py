"""Write a source of labelled photographs as a folder in VOC's layout, which appears whole or not at all.

Beside what VOC has there are classes.txt (a name a line, by id), rejects.csv (what was set aside or passed over, and why) and
import.json (where it came from).
"""

import csv
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from deconvnet.datasets import voc
from deconvnet.datasets.importing.source import STAGE, Entry, Labelled, Source, image_id_of
from deconvnet.datasets.palette import VOC_PALETTE
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.progress import progress
from infra.storage.tables import Reject
from proposals.image_codec import encode_mask

CLASSES_FILE, REJECTS_FILE, IMPORT_FILE = "classes.txt", "rejects.csv", "import.json"
_AHEAD = 64  # photographs in hand together
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Imported:
    """What an import did. overlapping: photographs with pixels that several objects claim; overlap: share of all pixels;
    hidden: objects of which others leave nothing to be seen.
    """

    splits: dict[str, list[str]]
    rejects: list[Reject] = field(default_factory=list)
    passed_over: list[tuple[Entry, str]] = field(default_factory=list)
    overlapping: int = 0
    overlap: float = 0.0
    hidden: int = 0


def in_order(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """`work` of each item by so many threads, in their order; few are in hand at a time."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), _AHEAD):
            yield from pool.map(work, items[start : start + _AHEAD])


def draw_val(ids: Collection[str], share: float, seed: int) -> set[str]:
    """The ids that are validated on: those whose SHA-256 of "seed:id" lies in the lowest `share` of its range.

    So no photograph changes its split when others come or go. Of two ids or more at least one is drawn, and one is left.
    """
    place = {each: int.from_bytes(hashlib.sha256(f"{seed}:val:{each}".encode()).digest()[:8], "big") / 2**64 for each in ids}
    ranked = sorted(place, key=lambda each: place[each])
    count = sum(place[each] < share for each in ranked)
    return set(ranked[: min(max(count, 1), len(ranked) - 1)]) if len(ranked) > 1 else set()


def split_list(uri: str, setting: str) -> list[str]:
    """The ids in a list file, a photograph's name or id a line. Raises UserError."""
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        raise UserError(f"--{setting} {uri} can't be read: it must be a text file, a photograph's name a line") from None
    return [line.strip() for line in lines if line.strip()]


def assign(
    source: Source, train: Sequence[str] | None, val: Sequence[str] | None, val_share: float, seed: int
) -> tuple[dict[str, str], list[Reject], list[str]]:
    """Each photograph's split by id, lines of the lists that fit none, and notes.

    The source's own splits count first; then lists of names, where with one list alone the other split is the rest; else val is
    drawn.
    """
    ids = [entry.image_id for entry in source.entries]
    if any(entry.split for entry in source.entries):
        return {entry.image_id: entry.split or "train" for entry in source.entries}, [], []
    if train is None and val is None:
        drawn = draw_val(ids, val_share, seed)
        return {each: "val" if each in drawn else "train" for each in ids}, [], []
    known, by_name = set(ids), {_base(name): image_id for image_id, name in source.names.items()}
    splits: dict[str, str] = {}
    rejects = []
    for split, names in (("val", val), ("train", train)):
        for name in names or ():
            image_id = next((i for i in (name, image_id_of(name), by_name.get(_base(name))) if i in known), None)
            if image_id is None:
                rejects.append(Reject(name, f"{split}_list", STAGE, "listed, and there is no such labelled photograph"))
            elif splits.setdefault(image_id, split) != split:
                rejects.append(Reject(image_id, f"{split}_list", STAGE, "listed in both splits; it stays in val"))
    if train is None or val is None:
        splits = {each: splits.get(each, "val" if val is None else "train") for each in ids}
    left = len(ids) - len(splits)
    return splits, rejects, [f"{left:,} labelled photographs are in neither list and are left out"] if left else []


def _base(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes `folder`'s name at the end of the block; if that fails nothing is left behind.

    Raises UserError where something stands there, or the disk refuses.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--to {folder} is there and not empty: name a new folder, or remove it")
    aside = folder.with_name(f".{folder.name}.importing")
    try:
        storage.remove(str(aside))
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    except OSError as error:
        if user_error := storage.disk_user_error(error, folder.parent):
            raise user_error from error
        raise
    finally:
        storage.remove(str(aside))


def write_layout(
    source: Source, splits: Mapping[str, str], folder: Path, max_rejects: float, threads: int, told: Mapping[str, Any]
) -> Imported:
    """Label the photographs of `splits` (by id) and write them below the empty `folder`. told: what import.json says besides.

    Raises UserError where more than `max_rejects` (a share) can't be used, or a split is left with too few.
    """
    for name in (voc.IMAGES_DIR, voc.CLASS_MASKS_DIR):
        (folder / name).mkdir()
    entries = [entry for entry in source.entries if entry.image_id in splits]
    made = Imported({"train": [], "val": []}, list(source.rejects))
    pixels = claimed = 0

    def work(entry: Entry) -> _Done | Reject:
        try:
            labelled = entry.label()
        except BadInput as error:
            return Reject(entry.image_id, entry.file, STAGE, str(error))
        _write(entry.image_id, labelled, folder)
        return _Done(labelled.passed_over, labelled.overlap, labelled.hidden, labelled.classes.size)

    results = progress(in_order(work, entries, threads), len(entries), "importing", "photographs")
    for entry, result in zip(entries, results, strict=True):
        if isinstance(result, Reject):
            made.rejects.append(result)
            continue
        made.splits[splits[entry.image_id]].append(entry.image_id)
        made.passed_over += [(entry, reason) for reason in result.passed_over]
        made.overlapping += result.overlap > 0
        made.hidden += result.hidden
        pixels, claimed = pixels + result.pixels, claimed + result.overlap
    made.overlap = claimed / max(pixels, 1)
    _check(made, len(entries) + len(source.rejects), max_rejects)
    _write_lists(source, made, folder, told)
    return made


@dataclass(frozen=True)
class _Done:
    """What is kept of a photograph once it is written."""

    passed_over: tuple[str, ...]
    overlap: int
    hidden: int
    pixels: int


def _write(image_id: str, labelled: Labelled, folder: Path) -> None:
    (folder / voc.IMAGES_DIR / f"{image_id}{labelled.suffix}").write_bytes(labelled.image)
    (folder / voc.CLASS_MASKS_DIR / f"{image_id}.png").write_bytes(encode_mask(labelled.classes, VOC_PALETTE))
    if labelled.objects is not None:
        (folder / voc.OBJECT_MASKS_DIR).mkdir(exist_ok=True)
        palette = VOC_PALETTE if labelled.objects.itemsize == 1 else None
        (folder / voc.OBJECT_MASKS_DIR / f"{image_id}.png").write_bytes(encode_mask(labelled.objects, palette))


def _check(made: Imported, inputs: int, max_rejects: float) -> None:
    """Raises UserError for what should not become a folder to train on."""
    why = commonest([reject.reason for reject in made.rejects])
    first = f"; the first is {made.rejects[0].path}" if made.rejects else ""
    if made.rejects and len(made.rejects) > max_rejects * inputs:
        raise UserError(
            f"{len(made.rejects):,} of {inputs:,} photographs can't be used ({why}{first}), and max_rejects allows "
            f"{max_rejects:.0%}: mend them, or raise --max_rejects. Nothing was written"
        )
    for split, least in (("train", 2), ("val", 1)):
        if len(made.splits[split]) < least:
            raise UserError(
                f"{split} has {len(made.splits[split])} photographs, and at least {least} are needed"
                f"{f' ({why})' if why else ''}: add some, or change the splits. Nothing was written"
            )


def commonest(reasons: Sequence[str], most: int = 3) -> str:
    """The commonest of `reasons` with their counts; those that differ in numbers alone are one, told by its first."""
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kinds.setdefault(re.sub(r"\d[\d,.]*", "…", reason), []).append(reason)
    ranked = sorted(kinds.values(), key=len, reverse=True)[:most]
    return "; ".join(f"{len(each):,}× {each[0]}" for each in ranked)


def _write_lists(source: Source, made: Imported, folder: Path, told: Mapping[str, Any]) -> None:
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for members in made.splits.values():
        members.sort()
    for split, ids in {**made.splits, "trainval": sorted(made.splits["train"] + made.splits["val"])}.items():
        (lists / f"{split}.txt").write_text("".join(f"{each}\n" for each in ids), "utf-8")
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in source.classes), "utf-8")
    with (folder / REJECTS_FILE).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("what", "id", "file", "reason"))
        rows.writerows(("photograph", each.image_id, each.path, each.reason) for each in made.rejects)
        rows.writerows(("annotation", entry.image_id, entry.file, reason) for entry, reason in made.passed_over)
    counts = {split: len(ids) for split, ids in made.splits.items()}
    overlaps = {"photographs": made.overlapping, "share_of_pixels": made.overlap, "hidden_objects": made.hidden}
    content = {
        **told, "classes": source.classes, "photographs": counts, "rejects": len(made.rejects),
        "passed_over": len(made.passed_over), "overlaps": overlaps, "notes": source.notes,
    }  # fmt: skip
    storage.write_json(str(folder / IMPORT_FILE), content)
