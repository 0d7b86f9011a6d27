"""Each setting of predict.py, serve.py, import_data.py and export.py reaches the code that does the work."""

import re
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deconvnet.datasets import exporting
from deconvnet.datasets.exporting.export_writer import ExportSummary
from deconvnet.datasets.importing.dataset import AnnotatedDataset
from deconvnet.datasets.writing.voc_writer import ImportSummary
from deconvnet.inference import batch, predictions_table
from deconvnet.serving import ray_serve, server
from deconvnet.tracking import registry, store
from infra import storage
from infra.errors import UserError
from infra.runtime import cluster
from tests.workflows.setting_changes import Called, Record, candidates, recording, write_files
from workflows import export, import_data, predict, serve
from workflows.cli import CommandSettings, setting_fields
from workflows.operations import data_addition, data_import, fiftyone_export, label_export, network_export, prediction
from workflows.settings import PredictSettings, ServeSettings
from workflows.settings.export import ExportSettings
from workflows.settings.import_data import ImportSettings

VERSION = registry.Version("net", "3", "id", "file:///net")


def serve_calls(options: list[str], patch: pytest.MonkeyPatch, record: Record) -> None:
    patch.setattr(ray_serve, "check_installed", lambda: None)
    patch.setattr(store, "model_store", record("store", "sqlite:///x"))
    patch.setattr(registry, "find", record("find", VERSION))
    patch.setattr(server, "check_port_free", record("port"))
    patch.setattr(server, "serve", record("serve"))
    serve.main(options)


def predict_calls(options: list[str], patch: pytest.MonkeyPatch, record: Record) -> None:
    """Prediction of a folder, on a machine, or by a Ray, that has a GPU."""

    state = predictions_table.OutputState("in", "net", "3", "id", "generation")
    plan = SimpleNamespace(is_complete=False, tasks=(), state=state)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setitem(sys.modules, "ray", SimpleNamespace(cluster_resources=lambda: {"GPU": 1}))
    patch.setattr(cluster, "can_autoscale", lambda _: False)
    patch.setattr(prediction, "model_store", record("store", "sqlite:///x"))
    patch.setattr(prediction, "list_folder", record("list", SimpleNamespace(images=(), other_files_text="")))
    patch.setattr(prediction, "open_executor", record("executor", nullcontext()))
    patch.setattr(prediction, "check_rejects", record("rejects"))
    patch.setattr(registry, "find", record("find", VERSION))
    patch.setattr(registry, "fetch", record("fetch"))
    patch.setattr(prediction, "_class_names", lambda model: {})
    patch.setattr(batch, "predict_images", record("predict", ()))
    patch.setattr(predictions_table, "new_generation", lambda: "generation")
    for name, result in (("make_plan", plan), ("read_state", None), ("write_rejects", 0), ("commit_predictions", None)):
        patch.setattr(predictions_table, name, record(name, result))
    patch.setattr(prediction, "write_ranking", record("ranking"))
    patch.setattr(prediction.PredictionRun, "summary", lambda run: "")
    predict.main(options)


def import_calls(options: list[str], patch: pytest.MonkeyPatch, record: Record) -> None:
    @contextmanager
    def folder(path: Path) -> Any:
        record("folder")(path)
        yield Path("/temporary")

    read = record("read", AnnotatedDataset(("background", "cat")))
    patch.setattr(data_import.formats, "get_format", lambda name: SimpleNamespace(read=lambda *given: read(name, *given)))
    patch.setattr(data_import, "read_split_list", record("list", ()))
    patch.setattr(data_import, "split_images", record("split", {}))
    patch.setattr(data_import, "write_voc_layout", record("write", ImportSummary({})))
    patch.setattr(data_import, "new_folder", folder)
    patch.setattr(data_import, "check_dataset", record("check", (SimpleNamespace(text=""), b"")))
    patch.setattr(data_import, "read_classes", record("classes", ("background", "cat")))
    addition = SimpleNamespace(
        splits={},
        refused=[],
        describe_kept=lambda _: [],
        describe=str,
        compare=print,
        check_refused=lambda: None,
        apply=record("apply"),
    )
    patch.setattr(data_addition, "Addition", record("addition", addition))
    patch.setattr(data_addition, "VocDataset", record("open"))
    patch.setattr(data_addition, "temporary_folder", lambda path: nullcontext((Path("/temporary"), "lock")))
    patch.setattr(data_addition, "load_images", record("load", ImportSummary({})))
    patch.setattr(data_addition, "_known_classes", lambda settings, root: ("background", "cat"))
    patch.setattr(data_import.voc, "VocDataset", record("open"))
    patch.setattr(storage, "check_writable", lambda *_: None)
    patch.setattr(storage, "write_bytes", record("bytes"))
    import_data.main(options)


