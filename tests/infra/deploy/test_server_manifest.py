"""The server's manifest: its command, its health checks, its end, and who finds it."""

import inspect
from typing import Any

import pytest

from deconvnet.serving.listener import run_http_server
from tests.deconvnet.serving.asgi import ask, made
from tests.infra.deploy.files import KUBERAY
from tests.infra.deploy.rendering import built, needs_kubectl, pods, selects
from workflows import cli
from workflows.settings import CONFIGS, ServeSettings

pytestmark = needs_kubectl
OBJECTS = ("ServiceAccount", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy")


@pytest.fixture
def objects() -> dict[str, Any]:
    found = {doc["kind"]: doc for doc in built(KUBERAY / "serve")}
    assert set(found) == set(OBJECTS)
    return found


@pytest.fixture
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    (found,) = pods(objects["Deployment"])
    return found


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = pod["spec"]["containers"]
    return found


def test_the_command_follows_the_champion_and_fits_its_pod(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert container["command"] == ["python", "workflows/serve.py"]
    settings, _ = cli.SettingsParser("", ServeSettings, CONFIGS / "serve.yaml").parse_settings(container["args"])
    assert settings.model.endswith("@champion") and settings.workspace is None and settings.tracking.uri is None
    assert settings.host == "0.0.0.0" and container["ports"] == [{"name": "http", "containerPort": settings.port}]
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    assert settings.replicas * settings.cpus_per_replica < int(limits["cpu"]), "one is for the process that receives requests"
    (name,) = (mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm")
    (shared,) = (volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume["name"] == name)
    assert shared == {"medium": "Memory", "sizeLimit": "1Gi"} and settings.cluster.object_store_mb <= 1024


def test_the_server_gets_the_user_of_mlflow_and_no_other_secret(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """MLflow's server passes models on, so no S3 key is needed; Ray's token and the webhook are for jobs."""
    assert container["envFrom"] == [{"configMapRef": {"name": "deconvnet"}}, {"secretRef": {"name": "mlflow-client"}}]
    assert "env" not in container and pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["serviceAccountName"] == "server"


def test_the_server_answers_the_health_checks_and_prometheus(container: dict[str, Any]) -> None:
    healthy, ill = made(), made()
    ill.healthy = False
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        check = container[probe]["httpGet"]
        assert check["port"] == "http"
        assert ask(healthy, "GET", check["path"]).status == 200 and ask(ill, "GET", check["path"]).status == 503
    unready, dead = (container[probe] for probe in ("readinessProbe", "livenessProbe"))
    assert dead["periodSeconds"] * dead["failureThreshold"] >= 120 > unready["periodSeconds"] * 3, (
        "Ray starts another process first"
    )
    (monitor,) = (d for d in built(KUBERAY / "monitoring") if (d["kind"], d["metadata"]["name"]) == ("PodMonitor", "server"))
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "http" and b"deconvnet_requests" in ask(healthy, "GET", endpoint["path"]).body


def test_a_pod_that_is_stopped_has_time_to_answer_what_has_arrived(pod: dict[str, Any], container: dict[str, Any]) -> None:
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    answers = inspect.signature(run_http_server).parameters["grace_seconds"].default
    assert command == "sleep" and int(seconds) + answers + 10 + 30 <= pod["spec"]["terminationGracePeriodSeconds"]


def test_the_service_the_rules_and_the_monitor_select_the_pods(objects: dict[str, Any], pod: dict[str, Any]) -> None:
    labels, spec = pod["metadata"]["labels"], objects["Deployment"]["spec"]
    assert objects["Service"]["spec"]["selector"] == labels == spec["selector"]["matchLabels"]
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert selects(objects["NetworkPolicy"]["spec"]["podSelector"], labels)
    budget = objects["PodDisruptionBudget"]["spec"]
    assert selects(budget["selector"], labels) and budget["maxUnavailable"] < spec["replicas"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    (monitor,) = (d for d in built(KUBERAY / "monitoring") if (d["kind"], d["metadata"]["name"]) == ("PodMonitor", "server"))
    assert selects(monitor["spec"]["selector"], labels) and not selects(
        monitor["spec"]["selector"], {"ray.io/is-ray-node": "yes"}
    )
