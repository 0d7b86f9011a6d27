"""Make the files of a data set in the format of FiftyOne (`fiftyone.types.FiftyOneDataset`), an app for viewing images.

    metadata.json               the fields of the samples, and the names and colours of the values of masks
    samples.json                a sample for each image: the paths of its files, and its measures
    data/NAME                   the image
    fields/FIELD/NAME.png       a mask, or the confidence map: a grey PNG. NAME is without suffix here

Both JSON files are MongoDB's "extended JSON". FiftyOne itself is not needed to write them.

In FiftyOne, the value 0 of a mask is the background and is never shown. So if class 0 of the data is a class like the others,
each class id is written as id + 1. Void stays 255.
"""

import hashlib
import json
import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from deconvnet.datasets.palette import VOC_PALETTE
from infra.errors import BadInput, UserError
from proposals.image_codec import decode_image, encode_mask, encode_png, image_size
from proposals.masks import VOID_ID

PREDICTION, TRUTH, CONFIDENCE_MAP = "prediction", "ground_truth", "confidence_map"
"""Names of the fields with the predicted mask, the annotated mask, and the map of how sure each pixel is."""
_VERSION = "1.0.0"  # FiftyOne migrates data sets of earlier versions to its own version, and refuses data sets of later ones
_SHOWN_BY_BROWSERS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
# Attributes of the documents in which FiftyOne keeps a group of measures. A measure with one of these names would break the
# document.
_RESERVED = frozenset(
    [
        "STRICT",
        "clean",
        "clear_field",
        "copy",
        "fancy_repr",
        "field_names",
        "field_to_mongo",
        "field_to_python",
        "from_dict",
        "from_json",
        "get_field",
        "get_text_score",
        "has_field",
        "id",
        "iter_fields",
        "merge",
        "my_metaclass",
        "pk",
        "set_field",
        "to_dict",
        "to_json",
        "to_mongo",
        "validate",
    ]
)


@dataclass(frozen=True)
class Sample:
    """An image with its masks and measures.

    Attributes:
        name: path of the image file, with "/" between folders. No two samples have names that differ only in the suffix.
        path: path or URI of the image, for messages.
        image: content of the file.
        masks: by name of field (`PREDICTION`, `TRUTH`), uint8 arrays (H, W) of class ids, of the size of the image as displayed;
            255 is void.
        confidence_map: uint8 array (H, W), 255 for a probability of 1; None if there is none.
        measures: the measures by name; None for a measure that is undefined.
        groups: the measures of each group by name, such as {"iou": {"cat": 0.5}}.
        tags: words to find the image by, such as its split.
    """

    name: str
    path: str
    image: bytes
    masks: Mapping[str, np.ndarray]
    confidence_map: np.ndarray | None = None
    measures: Mapping[str, float | None] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetInfo:
    """What the samples of a data set have in common.

    Attributes:
        name: name of the data set. The user may choose another name in FiftyOne.
        description: a sentence that says what the data set is.
        classes: class names by id.
        masks: names of the fields of masks.
        measures: names of the measures.
        groups: names of the measures of each group, by its name.
        background: True if class 0 is the background.
        has_maps: whether any sample has a confidence map.
    """

    name: str
    description: str
    classes: tuple[str, ...]
    masks: tuple[str, ...]
    measures: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    background: bool = True
    has_maps: bool = False

    def __post_init__(self) -> None:
        """Check that the masks have room for the classes. Raise UserError if not."""
        if self.first_value + len(self.classes) > VOID_ID:
            raise UserError(
                f"{len(self.classes)} classes are too many: FiftyOne's masks have room for {VOID_ID - self.first_value}"
            )

    @property
    def first_value(self) -> int:
        """Return the value of class 0 in the masks of the data set."""
        return 0 if self.background else 1