def export_calls(options: list[str], patch: pytest.MonkeyPatch, record: Record) -> None:
    @contextmanager
    def folder(path: Path, command: str) -> Any:
        record("folder")(path)
        yield Path("/temporary")

    commit = SimpleNamespace(extra={"model": "models:/net/3", "input": "in"})
    patch.setattr(label_export, "read_commit", record("commit", commit))
    patch.setattr(label_export, "read_classes", lambda _: {"classes": ("background", "cat"), "background": True})
    patch.setattr(label_export, "read_state", lambda _: SimpleNamespace(generation="g"))
    rows = [
        {"image_id": name, "mask": "m", "path": name, "classes": (), "stamp": "", "generation": "g"}
        | {"confidence_before_crf": 1.0, "class_confidence_before_crf": []}
        for name in "ab"
    ]
    patch.setattr(label_export.tables, "iter_rows", lambda *_: rows)
    patch.setattr(label_export, "read_split_list", record("list", ["a"]))
    images = [SimpleNamespace(name=name, stamp="") for name in "ab"]
    patch.setattr(label_export, "list_folder", lambda *_, **named: SimpleNamespace(images=images))
    patch.setattr(label_export, "get_format", lambda name: record("format")(name) or exporting.get_format(name))
    patch.setattr(label_export, "new_folder", folder)
    patch.setattr(label_export, "write_export", record("write", ExportSummary(2, 3)))
    patch.setattr(network_export, "model_store", record("store", "sqlite:///x"))
    patch.setattr(registry, "find", record("find", VERSION, ends=True))
    patch.setattr(
        fiftyone_export, "_evaluation_source", lambda settings, _: record("evaluated", ends=True)(evaluation=settings.evaluation)
    )
    patch.setattr(label_export, "check_rejects", lambda rejects, images, max_rejects: record("rejects")(max_rejects=max_rejects))
    with suppress(Called):
        export.main(options)


COMMANDS: dict[type[CommandSettings], tuple[Callable[..., None], dict[str, Any]]] = {
    ServeSettings: (serve_calls, {"workspace": "FOLDER/w"}),
    PredictSettings: (
        predict_calls,
        {"workspace": "FOLDER/w", "input": "FOLDER/in", "output": "FOLDER/out", "executor": "local", "model": "models:/m@a"},
    ),
    ImportSettings: (
        import_calls,
        {"from": "coco", "images": "FOLDER/in", "annotations": "FOLDER/a.json", "to": "FOLDER/new", "threads": 3},
    ),
    ExportSettings: (export_calls, {"format": "coco", "predictions": "FOLDER/in", "to": "FOLDER/new", "threads": 3}),
}
"""The function that runs each command, which records what it gives to the code that does the work; and settings to start from."""

CHECK = {"from": None, "images": None, "annotations": None, "to": None, "check": "FOLDER/voc"}
NEEDS = {
    **dict.fromkeys(("check", "report", "train_split", "val_split"), CHECK),
    "add_to": {"to": None, "add_to": "FOLDER/voc"},
    "val_images": {"val_annotations": "FOLDER/b.json"},
    "table": {"from": "masks"},
    "challenger": {"canary": 0.5},
    "evaluation": {"format": "fiftyone", "predictions": None, "workspace": "FOLDER/w"},
    **{name: {"rank": 5} for name in ("rank", "rank_labelled", "rank_class_share", "rank_min_distance")},
}
"""Settings that are allowed, or have an effect, only beside others. None stands for a setting that is left out."""
NETWORKS = {"format": "onnx", "predictions": None, "workspace": "FOLDER/w", "model": "models:/m@a"}
NEED_NETWORKS = {(ExportSettings, name) for name in ("model", "workspace", "tracking.uri")}
"""Settings of export.py that have an effect only on the export of networks, and what they need."""
ANOTHER = {
    "model": "models:/other@champion",
    "challenger": "models:/other@challenger",
    "canary": 0.25,
    "classes": "cat,dog",
    "compute.gpu": False,
    "encoding": "cp1252",
    "cluster.data_nodes": "pool=cpu",
    "cluster.training_nodes": "pool=gpu",
    "from": "cvat",
    "run_order": "rows",
    "crowd": "object",
    "shapes": "masks",
}
"""Other values of settings for which `candidates` has none."""


