"""The application in front of the predicting processes: paths, limits, metrics, and clients that go."""

import asyncio
import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deconvnet.evaluation import drift
from deconvnet.evaluation.drift import PredictionStatistics
from deconvnet.serving import app as serving_app
from deconvnet.serving import limits
from deconvnet.serving.app import ServingApp
from deconvnet.serving.limits import Limits
from deconvnet.serving.routing import LoadedModel
from tests.deconvnet.serving.asgi import CLASSES, FOREVER, GONE, PHOTO, PNG, Predictors, Received, ask, call, error, loaded, made


def test_a_mask_is_passed_on_with_its_headers_and_the_version_that_made_it() -> None:
    reply = ask(made(), body=PHOTO)
    assert (reply.status, reply.body, reply.headers["content-type"]) == (200, PNG, "image/png")
    assert reply.headers["x-model"] == "net version 1" and reply.headers["x-confidence"] == "0.750"
    assert reply.headers["server-timing"].startswith("wait;dur=0.0, crf;dur=500.0")
    assert "connection" not in reply.headers


def test_page_health_version_and_metrics_are_answered_while_all_processes_are_busy() -> None:
    predictors = Predictors()
    app = made(predictors, ready=False)

    async def run() -> dict[str, Received]:
        busy = asyncio.ensure_future(call(app, body=PHOTO))
        await predictors.asked(1)
        found = {path: await call(app, "GET", path) for path in serving_app.PATHS}
        assert {(await call(app, "HEAD", path)).status for path in serving_app.PATHS} == {200}, "some balancers ask so"
        predictors.open.set()
        assert (await busy).status == 200
        return found

    found = asyncio.run(run())
    assert {reply.status for reply in found.values()} == {200}
    assert json.loads(found["/healthz"].body) == {"status": "ok", "model": "net version 1", "classes": list(CLASSES)}
    assert b"net version 1" in found["/"].body and found["/"].headers["content-type"].startswith("text/html")
    assert json.loads(found["/version"].body)["version"] == "1"
    assert b"deconvnet_requests_waiting 1.0" in found["/metrics"].body
    assert b"deconvnet_upload_bytes 6.0" in found["/metrics"].body


def test_an_overlay_is_asked_for_and_the_page_has_the_colours_of_classes_without_a_background() -> None:
    app = ServingApp(predictors := Predictors(), replace(loaded(1), background=False), Limits())
    predictors.open.set()
    for query in ("overlay=1", ""):
        assert ask(app, body=PHOTO, query=query).status == 200
    assert predictors.options == [(True, False), (False, False)]
    shown = [b"rgb(0 0 0)" in ask(each, "GET", "/").body for each in (app, made())]
    assert shown == [False, True], "black is the colour of the background"


def test_health_is_503_where_no_process_predicts() -> None:
    app = made()
    app.healthy = False
    reply = ask(app, "GET", "/healthz")
    assert reply.status == 503 and json.loads(reply.body)["status"] == "unavailable"


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        ({"path": "/other"}, 404, "nothing at /other"),
        ({"method": "PUT"}, 405, "PUT is not supported"),
        ({"path": "/healthz"}, 405, "POST is not supported"),
        ({"query": "overlay=perhaps"}, 400, "overlay=perhaps is neither"),
        ({"content_type": "multipart/form-data; boundary=x", "body": [b"--x"]}, 415, "the body is a form"),
        ({"body": [b""]}, 400, "the body is empty"),
        ({"body": [b"text"]}, 400, "not an image"),
        ({"body": [b"x" * 10_000] * 3}, 413, "the body is larger than"),
        ({"content_length": "20001"}, 413, "the body is larger than"),
    ],
)
def test_a_request_that_can_not_be_used_is_refused_with_a_status_and_a_message(
    request_: dict[str, Any], status: int, sentence: str
) -> None:
    reply = ask(made(), **request_)
    assert reply.status == status and sentence in error(reply) and reply.headers["x-model"] == "net version 1"


def test_a_body_that_is_too_large_is_not_kept_and_read_only_a_little_further() -> None:
    declared = ask(made(), content_length="20001", body=[b"x" * 10_000] * 9)
    assert declared.status == 413 and declared.chunks == 2 and declared.headers["connection"] == "close"
    chunked = ask(made(), body=[b"x" * 10_000] * 9)
    assert chunked.status == 413 and chunked.chunks == 3 + 2
    within = ask(made(), content_length="20000", body=[b"x" * 10_000] * 2)
    assert within.status == 200