def sample_files(sample: Sample, info: DatasetInfo) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Convert a sample to its document and its files.

    Args:
        sample: the sample.
        info: what the samples of the data set have in common.

    Returns:
        document: the sample as an item of samples.json.
        files: contents of the image, the masks and the confidence map by path.

    Raises:
        BadInput: if the image can't be read, or a mask has another size than the image, or an id that no class has.
    """
    size = image_size(sample.image)
    path, content = _image_file(sample)
    stem = PurePosixPath(sample.name).with_suffix("")
    metadata = {"_cls": "ImageMetadata", "size_bytes": len(content), "mime_type": mimetypes.guess_type(path)[0]}
    document: dict[str, Any] = {
        "_id": {"$oid": _digest(info.name, sample.name)[:24]},
        "filepath": path,
        "tags": list(sample.tags),
        "metadata": {**metadata, "width": size[0], "height": size[1], "num_channels": None},
        "_media_type": "image",
        "_rand": int(_digest(info.name, sample.name, "_rand")[:13], 16) / 16**13,
    }
    files = {path: content}
    layers = {name: ("Segmentation", "mask_path", _to_values(name, mask, info)) for name, mask in sample.masks.items()}
    if sample.confidence_map is not None:
        layers[CONFIDENCE_MAP] = ("Heatmap", "map_path", sample.confidence_map)
    for name, (kind, key, pixels) in layers.items():
        if pixels.shape != size[::-1]:
            raise BadInput(f"its {name} is {pixels.shape[1]}×{pixels.shape[0]} px, and the image {size[0]}×{size[1]} px")
        layer = f"fields/{name}/{stem}.png"
        files[layer] = encode_mask(pixels)
        oid = {"$oid": _digest(info.name, sample.name, name)[:24]}
        document[name] = {"_id": oid, "_cls": kind, "tags": [], key: layer}
    document |= {name: sample.measures.get(name) for name in info.measures}
    for group, names in info.groups.items():
        values = sample.groups.get(group, {})
        keys = field_names_of(names)
        document[group] = {"_cls": "DynamicEmbeddedDocument", **{keys[name]: values.get(name) for name in names}}
    return document, files


def _image_file(sample: Sample) -> tuple[str, bytes]:
    """Return the path and the content of an image in the data set. What browsers can't show becomes PNG."""
    name = PurePosixPath(sample.name)
    if name.suffix.lower() in _SHOWN_BY_BROWSERS:
        return f"data/{name}", sample.image
    return f"data/{name.with_suffix('.png')}", encode_png(decode_image(sample.image))


