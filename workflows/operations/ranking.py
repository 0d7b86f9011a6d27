"""Choose the predicted images to label next, and write them as tables, a list and a contact sheet."""

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from deconvnet.datasets.exporting.export_writer import read_predicted_mask
from deconvnet.datasets.image_folder import list_folder
from deconvnet.datasets.importing.images import read_input
from deconvnet.datasets.thread_map import thread_map
from deconvnet.datasets.validation.contact_sheet import SheetCell, draw_contact_sheet
from deconvnet.inference.perceptual_hash import perceptual_hash, unpack
from deconvnet.inference.predictions_table import PREDICTIONS, RANKING, TABLE
from deconvnet.inference.uncertainty import DOUBT
from deconvnet.ranking.selection import MEASURES, Selection, class_quota, most_uncertain_class, select, uncertainty_scores
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.local_executor import available_cpus
from infra.storage import tables
from infra.storage.guarded import LockGuard
from proposals.image_codec import decode_image, decode_mask
from workflows.operations.label_export import read_classes

logger = logging.getLogger(__name__)

_IMAGES_FOLDER = "JPEGImages"  # name in VOC's layout
_MAX_DRAWN = 60  # largest number of images on the contact sheet
_OWN_COLUMNS = pa.schema([("place", pa.int32()), ("score", pa.float32()), ("class", pa.string())])
_NAMES = ("image_id", "path", "confidence", "confidence_before_crf", *MEASURES, "mask", "confidence_map")
_COPIED_COLUMNS = pa.schema([PREDICTIONS.field(name) for name in _NAMES])
"""Columns of the tables of chosen images: their own, and those of the table `predictions`."""


@dataclass(frozen=True)
class Ranking:
    """Images that were chosen to be labelled.

    Attributes:
        rows: their rows, best first, with place (from 1), score, class, the columns of the table `predictions`, and classes.
        selection: how many images were passed over, and why.
        labelled: number of labelled images that they were compared with.
    """

    rows: list[dict[str, Any]]
    selection: Selection
    labelled: int

    def text(self, output: str, number: int) -> str:
        """Return a text for a terminal that says where the chosen images are listed.

        Args:
            output: folder or bucket prefix of the output.
            number: number of images that were to be chosen.
        """
        passed_over, above = self.selection.near_duplicates, self.selection.above_quota
        text = f"to label     {storage.join(output, RANKING)} ({len(self.rows):,} images: images.txt, .csv, .parquet and .png)"
        text += f"\n             {passed_over:,} near-duplicates were passed over"
        text += f" (also of {self.labelled:,} labelled images)" if self.labelled else ""
        if above:
            text += f"; {above:,} images are above the quota of their class, because no others were left"
        if len(self.rows) < number:
            text += f"; only {len(self.rows):,} of {number:,} images could be chosen"
        if self.rows and not all(row["confidence_map"] for row in self.rows):
            text += "\n             images.png outlines uncertain regions only with --confidence maps"
        return text


def write_ranking(
    output: str,
    guard: LockGuard,
    *,
    number: int,
    labelled: str | None = None,
    class_share: float | None = None,
    min_distance: int = 0,
) -> Ranking:
    """Choose images of the table `predictions`, and write them to the folder `ranking` of the output.

    Args:
        output: folder or bucket prefix of the output of predict.py.
        guard: writes the files, as long as no other run has taken the lock of the output folder.
        number: number of images to choose.
        labelled: folder of images that are labelled already, see `_labelled_fingerprints`. None if there are none.
        class_share: largest share of the chosen images that are of one class, see `selection.class_quota`.
        min_distance: smallest Hamming distance, in bits, between the perceptual hashes of two chosen images.

    Returns:
        The chosen images.

    Raises:
        FileNotFoundError: if there is no table `predictions`.
        UserError: if there are no names of classes, the folder of labelled images has none, or a chosen image was removed after
            it was predicted.
        Interrupted: if another run has taken the lock.
    """
    ranking = rank(output, number, _labelled_fingerprints(labelled) if labelled else [], class_share, min_distance)
    table = pa.Table.from_pylist(ranking.rows, pa.schema([*_OWN_COLUMNS, *_COPIED_COLUMNS]))
    parquet, text = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    pa_csv.write_csv(table, text)
    names = "".join(f"{row['path']}\n" for row in ranking.rows)
    files = {"images.parquet": parquet.getvalue(), "images.csv": text.getvalue(), "images.txt": names.encode()}
    if sheet := _contact_sheet(ranking.rows, output):
        files["images.png"] = sheet
    for name, data in files.items():
        guard.write(storage.join(output, RANKING, name), data)
    if not sheet:
        guard.check()
        storage.remove(storage.join(output, RANKING, "images.png"))  # left by an earlier run
    return ranking


