"""The ensemble in MLflow's model registry: one pyfunc from code, with weights, options and the code it needs inside it. No pickle."""

import importlib.metadata
import re
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deconvnet.reporting.figure import RESULT_TITLES
from deconvnet.reporting.run_summary import percent
from deconvnet.tracking import model_card
from deconvnet.tracking.run_notes import escaped, fitted
from infra import storage
from proposals.edges.detector import forest_uri
from proposals.image_codec import encode_jpeg

if TYPE_CHECKING:
    from deconvnet.tracking.mlflow_runs import Run

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("deconvnet", "proposals", "infra")
DISTRIBUTIONS = (
    "mlflow", "numba", "numpy", "opencv-contrib-python-headless", "pillow", "pyarrow", "safetensors", "scipy", "torch",
)  # fmt: skip
DEFAULT_MAX_PIXELS = 100_000_000
_MOST = 4000  # characters of a version's description: its verdict is still to come


def register(
    run: "Run",
    name: str,
    *,
    deconvnet_uri: str,
    fcn8s_uri: str,
    classes: Sequence[str],
    proposals: Mapping[str, Any],
    segment: Mapping[str, Any],
    results: Mapping[str, Any],
    max_pixels: int = DEFAULT_MAX_PIXELS,
    alias: str = "challenger",
) -> int:
    """File the ensemble as a new version of the registered model `name`, point `alias` at it, and return the version's number.

    deconvnet_uri, fcn8s_uri: model folders of `checkpoints.save_model`, local or s3. proposals: keywords of `edge_boxes`; the file
    of the forest that they mean goes into the model. segment: fields of `PredictorOptions`. results: a `results.json`; its figures become tags of
    the version and of `run`. Raises UserError where the store or a file fails.
    """
    from deconvnet.tracking.mlflow_runs import without_secrets

    client = run.tracker.client
    tags = {f"{measure}.{row}": f"{value:.4f}" for row, measure, value in _figures(results)}
    with tempfile.TemporaryDirectory(prefix="deconvnet-model-") as made, run.tracker.clear():
        model = client.create_logged_model(run.tracker.experiment_id, name="ensemble", source_run_id=run.run_id, tags=tags)
        try:
            folder = Path(made, "model")
            ensemble = _ensemble(Path(made, "ensemble"), deconvnet_uri, fcn8s_uri, classes, proposals, segment, max_pixels)
            _save(folder, ensemble, _code(Path(made, "code")), classes, run.run_id, model.model_id)
            client.log_model_artifacts(model.model_id, str(folder))
        except BaseException:
            client.finalize_logged_model(model.model_id, "FAILED")
            raise
        client.finalize_logged_model(model.model_id, "READY")
        _make_sure_of(client, name)
        version = client.create_model_version(
            name,
            model.artifact_location,  # models:/ID would be looked up in MLflow's global store, which may be another
            run_id=run.run_id,
            tags=tags,
            description=description(results),
            model_id=model.model_id,
        )
        client.set_registered_model_alias(name, alias, version.version)
        model_card.refresh(client, name, without_secrets(run.tracker.uri))
    run.set_tags({**tags, "model.version": version.version, "model.name": name})
    return int(version.version)


def description(results: Mapping[str, Any]) -> str:
    """What the registry's page says of a version: Markdown with the five results in the paper's order."""
    lines = [
        "EDeconvNet+CRF: an encoded photograph in (`image`), a PNG of class ids out (`mask`), or why not (`error`).",
        "",
        f"Measured on {results.get('images', '?')} photographs of {escaped(str(results.get('dataset', '?')))}:",
        "",
        "| | mean IoU | pixel accuracy |",
        "|---|---|---|",
    ]
    for row, title in RESULT_TITLES.items():
        if figures := results["rows"].get(row):
            lines.append(f"| {title} | {percent(figures['mean_iou'])} | {percent(figures['pixel_accuracy'])} |")
    return fitted("\n".join([*lines, "", f"Classes, by id from 0: {escaped(', '.join(results['classes']))}."]), _MOST)


def requirements() -> list[str]:
    """What the model needs installed, with the version ranges of this project: installed metadata, else its pyproject.toml."""
    try:
        wanted = importlib.metadata.requires("deconvnet") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ranges = {re.split(r"[\s\[<>=!~;]", entry, maxsplit=1)[0].lower(): entry for entry in wanted if "extra ==" not in entry}
    return [ranges[name] for name in DISTRIBUTIONS]


def _figures(results: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    return [
        (row, measure, figures[measure])
        for row, figures in results["rows"].items()
        for measure in ("mean_iou", "pixel_accuracy")
        if figures[measure] is not None
    ]


def _ensemble(
    folder: Path,
    deconvnet_uri: str,
    fcn8s_uri: str,
    classes: Sequence[str],
    proposals: Mapping[str, Any],
    segment: Mapping[str, Any],
    max_pixels: int,
) -> Path:
    """The model's one artifact: both networks' folders and options.json, in which `edge_model` is a file beside it."""
    storage.copy_tree(deconvnet_uri, str(folder / "deconvnet"))
    storage.copy_tree(fcn8s_uri, str(folder / "fcn8s"))
    edges = dict(proposals)
    if forest := forest_uri(
        edges.get("edges", "forest"), edges.get("edge_model")
    ):  # the shipped one too: another may ship one day
        with storage.local_copy(forest) as file:
            # OpenCV tells a compressed file by its name.
            edges["edge_model"] = "edges" + "".join(file.suffixes[-2:])
            shutil.copyfile(file, folder / edges["edge_model"])
    options = {"classes": list(classes), "proposals": edges, "segment": dict(segment), "max_pixels": max_pixels}
    storage.write_json(str(folder / "options.json"), options)
    return folder


def _code(folder: Path) -> list[str]:
    """This project's packages, Python files alone, copied below `folder`."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return [str(folder / package) for package in PACKAGES]


def _save(folder: Path, ensemble: Path, code: list[str], classes: Sequence[str], run_id: str, model_id: str) -> None:
    import mlflow.pyfunc
    import pandas as pd  # type: ignore[import-untyped]
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(DataType.binary, "mask", required=False), ColSpec(DataType.string, "error", required=False)]),
    )
    mlflow.pyfunc.save_model(
        path=str(folder),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        python_model=str(ROOT / "deconvnet" / "tracking" / "pyfunc_model.py"),
        artifacts={"ensemble": str(ensemble)},
        code_paths=code,
        signature=signature,
        input_example=pd.DataFrame({"image": [encode_jpeg(np.full((32, 32, 3), 128, np.uint8))]}),
        pip_requirements=requirements(),
        metadata={"classes": list(classes)},
    )


def _make_sure_of(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
