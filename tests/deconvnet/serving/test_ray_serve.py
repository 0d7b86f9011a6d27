"""Ray Serve's replicas as the server's process sees them: loading, dropping, predicting, and what Ray Serve is asked for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from deconvnet.serving import ray_serve
from deconvnet.serving.ray_serve import Replicas, check_installed, failure_reason, run_replicas, running_replicas
from deconvnet.serving.replica import Replica, ServedModel
from deconvnet.serving.routing import LoadedModel
from deconvnet.tracking.registry import Version
from infra.errors import UserError

CLASSES = ("background", "circle", "bar")
PHOTO = b"photo"
V1, V2 = (Version("shapes", str(i), f"id {i}", "nowhere") for i in (1, 2))


class Broadcast:
    """The response of a handle to a broadcast: results, or an error."""

    def __init__(self, found: list[Any] | Exception, timeouts: list[float]) -> None:
        self.found, self.timeouts = found, timeouts

    def results(self, timeout_s: float) -> list[Any]:
        self.timeouts.append(timeout_s)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Handle:
    """A handle whose broadcasts have these responses, one after the other."""

    def __init__(self, *responses: list[Any] | Exception) -> None:
        self.responses, self.calls, self.timeouts = list(responses), [], []

    def broadcast(self, method: str, argument: Any) -> Broadcast:
        self.calls.append(method)
        return Broadcast(self.responses.pop(0) if len(self.responses) > 1 else self.responses[0], self.timeouts)


MODEL, OTHER = (LoadedModel(version, CLASSES, True) for version in (V1, V2))


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that goes on by the pauses only."""
    now = [0.0]
    clock = SimpleNamespace(sleep=lambda seconds: now.__setitem__(0, now[0] + seconds), monotonic=lambda: now[0])
    monkeypatch.setattr(ray_serve, "time", clock)
    return now


def errors() -> list[Callable[[], Exception]]:
    ray_exceptions = pytest.importorskip("ray.serve.exceptions", exc_type=ImportError)
    return [lambda: ray_exceptions.RayServeException("no replica yet"), lambda: TimeoutError("no answer")]


@pytest.mark.parametrize("error", [0, 1])
def test_loading_waits_until_all_replicas_are_known(no_pauses: list[float], error: int) -> None:
    handle = Handle(errors()[error](), [MODEL], [MODEL, MODEL])
    found = Replicas(handle, 2)
    assert found.load(V1) == MODEL and found.loaded == {V1: MODEL} and len(handle.calls) == 3


def test_a_replica_that_stays_away_does_not_keep_the_others_from_serving(no_pauses: list[float]) -> None:
    assert Replicas(Handle([MODEL]), 2).load(V1) == MODEL and no_pauses[0] > 20


def test_a_model_that_can_not_be_loaded_is_reported_at_once_and_replicas_that_fail_after_a_while(no_pauses: list[float]) -> None:
    outer = errors()[0]()
    outer.__cause__ = UserError("models:/shapes/1 can't be fetched")
    handle = Handle(outer)
    found = Replicas(handle, 1)
    with pytest.raises(UserError, match="models:/shapes/1 can't be fetched"):
        found.load(V1)
    assert no_pauses == [0.0] and not found.loaded
    assert handle.calls == ["load", "drop"], "other replicas may have loaded it"
    assert handle.timeouts[1] <= 10 < 600 < handle.timeouts[0], "those that are still loading it drop it later"
    with pytest.raises(UserError, match="the replicas fail: no replica yet"):
        Replicas(Handle(errors()[0]()), 1).load(V1)
    assert no_pauses[0] > 20


def test_dropping_never_fails(no_pauses: list[float]) -> None:
    found = Replicas(Handle([MODEL], errors()[0]()), 1)
    found.load(V1)
    found.drop([V1])
    assert not found.loaded


@dataclass
class Method:
    """A method of a handle: its results, one after the other, and what it was given."""

    results: list[Any]
    given: list[tuple[Any, ...]] = field(default_factory=list)

    def remote(self, *given: Any) -> Any:
        self.given.append(given)

        async def wait() -> Any:
            if isinstance(result := self.results.pop(0), Exception):
                raise result
            return result

        return wait()


def test_an_image_is_asked_for_once_more_where_its_replica_dies() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    predict = Method([exceptions.RayActorError(), "answer"])
    found = Replicas(SimpleNamespace(predict=predict), 1)
    assert asyncio.run(found.predict(V1, PHOTO, True, False)) == "answer"
    assert predict.given == [(V1, PHOTO, True, False)] * 2


