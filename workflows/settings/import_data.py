"""Define the settings of import_data.py."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from infra.settings import Location
from workflows.cli import CommandSettings


class ImportSettings(CommandSettings):
    """Settings of import_data.py."""

    from_: Literal["coco", "cvat", "kaggle", "label_studio", "labelme", "masks", "supervisely", "yolo"] | None = Field(
        None, alias="from", description="format of the annotations"
    )
    images: Location | None = Field(
        None, description="folder or bucket prefix of images; empty (cvat, labelme, supervisely, yolo): beside the annotations"
    )
    annotations: Location | None = Field(None, description="file or folder of annotations, depending on the format (formats.md)")
    to: Location | None = Field(None, description="new local folder to write, in VOC's layout")
    add_to: Location | None = Field(
        None,
        description="instead of to: local folder in VOC's layout to add images to; images that it already has get the new masks",
    )
    val_images: Location | None = Field(None, description="folder of the val images; empty: the same as images")
    val_annotations: Location | None = Field(
        None, description="annotations of val, if they are separate; empty: lists or a random choice"
    )
    train_list: Location | None = Field(
        None, description="text file with the names of train's images, one a line; empty: all that are not in val_list"
    )
    val_list: Location | None = Field(
        None, description="text file with the names of val's images; empty: all that are not in train_list"
    )
    val_share: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of the images chosen at random for val if no split is given; 0 (only with add_to): all go to train",
    )
    seed: NonNegativeInt = Field(0, description="seed of the random choice of val")
    classes: tuple[str, ...] = Field(
        (),
        description="classes to import, in this order, separated by commas; masks: names of the ids from 0; check: names of the "
        "folder's ids; empty: all classes found, or with add_to (not masks) those of the folder",
    )
    background: str | None = Field(
        None, description="class that is the background; masks: also its value, or none; empty: recognised by its name"
    )
    fold_case: bool = Field(False, description="make class names that differ only in upper and lower case one class")
    others: Literal["background", "void"] = Field(
        "background", description="what objects of classes that are not imported become (not for masks)"
    )
    overlap: Literal["small", "order"] = Field(
        "small", description="which of two overlapping objects is on top: the smaller, or the later in the file (not for masks)"
    )
    boxes: Literal["void", "object"] = Field(
        "void", description="coco, cvat, label_studio, supervisely, yolo: what boxes without an outline become"
    )
    run_order: Literal["columns", "rows"] | None = Field(
        None, description="kaggle: run lengths count pixels down the columns or along the rows; empty: by the column's name"
    )
    crowd: Literal["void", "object"] = Field(
        "void",
        description="coco: what crowds (iscrowd) become; if every annotation is a crowd with run lengths, each is an object",
    )
    table: Location | None = Field(
        None,
        description="masks: text file of classes and their ids or colours, as `road, 7` or `road, 128 64 128`; empty: inferred",
    )
    mask_suffix: str = Field("", description="masks: suffix of mask names before the extension: _mask for a.jpg and a_mask.png")
    image_suffix: str = Field("", description="masks: suffix of image names before the extension: _leftImg8bit for Cityscapes")
    strange: Literal["reject", "void"] = Field(
        "reject", description="masks: what happens at mask values without a class: the image is rejected, or they become void"
    )
    transparent: Literal["background", "void", "opaque"] = Field(
        "background",
        description="masks: what transparent pixels become; opaque: the value that a pixel has below its transparency",
    )
    encoding: str | None = Field(
        None,
        description="encoding of annotation files (or classes.txt) that are not in UTF-8, such as gbk; empty: they are refused",
    )
    max_rejects: float = Field(0.05, ge=0, le=1, description="share of images that may be unusable before the import fails")
    max_void: float = Field(
        0.1, ge=0, le=1, description="share of annotations that may become void or be left out before the import fails"
    )
    max_pixels: PositiveInt = Field(100_000_000, description="larger images are rejected")
    threads: PositiveInt | None = Field(None, description="threads; empty: one per CPU")
    check: Location | None = Field(None, description="import nothing: check this folder in VOC's layout")
    report: Location | None = Field(None, description="folder for check.md and contact_sheet.png; empty: the data folder")
    train_split: str = Field("train", description="check, add_to: the list of training images")
    val_split: str = Field("val", description="check, add_to: the list of validation images")

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        """Return the setting `encoding` unchanged. Raise ValueError if Python has no text encoding of this name."""
        try:
            b"a".decode(encoding or "utf-8")  # an empty text is decoded without looking the encoding up
        except LookupError:
            raise ValueError("it must be one of Python's text encodings, such as gbk or cp1252") from None
        except UnicodeDecodeError:  # in UTF-16 a character is more than a byte
            pass
        return encoding

    @model_validator(mode="after")
    def _complete(self) -> "ImportSettings":
        """Check that the settings describe either an import or a check of an existing folder. Raise ValueError if they don't."""
        if self.check:
            if self.from_ or self.to or self.add_to:
                raise ValueError("--check is for an existing folder: leave out from, to and add_to (an import is checked anyway)")
            return self
        if self.from_ is None:
            raise ValueError(
                "give --from coco, labelme, masks or another format to import data (or --check DIR to check a folder)"
            )
        if not (self.to or self.add_to):
            raise ValueError("to is not given: name a new folder by --to, or one to add the images to by --add_to")
        if self.to and self.add_to:
            raise ValueError("to makes a new folder, and add_to adds to one: leave out one of them")
        if not (self.annotations and self.images):
            self._check_inputs(self.from_)
        if self.table and (self.from_ != "masks" or self.classes):
            raise ValueError("table is for masks, and names their classes itself: leave out classes, or table")
        if self.val_annotations and (self.train_list or self.val_list):
            raise ValueError("val_annotations gives the split already: leave out train_list and val_list")
        return self

    def _check_inputs(self, name: str) -> None:
        """Check that the settings name the annotations and images that a format needs. Raise ValueError if they don't.

        Args:
            name: name of the format, such as "coco".
        """
        from deconvnet.datasets import formats  # imports OpenCV

        known = formats.get_format(name)
        if not self.annotations:
            raise ValueError(f"annotations is not given: name {known.annotations} by --annotations")
        if not self.images and not known.images_beside_annotations:
            raise ValueError("images is not given: name the folder of images by --images")
