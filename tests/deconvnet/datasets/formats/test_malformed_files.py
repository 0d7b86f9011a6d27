"""COCO and LabelMe files in which values are replaced by others or left out: they are read, or refused in a sentence."""

import base64
import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deconvnet.datasets.formats.coco import read_coco
from deconvnet.datasets.formats.labelme import read_labelme
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from infra.errors import BadInput, UserError
from tests.deconvnet.datasets.formats.inputs import compressed
from tests.examples import examples

Draw = Callable[[st.SearchStrategy[Any]], Any]
JUNK = [
    None,
    "",
    0,
    -1,
    7.5,
    True,
    "x",
    "0",
    "9" * 5000,
    [],
    [[]],
    [None],
    [[1, 2], [3]],
    {},
    [{}],
    {"a": 1},
    1e308,
    float("nan"),
    2**70,
]


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a JSON document, as keys and indices from the outside in."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths_in(value[key], (*path, key))


def spoil(draw: Draw, document: Any) -> Any:
    """A copy of a JSON document in which up to three values are replaced by others or left out."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *outer, last = draw(st.sampled_from(list(paths_in(document))))
        holder = document
        for key in outer:
            holder = holder[key]
        holder[last] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        if draw(st.integers(0, 4)) == 0:
            del holder[last]
    return document


def image_of(orientation: int, seed: int) -> bytes:
    """An image file of 30×20 px with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)).save(sink, "PNG", exif=exif)
    return sink.getvalue()


DOT = io.BytesIO()
Image.fromarray(np.ones((4, 4), bool)).save(DOT, "PNG")
GOOD_COCO = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 30, "height": 20} for n in (1, 2, 3)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"id": 2, "image_id": 2, "category_id": 2, "iscrowd": 1, "segmentation": {"size": [20, 30], "counts": [5, 10, 585]}},
        {"id": 3, "image_id": 3, "category_id": 2, "bbox": [1, 1, 5, 5]},
        {"id": 4, "image_id": 3, "category_id": 2, "segmentation": {"size": [20, 30], "counts": compressed([5, 10, 585])}},
    ],
    "categories": [{"id": 1, "name": "crate"}, {"id": 2, "name": "ball"}],
}
GOOD_LABELME = {
    "shapes": [
        {"label": "crate", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9]], "group_id": 1},
        {"label": "ball", "shape_type": "circle", "points": [[9, 9], [9, 12]]},
        {"label": "ball", "shape_type": "rectangle", "points": [[9, 9], [12, 12]]},
        {"label": "crate", "shape_type": "mask", "points": [[2, 2], [5, 5]], "mask": base64.b64encode(DOT.getvalue()).decode()},
    ],
    "imagePath": "1.png",
    "imageData": base64.b64encode(image_of(1, 1)).decode(),
    "imageWidth": 30,
    "imageHeight": 20,
}


@examples(40)
@given(st.data())
def test_malformed_files_end_in_no_other_error_than_a_sentence(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "json").mkdir()
        for number, orientation in ((1, 1), (2, 3), (3, 6)):
            (folder / f"{number}.png").write_bytes(image_of(orientation, number))
        (folder / "c.json").write_text(json.dumps(spoil(data.draw, GOOD_COCO)))
        (folder / "json/a.json").write_text(json.dumps(spoil(data.draw, GOOD_LABELME)))
        (folder / "json/b.json").write_text(json.dumps({**GOOD_LABELME, "imagePath": "3.png"}))
        for read, annotations in ((read_coco, "c.json"), (read_labelme, "json")):
            with contextlib.suppress(UserError):
                for entry in read([AnnotationSource(temporary, str(folder / annotations))], ImportOptions()).entries:
                    with contextlib.suppress(BadInput):
                        entry.load()
