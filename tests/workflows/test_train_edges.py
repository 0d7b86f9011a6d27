"""train_edges.py: in one process and on two workers of Ray, again, and with user errors."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import scipy.io

from proposals.edges.forest_file import load_forest
from proposals.image_codec import encode_jpeg
from tests.workflows.commands import LOCAL, Done, call
from workflows import train_edges
from workflows.pipelines import edges
from workflows.settings import EdgeSettings

TINY = shlex.split(
    "--data.generated.train 14 --data.generated.val 2 --data.dev_fraction 0.3 --data.generated.height 64 --data.generated.width "
    "80 --proposals.min_box_area 200 --proposals.max_boxes 60 "
    "--forest.trees 2 --forest.patches 2000 --forest.feature_share 0.05"
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> tuple[Path, Done]:
    """A workspace that a run by the local executor has finished, in one process, and what it printed."""
    folder = tmp_path_factory.mktemp("edges") / "one forest"
    make_store(folder)
    done = call(train_edges.main, "--workspace", str(folder), *LOCAL, *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_a_run_leaves_a_forest_and_its_report(workspace):
    folder, done = workspace
    assert len(load_forest(str(folder / "edges.yml.gz")).child) == 2
    found = cv2.ximgproc.createStructuredEdgeDetection(str(folder / "edges.yml.gz")).detectEdges(
        np.zeros((64, 64, 3), np.float32)
    )
    assert np.isfinite(found).all()
    figures = json.loads((folder / "report/edges.json").read_text())
    assert 0 < figures["dev.recall_50_iou50"] <= 1
    *places, pages, use = done.stdout.splitlines()[-4:]
    assert places == [f"forest   {folder / 'edges.yml.gz'}", f"report   {folder / 'report'}"]
    assert shlex.split(use)[-2:] == ["--proposals.edge_model", str(folder / "edges.yml.gz")]
    assert shlex.split(pages)[4] == f"sqlite:///{folder}/mlflow/mlflow.db"
    for name in ("gradient, EdgeBox's defaults", "shipped forest", "this forest"):
        assert f"| {name} | 50 |" in done.stdout
    assert (folder / "report/edges.png").stat().st_size > 1000
    assert not (folder / "trees").exists() or not any((folder / "trees").rglob("*.npz"))


@pytest.mark.parametrize(
    ("made", "deletes"),
    [
        ("stages/forest.json", True),
        ("models/stage2/model.json", False),
        ("generations/20260131-235959/generation.json", False),
    ],
)
def test_in_a_workspace_of_trained_networks_no_version_of_a_table_is_deleted(made, deletes, tmp_path, monkeypatch):
    """Even if no stage has a record of it, as after a run that was killed: the champion may need it."""
    (tmp_path / "w" / made).parent.mkdir(parents=True)
    (tmp_path / "w" / made).touch()
    pruned = []
    monkeypatch.setattr(edges, "prune_tables", lambda root, champion, lock: pruned.append(root))
    training = edges.EdgeTraining(EdgeSettings(workspace=str(tmp_path / "w"), executor="local", tracking={"enabled": False}))
    training.locks = [None]
    training._end("edges", {"measure": SimpleNamespace(summary={})})
    assert pruned == ([str(tmp_path / "w")] if deletes else [])


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_on_ray_make_the_same_file_as_one_process(workspace, tmp_path, on_session_ray):
    train_edges.main(["--workspace", str(tmp_path / "two"), *TINY])
    assert (tmp_path / "two/edges.yml.gz").read_bytes() == (workspace[0] / "edges.yml.gz").read_bytes()


def test_a_second_run_does_nothing_and_prints_the_report(workspace):
    again = call(train_edges.main, "--workspace", str(workspace[0]), *TINY)
    assert again.returncode == 0 and "Nothing to do" in again.stdout and "| this forest | 50 |" in again.stdout


@pytest.mark.slow
def test_bsds_is_enough_to_train_on(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "groundTruth"):
            (tmp_path / "bsds" / kind / split).mkdir(parents=True)
        for i in range(count):
            segments = np.ones((80, 100), np.uint16)
            x, y = rng.integers(10, 40, 2)
            segments[y : y + 30, x : x + 40] = 2
            image = np.clip(np.where(segments[..., None] == 1, 60, 180) + rng.normal(0, 8, (80, 100, 3)), 0, 255).astype(np.uint8)
            (tmp_path / f"bsds/images/{split}/{i}.jpg").write_bytes(encode_jpeg(image))
            cells = np.empty((1, 2), object)
            for j in range(2):
                cells[0, j] = {"Segmentation": segments, "Boundaries": cv2.Canny((segments * 100).astype(np.uint8), 10, 20) > 0}
            scipy.io.savemat(tmp_path / f"bsds/groundTruth/{split}/{i}.mat", {"groundTruth": cells})
    done = call(train_edges.main, "--workspace", str(tmp_path / "w"), "--bsds", str(tmp_path / "bsds"), *LOCAL, *TINY[10:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 images to learn from" in done.stdout and "| this forest | 0." in done.stdout
    assert "bsds.ods" in json.loads((tmp_path / "w/report/edges.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--forest.trees", "0"], "forest.trees"),
        (["--forest.tree", "3"], "forest.tree"),
        (["--bsds", "/nowhere"], "is not BSDS500"),
        (["--data.root", "/nowhere"], "/nowhere"),
    ],
)
def test_a_user_error_is_a_sentence(arguments, word, tmp_path):
    done = call(train_edges.main, "--workspace", str(tmp_path / "w"), *arguments)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_starts_nothing(tmp_path):
    done = call(train_edges.main, "--workspace", str(tmp_path / "w"), "--dry-run", *TINY)
    assert done.returncode == 0 and "forest" in done.stdout and "would run" in done.stdout
    assert not (tmp_path / "w").exists()
