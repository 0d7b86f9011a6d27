"""Joining a Ray cluster: heads that don't answer, labels that no node has, and a SIGTERM while Ray starts. No Ray is started."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from infra.errors import UserError
from infra.runtime import cluster
from infra.runtime.ray_executor import RayExecutor
from infra.settings import ClusterSettings


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a gRPC server at 127.0.0.2 in place of this machine's Ray head. `ray.init` and `ray.shutdown` do nothing."""
    monkeypatch.setattr(cluster, "HEAD_SECONDS", 5.0)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_watchable", lambda address: (None, None))
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.2")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.2:0")
    server.start()
    yield port
    server.stop(None)


@pytest.fixture
def dead(head: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Addresses at which no Ray head answers, by kind: a closed port, a silent one, a web server's, an unknown host's."""
    monkeypatch.setattr(cluster, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray would try to join for two minutes"))
    web = HTTPServer(("127.0.0.2", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with socket.create_server(("127.0.0.2", 0)) as silent, socket.create_server(("127.0.0.2", 0)) as closed:
        ports = {"silent": silent.getsockname()[1], "closed": closed.getsockname()[1], "web": web.server_port}
        closed.close()
        yield {**{name: f"127.0.0.1:{port}" for name, port in ports.items()}, "unknown": "no.such.host.invalid:6379"}
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.mark.parametrize(
    ("kind", "way"),
    [*((kind, "setting") for kind in ("silent", "closed", "web", "unknown")), ("closed", "variable"), ("closed", "client")],
)
def test_a_head_that_does_not_answer_is_refused(
    kind: str, way: str, dead: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"ray://{dead[kind]}" if way == "client" else dead[kind]
    if way == "variable":
        monkeypatch.setenv("RAY_ADDRESS", address)
    settings = ClusterSettings() if way == "variable" else ClusterSettings(address=address)
    with pytest.raises(UserError) as error, cluster.connected(settings):
        pass
    assert str(error.value) == (
        f"can't join the Ray cluster at {address} (cluster.address or RAY_ADDRESS): no Ray head answers there within 0.2 s"
    )


def test_a_head_that_answers_is_joined(head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of this machine listens at the machine's address alone. Like Ray, no proxy for web pages is asked."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for host in ("127.0.0.1", "127.0.0.2", "localhost"):
        with cluster.connected(ClusterSettings(address=f"{host}:{head}")):
            pass


def test_a_ray_of_this_machine_gets_the_resources_of_the_settings_and_a_cluster_does_not(
    head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray refuses resources for a cluster that is there."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "init", lambda **options: given.append(options))
    for address in (None, f"127.0.0.2:{head}"):
        with cluster.connected(ClusterSettings(address=address, num_cpus=3, object_store_mb=200)):
            pass
    here, there = given
    assert (here["address"], here["num_cpus"], here["object_store_memory"]) == ("local", 3, 200 * 2**20)
    assert there["address"] == f"127.0.0.2:{head}" and not {"num_cpus", "object_store_memory"} & set(there)


def test_addresses_in_other_forms_and_with_tls_are_left_to_ray(head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **_: Any) -> None:
        raise ValueError(f"Ray was given {address}\nand more")

    monkeypatch.setattr(ray, "init", init)
    for address in ("http://127.0.0.1:8265", "10.0.0.1", "127.0.0.1:x", "local"):
        with pytest.raises(UserError, match=f"Ray was given {address}$"), cluster.connected(ClusterSettings(address=address)):
            pass
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with (
        pytest.raises(UserError, match=r"Ray was given 127\.0\.0\.1:1$"),
        cluster.connected(ClusterSettings(address="127.0.0.1:1")),
    ):
        pass


@pytest.mark.parametrize("outcome", ["starts", "fails", "is terminated"])
def test_sigterm_keeps_its_handler_while_ray_starts(outcome: str, head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as ray.init does
        if outcome == "is terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        if outcome == "fails":
            raise RuntimeError("no memory")

    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    expected = {"starts": None, "fails": UserError, "is terminated": KeyboardInterrupt}[outcome]
    try:
        with cluster.connected(ClusterSettings()):
            raised = None
    except (UserError, KeyboardInterrupt) as error:
        raised = type(error)
    assert raised is expected and signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cluster with one living and one dead node, on a machine that was not started by `ray up` or KubeRay."""
    found = [{"Alive": True, "Labels": {"pool": "cpu"}}, {"Alive": False, "Labels": {"pool": "gpu"}}]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # every pod has this variable
    monkeypatch.delenv("KUBERAY_GEN_RAY_START_CMD", raising=False)


@pytest.fixture
def events(head: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done with a connection: the arguments with which it is watched, then the end of the watch and of the connection."""
    found: list[Any] = []

    @contextmanager
    def watched(*arguments: Any) -> Iterator[None]:
        found.append(arguments)
        try:
            yield
        finally:
            found.append("watched no more")

    monkeypatch.setattr(cluster, "watched", watched)
    monkeypatch.setattr(cluster, "_watchable", lambda address: ("socket", address))
    monkeypatch.setattr(ray, "shutdown", lambda: found.append("left"))
    return found


@pytest.mark.parametrize("joined", [True, False])
def test_ray_is_watched_until_it_is_left_which_it_is_after_an_error_too(joined: bool, head: int, events: list[Any]) -> None:
    address = f"127.0.0.2:{head}" if joined else None
    with pytest.raises(LookupError), cluster.connected(ClusterSettings(address=address)):
        events.append("used")
        raise LookupError
    assert events == [("socket", address, cluster._check_head, cluster.HEAD_SECONDS), "used", "watched no more", "left"]


def test_an_executor_leaves_ray_at_its_end_and_at_once_if_no_node_has_the_labels_of_data_nodes(
    events: list[Any], nodes: None
) -> None:
    for labels, used in (("pool=cpu", ["used"]), ("pool=gpu", [])):
        events.clear()
        executor = RayExecutor(ClusterSettings(data_nodes=labels))
        with nullcontext() if used else pytest.raises(UserError, match=f"labelled {labels} .cluster.data_nodes."), executor:
            events.append("used")
        assert events[1:] == [*used, "watched no more", "left"]


@pytest.mark.parametrize("labels", ["pool=gpu", "pool=cpu,zone=a", "other=1"])
def test_labels_that_no_living_node_has_are_refused_in_a_pod_too(labels: str, nodes: None) -> None:
    with pytest.raises(
        UserError, match=f"is labelled {labels} .cluster.data_nodes.: start one with .* cluster.autoscaling to true"
    ):
        cluster.check_nodes(ClusterSettings(data_nodes=labels), "data_nodes")
    cluster.check_nodes(ClusterSettings(data_nodes="pool=cpu"), "data_nodes")
    cluster.check_nodes(ClusterSettings(), "data_nodes")


def test_a_cluster_that_adds_nodes_is_waited_for(
    nodes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "infra")
    wanted = ClusterSettings(training_nodes="pool=gpu", autoscaling=True)
    cluster.check_nodes(wanted, "training_nodes")
    assert "no alive node is labelled pool=gpu (cluster.training_nodes): the run waits until the cluster adds one" in caplog.text
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head --port=6379")
    assert not cluster.can_autoscale(ClusterSettings())
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head --no-monitor --port=6379")
    assert cluster.can_autoscale(ClusterSettings()) and not cluster.can_autoscale(ClusterSettings(autoscaling=False))
    monkeypatch.delenv("KUBERAY_GEN_RAY_START_CMD")
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    assert cluster.can_autoscale(ClusterSettings())


@pytest.mark.parametrize("text", ["pool", "pool=", "=cpu", "a=b,,c=d", "pool=cpu;zone=a"])
def test_what_is_not_labels_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be labels, key=value, separated by commas"):
        ClusterSettings(data_nodes=text)


def test_labels_are_read_with_and_without_blanks() -> None:
    settings = ClusterSettings(data_nodes=" pool = cpu ,ray.io/zone=a ", training_nodes="")
    assert settings.selector("data_nodes") == {"pool": "cpu", "ray.io/zone": "a"} and settings.selector("training_nodes") == {}
