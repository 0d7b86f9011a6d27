"""The loop of docs/tutorial.md on generated images: train (a double), predict, rank, export, correct, add, retrain, decide."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deconvnet.datasets import voc
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.datasets.synthetic import write_dataset
from proposals.image_codec import decode_mask
from tests.workflows.commands import LOCAL, TINY, Done, call
from tests.workflows.doubles import training_gives
from workflows import export, import_data, predict, retrain, train_pipeline


def done(main: Callable[[list[str]], None], *options: str) -> Done:
    """Run a command that must succeed."""
    found = call(main, *options)
    assert found.returncode == 0, found.stdout + found.stderr
    return found


@pytest.mark.slow
def test_corrected_predictions_reach_the_next_training(tmp_path: Path, make_store: Callable[[Path], str]) -> None:
    data, more, photos, workspace = (tmp_path / name for name in ("data", "more", "photos", "w"))
    write_dataset(str(data), 0, 24, 5, 64, 80)
    write_dataset(str(more), 7, 6, 2, 64, 80)
    (data / "classes.txt").write_text("\n".join(GENERATED_CLASSES))
    photos.mkdir()
    for number, image_id in enumerate(voc.read_split(str(more), "train")):
        shutil.copy(more / f"JPEGImages/{image_id}.jpg", photos / f"new {number}.jpg")
    shutil.copy(data / "JPEGImages/val_00000.jpg", photos)  # it gets another mask
    make_store(workspace)
    classes = ["--data.classes", ",".join(GENERATED_CLASSES)]
    settings = [*TINY, *LOCAL, "--data.root", str(data), *classes, "--workspace", str(workspace)]
    with training_gives(quality=0.6):
        done(train_pipeline.main, *settings)

    model = ["--workspace", str(workspace), "--model", "models:/edeconvnet@challenger", "--executor", "local"]
    predicted = [*model, "--input", str(photos), "--output", str(tmp_path / "out")]
    done(predict.main, *predicted, "--rank", "3", "--rank_labelled", str(data))
    chosen = [Path(line) for line in (tmp_path / "out/ranking/images.txt").read_text().splitlines()]
    assert len(chosen) == 3 and "val_00000" not in {path.stem for path in chosen}, "what is labelled is not chosen again"

    exported = ["--predictions", str(tmp_path / "out")]
    only = ["--only", str(tmp_path / "out/ranking/images.txt")]
    done(export.main, "--format", "labelme", *exported, "--to", str(tmp_path / "lm"), *only)
    done(export.main, "--format", "cvat", *exported, "--to", str(tmp_path / "cvat"))
    star, ring = GENERATED_CLASSES.index("star"), GENERATED_CLASSES.index("ring")
    annotations = tmp_path / f"lm/images/{chosen[0].stem}.json"
    content = json.loads(annotations.read_text())
    shape = {"shape_type": "polygon", "label": "star", "points": [[10, 20], [60, 20], [60, 40], [10, 40]], "group_id": None}
    annotations.write_text(json.dumps({**content, "shapes": [shape]}))
    tree = ElementTree.parse(tmp_path / "cvat/annotations.xml")
    for image in tree.getroot().findall("image"):
        if image.get("name") != "val_00000.jpg":
            tree.getroot().remove(image)
            continue
        for old in list(image):
            image.remove(old)
        ElementTree.SubElement(image, "polygon", {"label": "ring", "points": "5,8;25,8;25,50;5,50", "z_order": "0"})
    tree.write(tmp_path / "corrected.xml")

    add = ["--add_to", str(data), "--val_share", "0"]
    done(import_data.main, "--from", "labelme", "--annotations", str(tmp_path / "lm/images"), *add)
    said = done(
        import_data.main, "--from", "cvat", "--images", str(photos), "--annotations", str(tmp_path / "corrected.xml"), *add
    ).stdout
    assert "added: 0; masks replaced: 1; unchanged: 0; refused: 0" in said
    for image_id, (top, left, bottom, right), class_id in (
        (chosen[0].stem, (20, 10, 40, 60), star),
        ("val_00000", (8, 5, 50, 25), ring),
    ):
        mask = decode_mask((data / f"SegmentationClass/{image_id}.png").read_bytes())
        drawn = np.zeros_like(mask)
        drawn[top:bottom, left:right] = class_id
        assert (mask == drawn).mean() > 0.98 and set(np.unique(mask)) == {0, class_id}
    assert len(voc.read_split(str(data), "train")) == 27 and len(voc.read_split(str(data), "val")) == 5

    with training_gives(quality=0.9):
        said = done(retrain.main, *settings).stdout
    assert "3 new" in said and "compared on the val images of both models: 4" in said, (
        "one val image has another mask than the champion was measured by"
    )
    assert "version 2 is promoted" in said
