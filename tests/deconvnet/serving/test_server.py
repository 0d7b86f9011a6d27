"""Serving until it ends: which settings reach which part, and that the health check is that of the replicas."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from deconvnet.serving import server
from deconvnet.serving.follow import find_targets
from deconvnet.serving.limits import Limits
from deconvnet.serving.replica import ServedModel
from deconvnet.serving.server import FollowOptions
from infra.errors import UserError
from infra.settings import ClusterSettings
from tests.deconvnet.serving.asgi import loaded

V1 = loaded(1).version
LIMITS = Limits(max_waiting=7)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the parts of a server are given, and whether it was healthy at each check: two, no, one and then no model at all."""
    seen: dict[str, Any] = {"healthy": []}
    running = [2, 0, 1, None]

    @contextmanager
    def run_replicas(model: ServedModel, nodes: dict[str, str], *, shared_ray: bool) -> Iterator[SimpleNamespace]:
        seen.update(served=(model, nodes), shared=shared_ray, replicas=SimpleNamespace(loaded={V1: loaded(1)}))
        yield seen["replicas"]

    @contextmanager
    def run_http_server(app: Any, host: str, port: int) -> Iterator[int]:
        seen.update(app=app, at=(host, port))
        yield port

    def follower(app: Any, replicas: Any, find: Any, poll: float) -> SimpleNamespace:
        seen.update(find=find, poll=poll, follows=(app, replicas), followed=threading.Event())
        return SimpleNamespace(run=lambda stop: stop.wait(60) and seen["followed"].set())

    replaced = {
        "connected": lambda cluster: nullcontext(),
        "check_room": lambda *given: seen.update(room=given),
        "run_replicas": run_replicas,
        "run_http_server": run_http_server,
        "Follower": follower,
        "_log_address": lambda *given: seen.update(logged=given),
        "running_replicas": lambda: running.pop(0),
        "time": SimpleNamespace(sleep=lambda seconds: seen["healthy"].append(seen["app"].healthy)),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(server, name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return seen


def test_the_settings_of_a_server_reach_its_parts_and_its_health_is_that_of_the_replicas(seen: dict[str, Any]) -> None:
    model = ServedModel(V1, "store", replicas=3)
    following = FollowOptions("models:/net@champion", None, canary=0.25, shadow=True, poll_seconds=7)
    with pytest.raises(UserError, match="Ray Serve stopped serving net version 1"):
        server.serve(model, following, LIMITS, "host", 8001, ClusterSettings())
    app = seen["app"]
    assert (app._predictors, app.model, app._limits) == (seen["replicas"], loaded(1), LIMITS)
    assert (app._replicas, app.routes.share, app._shadow) == (3, 0.25, True)
    assert seen["follows"] == (app, seen["replicas"]) and seen["poll"] == 7 and seen["followed"].wait(60), "it was told to stop"
    assert seen["find"].func is find_targets and seen["find"].args == ("models:/net@champion", "models:/net@challenger", "store")
    assert (seen["at"], seen["logged"]) == (("host", 8001), (model, "host", 8001))
    assert seen["healthy"] == [True, False, True]


@pytest.mark.parametrize(("gpus", "pool"), [(0, "data"), (0.5, "training")])
@pytest.mark.parametrize("address", ["setting", "environment", ""])
def test_replicas_with_a_gpu_run_where_trainings_run_and_a_ray_that_was_joined_goes_on(
    seen: dict[str, Any], gpus: float, pool: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, named = ServedModel(V1, "store", gpus=gpus), "ray://head:10001"
    if address == "environment":
        monkeypatch.setenv("RAY_ADDRESS", named)
    cluster = ClusterSettings(
        data_nodes="pool=data", training_nodes="pool=training", address=named if address == "setting" else None
    )
    with pytest.raises(UserError, match="stopped serving net version 1"):
        server.serve(model, FollowOptions("models:/net/1"), LIMITS, "host", 8001, cluster)
    nodes = {"pool": pool}
    assert seen["room"] == (model, cluster, nodes) and seen["served"] == (model, nodes) and seen["shared"] is bool(address)
    assert seen["find"].args[1] is None, "neither canary nor shadow, so there is no challenger"
