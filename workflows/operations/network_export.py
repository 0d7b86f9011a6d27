"""Export the networks of a registered model as ONNX files."""

import logging
import tempfile

from deconvnet.datasets.writing.new_folder import check_new, new_folder
from deconvnet.inference.saved_ensemble import NETWORKS, read_options
from deconvnet.models.checkpoint import load_model
from deconvnet.models.onnx_export import export_onnx
from deconvnet.tracking import registry
from deconvnet.tracking.store import model_store
from infra import storage
from workflows.operations.data_import import local_folder
from workflows.settings.export import ExportSettings

logger = logging.getLogger(__name__)

DESCRIPTION_FILE = "networks.json"
"""File in the export with the model, its class names by id, whether class 0 is the background, and the size of each network's
input in px (null: any size)."""


def export_networks(settings: ExportSettings, dry_run: bool) -> None:
    """Export the networks of a registered model to a new folder, and log how exactly onnxruntime computes them.

    Args:
        settings: settings of the command; `model`, `workspace`, `tracking` and `to` apply.
        dry_run: True to log what would be exported, without writing anything.

    Raises:
        UserError: if there is no such model, the package onnx or onnxruntime is missing, or the folder exists and is not empty.
        Locked: if another export creates the same folder.
        Interrupted: if another export took over the lock.
    """
    folder = local_folder(settings.to)
    store = model_store(settings.workspace, settings.tracking.uri)
    version = registry.find(settings.model, store, "model")
    if dry_run:
        check_new(folder)
        logger.info(f"would export {' and '.join(NETWORKS)} of {version.title}")
        return
    with tempfile.TemporaryDirectory() as download, new_folder(folder, "export.py") as temporary:
        registry.fetch(version, store, download)
        options = read_options(download)
        sizes, differences = {}, {}
        for name in NETWORKS:
            network, _ = load_model(storage.join(download, name))
            file = temporary / f"{name}.onnx"
            differences[file.name] = export_onnx(network, file)
            sizes[name] = network.input_size
        description = {
            "model": f"models:/{version.name}/{version.number}",
            "classes": options["classes"],
            "background": options["segment"].get("background", True),
            "input_size": sizes,
        }
        storage.write_json(str(temporary / DESCRIPTION_FILE), description)
    lines = [f"{folder / name}  (scores differ from torch's by {value:.0e})" for name, value in differences.items()]
    logger.info("\n".join([f"exported {version.title}", *lines, str(folder / DESCRIPTION_FILE)]))
