"""MLflow's pages in a real browser, with a real server on the store that our code writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deconvnet.tracking.champion.workspace_model import WorkspaceModel
from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.promotion import Decision, promote
from deconvnet.tracking.registry import update_model_description
from deconvnet.tracking.texts.descriptions import run_description, run_name, stage_description
from infra.storage.lock import hold_lock
from tests.browser import Browser, browser, missing
from tests.deconvnet.example_run import example_summary, grey_png
from tests.deconvnet.tracking.conftest import RunningMlflow
from workflows.cli.output import TRAINING_PAGES

pytestmark = pytest.mark.xdist_group("mlflow server")
TABLE = "return [...document.querySelectorAll('tr')].map(r => r.innerText.split(/[\\t\\n]+/).map(t => t.trim()).join(' | '))"


@dataclass(frozen=True)
class Seen:
    """The server's address, the browser window, and the ids in the store."""

    url: str
    window: Browser
    experiment: str
    run: str


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, running_mlflow: RunningMlflow) -> Iterator[Seen]:
    if why := missing():
        pytest.skip(why)
    folder: Path = tmp_path_factory.mktemp("ui")
    tracker = MlflowTracker(running_mlflow.store, "deconvnet")
    with tracker.pipeline(run_name("voc", "/runs/mine", "2026-11-23"), {"seed": 1}, {"config": "voc"}) as parent:
        with parent.stage("evaluate", "f", title="7 evaluate") as child:
            child.describe(stage_description("evaluate", {}))
            child.log_metrics({"val.mean_iou.edeconvnet_crf": 0.6123})
        parent.describe(run_description(example_summary(), parent.run_id))
        parent.log_bytes(grey_png(), "report/comparison.png")
        parent.log_metrics({"val.mean_iou.edeconvnet_crf": 0.6123, "system/cpu_utilization_percentage": 50.0})
        tracker.client.create_registered_model("net")
        for figure in ("0.5", "0.6"):
            tags = {"mean_iou.edeconvnet_crf": figure, "workspace.id": "ours"}
            tracker.client.create_model_version("net", f"file://{folder}/model", tags=tags)
        tracker.client.set_registered_model_alias("net", "challenger", "2")
        update_model_description(tracker.client, "net")
        model = WorkspaceModel(tracker.uri, "net", str(folder), "ours")
        with hold_lock(str(folder / "workspace.lock"), "retrain.py") as lock:
            promote(parent, model, 2, 1, Decision(True, "it is better"), lock)
    with browser(1400, 1000) as window:
        yield Seen(running_mlflow.url, window, tracker.experiment_id, parent.run_id)


OF_MLFLOW = (
    "users/current - Failed to load resource: the server responded with a status of 404",
    "ResizeObserver loop completed",
)
"""Faults of MLflow 3.17's own pages: requests of users that a server without login does not have, and charts' resize loops."""


def no_faults(window: Browser) -> None:
    """The browser's console has only the known messages of MLflow's own pages."""
    assert [line for line in window.console() if not any(known in line for known in OF_MLFLOW)] == []


def go(seen: Seen, place: str) -> None:
    """Open a page of MLflow, in the mode that the commands print."""
    seen.window.open(f"{seen.url}{TRAINING_PAGES}".replace("experiments", place, 1))


def test_the_address_that_the_commands_print_leads_to_the_runs_and_the_models(seen: Seen) -> None:
    seen.window.open(f"{seen.url}{TRAINING_PAGES}")
    seen.window.wait("return document.body.innerText.includes('deconvnet')")
    assert "Model registry" in seen.window.text()
    go(seen, f"experiments/{seen.experiment}/runs")
    seen.window.wait("return document.body.innerText.includes('voc · mine')")
    assert "semantic segmentation, trained and retrained" in seen.window.text()
    no_faults(seen.window)


def test_a_runs_page_shows_the_results_and_the_image(seen: Seen) -> None:
    go(seen, f"experiments/{seen.experiment}/runs/{seen.run}")
    seen.window.wait("return document.body.innerText.includes('in the paper')")
    rows = seen.window.run(TABLE)
    assert "EDeconvNet+CRF | 61.2 | 87.5 | – | – | 72.5" in rows and "FCN-8s | 50.1 | 87.5 | – | – | 62.2" in rows
    picture = "const i = [...document.images].find(i => i.src.includes('get-artifact')); return i && i.complete && i.naturalWidth"
    assert seen.window.wait(picture) == 1200
    assert "voc · mine · 2026-11-23" in seen.window.text() and "cats & dogs val" in seen.window.text()
    no_faults(seen.window)


def test_a_models_page_shows_how_to_use_it_and_its_versions(seen: Seen) -> None:
    go(seen, "models/net")
    seen.window.wait("return document.body.innerText.includes('How to use it')")
    rows = seen.window.run(TABLE)
    assert any(row.startswith("EDeconvNet+CRF | 60.0") for row in rows)
    assert any(row.startswith("2 | ") and "promoted" in row and "it is better" in row and "champion" in row for row in rows)
    assert "models:/net@champion" in seen.window.text()
    no_faults(seen.window)
