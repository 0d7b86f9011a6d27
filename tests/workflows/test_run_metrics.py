"""Where the metrics of a retraining go (a file, a real Pushgateway): their faults don't cost the run. And those of trainings."""

import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import requests

from deconvnet.datasets.palette import GENERATED_CLASSES
from infra import storage
from infra.deploy.local.process import free_ports
from infra.settings import NotifySettings
from infra.storage import conditional
from workflows.operations import retraining, run_metrics
from workflows.operations.run_metrics import CHAMPION_VERSION, LAST_SUCCESS, OUTCOME, REJECTS, RunMetrics
from workflows.pipelines.training import Pipeline
from workflows.pipelines.workspace import Workspace
from workflows.settings import Settings


def test_a_training_on_ray_runs_where_the_settings_say_and_exports_its_metrics_by_the_name_of_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deconvnet.training import ray_trainer
    from deconvnet.training.ray_callbacks import LiveMetricsCallback, ReportCallback

    given: dict[str, Any] = {}
    monkeypatch.setattr(ray_trainer, "train_on_ray", lambda job, **options: given.update(options) or {})
    monkeypatch.setattr("deconvnet.reporting.plots.draw_training_curves", lambda *_: {})
    pipeline = Pipeline(Settings(workspace=str(tmp_path), data={"classes": GENERATED_CLASSES}, tracking={"enabled": False}))
    storage.write_json(str(tmp_path / "models/stage1/model.json"), {"sha256": "0123"})
    assert pipeline._train("stage1", "f" * 16) == {"key": "0123"}
    assert given["cluster"] is pipeline.settings.cluster and given["should_stop"] == pipeline.should_stop
    report, callback = given["callbacks"]
    assert isinstance(report, ReportCallback) and isinstance(callback, LiveMetricsCallback)
    recorded: list[Any] = []
    callback._metrics = SimpleNamespace(update=lambda *values, **labels: recorded.append((*values, labels)))  # type: ignore[assignment]
    callback.after_report(None, [{"loss": 2.0}], None)
    ((metric, value, labels),) = recorded
    assert (metric.name, value, labels) == ("deconvnet_train_loss", 2.0, {"stage": "stage1"})


def delivered(to: str, outcome: run_metrics.Outcome, version: int | None = None, reasons: str = "", model: str = "net") -> None:
    metrics = RunMetrics(model, to)
    if version is not None:
        metrics.update(CHAMPION_VERSION, version)
    for reason in reasons:
        metrics.update(REJECTS, 1, stage="prepare", reason=reason)
    metrics.deliver(outcome)


