"""The evaluation job against the same work done in a loop."""

import json

import cv2
import numpy as np
import pytest
import torch

from deconvnet.datasets.objects import make_object_mask
from deconvnet.evaluation.breakdowns import object_overlaps
from deconvnet.evaluation.evaluator import evaluate
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.inference.predictor import RESULTS, Predictor, PredictorOptions
from deconvnet.models.checkpoint import save_model
from deconvnet.models.deconvnet import DeconvNet
from deconvnet.models.fcn8s import FCN8s
from deconvnet.settings import SegmentSettings
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from infra.storage import tables
from proposals import schemas
from proposals.image_codec import decode_image, encode_jpeg, encode_mask
from proposals.settings import ExampleSettings

CLASSES = ("background", "cat", "dog", "unicorn")
SEGMENT = SegmentSettings(proposals=2, batch=3)
UNPROPOSED = "p05"  # EdgeBox set it aside


@pytest.fixture
def models(tmp_path):
    torch.manual_seed(2)
    networks = DeconvNet(num_classes=4, width=0.0625, input_size=32), FCN8s(num_classes=4, width=0.0625, batch_norm=True)
    uris = []
    for network in networks:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        uris.append(str(tmp_path / network.architecture))
        save_model(network, uris[-1], CLASSES)
    return uris


@pytest.fixture
def photographs(tmp_path, rng):
    """Two parts of photographs, splits mixed; every third is of val. Of the val ones p00 is all void, p21 has no mask."""
    rows, boxes = [], []
    for i in range(24):
        name, height, width = f"p{i:02}", 30 + i, 40
        image = cv2.resize(rng.integers(0, 256, (3, 4, 3)).astype(np.uint8), (width, height))
        mask = cv2.resize(rng.integers(0, 3, (3, 4)).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        mask[:4] = 255
        if i == 0:
            mask[:] = 255
        rows.append(
            {
                "image_id": name,
                "split": "val" if i % 3 == 0 or name == UNPROPOSED else "train",
                "width": width,
                "height": height,
                "image": encode_jpeg(image),
                "class_mask": None if i == 21 else encode_mask(mask),
                "object_mask": None,
            }
        )
        if name != UNPROPOSED:
            found = [[0, 0, 20, 20], [10, 5, 40, 30], [0, 0, 40, 30]]
            boxes.append({"image_id": name, "width": width, "height": height, "boxes": found, "scores": [3, 2, 1]})
    images, proposals = str(tmp_path / "images"), str(tmp_path / "proposals")
    for uri, schema, content in ((images, schemas.IMAGES, rows), (proposals, schemas.PROPOSALS, boxes)):
        halves = [[row for row in content if (row["image_id"] < "p12") == first] for first in (True, False)]
        parts = [tables.write_part(uri, "f" * 16, i, half, schema, rows_per_group=5) for i, half in enumerate(halves)]
        tables.commit(uri, "f" * 16, parts)
    return images, proposals, rows


@pytest.mark.ray
def test_the_job_counts_what_a_loop_counts(ray_executor, models, photographs):
    images, proposals, rows = photographs
    keywords = {
        "segment": SEGMENT,
        "examples": ExampleSettings(),
        "classes": CLASSES,
        "dataset": "made up",
        "executor": ray_executor,
    }
    found = evaluate(*models, images, proposals, split="val", **keywords)

    predictor = Predictor.load(*models, options=PredictorOptions.from_settings(SEGMENT, ExampleSettings()))
    boxes = {row["image_id"]: row["boxes"] for row in tables.iter_rows(proposals)}
    totals = {name: ConfusionMatrix(4) for name in RESULTS}
    first_box, overlaps = ConfusionMatrix(4), []
    expected_ids = [r["image_id"] for r in rows if r["split"] == "val" and r["class_mask"]]
    for row in (r for r in rows if r["image_id"] in expected_ids):
        truth = cv2.imdecode(np.frombuffer(row["class_mask"], np.uint8), cv2.IMREAD_UNCHANGED)
        labels = predictor.masks(decode_image(row["image"]), np.array(boxes.get(row["image_id"], []), np.float32))
        own = np.array(boxes.get(row["image_id"], []), np.float32)[:1]
        first_box.update(truth, predictor.masks(decode_image(row["image"]), own, ("deconvnet",))["deconvnet"])
        overlaps.append(object_overlaps(truth, make_object_mask(truth), {"a": labels["edeconvnet"]})[1][0])
        for name in RESULTS:
            single = ConfusionMatrix(4).update(truth, labels[name])
            totals[name].merge(single)
            mine = found.mean_iou[row["image_id"]][name]
            assert mine is None if row["image_id"] == "p00" else mine == pytest.approx(single.mean_iou)

    assert list(found.mean_iou) == expected_ids and UNPROPOSED in expected_ids
    assert found.results["images"] == 8 and found.results["classes"] == list(CLASSES)
    assert tuple(found.results["rows"]) == RESULTS
    for name in RESULTS:
        row = found.results["rows"][name]
        assert row["mean_iou"] == pytest.approx(totals[name].mean_iou)
        assert row["pixel_accuracy"] == pytest.approx(totals[name].pixel_accuracy)
        np.testing.assert_allclose([np.nan if v is None else v for v in row["iou"].values()], totals[name].iou)
        assert found.analysis["confusion"][name] == totals[name].matrix.tolist()
    assert json.loads(json.dumps(found.results, allow_nan=False)) == found.results
    steps = found.analysis["proposals"]
    assert steps["counts"] == [1, 2]
    assert steps["mean_iou"] == pytest.approx([first_box.mean_iou, totals["deconvnet"].mean_iou])
    sizes = found.analysis["sizes"]
    assert sum(sizes["objects"]) == sum(map(len, overlaps)) > 5
    summed = sum(n * value for n, value in zip(sizes["objects"], sizes["mean_iou"]["edeconvnet"], strict=True) if n)
    assert summed == pytest.approx(np.concatenate(overlaps).sum())

    here = evaluate(*models, images, proposals, split="val", **{**keywords, "executor": LocalExecutor(2)})
    assert here.results == found.results and here.mean_iou == found.mean_iou
    assert here.analysis["confusion"] == found.analysis["confusion"]
    assert here.analysis["proposals"] == found.analysis["proposals"]

    with pytest.raises(UserError, match=r"split 'test' of .* has no labelled photograph"):
        evaluate(*models, images, proposals, split="test", **keywords)
