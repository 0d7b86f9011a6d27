"""Scenes without objects and without a background class: the pipeline by the local executor, from masks to a test split."""

import json
from pathlib import Path

import numpy as np
import pytest

from deconvnet.models.checkpoint import load_model
from deconvnet.reporting import evaluation_report
from infra.errors import Interrupted, UserError
from infra.storage import tables
from proposals.image_codec import decode_mask, encode_jpeg, encode_mask
from tests.conftest import ROOT
from tests.deconvnet.datasets.exporting.fiftyone_reader import read_dataset
from tests.workflows.commands import SMALL
from tests.workflows.doubles import untrained
from workflows import export
from workflows.evaluate import main
from workflows.pipelines.training import Pipeline
from workflows.settings import load

QUICKSTART = str(ROOT / "workflows/configs/quickstart.yaml")
CLASSES = ("sky", "road", "car")
_named = SMALL.index("--data.classes")
SCENES = [
    *SMALL[:_named],
    *SMALL[_named + 2 :],
    *("--data.classes", ",".join(CLASSES), "--data.background", "none", "--data.test_split", "test"),
    *("--proposals.kind", "windows", "--proposals.window_sizes", "1,0.5", "--segment.aggregation", "mean"),
    *("--examples.max_per_image", "5", "--segment.crf.iterations", "1"),
]


def write_scenes(root: Path) -> None:
    """Write street scenes in VOC's layout: sky above road, a car on some of them, and a void strip; no object masks."""
    rng = np.random.default_rng(0)
    lists = {"train": range(10), "val": range(10, 12), "test": range(12, 15)}
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, numbers in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(f"{i:02}" for i in numbers))
        for i in numbers:
            horizon, left = int(rng.integers(15, 30)), int(rng.integers(0, 40))
            mask = np.zeros((48, 64), np.uint8)
            mask[horizon:] = 1
            mask[horizon : horizon + 10, left : left + 14] = 2 if i % 3 == 1 else 1
            mask[:, -3:] = 255
            colours = np.array([[150, 180, 230], [90, 90, 90], [200, 30, 30]] + [[0, 0, 0]] * 253)
            image = np.clip(colours[mask] + rng.integers(-20, 20, (48, 64, 3)), 0, 255).astype(np.uint8)
            (root / f"JPEGImages/{i:02}.jpg").write_bytes(encode_jpeg(image))
            (root / f"SegmentationClass/{i:02}.png").write_bytes(encode_mask(mask))


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--workspace", str(folder / "run"), "--data.root", str(folder / "data"), *SCENES, *more]


