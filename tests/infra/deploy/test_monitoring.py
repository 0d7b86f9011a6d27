"""Alerts and the dashboard: each alert is raised when it should be, and every query uses metrics and labels that exist."""

import importlib.util
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deconvnet.serving.metrics import Metrics
from deconvnet.training import ray_callbacks
from infra.live_metrics import Metric
from infra.runtime import parts
from tests.infra.deploy.files import KUBERAY
from tests.infra.deploy.rendering import built, needs_kubectl, pods, selects
from workflows.operations import run_metrics

FOLDER = KUBERAY / "monitoring"
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TESTS = Path(__file__).parent / "alert_tests.yaml"
ANYWHERE = {"instance", "job"}
RAY_LABELS = {"ip", "IsHeadNode", "GpuIndex"}

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed (Debian: apt-get install prometheus)"
)


def metrics_with_labels() -> Iterator[tuple[str, set[str]]]:
    """The names of all metrics, as Prometheus finds them, with their labels."""
    for module, prefix in ((ray_callbacks, "ray_"), (parts, "ray_"), (run_metrics, "")):
        for metric in vars(module).values():
            if isinstance(metric, Metric):
                yield prefix + metric.name, set(metric.labels)
    for collector in Metrics()._registry._collector_to_names:
        (family,) = collector.collect()
        suffixes = {"counter": ("_total",), "summary": ("_sum", "_count"), "histogram": ("_bucket", "_sum", "_count")}
        for suffix in suffixes.get(family.type, ("",)):
            yield family.name + suffix, {*collector._labelnames, *(["le"] if suffix == "_bucket" else [])}  # type: ignore[attr-defined]
    # Ray's own. Its module of them imports much, so its text is read.
    found = importlib.util.find_spec("ray.dashboard.modules.reporter.reporter_agent")
    assert found and found.origin
    text = Path(found.origin).read_text()
    names = re.findall(r'Gauge\(\s*"(node_\w+)"', text)
    assert len(names) > 20 and all(f'"{label}"' in text for label in RAY_LABELS)
    yield from ((f"ray_{name}", RAY_LABELS) for name in names)


KNOWN = dict(metrics_with_labels())


def queries() -> Iterator[tuple[str, str]]:
    """The queries of the alerts and of the dashboard by where they are, without Grafana's variables."""
    yield from ((name, rule["expr"]) for name, rule in ALERTS.items())
    for panel in PANELS:
        for target in panel["targets"]:
            yield (
                panel["title"],
                target["expr"].replace("$__rate_interval", "5m").replace("$model", ".*").replace("$without", "true"),
            )


QUERIES = list(queries())
LEGENDS = [(target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize(("where", "query"), QUERIES)
def test_every_metric_and_label_of_a_query_exists(where: str, query: str) -> None:
    names = re.findall(r"\b(?:ray|deconvnet)_\w+", re.sub(r'"[^"]*"', '""', query))
    assert names and set(names) <= KNOWN.keys()
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)\s*(?:=|!)", matchers)) <= KNOWN[name] | ANYWHERE
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r",\s*", group)}
    assert grouped <= set().union(*(KNOWN[name] for name in names))


@pytest.mark.parametrize(("query", "legend"), LEGENDS)
def test_legends_and_summaries_use_labels_that_the_query_has(query: str, legend: str) -> None:
    grouped = re.findall(r"by \(([^)]*)\)", query)
    names = re.findall(r"\b(?:ray|deconvnet)_\w+", query)
    labels = set(re.split(r",\s*", grouped[-1])) if grouped else set.union(*(KNOWN[name] for name in names)) | ANYWHERE
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels


@needs_promtool
def test_promtool_understands_every_query_and_rule(tmp_path: Path) -> None:
    rules = [{"record": f"query:number{i}", "expr": query} for i, (_, query) in enumerate(QUERIES)]
    for name, groups in (("rules", RULES["groups"]), ("queries", [{"name": "dashboard", "rules": rules}])):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"groups": groups}))
        done = subprocess.run(["promtool", "check", "rules", tmp_path / f"{name}.yaml"], capture_output=True, text=True)
        assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


@needs_promtool
def test_each_alert_is_raised_when_it_should_be_and_only_then(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    shutil.copy(TESTS, tmp_path)
    done = subprocess.run(["promtool", "test", "rules", TESTS.name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


def test_each_alert_has_values_that_raise_it_and_values_that_do_not() -> None:
    expected: dict[str, set[bool]] = {name: set() for name in ALERTS}
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            expected[case["alertname"]].add(bool(case.get("exp_alerts")))
    assert expected == {name: {True, False} for name in ALERTS}


def test_an_alert_about_a_quantile_can_be_raised() -> None:
    """No quantile is above the highest bound of its histogram."""
    quantiles = [re.search(r"histogram_quantile\(.*\b(\w+)_bucket.* > ([\d.]+)$", rule["expr"]) for rule in ALERTS.values()]
    found = [(each[1], float(each[2])) for each in quantiles if each]
    assert len(found) == sum("histogram_quantile" in rule["expr"] for rule in ALERTS.values()) > 0
    registry = Metrics()._registry
    for name, threshold in found:
        collector: Any = registry._names_to_collectors[name]
        assert any(threshold < bound < math.inf for bound in collector._upper_bounds)


def test_alerts_have_a_severity_and_a_summary() -> None:
    for name, rule in ALERTS.items():
        assert name.startswith("Deconvnet") and rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    cells: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in cells, f"{panel['title']} is where {cells[x, y]} is"
                cells[x, y] = panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {"datasource", "model", "without"} == {variable["name"] for variable in DASHBOARD["templating"]["list"]}


@needs_kubectl
def test_the_monitor_finds_the_metrics_of_every_pod_of_a_ray_cluster() -> None:
    objects: dict[tuple[str, str], Any] = {(doc["kind"], doc["metadata"]["name"]): doc for doc in built(FOLDER)}
    assert {kind for kind, _ in objects} == {"PodMonitor", "PrometheusRule", "ConfigMap"} and len(objects) == 4
    assert {doc["metadata"]["namespace"] for doc in objects.values()} == {"deconvnet"}
    assert json.loads(objects["ConfigMap", "deconvnet-dashboard"]["data"]["dashboard.json"]) == DASHBOARD
    (cluster,) = (doc for doc in built(KUBERAY / "cluster") if doc["kind"] == "RayCluster")
    monitor = objects["PodMonitor", "ray"]["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert selects(monitor["selector"], {"ray.io/is-ray-node": "yes"}), "KubeRay's label"
    for pod in pods(cluster):
        (container,) = pod["spec"]["containers"]
        assert {"name": endpoint["port"], "containerPort": 8080} in container["ports"]
