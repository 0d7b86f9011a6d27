"""The check of a data set in VOC's layout, which reads every image of two splits as training would read it."""

from collections.abc import Sequence

from deconvnet.datasets import voc
from deconvnet.datasets.thread_map import thread_map
from deconvnet.datasets.validation.contact_sheet import SheetCell, draw_contact_sheet, select_images
from deconvnet.datasets.validation.image_statistics import ImageStatistics, measure_image
from deconvnet.datasets.validation.report import CheckReport, make_report
from deconvnet.datasets.writing.voc_writer import IMPORT_FILE
from infra.storage import exists, join, read_json
from infra.storage.tables import Reject
from proposals.edgebox import EdgeBoxOptions
from proposals.image_codec import decode_image, decode_mask

REPORT_FILE, SHEET_FILE = "check.md", "contact_sheet.png"


def check_dataset(
    root: str,
    classes: Sequence[str],
    proposals: EdgeBoxOptions,
    *,
    title: str,
    splits: tuple[str, str] = ("train", "val"),
    max_pixels: int = 100_000_000,
    threads: int = 1,
) -> tuple[CheckReport, bytes | None]:
    """Check a data set, and return a report and a contact sheet. Nothing is written to disk.

    Progress is shown on stderr. If the data set was imported, the report also quotes what its import.json recorded.

    Args:
        root: path or URI of a folder in VOC's layout.
        classes: class names by id, background first.
        proposals: options of EdgeBox, which proposes boxes that may hold an object. The report counts the objects that are too
            small for it.
        title: name of the data set, for the headings.
        splits: names of the split to train on and of the split to validate on.
        max_pixels: images with more pixels count as unusable.
        threads: number of threads that read images.

    Returns:
        The report, and the contact sheet: a PNG with some of the images and their masks. The latter is None if no image is
        usable.

    Raises:
        UserError: if the folder or the list of a split can't be read.
    """
    dataset = voc.VocDataset(root)
    train_list, val_list = splits
    val, val_rejects = dataset.split(val_list)
    train, train_rejects = dataset.split(train_list, dict.fromkeys((image.image_id for image in val), val_list))
    images: list[tuple[str, voc.VocImageFiles | Reject]] = []
    for split, usable, rejects in (("train", train, train_rejects), ("val", val, val_rejects)):
        images += [*((split, image) for image in usable), *((split, reject) for reject in rejects)]

    def measure(item: tuple[str, voc.VocImageFiles | Reject]) -> ImageStatistics:
        return measure_image(dataset.root, item[1], item[0], len(classes), max_pixels)

    statistics = list(thread_map(measure, images, threads, "checking", "images"))
    import_file = join(dataset.root, IMPORT_FILE)
    imported = read_json(import_file) if exists(import_file) else None
    report = make_report(statistics, classes, proposals, title, imported)
    files = {image.image_id: image for image in [*train, *val]}
    cells = []
    for image_id in select_images(statistics, report.suspicious):
        row = voc.read_row(dataset.root, files[image_id], "", len(classes), max_pixels)
        if not isinstance(row, Reject):  # its files may have changed since they were measured
            warning = ", ".join(report.suspicious.get(image_id, {}).values())
            cells.append(SheetCell(decode_image(row["image"]), decode_mask(row["class_mask"]), image_id, warning))
    heading = f"{title}: {len(cells)} of {len(images):,} images" + (", suspicious ones first" if report.suspicious else "")
    return report, draw_contact_sheet(cells, classes, heading) if cells else None
