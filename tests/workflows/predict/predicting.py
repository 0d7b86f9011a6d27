"""Images of all kinds, the command on them in this process or in one of its own, and what it wrote."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from infra.errors import UserError
from infra.storage import tables
from tests.deconvnet.ensembles import random_image
from workflows import predict

GOOD = {"a.jpg", "nested/deep/turned.JPEG", "nested/grey.png", "same.jpg", "thin.bmp"}
REJECTS = {
    "nested/cut.jpg": "truncated",
    "same.png": "its mask would have the same name as that of same.jpg",
    "text.webp": "not an image",
}
Run = Callable[..., str]
Refused = Callable[..., str]


def arguments(workspace: Path, source: Path | str, output: Path | str, *more: str) -> list[str]:
    return ["--input", str(source), "--output", str(output), "--workspace", str(workspace), *more]


def start(*options: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")} | environment
    command = [sys.executable, str(predict.__file__), *options, "--cluster.num_cpus", "2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean, cwd="/")


def rows(output: Path | str) -> dict[str, dict]:
    return {row["image_id"]: row for row in tables.iter_rows(f"{output}/predictions")}


def written(folder: Path) -> dict[str, int]:
    """The files below `folder`, with their time of change."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def predicted_by_mlflow(workspace: Path, number: int, files: dict[str, bytes]) -> dict[str, np.ndarray]:
    """The masks that the registered model, loaded by MLflow, predicts for the same files."""
    import mlflow.pyfunc
    from mlflow import MlflowClient

    store = f"sqlite:///{workspace}/mlflow/mlflow.db"
    version = MlflowClient(tracking_uri=store, registry_uri=store).get_model_version("edeconvnet", str(number))
    model = mlflow.pyfunc.load_model(version.source)  # by its place: MLflow's global store is left alone
    answer = model.predict(pd.DataFrame({"image": list(files.values())}))
    return {name: np.asarray(Image.open(io.BytesIO(mask))) for name, mask in zip(files, answer["mask"], strict=True)}


def parts_of(output: Path) -> list[str]:
    """The complete parts below `output`, committed or not."""
    return tables.part_files(str(output / "predictions"))


def caught(call: Callable[[], object]) -> UserError:
    with pytest.raises(UserError) as error:
        call()
    return error.value


def write_images(folder: Path) -> None:
    """Write images in several formats, grey, rotated and in subfolders; among them damaged, hidden, clashing and other files."""
    (folder / "nested" / "deep").mkdir(parents=True)
    Image.fromarray(random_image(0, 60, 80)).save(folder / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(random_image(1, 50, 90)).save(folder / "nested/deep/turned.JPEG", exif=exif)
    Image.fromarray(random_image(2, 64, 64)[..., 0]).save(folder / "nested/grey.png")
    Image.fromarray(random_image(3, 48, 72)).save(folder / "same.jpg")
    Image.fromarray(random_image(3, 48, 72)).save(folder / "same.png")
    Image.fromarray(random_image(4, 130, 40)).save(folder / "thin.bmp")
    (folder / "nested/cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:900])
    (folder / "text.webp").write_text("this is text")
    (folder / "notes.txt").write_text("no image")
    (folder / "nested/._grey.png").write_bytes(b"macOS")
