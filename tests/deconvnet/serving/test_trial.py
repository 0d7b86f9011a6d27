"""A challenger that is tried out: the canary's share of the requests, and comparisons in the shadow."""

import asyncio
import json
import logging
import re
from dataclasses import replace

import pytest

from deconvnet.evaluation import drift
from deconvnet.evaluation.drift import PredictionStatistics
from deconvnet.serving.app import ServingApp
from deconvnet.serving.limits import Limits
from tests.deconvnet.serving.asgi import PHOTO, Predictors, Received, ask, call, loaded, made


def test_a_canary_answers_its_share_and_both_are_counted() -> None:
    app = made(predictors := Predictors(), canary=0.25)
    app.routes.change(loaded(1).version, loaded(2).version)
    app.announce(loaded(1), loaded(2))
    titles = [ask(app, body=PHOTO).headers["x-model"][-1] for _ in range(8)]
    assert "".join(titles) == "11121112" == "".join(predictors.calls)
    said = json.loads(ask(app, "GET", "/version").body)
    assert said["canary"] == {"version": "2", "share": 0.25} and said["shadow"] is None
    counted = {"mean_confidence": 0.75, "class_shares": {"background": 0.75, "cat": 0.25}}
    assert said["answers"] == {"1": {"answers": 6, **counted}, "2": {"answers": 2, **counted}}


def test_a_challenger_of_another_model_is_counted_on_its_own_though_its_number_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--challenger models:/other@champion`. All answers have a quarter of "cat", as net's predictions on val had."""
    monkeypatch.setattr(drift, "MIN_ANSWERS", 2)
    statistics = [PredictionStatistics(40, {"background": b, "cat": 1 - b}, [0.6], [0.5, 0.5]) for b in (0.75, 0.5)]
    net, other = (replace(loaded(3, name=name), statistics=each) for name, each in zip(("net", "other"), statistics, strict=True))
    app = ServingApp(Predictors(), net, Limits(max_bytes=20_000), canary=0.25, shadow=True)
    app._predictors.open.set()  # type: ignore[attr-defined]
    app.routes.change(net.version, other.version)
    app.announce(net, other)
    titles = [ask(app, body=PHOTO).headers["x-model"] for _ in range(8)]
    assert titles == (["net version 3"] * 3 + ["other version 3"]) * 2
    said = json.loads(ask(app, "GET", "/version").body)
    assert said["version"] == "3" and said["canary"]["version"] == said["shadow"]["version"] == "other version 3"
    assert {name: counted["answers"] for name, counted in said["answers"].items()} == {"3": 6, "other version 3": 2}
    text = ask(app, "GET", "/metrics").body.decode()
    for metric in ("confidence", "boxes"):
        found = dict(re.findall(rf'^deconvnet_{metric}_count\{{model="(\w+)",version="3"\}} (\S+)$', text, re.MULTILINE))
        assert found == {"net": "6.0", "other": "2.0"}
    found = dict(re.findall(r'^deconvnet_drift_psi\{model="(\w+)",of="classes",version="3"\} (\S+)$', text, re.MULTILINE))
    assert float(found["net"]) == 0 < 0.1 < float(found["other"])


def shadowed(predictors: Predictors, replicas: int = 1) -> ServingApp:
    app = ServingApp(predictors, loaded(1), Limits(), replicas=replicas, shadow=True)
    app.routes.change(loaded(1).version, loaded(2).version)
    app.announce(loaded(1), loaded(2))
    predictors.open.set()
    return app


async def after_shadows(app: ServingApp, bodies: int = 1) -> Received:
    """Send images one after the other, and return the last reply, when the challenger has predicted too."""
    for _ in range(bodies):
        reply = await call(app, body=PHOTO)
        while app._comparisons:
            await asyncio.sleep(0)
    return reply


@pytest.mark.parametrize("different", [0.25, RuntimeError("out of memory")])
def test_in_the_shadow_the_challenger_predicts_too_and_only_its_difference_is_logged(
    different: float | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    app = shadowed(predictors := Predictors(different=different))
    with caplog.at_level(logging.INFO):
        reply = asyncio.run(after_shadows(app, 2))
    assert reply.status == 200 and reply.headers["x-model"] == "net version 1"
    assert predictors.calls == ["1", "2 against 1"] * 2
    said = json.loads(ask(app, "GET", "/version").body)["shadow"]
    if isinstance(different, float):
        assert said == {"version": "2", "compared": 2, "skipped": 0, "failed": 0, "different_pixels": 0.25}
        assert "net version 2 differs from net version 1 in 25.0 % of an image's pixels" in caplog.text
    else:
        assert said == {"version": "2", "compared": 0, "skipped": 0, "failed": 2} and "out of memory" in caplog.text


@pytest.mark.parametrize(("replicas", "compared", "skipped"), [(1, 1, 2), (2, 2, 1)])
def test_the_shadow_does_not_keep_a_process_from_answering(replicas: int, compared: int, skipped: int) -> None:
    """Three images are answered at once."""
    app = shadowed(predictors := Predictors(), replicas)

    async def run() -> None:
        predictors.open.clear()
        busy = [asyncio.ensure_future(call(app, body=PHOTO)) for _ in range(3)]
        await predictors.asked(3)
        predictors.open.set()
        await asyncio.gather(*busy)
        while app._comparisons:
            await asyncio.sleep(0)

    asyncio.run(run())
    said = json.loads(ask(app, "GET", "/version").body)["shadow"]
    assert (said["compared"], said["skipped"]) == (compared, skipped)


def test_what_the_challenger_has_answered_is_not_compared_with_itself() -> None:
    app = ServingApp(predictors := Predictors(), loaded(1), Limits(), canary=0.5, shadow=True)
    app.routes.change(loaded(1).version, loaded(2).version)
    app.announce(loaded(1), loaded(2))
    predictors.open.set()
    asyncio.run(after_shadows(app, 4))
    assert predictors.calls == ["1", "2 against 1", "2"] * 2


def test_an_image_that_can_not_be_used_is_not_compared_and_another_challenger_is_counted_anew() -> None:
    app = shadowed(predictors := Predictors())
    asyncio.run(after_shadows(app))
    ask(app, body=[b"text"])
    assert predictors.calls == ["1", "2 against 1", "1"]
    app.announce(loaded(1), loaded(3))
    assert json.loads(ask(app, "GET", "/version").body)["shadow"] == {"version": "3", "compared": 0, "skipped": 0, "failed": 0}
