"""Register an ensemble as a model in MLflow, with its weights, its options and the code that it needs.

The model has MLflow's pyfunc flavour, so MLflow can load it as a Python function. Nothing in it is pickled.
"""

import importlib.metadata
import re
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deconvnet.evaluation.drift import STATISTICS_FILE, PredictionStatistics
from deconvnet.tracking.interface import Run
from deconvnet.tracking.registry import CHALLENGER, all_versions, registry_client, update_model_description
from deconvnet.tracking.store import check_store
from deconvnet.tracking.texts.descriptions import artifact_of_model, result_tags, version_description
from deconvnet.tracking.texts.model_card import CARD_FILE
from infra import storage
from proposals.edges.detector import forest_uri
from proposals.image_codec import encode_jpeg

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("deconvnet", "proposals", "infra")
"""Packages of this project whose code is copied into the model."""
_OPENCV = "opencv-contrib-python-headless"
DISTRIBUTIONS = ("mlflow", "numba", "numpy", _OPENCV, "pillow", "pyarrow", "safetensors", "scipy", "torch")
"""Third-party packages that the copied code needs, named as in PyPI."""
FINGERPRINT_TAG = "fingerprint"
"""Tag of a version with the fingerprint of the stage that registered it."""
VAL_IMAGES = "val_images.json"
"""Name of the file in an ensemble's folder that lists the val images on which it was evaluated."""


@dataclass(frozen=True)
class Ensemble:
    """An ensemble of a DeconvNet and an FCN-8s that is to be registered, with its options.

    Attributes:
        deconvnet_uri: folder with the weights of the DeconvNet, local or in a bucket (see `models.checkpoint.save_model`).
        fcn8s_uri: folder with the weights of the FCN-8s, local or in a bucket.
        classes: class names in the order of their ids. The first is the background, if there is one.
        proposals: keyword arguments of the function `proposals.edge_boxes`, which finds box proposals. If they name an edge
            detector (a forest), it is copied into the model.
        segment: options of the prediction: values of the fields of `inference.predictor.PredictorOptions` by name.
        max_pixels: largest image that the model accepts, in pixels.
        val_images: digests of the val images and their masks by image_id. Later models are compared with it on these images.
        statistics: statistics of its predictions on the val images. A server compares its answers with them (drift). None if
            unknown.
        card: the model card, Markdown, which becomes a file of the registered model; "" for none.
    """

    deconvnet_uri: str
    fcn8s_uri: str
    classes: Sequence[str]
    proposals: Mapping[str, Any]
    segment: Mapping[str, Any]
    max_pixels: int = 100_000_000
    val_images: Mapping[str, str] = field(default_factory=dict)
    statistics: PredictionStatistics | None = None
    card: str = ""


def register(
    run: Run,
    store: str,
    name: str,
    ensemble: Ensemble,
    results: Mapping[str, Any],
    fingerprint: str = "",
    origin: Mapping[str, str] = {},
    alias: str | None = CHALLENGER,
) -> int:
    """Register an ensemble of networks as a new version of a registered model, and point an alias at this version.

    If the run has already registered a version with the same fingerprint (for example, before it was killed and resumed), no
    new version is created, and the existing version is used.

    Args:
        run: run in MLflow that the version belongs to. It gets tags with the results, the name and the version.
        store: URI of the MLflow store.
        name: name of the registered model, which is created if it does not exist.
        ensemble: the networks and their options.
        results: content of the results.json that the pipeline's stage `evaluate` writes. Its numbers also become tags of the
            version.
        fingerprint: text that identifies the ensemble and its options.
        origin: tags that record the workspace and the classes of the version, made by `champion.workspace_model.origin_tags`.
        alias: alias to point at the new version. None to leave all aliases as they are.

    Returns:
        The number of the new version.

    Raises:
        UserError: if a file of the ensemble is missing, or the MLflow store does not accept the model.
    """
    tags = result_tags(results)
    with registry_client(store, name) as client:
        version = _registered(client, name, run.run_id, fingerprint)
        if version is None:
            model_id, source = _upload(client, run, ensemble, tags)
            _create_registered_model(client, name)
            client.create_model_version(
                name,
                source,  # MLflow would look models:/ID up in its global store, which may be another one
                run_id=run.run_id,
                tags={**tags, **origin, FINGERPRINT_TAG: fingerprint},
                description=version_description(results, artifact_of_model(model_id, CARD_FILE) if ensemble.card else ""),
                model_id=model_id,
            )
            version = _registered(client, name, run.run_id, fingerprint)
            assert version is not None
        if alias is not None:
            client.set_registered_model_alias(name, alias, version)
        update_model_description(client, name)
    run.set_tags({**tags, "model.version": version, "model.name": name})
    return int(version)