def options(values: dict[str, Any], folder: Path) -> list[str]:
    """Settings as on the command line."""
    pairs = ((f"--{name}", str(value).replace("FOLDER", str(folder))) for name, value in values.items() if value is not None)
    return [text for pair in pairs for text in pair]


def calls_of(kind: type[CommandSettings], values: dict[str, Any], folder: Path) -> str:
    """What the command gives to the code that does the work, as text."""
    calls, record = recording()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        COMMANDS[kind][0](options(values, folder), patch, record)
    return "\n".join(calls)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="module")
def unchanged(folder: Path) -> Callable[[type[CommandSettings], dict[str, Any]], str]:
    """Makes what is compared with only once for the same settings, and then twice, because it must be the same."""
    known: dict[str, str] = {}

    def find(kind: type[CommandSettings], values: dict[str, Any]) -> str:
        key = f"{kind} {values}"
        if key not in known:
            known[key] = calls_of(kind, values, folder)
            assert known[key] == calls_of(kind, values, folder), "otherwise every setting would seem to reach the code"
        return known[key]

    return find


CALLED_THERE = {
    "overlap": "small_over_large",
    "crowd": "crowd_void",
    "boxes": "boxes_void",
    "others": "others_void",
    "strange": "unknown_void",
    "table": "class_table_uri",
    "from": "origin",
    "annotations": "annotations origin",
    "val_images": "images",
    "val_annotations": "images annotations split origin",
    "check": "title",
    "train_split": "splits",
    "val_split": "splits",
    "format": "convert dataset_files annotations image_path has_polygons",
    "predictions": "mask",
    "only": "name image mask classes score class_scores",
    "output": "uri exclude",
    **dict.fromkeys(("to", "add_to"), "title"),
    "rank": "number",
    "rank_labelled": "labelled",
    "rank_class_share": "class_share",
    "rank_min_distance": "min_distance",
    "compute.actors": "max_workers",
    "compute.cpus_per_actor": "cpus",
    "compute.gpus_per_actor": "gpus",
    "compute.gpu": "gpus",
    "cpus_per_replica": "cpus",
    "gpus_per_replica": "gpus",
    "max_megabytes": "max_bytes",
    "max_total_megabytes": "max_total_bytes",
}
"""Names of the arguments and fields that change with a setting, where it isn't its own name."""


def named_values(calls: str) -> dict[str, list[str]]:
    """The values of the arguments and fields that have a name, in the order of the calls."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"(\w+)=(\([^()]*\)|[^,()]*)", calls):
        found.setdefault(name, []).append(value)
    return found


FIELDS = [
    pytest.param(kind, name, field, id=f"{kind.__name__}.{name}") for kind in COMMANDS for name, field in setting_fields(kind)
]


@pytest.mark.parametrize(("kind", "name", "field"), FIELDS)
def test_a_setting_of_a_command_reaches_the_code_that_does_the_work(
    kind: type[CommandSettings], name: str, field: Any, unchanged: Callable[..., str], folder: Path
) -> None:
    values = {**COMMANDS[kind][1], **NEEDS.get(name, {}), **(NETWORKS if (kind, name) in NEED_NETWORKS else {})}
    now = values.get(name, field.default)
    for other in [ANOTHER[name]] if name in ANOTHER else candidates(now, field.annotation):
        try:
            after = calls_of(kind, {**values, name: other}, folder)
        except UserError as error:
            assert "is not allowed" in str(error)
            continue
        before = unchanged(kind, values)
        assert after != before
        old, new = named_values(before), named_values(after)
        named = {each for each in old.keys() | new.keys() if old.get(each) != new.get(each)}
        assert named <= set(CALLED_THERE.get(name, name.rpartition(".")[2]).split()), "it reaches the place of another setting"
        return
    raise AssertionError(f"no other value of {name} is allowed: add one to ANOTHER")
