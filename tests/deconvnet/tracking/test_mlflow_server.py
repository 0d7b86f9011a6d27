"""What only a real MLflow server shows: a training that outlasts its absence, and a model that is registered over HTTP."""

import re
import urllib.request

import pytest

from deconvnet.inference.saved_ensemble import SavedEnsemble
from deconvnet.tracking import metric_spool, registry
from deconvnet.tracking import register as register_module
from deconvnet.tracking.mlflow_runs import MlflowTracker
from infra.errors import UserError
from tests.deconvnet.ensembles import CARD, CLASSES, register_ensemble, save_networks
from tests.servers import FlakyProxy
from tests.waiting import wait_until

pytestmark = pytest.mark.xdist_group("mlflow server")


def test_metrics_reported_while_the_server_is_away_arrive_later(tmp_path, monkeypatch, running_mlflow, caplog):
    """The server goes away in the middle of a training, comes back, and gets every metric."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # so that the failure is seen soon
    monkeypatch.setattr(metric_spool, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(metric_spool, "MAX_PAUSE_SECONDS", 0.2)
    with FlakyProxy(running_mlflow.url) as server:
        tracker = MlflowTracker(server.url, "outage", str(tmp_path / "spool"))
        with tracker.pipeline("p", {"seed": 1}) as parent, parent.stage("train") as run, run.training_metrics() as report:
            report({"step": 1, "loss": 1.0})
            run.log_bytes(b"hi", "a.txt")
            server.away()
            for step in range(2, 6):
                report({"step": step, "loss": 1.0})
            wait_until(lambda: "MLflow can't be reached, metrics wait in" in caplog.text, 60)
            with pytest.raises(UserError, match=r"MLflow's store .* can't be used: it can't be reached"):
                run.log_bytes(b"hi", "b.txt")
            server.back()
        history = tracker.client.get_metric_history(run.run_id, "loss")
        assert sorted(point.step for point in history) == [1, 2, 3, 4, 5]
        runs = tracker.client.search_runs([tracker.experiment_id])
        assert {each.info.run_id: each.info.status for each in runs} == dict.fromkeys((parent.run_id, run.run_id), "FINISHED")


def test_models_are_registered_on_a_tracking_server_and_fetched_from_it(tmp_path, monkeypatch, running_mlflow):
    monkeypatch.setattr(register_module, "PACKAGES", ())  # each file of the code is a request
    save_networks(tmp_path)
    tracker = MlflowTracker(running_mlflow.url, "over http")
    _, number = register_ensemble(tracker, tmp_path)
    described = tracker.client.get_model_version("shapes", str(number)).description
    link = re.findall(r"\[Model card\]\(([^)]+)\)", described)[0]
    with urllib.request.urlopen(f"{running_mlflow.url}/{link}") as answer:
        assert answer.read().decode() == CARD, "the link leads to the card"
    found = registry.find("models:/shapes@challenger", running_mlflow.url, "model")
    assert found.number == str(number)
    registry.fetch(found, running_mlflow.url, str(tmp_path / "fetched"))
    assert tuple(SavedEnsemble(str(tmp_path / "fetched")).classes) == tuple(CLASSES)
