"""What predict.py has written for six images, from which the tests of export.py start."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from deconvnet.inference.predictions_table import PREDICTIONS
from infra import storage
from infra.storage import tables
from proposals.image_codec import encode_mask
from tests.deconvnet.datasets.exporting.scenes import CLASSES, write_prediction
from tests.workflows.commands import Done

Run = Callable[..., Done]
NAMES = [f"{folder}{name}.jpg" for folder in ("", "site/") for name in "abc"]


def write_predictions(
    tmp_path: Path, masks: list[np.ndarray], classes: tuple[str, ...] = CLASSES, background: bool = True
) -> Path:
    """What predict.py has written for six images: masks, the table, predict.json and classes.json."""
    folder, photos = tmp_path / "predictions", tmp_path / "photos"
    rows = []
    for number, (name, mask) in enumerate(zip(NAMES, masks, strict=True)):
        made = write_prediction(folder, name, mask, 0.5 + number / 100, classes)
        row: dict = {field.name: "" if field.type == pa.string() else [] if field.type.num_fields else 0 for field in PREDICTIONS}
        info = Path(made.image).stat()
        row |= {"image_id": name, "path": str(photos / name), "width": mask.shape[1], "height": mask.shape[0], "overlay": None}
        row |= {"classes": list(made.classes), "shares": [0.25] * 4, "generation": "g1"}
        row |= {"confidence_before_crf": made.score, "class_confidence_before_crf": list(made.class_scores)}
        row |= {"mask": f"masks/{name[:-4]}.png", "stamp": f"{info.st_size}@{info.st_mtime_ns}"}
        row |= {"entropy": number / 8, "boundary_doubt": None, "class_boundary_doubt": [0.5, None, 0.25, 0.125]}
        row |= {f"class_{each}": [number / 8, 0.5, 0.25, 0.0] for each in ("confidence", "entropy", "disagreement")}
        row["confidence_map"] = f"confidence/{name[:-4]}.png" if name.startswith("site/") else None
        if row["confidence_map"]:
            storage.write_bytes(str(folder / row["confidence_map"]), encode_mask(mask * 20))
        rows.append(row)
    (folder / "photos").rename(photos)
    table = str(folder / "predictions")
    part = tables.write_part(table, "f" * 64, 0, rows, PREDICTIONS)
    tables.commit(table, "f" * 64, [part], {"input": str(photos), "model": "models:/edeconvnet/3"})
    state = {"input": str(photos), "model": "edeconvnet", "model_version": "3", "model_id": "i", "generation": "g1"}
    storage.write_json(str(folder / "predict.json"), state)
    storage.write_json(str(folder / "classes.json"), {"classes": classes, "background": background})
    return folder