def test_a_client_that_sends_half_a_body_is_refused_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(limits, "_LINGER_SECONDS", 0.01)
    app = made()

    async def run() -> tuple[list[Received], Received]:
        slow = [asyncio.ensure_future(call(app, body=[b"x", FOREVER])) for _ in range(50)]
        await asyncio.sleep(0)
        honest = await call(app, body=PHOTO)
        assert not any(each.done() for each in slow)
        return await asyncio.gather(*slow), honest

    slow, honest = asyncio.run(run())
    assert honest.status == 200 and {each.status for each in slow} == {408}
    assert b'deconvnet_requests_total{code="408"} 50.0' in ask(app, "GET", "/metrics").body


def test_where_too_many_wait_more_are_refused_with_the_time_to_try_again() -> None:
    predictors = Predictors()
    app = made(predictors, ready=False, limits=Limits(max_waiting=2, max_bytes=20_000))

    async def run() -> None:
        waiting = [asyncio.ensure_future(call(app, body=PHOTO)) for _ in range(2)]
        await predictors.asked(2)
        refused = await call(app, body=[b"x" * 10_000] * 9)
        assert refused.status == 429 and "2 requests are waiting" in error(refused)
        assert refused.chunks == 2, "a part of its body was discarded, and nothing kept"
        assert (await call(app, "GET", "/healthz")).status == 200
        predictors.open.set()
        assert {each.status for each in await asyncio.gather(*waiting)} == {200}
        assert (await call(app, body=PHOTO)).status == 200

    asyncio.run(run())


@pytest.mark.parametrize(("replicas", "answers", "seconds"), [(1, 0, "4"), (2, 0, "2"), (1, 5, "3")])
def test_the_time_to_try_again_follows_the_latest_answers_and_the_number_of_processes(
    replicas: int, answers: int, seconds: str
) -> None:
    """Eight requests wait. A prediction takes half a second, but before the first answer a second is assumed."""
    app = made(predictors := Predictors(), limits=Limits(max_waiting=8), replicas=replicas)

    async def run() -> str:
        for _ in range(answers):
            await call(app, body=PHOTO)
        predictors.open.clear()
        waiting = [asyncio.ensure_future(call(app, body=PHOTO)) for _ in range(8)]
        await predictors.asked(answers + 8)
        refused = await call(app, body=PHOTO)
        predictors.open.set()
        await asyncio.gather(*waiting)
        return refused.headers["retry-after"]

    assert asyncio.run(run()) == seconds


def test_a_body_that_arrives_when_the_server_has_become_full_is_refused() -> None:
    predictors = Predictors()
    app = made(predictors, ready=False, limits=Limits(max_waiting=1))

    async def run() -> None:
        rest = asyncio.Event()
        late = asyncio.ensure_future(call(app, body=[b"x", rest, b"y"]))
        await asyncio.sleep(0)
        first = asyncio.ensure_future(call(app, body=[b"x"]))
        await predictors.asked(1)
        rest.set()
        assert (await late).status == 429
        predictors.open.set()
        assert (await first).status == 200 and len(predictors.calls) == 1

    asyncio.run(run())


def test_nobody_predicts_for_a_client_that_has_gone() -> None:
    predictors = Predictors()
    app = made(predictors, ready=False)
    reply = ask(app, body=[b"x", GONE])
    assert reply.status == 0 and not predictors.calls
    reply = asyncio.run(_gone_after_its_body(app))
    assert reply.status == 0 and predictors.calls == ["1"] and predictors.cancelled == 1 and app.routes.in_flight == 0


async def _gone_after_its_body(app: ServingApp) -> Received:
    """A client that sends a whole body, and goes before the reply."""
    messages = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError("nobody is there")

    await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
    await asyncio.sleep(0)
    return Received()


def test_a_prediction_that_takes_too_long_is_given_up() -> None:
    predictors = Predictors()
    reply = ask(made(predictors, ready=False, limits=Limits(request_timeout=0.01)), body=PHOTO)
    assert reply.status == 504 and "within 0.01 s" in error(reply) and predictors.cancelled == 1
    assert reply.headers["retry-after"] == "1"


def test_an_error_of_a_process_is_logged_and_does_not_reach_the_client(caplog: pytest.LogCaptureFixture) -> None:
    reply = ask(made(Predictors(error=RuntimeError("secret"))), body=PHOTO)
    assert reply.status == 500 and "secret" not in error(reply) and "net version 1 could not predict" in caplog.text


