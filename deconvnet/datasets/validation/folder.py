"""The check of a folder in VOC's layout: every photograph of its two splits is read once, as the pipeline would."""

from collections.abc import Mapping, Sequence
from typing import Any

from deconvnet.datasets import voc
from deconvnet.datasets.importing.voc_writer import in_order
from deconvnet.datasets.validation.contact_sheet import choose, contact_sheet
from deconvnet.datasets.validation.measure import Measured, Search, measure
from deconvnet.datasets.validation.report import Report, make_report
from infra.errors import BadInput
from infra.runtime.progress import progress
from infra.storage import join, read_bytes
from infra.storage.tables import Reject
from proposals.image_codec import decode_image, decode_mask

REPORT_FILE, SHEET_FILE = "check.md", "contact_sheet.png"


def check_folder(
    root: str,
    classes: Sequence[str],
    search: Search,
    *,
    title: str,
    splits: tuple[str, str] = ("train", "val"),
    max_pixels: int = 100_000_000,
    threads: int = 1,
    imported: Mapping[str, Any] | None = None,
) -> tuple[Report, bytes | None]:
    """What there is to say of the folder, and a PNG of photographs to look at (None where none can be shown).

    splits: the names of the lists trained on and validated on; imported: import.json's content. Raises UserError for a folder
    or list that can't be read.
    """
    folder = voc.VocDataset(root)
    val, val_rejects = folder.split(splits[1])
    train, train_rejects = folder.split(splits[0], dict.fromkeys((each.image_id for each in val), splits[1]))
    work: list[tuple[str, voc.VocImageFiles | Reject]] = []
    for split, found, rejects in (("train", train, train_rejects), ("val", val, val_rejects)):
        work += [*((split, each) for each in found), *((split, each) for each in rejects)]

    def one(item: tuple[str, voc.VocImageFiles | Reject]) -> Measured:
        return measure(folder.root, item[1], item[0], len(classes), max_pixels)

    measured = list(progress(in_order(one, work, threads), len(work), "checking", "photographs"))
    report = make_report(measured, classes, search, title, imported)
    files = {each.image_id: each for each in [*train, *val]}
    shown = choose(measured, report.marked)
    cells = [cell for image_id in shown if (cell := _cell(folder.root, files[image_id], report.marked, max_pixels))]
    heading = f"{title}: {len(cells)} of {len(measured):,} photographs" + (", suspicious ones first" if report.marked else "")
    return report, contact_sheet(cells, classes, heading) if cells else None


def _cell(
    root: str, files: voc.VocImageFiles, marked: Mapping[str, Mapping[str, str]], max_pixels: int
) -> dict[str, object] | None:
    """A photograph for the sheet; None where it has gone since it was measured."""
    try:
        image = decode_image(read_bytes(join(root, files.image.name)), max_pixels)
        mask = decode_mask(read_bytes(join(root, files.class_mask.name)), max_pixels)
    except (BadInput, OSError):
        return None
    mark = ", ".join(marked.get(files.image_id, {}).values())
    return {"image": image, "mask": mask.astype("uint8"), "title": files.image_id, "mark": mark}
