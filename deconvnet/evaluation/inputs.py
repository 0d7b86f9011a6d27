"""The inputs of an evaluation: the networks, the options, and the images of a split, divided into batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deconvnet.datasets.objects import make_object_mask
from deconvnet.inference.predictor import PredictorOptions
from infra.runtime.stages import digest
from infra.storage import tables
from proposals.image_codec import decode_image, decode_mask
from proposals.recall import counts_up_to

IMAGES_PER_BATCH = 8


@dataclass(frozen=True)
class EvaluationInputs:
    """The networks, the images and the options of an evaluation.

    Attributes:
        deconvnet_uri: folder of a trained DeconvNet.
        fcn8s_uri: folder of a trained FCN-8s.
        images_uri: URI of the table `images`.
        proposals_uri: URI of the table `proposals`, which holds the boxes that were found in these images.
        split: name of the split, such as "val". Its images with a class mask are evaluated.
        classes: class names, ordered by id.
        options: options for predicting, such as the largest number of boxes per image.
        report_uri: folder to which the workers write two files for each image. The one in the subfolder `images` shows image,
            annotation and prediction side by side; the one in `masks` is the prediction, a paletted PNG. The measurements of each
            batch are kept there, too (`measurements.BATCHES`). "" to write none of these.
    """

    deconvnet_uri: str
    fcn8s_uri: str
    images_uri: str
    proposals_uri: str
    split: str
    classes: tuple[str, ...]
    options: PredictorOptions
    report_uri: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        """Return the numbers of proposals k for which the mask from the first k boxes is measured; () if there are windows."""
        return () if self.options.window_sizes else counts_up_to(self.options.proposals)  # windows would be counted as proposals


@dataclass(frozen=True)
class ImageBatch:
    """A unit of work: a batch of images of one row group, which a worker measures in one call.

    Attributes:
        images: the part (Parquet file) of the table `images` that holds the images.
        proposals: the part of the table `proposals` that holds their boxes.
        row_group: index of the images' row group in their part, from 0.
        rows: positions of the images among the rows of the row group that belong to the evaluated split.
    """

    images: tables.Part
    proposals: tables.Part
    row_group: int
    rows: range

    @property
    def file(self) -> str:
        """Return the name of the file in which the measurements of its images are kept."""
        inputs = [self.images.digest, self.proposals.digest, self.row_group, self.rows.start, self.rows.stop]
        return f"{digest(inputs)}.npz"


def image_batches(inputs: EvaluationInputs) -> list[ImageBatch]:
    """Divide the images of the evaluated split into batches of at most 8 images, in the order of the table `images`.

    Raises:
        FileNotFoundError: if the table `images` or `proposals` is not complete.
    """
    images, proposals = (tables.require_commit(uri).parts for uri in (inputs.images_uri, inputs.proposals_uri))
    return [
        ImageBatch(part, boxes, number, rows)
        for part, boxes in zip(images, proposals, strict=True)
        for number, group in enumerate(part.row_groups)
        if group.splits.get(inputs.split)
        for rows in tables.chunks(group.splits[inputs.split], IMAGES_PER_BATCH)
    ]


def read_images(inputs: EvaluationInputs, batch: ImageBatch) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Read the annotated images of a batch.

    Images without a class mask are skipped. If only the object mask is missing, it is made from the class mask.

    Args:
        inputs: the networks, the images and the options.
        batch: the batch of images.

    Yields:
        For each image in order: its image_id; the image, uint8 (H, W, 3), RGB; the class mask, uint8 (H, W), where 255 is void;
        the object mask, uint8 or uint16 (H, W), with 0 for background, ids from 1, and the largest value of the dtype for void.
    """
    columns = ["image_id", "split", "image", "class_mask", "object_mask"]
    rows = tables.read_row_group(inputs.images_uri, batch.images.name, batch.row_group, columns).to_pylist()
    of_split = [row for row in rows if row["split"] == inputs.split]
    for row in (of_split[i] for i in batch.rows):
        if row["class_mask"] is not None:
            class_mask = decode_mask(row["class_mask"])
            object_mask = decode_mask(row["object_mask"]) if row["object_mask"] else None
            object_mask = make_object_mask(class_mask, None, inputs.options.background) if object_mask is None else object_mask
            yield row["image_id"], decode_image(row["image"]), class_mask, object_mask