def _to_values(name: str, mask: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Convert the class ids of a mask to the values that they have in the data set.

    Args:
        name: name of the mask's field, for the error message.
        mask: uint8 array (H, W) of class ids; 255 is void.
        info: what the samples of the data set have in common.

    Returns:
        uint8 array (H, W).

    Raises:
        BadInput: if an id is not a class.
    """
    strange = np.setdiff1d(mask, [*range(len(info.classes)), VOID_ID])
    if strange.size:
        raise BadInput(f"its {name} has the id {strange[0]}, and there are {len(info.classes)} classes")
    return np.where(mask == VOID_ID, VOID_ID, mask + info.first_value).astype(np.uint8)


def dataset_files(documents: Sequence[Mapping[str, Any]], info: DatasetInfo) -> dict[str, bytes]:
    """Return the contents of metadata.json and samples.json, by file name.

    Args:
        documents: the documents of the samples, in order.
        info: what the samples have in common.

    Raises:
        ValueError: if a measure is not a finite number.
    """
    values = {number + info.first_value: name for number, name in enumerate(info.classes)}
    targets = {str(value): name for value, name in values.items()}
    with_void = targets | {str(VOID_ID): "void"}
    colours = [{"intTarget": value, "color": "#{:02x}{:02x}{:02x}".format(*VOC_PALETTE[value])} for value in (*values, VOID_ID)]
    metadata = {
        "name": info.name,
        "version": _VERSION,
        "media_type": "image",
        "description": info.description,
        "tags": [],
        "info": {"classes": list(info.classes)},
        "mask_targets": {name: with_void if name == TRUTH else targets for name in info.masks},
        "sample_fields": list(_fields(info)),
        "app_config": {
            "active_fields": {"paths": [PREDICTION]},
            "color_scheme": {
                "_id": {"$oid": _digest(info.name)[:24]},
                "default_mask_targets_colors": [each for each in colours if each["intTarget"]],
            },
        },
    }
    contents = {"metadata.json": metadata, "samples.json": {"samples": list(documents)}}
    return {name: json.dumps(content, allow_nan=False).encode() for name, content in contents.items()}


def _fields(info: DatasetInfo) -> Iterator[dict[str, Any]]:
    """Describe the fields of the samples, as items of `sample_fields` in metadata.json."""
    yield _field("id", "ObjectIdField", db_field="_id")
    yield _field("filepath", "StringField")
    yield _field("tags", "ListField", subfield="StringField")
    numbers = [_field(name, "IntField") for name in ("size_bytes", "width", "height", "num_channels")]
    yield _document("metadata", "metadata.ImageMetadata", [_field("mime_type", "StringField"), *numbers])
    for name in ("created_at", "last_modified_at"):
        yield _field(name, "DateTimeField") | {"read_only": True}
    label = [_field("id", "ObjectIdField", db_field="_id"), _field("tags", "ListField", subfield="StringField")]
    for name in info.masks:
        mask = [_field("mask", "ArrayField"), _field("mask_path", "StringField")]
        yield _document(name, "labels.Segmentation", [*label, *mask])
    if info.has_maps:
        limits = _field("range", "HeatmapRangeField", subfield="FloatField")
        heatmap = [_field("map", "ArrayField"), _field("map_path", "StringField"), limits]
        yield _document(CONFIDENCE_MAP, "labels.Heatmap", [*label, *heatmap])
    for name in info.measures:
        yield _field(name, "FloatField")
    for name, names in info.groups.items():
        inner = [_field(key, "FloatField") | {"description": each} for each, key in field_names_of(names).items()]
        yield _document(name, "odm.embedded_document.DynamicEmbeddedDocument", inner)


def _field(name: str, kind: str, subfield: str = "", db_field: str = "") -> dict[str, Any]:
    """Describe a field.

    Args:
        name: its name.
        kind: class of the field, one of `fiftyone.core.fields`.
        subfield: class of the items of a list; "" for other fields.
        db_field: name of the field in the samples' documents, if it is another one.
    """
    return {
        "name": name,
        "ftype": f"fiftyone.core.fields.{kind}",
        "embedded_doc_type": None,
        "subfield": f"fiftyone.core.fields.{subfield}" if subfield else None,
        "fields": [],
        "db_field": db_field or name,
        "description": None,
        "info": None,
        "read_only": False,
    }


def _document(name: str, kind: str, fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe a field whose values are documents of a class of `fiftyone.core`, with fields of their own."""
    return _field(name, "EmbeddedDocumentField") | {"embedded_doc_type": f"fiftyone.core.{kind}", "fields": list(fields)}


def field_names_of(names: Sequence[str]) -> dict[str, str]:
    """Choose a valid field name in FiftyOne for each measure of a group.

    Letters, digits, "_", "-" and blanks are kept, and other characters become "_". Every "_" and blank at the start is removed. A
    name that FiftyOne reserves, or that is taken, gets a suffix.

    Args:
        names: the measures' own names, such as those of the classes.

    Returns:
        A different key for each name, by name.
    """
    keys: dict[str, str] = {}
    for number, name in enumerate(names):
        key = re.sub(r"[^\w \-]", "_", name).lstrip("_ ") or str(number)
        while key in _RESERVED or key in keys.values() or (key != name and key in names):
            key += f"_{number}"
        keys[name] = key
    return keys


def _digest(*parts: str) -> str:
    """Return the SHA-256 digest of some texts, in hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