def _registered(client: "MlflowClient", name: str, run_id: str, fingerprint: str) -> str | None:
    """Find the model version that a run has registered already. If there are several, delete all but the first one.

    There may be several because MLflow's client repeats a request if the server's answer was lost.

    Args:
        client: client of the MLflow store.
        name: name of the registered model.
        run_id: id of the run in MLflow.
        fingerprint: text that identifies the ensemble and its options. Only versions registered with it are considered.

    Returns:
        The number of the version, or None if there is none.
    """
    versions = all_versions(client, name)
    found = sorted(int(v.version) for v in versions if v.run_id == run_id and v.tags.get(FINGERPRINT_TAG) == fingerprint)
    for repeated in found[1:]:
        client.delete_model_version(name, str(repeated))
    return str(found[0]) if found else None


def is_registered(store: str, name: str, version: int, fingerprint: str) -> bool:
    """Return whether the registry still has a version that this program has registered.

    A user may have deleted the version. A new database at the same URI may have another version of this number.

    Args:
        store: URI of the MLflow store.
        name: name of the registered model.
        version: number of the version.
        fingerprint: text that identifies the ensemble and its options, with which the version was registered.

    Raises:
        UserError: if the registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    check_store(store)
    with registry_client(store, name) as client:
        try:
            found = client.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
    return bool(found.tags.get(FINGERPRINT_TAG) == fingerprint)


def _upload(client: "MlflowClient", run: Run, ensemble: Ensemble, tags: Mapping[str, str]) -> tuple[str, str]:
    """Write an ensemble in MLflow's model format for Python functions (pyfunc), and upload it to a run.

    Args:
        client: client of the MLflow store.
        run: the run.
        ensemble: the networks and their options.
        tags: tags of the logged model.

    Returns:
        The id of the logged model and the URI of its files.
    """
    experiment = client.get_run(run.run_id).info.experiment_id
    model = client.create_logged_model(experiment, name="ensemble", source_run_id=run.run_id, tags=dict(tags))
    try:
        with tempfile.TemporaryDirectory(prefix="deconvnet-model-") as temporary:
            folder, artifact, code = (Path(temporary, name) for name in ("model", "ensemble", "code"))
            _write_ensemble(artifact, ensemble)
            _copy_code(code)
            packages = [str(code / package) for package in PACKAGES]
            _save_model(folder, artifact, packages, ensemble.classes, run.run_id, model.model_id)
            if ensemble.card:
                (folder / CARD_FILE).write_text(ensemble.card, encoding="utf-8")
            client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    return model.model_id, model.artifact_location


def requirements() -> list[str]:
    """Return the pip requirements of the registered model, with the version ranges that this project requires.

    The ranges come from the installed package `deconvnet`, or from pyproject.toml if it is not installed.

    Returns:
        One requirement for each third-party package that the model's code needs, such as "numpy>=1.26".
    """
    try:
        entries = importlib.metadata.requires("deconvnet") or []
    except importlib.metadata.PackageNotFoundError:
        entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ranges = {re.split(r"[\s\[<>=!~;]", entry, maxsplit=1)[0].lower(): entry for entry in entries if "extra ==" not in entry}
    return [ranges[name] for name in DISTRIBUTIONS]


def _write_ensemble(folder: Path, ensemble: Ensemble) -> None:
    """Write an ensemble to a folder: both networks, the edge detector (a forest) if one is used, and JSON files.

    These are options.json, val_images.json and, if there are statistics, prediction_statistics.json.

    Args:
        folder: folder to write to.
        ensemble: the networks and their options. In options.json, `edge_model` names the copied forest by its file name in the
            folder.
    """
    storage.copy_tree(ensemble.deconvnet_uri, str(folder / "deconvnet"))
    storage.copy_tree(ensemble.fcn8s_uri, str(folder / "fcn8s"))
    proposals = dict(ensemble.proposals)
    # The forest that comes with this project is copied too, because a later version of the project may come with another forest.
    if forest := forest_uri(proposals.get("edges", "forest"), proposals.get("edge_model")):
        with storage.local_copy(forest) as file:
            proposals["edge_model"] = "edges" + "".join(file.suffixes[-2:])  # OpenCV recognises a compressed file by its name
            shutil.copyfile(file, folder / proposals["edge_model"])
    options = {
        "classes": list(ensemble.classes),
        "proposals": proposals,
        "segment": dict(ensemble.segment),
        "max_pixels": ensemble.max_pixels,
    }
    storage.write_json(str(folder / "options.json"), options)
    storage.write_json(str(folder / VAL_IMAGES), dict(ensemble.val_images))
    if ensemble.statistics:
        storage.write_json(str(folder / STATISTICS_FILE), ensemble.statistics.as_dict())


def read_val_images(deconvnet_uri: str) -> dict[str, str] | None:
    """Read the digests of the val images on which a registered ensemble was evaluated, by image_id.

    Args:
        deconvnet_uri: folder of its DeconvNet, in a copy of the ensemble's folder.

    Returns:
        The digests. None if the ensemble has no such list, because an earlier version of this program registered it.
    """
    file = storage.join(deconvnet_uri.rstrip("/").rpartition("/")[0], VAL_IMAGES)
    return (dict(storage.read_json(file)) or None) if storage.exists(file) else None


def _copy_code(folder: Path) -> None:
    """Copy the Python files of the packages deconvnet, proposals and infra to `folder`, one subfolder for each package."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def _save_model(folder: Path, artifact: Path, code: list[str], classes: Sequence[str], run_id: str, model_id: str) -> None:
    """Write the model to a local folder, in the layout of MLflow's pyfunc flavour.

    Args:
        folder: folder to write to. It must not exist.
        artifact: folder with the ensemble, as written by `_write_ensemble`.
        code: folders of the packages to copy into the model.
        classes: class names in the order of their ids, stored as metadata.
        run_id: id of the MLflow run that the model belongs to.
        model_id: id of the logged model in MLflow.
    """
    import mlflow.pyfunc
    import pandas as pd  # type: ignore[import-untyped]
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(DataType.binary, "mask", required=False), ColSpec(DataType.string, "error", required=False)]),
        params=ParamSchema([ParamSpec("uncertainty", DataType.boolean, False)]),
    )
    mlflow.pyfunc.save_model(
        path=str(folder),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        python_model=str(ROOT / "deconvnet" / "tracking" / "pyfunc_model.py"),
        artifacts={"ensemble": str(artifact)},
        code_paths=code,
        signature=signature,
        input_example=pd.DataFrame({"image": [encode_jpeg(np.full((32, 32, 3), 128, np.uint8))]}),
        pip_requirements=requirements(),
        metadata={"classes": list(classes)},
    )


def _create_registered_model(client: Any, name: str) -> None:
    """Create the registered model `name` with the MLflow client `client`, unless it exists already."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