def rank(output: str, number: int, labelled: Sequence[str], class_share: float | None, min_distance: int) -> Ranking:
    """Choose images of the table `predictions`. Nothing is written.

    Args:
        output: folder or bucket prefix of the output of predict.py.
        number: number of images to choose.
        labelled: perceptual hashes of the images that are labelled already.
        class_share: largest share of the chosen images that are of one class, see `selection.class_quota`.
        min_distance: smallest Hamming distance, in bits, between the perceptual hashes of two chosen images.

    Returns:
        The chosen images.

    Raises:
        FileNotFoundError: if there is no table `predictions`.
        UserError: if there are no names of classes, because an earlier version of the program made the predictions.
    """
    table = storage.join(output, TABLE)
    names = read_classes(output)
    background = names["classes"][0] if names["background"] else None
    # Only the values that the choice needs are kept in memory, because there may be millions of images.
    columns = ["image_id", *MEASURES, "classes", "shares", "class_confidence_before_crf", "fingerprint"]
    found = sorted(
        (row["image_id"], most_uncertain_class(row, background), row["fingerprint"], [row[name] or 0.0 for name in MEASURES])
        for row in tables.iter_rows(table, columns)
    )
    classes = [name for _, name, _, _ in found]
    scores = uncertainty_scores(np.array([measures for *_, measures in found]).reshape(-1, len(MEASURES)))
    selection = select(
        scores,
        classes,
        unpack([digits for _, _, digits, _ in found]),
        number,
        quota=class_quota(classes, number, class_share),
        min_distance=min_distance,
        labelled=unpack(labelled),
    )
    places = {found[i][0]: place for place, i in enumerate(selection.chosen, start=1)}
    columns = [*_COPIED_COLUMNS.names, "classes"]
    rows = [row for row in tables.iter_rows(table, columns) if row["image_id"] in places]
    rows.sort(key=lambda row: places[row["image_id"]])
    own = [{"place": n, "score": float(scores[i]), "class": classes[i]} for n, i in enumerate(selection.chosen, start=1)]
    return Ranking([each | row for each, row in zip(own, rows, strict=True)], selection, len(labelled))


def _labelled_fingerprints(folder: str) -> list[str]:
    """Compute the perceptual perceptual hashes of labelled images, to find near-duplicates. A warning names unreadable files.

    Args:
        folder: data set in VOC's layout, or folder of images; local or in a bucket.

    Returns:
        The perceptual hashes of the images that can be read.

    Raises:
        UserError: if there is no such folder, or no image in it.
    """
    images = storage.join(folder, _IMAGES_FOLDER)
    folder = images if storage.list_files(images) else folder

    def read(name: str) -> str:
        try:
            return perceptual_hash(decode_image(storage.read_bytes(storage.join(folder, name))))
        except (BadInput, OSError):
            return ""

    names = [image.name for image in list_folder(folder).images]
    found = dict(zip(names, thread_map(read, names, available_cpus(), "labelled images", "images"), strict=True))
    if unread := [name for name, digits in found.items() if not digits]:
        logger.warning(
            f"{len(unread):,} labelled images can't be read, so near-duplicates of them are not found: {', '.join(unread[:10])}"
        )
    return [digits for digits in found.values() if digits]


def _contact_sheet(rows: Sequence[Mapping[str, Any]], output: str) -> bytes | None:
    """Draw the first of the chosen images with their masks, and outline the regions that are in doubt.

    Images whose files were edited after the prediction are left out; a warning names them.

    Args:
        rows: rows of the chosen images, see `Ranking`.
        output: folder or bucket prefix of the output.

    Returns:
        A PNG. None if no image was chosen, or all are left out.

    Raises:
        UserError: if an image was changed or removed after it was predicted.
    """
    drawn = rows[:_MAX_DRAWN]
    if not drawn:
        return None
    names = read_classes(output)
    cells: list[SheetCell] = []
    for row in drawn:
        try:
            cells.append(_make_cell(row, output, names["classes"]))
        except BadInput as error:
            logger.warning(f"{storage.join(output, RANKING)}/images.png leaves out {row['image_id']}: {error}")
    if not cells:
        return None
    title = f"{len(rows):,} images to label, the least sure first" + (f": {len(cells)} of them" if len(cells) < len(rows) else "")
    return draw_contact_sheet(cells, names["classes"], title, names["background"])


def _make_cell(row: Mapping[str, Any], output: str, classes: Sequence[str]) -> SheetCell:
    """Read an image for the contact sheet, with its mask and its uncertain regions.

    Args:
        row: row of the image, see `Ranking`.
        output: folder or bucket prefix of the output.
        classes: names of all classes by id.

    Raises:
        BadInput: if the mask or the confidence map was edited after the prediction.
        UserError: if the image was changed or removed after the prediction.
    """
    try:
        image = decode_image(storage.read_bytes(row["path"]))
    except (BadInput, FileNotFoundError):
        raise UserError(f"{row['path']} was changed or removed after it was predicted: run predict.py again") from None
    mask = read_predicted_mask(storage.join(output, row["mask"]), row["classes"], classes)
    doubtful = None
    if row["confidence_map"]:
        doubtful = decode_mask(read_input(storage.join(output, row["confidence_map"]))) < 255 * DOUBT
    if {mask.shape, mask.shape if doubtful is None else doubtful.shape} != {image.shape[:2]}:
        raise BadInput("its mask or its confidence map has another size than the image: delete it, and run predict.py again")
    note = f"{row['class']}, score {row['score']:.2f}"
    return SheetCell(image, mask, f"{row['place']}. {row['image_id']}", note=note, doubtful=doubtful)
