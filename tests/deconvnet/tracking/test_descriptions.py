"""The descriptions in MLflow: what they contain, and that names can't break them."""

import pytest
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag, RegisteredModel, RegisteredModelAlias

from deconvnet.reporting.run_summary import Rejects
from deconvnet.tracking.texts.descriptions import (
    MAX_LENGTH,
    MODEL_HEADING,
    escaped,
    model_description,
    run_description,
    run_name,
    stage_description,
    truncated,
    version_description,
)
from tests.deconvnet.ensembles import RESULTS
from tests.deconvnet.example_run import SCRIPT_TAG, example_results, example_summary


def test_the_description_of_a_run_has_its_results() -> None:
    note = run_description(example_summary(), "abc123")
    assert "| EDeconvNet+CRF | 61.2 | 87.5 | – | – | 72.5 |" in note and "| FCN-8s | 50.1 | 87.5 | – | – | 62.2 |" in note
    assert note.startswith("**EDeconvNet+CRF: 61.2 % mean IoU** on cats &amp; dogs val, 1,234 images.")
    assert "**Data**: 9,000 train, 40 dev, 1,234 val images, 4 classes. 5 inputs were rejected." in note
    assert "**Time**: 2 h 05 min." in note
    assert "(get-artifact?path=report%2Fcomparison.png&run_uuid=abc123)" in note
    assert "get-artifact" not in run_description(example_summary(figures={}), "abc123")
    assert "rejected" not in run_description(example_summary(rejects=Rejects()), "abc123")


def test_names_can_not_break_a_description() -> None:
    assert escaped(SCRIPT_TAG) == '&lt;script&gt;document.title="harmed"&lt;/script&gt;'
    assert escaped("a|b *c* [d](e)\n`f`") == r"a\|b \*c\* \[d\](e) \`f\`"
    note = run_description(example_summary(results=example_results() | {"dataset": f"{SCRIPT_TAG}|"}), "r")
    assert "<script" not in note and r"\|" in note


def test_no_description_is_longer_than_a_store_keeps() -> None:
    assert len(truncated("x" * 9000)) == MAX_LENGTH and truncated("short") == "short"
    assert len(run_description(example_summary(results=example_results() | {"dataset": "d" * 9000}), "r")) == MAX_LENGTH
    assert len(stage_description("verdict", {"promoted": True, "why": "w" * 9000, "version": 2, "champion": 2})) == MAX_LENGTH


@pytest.mark.parametrize(
    ("stage", "summary", "text"),
    [
        (
            "prepare",
            {"counts": {"train": 1000, "val": 5}, "rejects": 2, "changes": {"new": 3}},
            "**1,000 train, 5 val** images; 2 rejected. Since the previous run: 3 new.",
        ),
        ("proposals", {"images": 1005, "rejects": 0}, "**1,005 images**"),
        ("examples", {"stage1": 70, "stage1_dev": 2}, "**70 stage1, 2 stage1 dev** crops"),
        ("stage2", {"steps": 3}, "training_curves.png"),
        ("register", {"model": "my_net", "version": 3}, r"**my\_net version 3**"),
        (
            "verdict",
            {"promoted": False, "why": "a fall", "version": 4, "champion": 3},
            "is **not promoted**: a fall. Champion is version 3.",
        ),
        ("champion", {}, "Measures the model"),
        ("fcn8s_start", {"r2": {}}, "VGG-16"),
    ],
)
def test_the_description_of_a_stage_says_what_it_does_and_its_outcome(stage, summary, text) -> None:
    assert text in stage_description(stage, summary)
    first = stage_description(stage)
    assert (
        first
        and stage_description(stage, summary, "more").startswith(first)
        and stage_description(stage, summary, "more").endswith("more")
    )


def test_a_run_is_named_after_config_workspace_and_day() -> None:
    assert run_name("voc", "s3://b/runs/mine/", "2026-11-23") == "voc · mine · 2026-11-23"
    assert run_name("voc", "/x/voc", "2026-11-23") == "voc · 2026-11-23"


def test_the_description_of_a_version_has_the_results_that_were_measured() -> None:
    text = version_description(RESULTS)
    assert (
        "| FCN-8s | 62.2 | 90.0 | – | – |" in text
        and "| EDeconvNet+CRF | 72.5 | – | – | – |" in text
        and "| DeconvNet |" not in text
    )


def version(number: int, decision: str = "", tags: dict[str, str] | None = None) -> ModelVersion:
    measured = {"mean_iou.edeconvnet_crf": f"{0.5 + number / 1000:.4f}", "mean_iou.fcn8s": "0.4", "pixel_accuracy.fcn8s": "0.9"}
    tags = (measured if tags is None else tags) | ({"verdict": decision} if decision else {})
    return ModelVersion("net", str(number), 1_795_400_000_000, tags=[ModelVersionTag(*tag) for tag in tags.items()])


def model(name: str = "net", **aliases: int) -> RegisteredModel:
    return RegisteredModel(name, aliases=[RegisteredModelAlias(alias, str(number)) for alias, number in aliases.items()])


def test_the_description_of_a_model_shows_the_champion() -> None:
    versions = [version(3), version(2, "promoted"), version(1)]
    text = model_description(model(champion=2, challenger=3), "http://mlflow:5000", versions)
    assert text.startswith(MODEL_HEADING) and "Champion: version 2," in text
    assert "| FCN-8s | 40.0 | 90.0 | – | – |" in text and "| EDeconvNet+CRF | 50.2 | – | – | – |" in text
    assert 'mlflow.set_tracking_uri("http://mlflow:5000")' in text and 'load_model("models:/net@champion")' in text
    assert "mlflow models serve -m models:/net@champion" in text
    assert text.splitlines()[-3:] == [
        "| 3 | 2026-11-23 | 50.3 | not compared | challenger |",
        "| 2 | 2026-11-23 | 50.2 | promoted | champion |",
        "| 1 | 2026-11-23 | 50.1 | not compared |  |",
    ]


def test_the_description_of_a_model_without_a_champion_or_results() -> None:
    text = model_description(model(challenger=2), "u", [version(3), version(2)])
    assert "Challenger: version 2," in text and "@challenger" in text
    text = model_description(model(), "u", [version(3, tags={}), version(2)])
    assert "Newest: version 3," in text and "models:/net/3" in text and "It was not measured." in text


def test_the_description_of_a_model_lists_as_many_versions_as_fit() -> None:
    versions = [version(100 - i, "not promoted: " + "why " * 30) for i in range(100)]
    text = model_description(model(), "u", versions, 4000)
    shown = text.count("| 2026-11-23 |")
    assert 5 < shown < 30 and text.endswith(f"… and {100 - shown} older.") and 3700 < len(text) <= 4000
    assert len(model_description(model("n" * 200), "u" * 200, versions)) <= MAX_LENGTH