def pipeline(folder: Path, *more: str) -> Pipeline:
    return Pipeline(load(QUICKSTART, *arguments(folder, *more)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and a finished run, whose networks have random weights."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "data")
    with untrained():
        pipeline(folder).run("scenes")
    return folder


def test_there_is_no_stage_1_and_stage_2_starts_from_the_initial_weights(trained: Path) -> None:
    run = trained / "run"
    assert [stage.name for stage in pipeline(trained).stages.stages] == [
        *("prepare", "proposals", "examples", "fcn8s", "stage2", "evaluate")
    ]
    assert not (run / "models/stage1").exists() and not (run / "examples/stage1").exists()
    assert load_model(str(run / "models/stage2"))[1]["classes"] == list(CLASSES)
    assert (run / "report/index.html").exists() and not (run / "report/examples_stage1.png").exists()


def test_no_pixel_becomes_background_and_no_region_an_object(trained: Path) -> None:
    rows = list(tables.iter_rows(str(trained / "run/images")))
    assert {row["split"] for row in rows} == {"train", "dev", "val", "test"}
    assert {tuple(np.unique(decode_mask(row["object_mask"]))) for row in rows} == {(0, 255)}
    examples = list(tables.iter_rows(str(trained / "run/examples/stage2")))
    assert (
        examples
        and max(sum(row["image_id"] == image_id for row in examples) for image_id in {r["image_id"] for r in examples}) == 5
    )
    extra = tables.require_commit(str(trained / "run/examples/stage2")).extra
    assert set(extra["examples_by_class"]) == {"0", "1", "2"} and all(
        set(np.unique(decode_mask(row["mask"]))) <= {0, 1, 2, 255} for row in examples
    )
    assert all(2 in row["class_ids"] for row in examples if (decode_mask(row["mask"]) == 2).mean() > 0.05)
    assert extra["repeats_by_class"]["2"] > 1 and {extra["repeats_by_class"][each] for each in "01"} == {1}


def test_results_are_of_all_classes_and_the_charts_of_objects_are_left_out(trained: Path) -> None:
    results = json.loads((trained / "run/report/results.json").read_text())
    assert results["images"] == 2 and results["classes"] == list(CLASSES)
    analysis = json.loads((trained / "run/report/analysis.json").read_text())
    assert sum(analysis["sizes"]["objects"]) == 0 and analysis["segmenter"]["background"] is False
    names = {path.name for path in (trained / "run/report").iterdir()}
    assert "iou_by_class.png" in names and not names & {"iou_by_size.png", "iou_by_proposals.png", "proposals.md"}


def test_the_test_split_is_evaluated_by_option_and_windows_may_overlap_more_than_in_training(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the evaluation is run again and interrupted, the results of before are gone: new masks may lie beside them."""
    of_test = ["--config", QUICKSTART, *arguments(trained), "--split", "test", "--proposals.window_overlap", "0.7"]
    main(of_test)
    assert "data test, 3 images" in capsys.readouterr().out
    found = json.loads((trained / "run/evaluations/test/analysis.json").read_text())
    assert found["segmenter"]["window_overlap"] == 0.7
    to = trained / "fiftyone"
    export.main(
        ["--format", "fiftyone", "--workspace", str(trained / "run"), "--evaluation", "evaluations/test", "--to", str(to)]
    )
    metadata, samples = read_dataset(to)
    assert list(samples) == ["12.jpg", "13.jpg", "14.jpg"] and metadata["mask_targets"]["prediction"]["3"] == "car"
    for name, sample in samples.items():
        kept = decode_mask((trained / f"run/evaluations/test/masks/{name[:2]}.png").read_bytes())
        np.testing.assert_array_equal(sample["prediction"], kept + 1)
        assert sample["tags"] == ["test"] and (sample["ground_truth"] == 255).all(axis=0).sum() == 3
    with pytest.raises(UserError, match=r"--split test has no masks.*data.test_split"):
        main(["--config", QUICKSTART, *arguments(trained, "--data.test_split", ""), "--split", "test"])
    for other in (("--proposals.kind", "both"), ("--data.background", "first")):
        with pytest.raises(UserError, match=rf"trained with other settings: {other[0][2:]} {other[1]} \(was "):
            main(["--config", QUICKSTART, *arguments(trained, *other)])

    def interrupted(*_: object) -> None:
        raise Interrupted("Ctrl-C")

    monkeypatch.setattr(evaluation_report, "evaluate_and_report", interrupted)
    with pytest.raises(Interrupted):
        main(of_test)
    with pytest.raises(UserError, match="evaluations/test"):
        export.main(
            ["--format", "fiftyone", "--workspace", str(trained / "run"), "--evaluation", "evaluations/test", "--to", f"{to}2"]
        )


def test_what_follows_a_training_depends_on_the_weights_and_not_only_on_the_settings(trained: Path) -> None:
    """A training that is repeated may give other weights; then the evaluation is repeated, too."""
    for stage in ("fcn8s", "stage2"):
        record = json.loads((trained / f"run/stages/{stage}.json").read_text())
        assert record["key"] == json.loads((trained / f"run/models/{stage}/model.json").read_text())["sha256"]


def test_settings_that_are_not_used_are_no_part_of_earlier_fingerprints() -> None:
    """A workspace made before there were windows is not made again."""
    stages = Pipeline(load(QUICKSTART, "--executor", "local", "--tracking.enabled", "false")).stages.stages
    later = {"kind", "window_sizes", "window_overlap", "background", "test_split"}
    assert {
        name: later & stage.settings.keys() for stage in stages for name in [stage.name] if later & stage.settings.keys()
    } == {}


def test_generated_data_has_a_background() -> None:
    with pytest.raises(UserError, match=r"data.background none does not fit the generated data"):
        load(QUICKSTART, "--data.background", "none")


def test_camvids_config_is_of_windows_without_background() -> None:
    settings = load(str(ROOT / "workflows/configs/camvid.yaml"), "--executor", "local", "--tracking.enabled", "false")
    assert not settings.has_stage1 and not settings.data.has_background and len(settings.data.classes) == 11