def test_an_error_of_the_server_itself_is_logged_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The web server answers with 500, and logs nothing."""
    app = made()
    with monkeypatch.context() as patch:
        patch.setattr(app, "_version", lambda: {}["number"])
        with pytest.raises(KeyError):
            ask(app, "GET", "/version")
    assert "GET /version could not be answered" in caplog.text and "KeyError" in caplog.text
    text = ask(app, "GET", "/metrics").body
    assert b'deconvnet_requests_total{code="500"} 1.0' in text and b'code="499"' not in text


@pytest.mark.parametrize(("method", "answering"), [("GET", 0), ("POST", 1)])
def test_a_reply_that_the_client_does_not_take_is_given_up_and_counts_as_unanswered_until_then(
    method: str, answering: int
) -> None:
    app, body = made(limits=Limits(read_timeout=0.01)), [{"type": "http.request", "body": b"x"}]

    async def receive() -> dict[str, Any]:
        return body.pop() if body else await asyncio.Event().wait()

    counted: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        counted.append(app.routes.in_flight)
        await asyncio.Event().wait()

    scope = {"type": "http", "method": method, "path": "/", "headers": []}
    asyncio.run(app(scope, receive, send))
    assert counted == [answering] and app.routes.in_flight == 0
    assert b'deconvnet_requests_total{code="499"} 1.0' in ask(app, "GET", "/metrics").body


def test_metrics_count_codes_durations_and_confidences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by two seconds from the arrival of a request to the end of its prediction."""
    monkeypatch.setattr(serving_app, "time", SimpleNamespace(perf_counter=itertools.count(0, 2).__next__))
    app = made()
    timing = [ask(app, body=body).headers["server-timing"] for body in ([b"photo"], [b"photo"], [b"text"])]
    assert timing[1] == "wait;dur=1500.0, crf;dur=500.0"
    text = ask(app, "GET", "/metrics").body.decode()
    assert 'deconvnet_requests_total{code="200"} 2.0' in text and 'deconvnet_requests_total{code="400"} 1.0' in text
    assert "deconvnet_prediction_seconds_count 2.0" in text and "deconvnet_prediction_seconds_sum 4.0" in text
    assert 'deconvnet_confidence_sum{model="net",version="1"} 1.5' in text
    assert "deconvnet_upload_bytes 0.0" in text
    assert (
        'deconvnet_boxes_sum{model="net",version="1"} 60.0' in text
        and 'deconvnet_boxes_count{model="net",version="1"} 2.0' in text
    )


def test_metrics_have_the_drift_of_the_versions_that_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers have the confidence 0.75 and a quarter of "cat". On val both were other; version 3 has no statistics."""
    monkeypatch.setattr(drift, "MIN_ANSWERS", 2)
    statistics = [PredictionStatistics(40, {"background": b, "cat": 1 - b}, [0.6], [0.5, 0.5]) for b in (0.75, 0.5)]
    first, second = (replace(loaded(number), statistics=each) for number, each in enumerate(statistics, 1))
    app = ServingApp(Predictors(), first, Limits(max_bytes=20_000), canary=0.5)
    app._predictors.open.set()  # type: ignore[attr-defined]

    def drifts(*answering: LoadedModel, answers: int) -> dict[str, float]:
        app.routes.change(answering[0].version, answering[1].version if answering[1:] else None)
        app.announce(answering[0], answering[1] if answering[1:] else None)
        for _ in range(answers):
            ask(app, body=PHOTO)
        text = ask(app, "GET", "/metrics").body.decode()
        found = re.findall(r'^deconvnet_drift_psi\{model="net",of="(\w+)",version="(\d)"\} (\S+)$', text, re.MULTILINE)
        return {f"{what} {version}": float(value) for what, version, value in found}

    confidence = pytest.approx((1 - 0.5) * np.log(1 / 0.5) + (0.0001 - 0.5) * np.log(0.0001 / 0.5))
    classes = pytest.approx(2 * 0.25 * np.log(0.75 / 0.5) / 2 + (0.25 - 0.5) * np.log(0.25 / 0.5))
    assert drifts(first, answers=1) == {}, "too few answers"
    assert drifts(first, answers=1) == {"confidence 1": confidence, "classes 1": 0}
    assert drifts(first, second, answers=4) == {
        "confidence 1": confidence,
        "classes 1": 0,
        "confidence 2": confidence,
        "classes 2": classes,
    }
    assert drifts(second, answers=0) == {"confidence 2": confidence, "classes 2": classes}, "version 1 answers no longer"
    assert drifts(loaded(3), answers=4) == {}
