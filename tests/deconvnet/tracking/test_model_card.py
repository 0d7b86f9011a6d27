"""The model card: that it says what the run knows and no more, and that names can't break it."""

from typing import Any

import pytest
import yaml

from deconvnet.reporting.run_summary import Rejects
from deconvnet.tracking.texts.descriptions import escaped, version_description
from deconvnet.tracking.texts.model_card import model_card
from tests.deconvnet.example_run import CLASSES, SCRIPT_TAG, example_results, example_summary

SIZES = {
    "edges": [0.0, 0.01, 0.1, 1.0],
    "objects": [40, 0, 7],
    "mean_iou": {"edeconvnet_crf": [0.125, None, 0.75], "fcn8s": [0.5, None, 0.5]},
}


def measured_results() -> dict[str, Any]:
    """The results of an evaluation by the present version: the classes in another order by IoU, boundary F and Boundary IoU."""
    results = example_results()
    row = {**results["rows"]["edeconvnet_crf"], "boundary_f": 0.345, "boundary_iou": 0.45678}
    row["iou"] = {"background": 0.9, "cat": 0.1234, SCRIPT_TAG: None, CLASSES[3]: 0.5}
    row["boundary_f_by_class"] = {"background": 0.7, "cat": 0.2, SCRIPT_TAG: None, CLASSES[3]: 0.3}
    row["boundary_iou_by_class"] = {"background": 0.6, "cat": 0.1, SCRIPT_TAG: None, CLASSES[3]: 0.2}
    return {**results, "expected_calibration_error": 0.0456, "rows": {**results["rows"], "edeconvnet_crf": row}}


def card(sizes: dict[str, Any] | None = None, **settings: Any) -> tuple[dict[str, Any], str]:
    """The head and the rest of the card of an example, whose run had these settings."""
    text = model_card("my_net", example_summary(results=measured_results(), settings=settings), sizes)
    empty, head, rest = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head), rest


def test_the_head_has_the_measured_values_for_hugging_face() -> None:
    head, _ = card()
    (model,) = head["model-index"]
    (found,) = model["results"]
    assert model["name"] == "my_net" and head["pipeline_tag"] == found["task"]["type"] == "image-segmentation"
    values = {each["type"]: each["value"] for each in found["metrics"]}
    assert values == {"mean_iou": 0.6123, "pixel_accuracy": 0.875, "boundary_f": 0.345, "boundary_iou": 0.4568}
    assert found["dataset"]["name"] == "cats & dogs val" and "license" not in head, "its user's data may have any"


def test_the_card_has_the_data_and_the_results_by_class() -> None:
    _, text = card(SIZES, seed=7, model={"input_size": 96, "fcn_input_size": 400, "vgg16": "s3://bucket/x/vgg16-imagenet.npz"})
    assert "| train | 9,000 |" in text and "made on *dev*" in text and "5 inputs were left out: not an image (4); " in text
    assert "| EDeconvNet+CRF | 61.2 | 87.5 | 34.5 | 45.7 | 72.5 |" in text
    assert "| cat | 12.3 | 20.0 | 10.0 |" in text and f"| {escaped(SCRIPT_TAG)} | – | – | – |" in text
    assert "off by 4.6 points on average" in text
    assert "VGG-16's weights in the file `vgg16-imagenet.npz`" in text and "s3://" not in text
    for sentence in (
        f"Trained by the run *{escaped(f'mine · {SCRIPT_TAG}')}* with the code c0ffee+; this card is of 2026-11-23. ",
        "The results were measured on\n*cats &amp; dogs val*, 1,234 images.",
        f"5 inputs were left out: not an image (4); {escaped(SCRIPT_TAG)} (1).",
        f"Digest of the images and masks: `{'d1' * 32}`.",
        "DeconvNet learns from crops of 96 px, FCN-8s from whole images of up to 400 px. Seed: 7.",
    ):
        assert sentence in text


def test_only_the_first_reasons_of_rejection_are_listed() -> None:
    reasons = {f"reason {number}": 10 - number for number in range(7)}
    text = model_card("n", example_summary(rejects=Rejects(reasons, {name: [] for name in reasons})))
    assert "49 inputs were left out: reason 0 (10); " in text and "; reason 4 (6); and 2 other reasons." in text


def test_the_limits_are_those_that_the_results_show_and_the_settings_set() -> None:
    _, text = card(SIZES, segment={"max_side": 1024}, data={"max_pixels": 25_000_000})
    weakest = f"cat 12.3 %, {escaped(CLASSES[3])} 50.0 %, background 90.0 %"
    assert f"Least accurate classes (IoU): {weakest}." in text
    assert f"Not measured, because no evaluated image shows them: {escaped(SCRIPT_TAG)}." in text
    assert "12.5 % if they cover 0–1 % of the image (40), 75.0 % if they cover 10–100 % of the image (7)." in text
    assert "exceeds 1,024 px" in text and "more than 25,000,000 pixels" in text
    _, text = card()
    assert "objects by size" not in text and "px" not in text.split("## Limits")[1]


@pytest.mark.parametrize(
    ("settings", "said", "not_said"),
    [
        ({"model": {"vgg16": None}}, "start from random weights", "VGG-16"),
        ({"init": {"from": "models:/net/3"}, "model": {"vgg16": "v.npz"}}, "what `models:/net/3` was learned from", "VGG-16"),
        ({"proposals": {"kind": "both", "edges": "forest"}}, "BSDS500", "`mine.yml.gz`"),
        ({"proposals": {"kind": "both", "edges": "forest", "edge_model": "/x/mine.yml.gz"}}, "detector `mine.yml.gz`", "BSDS500"),
        ({"proposals": {"kind": "windows", "edges": "forest"}}, "BSDS500", "`mine.yml.gz`"),
        ({"proposals": {"kind": "edgebox", "edges": "gradient"}}, "*cats &amp; dogs*", "BSDS500"),
    ],
)
def test_licences_are_named_as_far_as_they_are_known(settings: dict[str, Any], said: str, not_said: str) -> None:
    _, text = card(**settings)
    assert said in text and not_said not in text
    assert "does not know the terms of these data and weights" in text


def test_names_can_not_break_a_card() -> None:
    _, text = card(SIZES)
    assert "<script" not in text and escaped(CLASSES[3]) in text
    assert "a|b" not in text.replace(r"\|", ""), "a class's name ends no cell"


def test_a_card_of_results_of_an_earlier_version_leaves_out_what_was_not_measured() -> None:
    text = model_card("n", example_summary(settings={}, rejects=Rejects(), splits={}, digest=""))
    assert "| cat | 12.3 | – | – |" in text and "*dev*" not in text
    assert "calibration" not in text and "left out: " not in text


def test_a_versions_description_links_to_its_card() -> None:
    assert "[Model card](x/y?p=model_card.md): data" in version_description(measured_results(), "x/y?p=model_card.md")
    assert "Model card" not in version_description(measured_results())