def values(text: str) -> dict[str, float]:
    """The values of the metrics whose names begin with "deconvnet", but for times."""
    lines = re.findall(r"^(deconvnet\S*\{.*\}) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in lines if "timestamp" not in name}


def check(first: dict[str, float], second: dict[str, float]) -> None:
    """A run that promotes version 3, and one that fails and knows only one of two reasons."""
    assert sorted(first.values()) == [0, 0, 0, 0, 1, 1, 1, 3]
    assert sorted(second.values()) == [0, 0, 0, 0, 1, 1, 3]
    (kept,) = (name for name in second if name.startswith(CHAMPION_VERSION.name))
    assert second[kept] == first[kept] == 3
    (reason,) = (name for name in second if name.startswith(REJECTS.name))
    assert 'reason="a"' in reason
    (outcome,) = (name for name, value in second.items() if name.startswith(OUTCOME.name) and value)
    assert 'outcome="failed"' in outcome and 'model="net"' in outcome


def test_every_run_that_came_to_its_end_counts_as_a_success(tmp_path: Path) -> None:
    """An alert tells if there was none for days. A run that finds nothing new or refuses its model has worked, too."""
    succeeded = set()
    for outcome in get_args(run_metrics.Outcome):
        delivered(str(tmp_path / f"{outcome}.prom"), outcome)
        if LAST_SUCCESS.name in (tmp_path / f"{outcome}.prom").read_text():
            succeeded.add(outcome)
    assert succeeded == {"promoted", "refused", "unchanged"}


def test_a_file_keeps_what_a_run_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "new" / "deconvnet.prom"
    delivered(str(file), "promoted", 3, "ab")
    first = values(file.read_text())
    delivered(str(file), "failed", reasons="a")
    check(first, values(file.read_text()))
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert oct(file.stat().st_mode)[-3:] == "644", "node_exporter is another user"


def test_a_file_keeps_the_metrics_of_other_models(tmp_path: Path) -> None:
    """Also one of an earlier release, with a label that there is no longer."""
    file = tmp_path / "deconvnet.prom"
    file.write_text(f'# TYPE {CHAMPION_VERSION.name} gauge\n{CHAMPION_VERSION.name}{{model="old",stage="x"}} 9\n')
    delivered(str(file), "promoted", 3, "ab")
    first = values(file.read_text())
    delivered(str(file), "failed", 4, "a", model="other")
    both = values(file.read_text())
    assert first.items() < both.items() and len(both) == 2 * len(first) - 2
    assert both[f'{CHAMPION_VERSION.name}{{model="other"}}'] == 4
    delivered(str(file), "unchanged", reasons="a")
    third = values(file.read_text())
    changed = {name for name in both if third.get(name) != both[name]}
    assert len(changed) == 3 and all('model="net"' in name for name in changed), "two outcomes, and the reason b"
    types = re.findall(r"^# TYPE (\S+)", file.read_text(), re.MULTILINE)
    assert len(types) == len(set(types)), "Prometheus takes no family twice"


def test_two_retrainings_that_end_together_keep_each_other_s_metrics_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one begins its delivery when the first has read the file; it waits for its turn, or it is done by then."""
    file, either = tmp_path / "deconvnet.prom", threading.Event()
    real, lock = RunMetrics._families_with_kept, conditional.fcntl.flock

    def deliver_other() -> None:
        delivered(str(file), "failed", 4, model="other")
        either.set()

    other = threading.Thread(target=deliver_other)

    def begin_other(metrics: RunMetrics, name: str) -> Any:
        found = real(metrics, name)
        if metrics._model == "net":
            monkeypatch.setattr(conditional.fcntl, "flock", lambda *given: either.set() or lock(*given))
            other.start()
            assert either.wait(60)
        return found

    monkeypatch.setattr(RunMetrics, "_families_with_kept", begin_other)
    delivered(str(file), "promoted", 3)
    other.join()
    found = values(file.read_text())
    assert found[f'{CHAMPION_VERSION.name}{{model="net"}}'] == 3 and found[f'{CHAMPION_VERSION.name}{{model="other"}}'] == 4


@pytest.mark.parametrize(
    ("reasons", "counts"),
    [
        ((), {"none": 0}),
        (("truncated: 5 of 9", "truncated: 6 of 9", "truncated: 6 of 9", "no mask"), {"truncated": 3, "no mask": 1}),
    ],
)
def test_rejects_replace_those_of_an_earlier_run_and_are_added_up_by_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reasons: tuple[str, ...], counts: dict[str, int]
) -> None:
    file, workspace = tmp_path / "deconvnet.prom", Workspace(str(tmp_path / "w"))
    delivered(str(file), "promoted", reasons="ab")
    for folder in ("champion", ""):
        storage.write_json(workspace.report(folder, "results.json"), {})
    rows = [{"stage": "prepare", "reason": reason} for reason in reasons]
    monkeypatch.setattr(retraining.tables, "iter_rows", lambda *_: rows)
    metrics = RunMetrics("net", str(file))
    retraining._measure_results(workspace, metrics)  # type: ignore[arg-type]
    metrics.deliver("refused")
    rejects = {name: value for name, value in values(file.read_text()).items() if name.startswith(REJECTS.name)}
    assert rejects == {f'{REJECTS.name}{{model="net",reason="{reason}",stage="prepare"}}': n for reason, n in counts.items()}


@pytest.mark.skipif(not shutil.which("prometheus-pushgateway"), reason="needs the Debian package prometheus-pushgateway")
def test_a_pushgateway_keeps_what_a_run_does_not_know() -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        ["prometheus-pushgateway", f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr
        while "listen" not in (line := server.stderr.readline().lower()):
            assert line, "it did not start"
        delivered(url, "promoted", 3, "ab")
        first = values(requests.get(f"{url}/metrics", timeout=60).text)
        delivered(url, "failed", reasons="a")
        check(first, values(requests.get(f"{url}/metrics", timeout=60).text))
    finally:
        server.kill()
        server.communicate()


def test_what_can_not_take_them_is_a_warning_without_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "other.prom").write_text("what is this?\n")
    delivered(str(tmp_path / "other.prom"), "failed")
    assert "other.prom: ValueError" in caplog.text and (tmp_path / "other.prom").read_text() == "what is this?\n"
    caplog.clear()
    delivered(f"http://me:hush@127.0.0.1:{free_ports(1)[0]}", "failed")
    assert "not delivered to http://127.0.0.1" in caplog.text and "Error" in caplog.text and "hush" not in caplog.text


def test_a_server_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(run_metrics, "_SECONDS", 0.2)
    monkeypatch.setattr(run_metrics.storage, "write_bytes", lambda *_: ended.wait())
    delivered(str(tmp_path / "deconvnet.prom"), "failed")
    ended.set()
    assert "there was no answer within 0.2 s" in caplog.text


def test_nothing_is_delivered_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_metrics, "run_with_timeout", lambda *_: pytest.fail("delivered"))
    RunMetrics("net", None).deliver("promoted")


@pytest.mark.parametrize("to", ["deconvnet.txt", "s3://bucket/deconvnet.prom"])
def test_a_place_that_prometheus_does_not_read_is_refused(to: str) -> None:
    with pytest.raises(ValueError, match=r"\.prom"):
        NotifySettings(metrics_to=to)
    assert NotifySettings(metrics_to="/x/deconvnet.prom").metrics_to == "/x/deconvnet.prom"
    assert NotifySettings(metrics_to="http://host:9091").metrics_to == "http://host:9091"
