"""The table of evaluated images, and the folders of their pictures and masks."""

from pathlib import Path

import pytest

from deconvnet.evaluation.image_measures import images_file, read_images, remove_other_files
from infra.errors import UserError

RESULTS, CLASSES = ("fcn8s", "edeconvnet_crf"), ("background", "x.y", "cat")


def row(image_id: str, **changes: object) -> dict[str, object]:
    files = {"picture": f"images/{image_id}.jpg", "mask": f"masks/{image_id}.png"}
    return {"image_id": image_id, "confidence": 0.5, **files} | changes


def test_a_table_comes_back_in_the_order_of_the_ids_with_a_column_for_each_class(tmp_path: Path) -> None:
    rows = [row("b", **{"mean_iou.fcn8s": 0.25, "iou.x.y": 0.125}), row("a", boundary_f=0.75)]
    (tmp_path / "images.parquet").write_bytes(images_file(rows, RESULTS, CLASSES))
    first, second = read_images(str(tmp_path / "images.parquet"))
    assert first["image_id"] == "a" and first["boundary_f"] == 0.75 and first["mean_iou.fcn8s"] is None
    assert second["mean_iou.fcn8s"] == 0.25 and [second[f"iou.{name}"] for name in CLASSES] == [None, 0.125, None]
    with pytest.raises(UserError, match=r"absent\.parquet does not exist"):
        read_images(str(tmp_path / "absent.parquet"))


def test_pictures_and_masks_of_images_that_were_evaluated_earlier_are_deleted(tmp_path: Path) -> None:
    for folder, suffix in (("images", "jpg"), ("masks", "png")):
        (tmp_path / folder).mkdir()
        for name in ("a", "b", "gone"):
            (tmp_path / folder / f"{name}.{suffix}").touch()
    (tmp_path / "images.parquet").write_bytes(images_file([row("a"), row("b")], RESULTS, CLASSES))
    (tmp_path / "other.txt").touch()
    remove_other_files(str(tmp_path))
    kept = ["a.jpg", "a.png", "b.jpg", "b.png", "images.parquet", "other.txt"]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == kept
