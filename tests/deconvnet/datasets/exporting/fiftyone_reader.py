"""A strict reader of FiftyOne's data sets on disk, which does as its importer does, and refuses what that would pass over."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIELD = {"name", "ftype", "embedded_doc_type", "subfield", "fields", "db_field", "description", "info", "read_only"}
IMPORTED = {"created_at", "last_modified_at"}  # the importer writes these into the samples
PRIVATE = {"_media_type", "_rand"}
MEDIA = {"Segmentation": "mask_path", "Heatmap": "map_path"}
TYPES: dict[str, tuple[type, ...]] = {
    "StringField": (str,),
    "FloatField": (float, type(None)),
    "IntField": (int, type(None)),
    "ListField": (list,),
    "HeatmapRangeField": (type(None),),
    "ArrayField": (type(None),),
}


def _read_value(value: Any, field: dict[str, Any]) -> None:
    """Check that a value is what its field says."""
    kind = field["ftype"].removeprefix("fiftyone.core.fields.")
    if kind == "ObjectIdField":
        assert set(value) == {"$oid"} and re.fullmatch("[0-9a-f]{24}", value["$oid"])
    elif kind == "EmbeddedDocumentField":
        inner = {each["db_field"]: each for each in field["fields"]}
        assert value["_cls"] == field["embedded_doc_type"].rpartition(".")[2]
        for key in value.keys() - {"_cls"}:
            _read_value(value[key], inner[key])
    else:
        assert isinstance(value, TYPES[kind]) and not isinstance(value, bool), f"{field['name']}: {value!r}"


def _check_field(field: dict[str, Any]) -> None:
    assert set(field) == FIELD and re.fullmatch(r"[^_.$][^.$]*", field["name"])
    assert len({each["name"] for each in field["fields"]}) == len(field["fields"])
    for each in field["fields"]:
        _check_field(each)


def read_dataset(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Read a data set.

    Returns:
        The content of metadata.json, and the samples by the path of their image below `data`. A mask or a map is a list of its
        values, an array (H, W), in place of its document.
    """
    metadata = json.loads((folder / "metadata.json").read_text("ascii"))
    assert metadata["version"] == "1.0.0" and metadata["media_type"] == "image"
    fields = {field["db_field"]: field for field in metadata["sample_fields"]}
    for field in fields.values():
        _check_field(field)
    content = json.loads((folder / "samples.json").read_text("ascii"))
    assert set(content) == {"samples"}
    layers = {path.name for path in (folder / "fields").iterdir()}  # the importer looks for files of these fields alone
    samples, ids, seen = {}, set(), {folder / "metadata.json", folder / "samples.json", folder / "rejects.csv"}
    for sample in content["samples"]:
        assert (
            sample.keys() - PRIVATE <= fields.keys() - IMPORTED and sample["_media_type"] == "image" and 0 <= sample["_rand"] < 1
        )
        for key in sample.keys() - PRIVATE:
            _read_value(sample[key], fields[key])
        path = folder / sample["filepath"]
        with Image.open(path) as image:
            width, height = image.size[::-1] if image.getexif().get(274) in (5, 6, 7, 8) else image.size
        assert (sample["metadata"]["width"], sample["metadata"]["height"]) == (width, height)
        assert sample["metadata"]["size_bytes"] == path.stat().st_size
        seen.add(path)
        ids.add(sample["_id"]["$oid"])
        read = dict(sample)
        for name in {key for key, field in fields.items() if field["embedded_doc_type"] and key in sample} - {"metadata"}:
            if (key := MEDIA.get(sample[name]["_cls"])) is None:
                continue
            assert name in layers
            ids.add(sample[name]["_id"]["$oid"])
            file = folder / sample[name][key]
            seen.add(file)
            with Image.open(file) as image:
                assert image.mode == "L", "FiftyOne reads a palette as colours"
                read[name] = np.array(image)
            assert read[name].shape == (height, width)
            if key == "mask_path":
                assert set(map(str, np.unique(read[name]))) <= metadata["mask_targets"][name].keys()
        samples[sample["filepath"].removeprefix("data/")] = read
    labels = sum(sample[name]["_cls"] in MEDIA for sample in content["samples"] for name in layers if name in sample)
    assert len(ids) == len(samples) + labels, "all are different"
    assert {path for path in folder.rglob("*") if path.is_file()} | {folder / "rejects.csv"} == seen, "every file is named"
    return metadata, samples
