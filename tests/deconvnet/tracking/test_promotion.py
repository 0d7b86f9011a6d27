"""The decision who becomes champion, and its record in the registry."""

import pytest
from mlflow import MlflowClient

from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.promotion import Decision, compare, promote, set_champion, version_to_beat
from deconvnet.tracking.registry import CHAMPION, aliases
from infra.errors import UserError

CLASSES = ["background", "cat", "dog"]


def results(mean_iou: float | None, images: int = 9, **iou: float | None) -> dict:
    row = {"mean_iou": mean_iou, "pixel_accuracy": 0.9, "iou": {"background": 0.9, "cat": 0.5, "dog": 0.5} | iou}
    return {"classes": CLASSES, "images": images, "rows": {"edeconvnet_crf": row, "fcn8s": row | {"mean_iou": 0.99}}}


@pytest.mark.parametrize(
    ("champion", "challenger", "promoted", "text"),
    [
        (results(0.5), results(0.55), True, "55.0 % against the champion's 50.0 %"),
        (results(0.5), results(0.51), True, "no class falls by more than 0.0 points"),  # a rise of just the margin
        (results(0.5), results(0.509), False, "at least 1.0 points"),
        (results(0.5), results(0.4), False, "retrain.margin"),
        (results(0.5), results(0.6), True, ""),
        (results(0.5), results(0.6, cat=0.4), True, "no class falls by more than 10.0 points"),
        (results(0.5), results(0.6, cat=0.39), False, "cat falls by 11.0 points"),
        (results(0.5, cat=None), results(0.6, cat=0.1), True, ""),  # it has no IoU to fall from
        (results(None), results(0.1), True, "against the champion's –"),
    ],
)
def test_the_challenger_is_promoted_by_margin_and_class_drop(champion, challenger, promoted, text) -> None:
    decision = compare(champion, challenger, margin=0.01, max_class_drop=0.1)
    assert decision.promoted is promoted and text in decision.reason


def test_results_on_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError):
        compare(results(0.5), results(0.6, images=10), 0, 1)


@pytest.fixture
def registry(tmp_path):
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", "e")
    tracker.client.create_registered_model("net")
    for _ in range(2):
        tracker.client.create_model_version("net", f"file://{tmp_path}/model")
    return tracker


def test_a_promoted_challenger_gets_the_alias_and_the_reason(registry) -> None:
    client: MlflowClient = registry.client
    client.set_registered_model_alias("net", "challenger", "1")
    assert version_to_beat(registry.uri, "net") == 1
    client.set_registered_model_alias("net", CHAMPION, "1")
    client.set_registered_model_alias("net", "challenger", "2")
    assert version_to_beat(registry.uri, "net") == 1
    with registry.pipeline("p", {}) as run:
        for _ in range(2):  # doing it twice changes nothing
            assert promote(run, registry.uri, "net", 2, 1, Decision(True, "because it is better")) == 2
    assert aliases(registry.uri, "net") == {"champion": 2, "challenger": 2}
    version = client.get_model_version("net", "2")
    assert version.tags["verdict"] == "promoted" and version.tags["verdict.against"] == "version 1"
    assert version.description.count("because it is better") == 1
    assert client.get_run(run.run_id).data.tags["verdict.why"] == "because it is better"


def test_the_models_description_shows_who_was_champion(registry) -> None:
    client: MlflowClient = registry.client
    client.update_registered_model("net", "Ours since May.")
    with registry.pipeline("p", {}) as run:
        promote(run, registry.uri, "net", 1, None, Decision(True, "there was no champion"))
        first = client.get_model_version("net", "1").tags["verdict.on"]
        promote(run, registry.uri, "net", 2, 1, Decision(False, "cat | falls"))
    page = client.get_registered_model("net").description
    assert page.startswith("Ours since May.\n\n### What this model is") and page.count("### What this model is") == 1
    rows = [line for line in page.splitlines() if line.startswith(("| 1 |", "| 2 |"))]
    assert f"| not promoted {first} against version 1: cat \\| falls |  |" in rows[0]
    assert f"| promoted {first}: there was no champion | champion |" in rows[1]
    assert "models:/net@champion" in page
    set_champion(registry.uri, "net", 2)
    rows = [line for line in client.get_registered_model("net").description.splitlines() if line.startswith("| 2 |")]
    assert rows[0].endswith("| champion |")


def test_a_repeated_decision_keeps_its_day(registry) -> None:
    registry.client.set_model_version_tag("net", "2", "verdict", "promoted")
    registry.client.set_model_version_tag("net", "2", "verdict.on", "2026-01-02")
    with registry.pipeline("p", {}) as run:
        promote(run, registry.uri, "net", 2, None, Decision(True, "x"))
        assert registry.client.get_model_version("net", "2").tags["verdict.on"] == "2026-01-02"
        promote(run, registry.uri, "net", 2, None, Decision(False, "x"))
        assert registry.client.get_model_version("net", "2").tags["verdict.on"] != "2026-01-02"


def test_the_champion_stays_if_the_challenger_is_worse_and_without_one_the_challenger_is_promoted(registry) -> None:
    with registry.pipeline("p", {}) as run:
        assert promote(run, registry.uri, "net", 2, 1, Decision(False, "worse")) == 1
        assert aliases(registry.uri, "net") == {"champion": 1}
        assert registry.client.get_model_version("net", "2").tags["verdict"] == "not promoted"
        registry.client.delete_registered_model_alias("net", CHAMPION)
        assert promote(run, registry.uri, "net", 2, None, Decision(True, "there was no champion")) == 2


def test_a_model_that_does_not_exist_has_no_aliases(registry) -> None:
    assert aliases(registry.uri, "other") == {} and version_to_beat(registry.uri, "other") is None


def test_a_registry_that_does_not_answer_is_a_user_error(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for ask in (lambda uri: aliases(uri, "net"), lambda uri: set_champion(uri, "net", 1)):
        with pytest.raises(UserError, match=r"registry at http://127.0.0.1:9 can't be used for net") as caught:
            ask("http://someone:word@127.0.0.1:9")
        assert "word" not in str(caught.value)


def test_an_equal_mean_iou_is_never_promoted() -> None:
    assert not compare(results(0.5), results(0.5), margin=0, max_class_drop=1).promoted
    assert compare(results(0.5), results(0.5001), margin=0, max_class_drop=1).promoted


@pytest.mark.parametrize("promoted", [True, False])
def test_a_version_that_became_champion_meanwhile_stays_champion(registry, promoted) -> None:
    """The challenger was not compared with that version, which a user or another run promoted."""
    registry.client.create_model_version("net", "file:///model")
    registry.client.set_registered_model_alias("net", CHAMPION, "3")
    with registry.pipeline("p", {}) as run:
        assert promote(run, registry.uri, "net", 2, 1, Decision(promoted, "measured against 1")) == 3
    assert aliases(registry.uri, "net") == {"champion": 3}
    version = registry.client.get_model_version("net", "2")
    assert version.tags["verdict"] == "not promoted" and "version 3 became champion meanwhile" in version.description


def test_a_rejected_challenger_is_not_the_version_to_beat(registry) -> None:
    registry.client.set_registered_model_alias("net", "challenger", "2")
    assert version_to_beat(registry.uri, "net") == 2
    registry.client.set_model_version_tag("net", "2", "verdict", "not promoted")
    assert version_to_beat(registry.uri, "net") is None
