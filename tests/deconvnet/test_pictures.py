"""Which photographs are shown, and that the pictures hold them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from deconvnet import pictures
from deconvnet.data.palette import VOC_PALETTE
from infra import tables
from infra.images import encode_jpeg, encode_mask


def row(value: float | None) -> dict[str, float | None]:
    return {"edeconvnet_crf": value}


def test_shown_from_best_to_worst_without_the_unmeasured() -> None:
    scores = {f"i{n}": row(n / 10) for n in range(11)} | {"void": row(None)}
    assert pictures.choose(scores, 3) == ["i10", "i5", "i0"]
    assert pictures.choose({"b": row(0.5), "a": row(0.5)}, 6) == ["a", "b"]


class Paints:
    """A segmenter that labels everything class 1."""

    def segment(self, image: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.ones(image.shape[:2], np.uint8) for name in ("fcn8s", "deconvnet", "edeconvnet_crf")}


def test_the_comparison_holds_the_chosen_photographs(tmp_path: Path) -> None:
    images, proposals = str(tmp_path / "images"), str(tmp_path / "proposals")
    rows = [
        {
            "image_id": name, "split": "val", "width": 60, "height": 40,
            "image": encode_jpeg(np.full((40, 60, 3), 200, np.uint8)),
            "class_mask": encode_mask(np.zeros((40, 60), np.uint8)), "object_mask": None,
        }
        for name in ("a", "b")
    ]  # fmt: skip
    boxes = [{"image_id": n, "width": 60, "height": 40, "boxes": [[0.0, 0.0, 9.0, 9.0]], "scores": [1.0]} for n in ("a", "b")]
    tables.commit(images, "f", [tables.write_part(images, "f", 0, rows, tables.IMAGES)])
    tables.commit(proposals, "f", [tables.write_part(proposals, "f", 0, boxes, tables.PROPOSALS)])
    png = pictures.compared(Paints(), images, proposals, ["b"], ["background", "thing"], {"b": row(0.25)})  # type: ignore[arg-type]
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert picture.shape[1] == 1200
    painted = (picture == VOC_PALETTE[1]).all(axis=2).mean()
    assert 0.2 < painted < 0.7  # three of five cells


def test_the_sheet_of_examples(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    rows = [
        {
            "image_id": f"{n}", "stage": 1, "box": [0.0, 0.0, 9.0, 9.0], "class_id": 1, "iou": 1.0, "repeats": 2,
            "image": encode_jpeg(np.zeros((36, 36, 3), np.uint8)), "mask": encode_mask(np.ones((36, 36), np.uint8)),
        }
        for n in range(5)
    ]  # fmt: skip
    tables.commit(table, "f", [tables.write_part(table, "f", 0, rows, tables.EXAMPLES, rows_per_group=2)])
    picture = Image.open(io.BytesIO(pictures.examples(table, ["background", "thing"], count=4)))
    assert picture.width == 1200 and picture.height > 100
