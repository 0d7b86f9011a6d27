"""The check of a data set in VOC's layout: every image of two splits is read once, as training would read it."""

from collections.abc import Mapping, Sequence

from deconvnet.datasets import voc
from deconvnet.datasets.importing.voc_writer import IMPORT_FILE
from deconvnet.datasets.thread_map import thread_map
from deconvnet.datasets.validation.contact_sheet import SheetCell, draw_contact_sheet, select_images
from deconvnet.datasets.validation.image_statistics import ImageStatistics, ProposalLimits, measure_image
from deconvnet.datasets.validation.report import CheckReport, make_report
from infra.errors import BadInput
from infra.storage import exists, join, read_bytes, read_json
from infra.storage.tables import Reject
from proposals.image_codec import decode_image, decode_mask

REPORT_FILE, SHEET_FILE = "check.md", "contact_sheet.png"


def check_dataset(
    root: str,
    classes: Sequence[str],
    limits: ProposalLimits,
    *,
    title: str,
    splits: tuple[str, str] = ("train", "val"),
    max_pixels: int = 100_000_000,
    threads: int = 1,
) -> tuple[CheckReport, bytes | None]:
    """Check a data set. If it was imported, its import.json adds to the report.

    Args:
        root: folder in VOC's layout, local or at s3://.
        classes: class names by id, background first.
        limits: which objects proposals can find.
        title: name of the data set, for the headings.
        splits: names of the lists that are trained on and validated on.
        max_pixels: images with more pixels are unusable.
        threads: number of threads.

    Returns:
        The report, and a PNG with images to look at (None if no image is usable).

    Raises:
        UserError: if the folder or a list can't be read.
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
    report = make_report(statistics, classes, limits, title, imported)
    files = {image.image_id: image for image in [*train, *val]}
    selected = [files[image_id] for image_id in select_images(statistics, report.suspicious)]
    cells = [cell for each in selected if (cell := _load_cell(dataset.root, each, report.suspicious, max_pixels))]
    heading = f"{title}: {len(cells)} of {len(images):,} images" + (", suspicious ones first" if report.suspicious else "")
    return report, draw_contact_sheet(cells, classes, heading) if cells else None


def _load_cell(
    root: str, files: voc.VocImageFiles, suspicious: Mapping[str, Mapping[str, str]], max_pixels: int
) -> SheetCell | None:
    """Load an image for the contact sheet. Returns None if its files changed or vanished since they were measured."""
    try:
        image = decode_image(read_bytes(join(root, files.image.name)), max_pixels)
        mask = decode_mask(read_bytes(join(root, files.class_mask.name)), max_pixels)
    except (BadInput, OSError):
        return None
    warning = ", ".join(suspicious.get(files.image_id, {}).values())
    return SheetCell(image, mask.astype("uint8"), files.image_id, warning)