def test_the_mask_of_one_version_is_compared_with_that_of_the_other() -> None:
    method = Method([0.25])
    found = Replicas(SimpleNamespace(different_pixels=method), 1)
    assert asyncio.run(found.different_pixels(MODEL, PHOTO, OTHER, b"mask")) == 0.25
    assert method.given == [(MODEL, PHOTO, OTHER, b"mask")]


@pytest.mark.parametrize(
    ("status", "running"),
    [
        ("RUNNING", 2),
        ("UNHEALTHY", 2),
        ("DEPLOYING", 2),
        ("DEPLOY_FAILED", None),
        ("NOT_STARTED", None),
        ("DELETING", None),
        (None, None),
    ],
)
def test_only_replicas_that_run_count_and_a_model_that_was_given_up_has_none(
    status: str | None, running: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = pytest.importorskip("ray.serve", exc_type=ImportError)
    schema = pytest.importorskip("ray.serve.schema", exc_type=ImportError)
    assert status is None or status in {each.value for each in schema.ApplicationStatus}, "Ray Serve's own words"
    deployments = {"replica": SimpleNamespace(replica_states={"RUNNING": 2, "STARTING": 1})}
    app = SimpleNamespace(status=status, deployments=deployments)
    applications = {"other": SimpleNamespace(status="RUNNING", deployments=deployments)} | ({"deconvnet": app} if status else {})
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=applications))
    assert running_replicas() == running


@pytest.mark.parametrize("shared", [True, False])
def test_replicas_get_the_number_the_size_and_the_nodes_of_the_settings(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    serve = pytest.importorskip("ray.serve", exc_type=ImportError)
    options: dict[str, Any] = {}
    ended: list[str] = []
    model = ServedModel(V1, "store", replicas=3, cpus=2, gpus=0.5)

    def deployment(kind: type, **given: Any) -> SimpleNamespace:
        options.update(given, kind=kind)
        return SimpleNamespace(bind=lambda *bound: bound)

    def run(bound: tuple[ServedModel], **given: Any) -> Handle:
        assert bound == (model,) and given["name"] == "deconvnet" and given["route_prefix"] is None
        return Handle([MODEL] * 3)

    replaced = {
        "status": lambda: SimpleNamespace(proxies={}, applications={}),
        "start": lambda **given: options.update(proxy=given["proxy_location"]),
        "deployment": deployment,
        "run": run,
        "delete": ended.append,
        "shutdown": lambda: ended.append("shutdown"),
    }
    for name, function in replaced.items():
        monkeypatch.setattr(serve, name, function)
    with run_replicas(model, {"pool": "gpu"}, shared_ray=shared) as replicas:
        assert replicas.loaded == {V1: MODEL} and not ended
    assert ended == ["deconvnet", "shutdown"][: 1 + shared]
    assert options["proxy"] == "Disabled", "Ray Serve's own HTTP server keeps bodies of any size"
    assert options["kind"] is Replica and options["num_replicas"] == 3
    assert options["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0.5, "label_selector": {"pool": "gpu"}}
    assert options["max_ongoing_requests"] == ray_serve._ONGOING_REQUESTS, "Ray Serve's own limit is 5"
    assert options["graceful_shutdown_timeout_s"] == ray_serve._SHUTDOWN_SECONDS, "Ray Serve kills replicas after 20 s"
    with pytest.raises(UserError, match="already runs Ray Serve"):
        monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(proxies={}, applications={"another": None}))
        run_replicas(model).__enter__()


def test_a_call_that_is_given_up_is_cancelled_in_the_replica() -> None:
    class Response:
        cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

        def __await__(self) -> Any:
            return asyncio.Event().wait().__await__()

    async def run() -> bool:
        response = Response()
        task = asyncio.ensure_future(ray_serve._result(response))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return response.cancelled

    assert asyncio.run(run())


def test_a_missing_ray_serve_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray.serve", None)
    with pytest.raises(UserError, match=r"Ray Serve is not installed; .*: pip install -c constraints\.txt -e '\.\[serve\]'"):
        check_installed()


def test_the_reason_of_a_failed_replica_is_its_last_exception() -> None:
    report = """Deploying application deconvnet failed: Failed to update the deployments ['replica'].
Traceback (most recent call last):
  File "/x/registry.py", line 71, in fetch
    raise UserError("models:/shapes/2 can't be fetched: no such file") from error
infra.errors.UserError: models:/shapes/2 can't be fetched: no such file"""
    assert failure_reason(report) == "models:/shapes/2 can't be fetched: no such file"
    assert failure_reason("no room") == "no room"
