"""export.py: networks as ONNX files, which the example uses."""

import ast
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from deconvnet.models.checkpoint import load_model
from deconvnet.tracking import registry
from infra import storage
from proposals.image_codec import decode_mask
from tests.conftest import ROOT
from tests.deconvnet.ensembles import CLASSES as NETWORK_CLASSES
from tests.deconvnet.ensembles import random_image, save_networks
from tests.workflows.commands import call
from workflows import export
from workflows.operations import network_export


class TorchSession:
    """Stands in for onnxruntime's session: the network in torch."""

    def __init__(self, file: Path) -> None:
        self.network, _ = load_model(str(file.parents[1] / "model" / file.stem))

    def run(self, _: None, inputs: dict) -> list:
        with torch.no_grad():
            return [self.network(self.network.prepare(torch.from_numpy(inputs["images"].copy()))).numpy()]


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registered model, without MLflow: its folder."""
    folder = tmp_path / "model"
    save_networks(folder, seed=3, width=0.05)
    storage.write_json(
        str(folder / "options.json"), {"classes": NETWORK_CLASSES, "proposals": {}, "segment": {}, "max_pixels": 9}
    )
    monkeypatch.setattr(network_export, "model_store", lambda workspace, uri: "sqlite:///x")
    version = registry.Version("edeconvnet", "4", "id", str(folder))
    monkeypatch.setattr(network_export.registry, "find", lambda *_: version)
    monkeypatch.setattr(
        network_export.registry, "fetch", lambda found, store, to: shutil.copytree(folder, to, dirs_exist_ok=True)
    )
    return folder


EXAMPLE = ROOT / "examples/segment_onnx.py"


def run_example(folder: Path, patch: pytest.MonkeyPatch) -> np.ndarray:
    """Segment photo.png with the networks in out, in a folder. Returns the mask."""
    patch.setattr(sys, "argv", ["", *(str(folder / name) for name in ("out", "photo.png", "mask.png"))])
    runpy.run_path(str(EXAMPLE))
    return decode_mask((folder / "mask.png").read_bytes())


def test_the_example_puts_scores_back_where_their_pixels_are_and_adds_those_of_squares_that_overlap(tmp_path, monkeypatch):
    """DeconvNet is sure of red, and less sure of what is not red in the first square than it is in others."""
    image = np.zeros((50, 130, 3), np.uint8)
    image[5:20, 10:40] = image[30:45, 90:130] = (255, 0, 0)
    Image.fromarray(image).save(tmp_path / "photo.png")
    about = {"classes": ["background", "red", "first"], "input_size": {"deconvnet": 32, "fcn8s": 64}}
    storage.write_json(str(tmp_path / "out/networks.json"), about)
    calls = []

    def session(file: Path) -> SimpleNamespace:
        def run(_: None, inputs: dict) -> list:
            red = inputs["images"][:, 0].astype(np.float32) / 16 - 8
            assert inputs["images"].shape[2:] == ((32, 32) if file.stem == "deconvnet" else (25, 64))
            calls.append(file.stem)
            first = np.full_like(red, 4.0 if calls.count("deconvnet") == 1 and file.stem == "deconvnet" else -0.5)
            return [np.stack([np.zeros_like(red), red, first], axis=1)]

        return SimpleNamespace(run=run)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    mask = run_example(tmp_path, monkeypatch)
    expected = np.where(image[..., 0] > 0, 1, 0)
    expected[:, :20][expected[:, :20] == 0] = 2  # the first square alone covers these columns
    sure = np.s_[:, [*range(18), *range(44, 88), *range(93, 130)]]
    assert (mask[sure] == expected[sure]).mean() > 0.97
    assert mask[47, 30] == 2, "of two squares the surer one counts"
    assert calls.count("deconvnet") == 5 and calls.count("fcn8s") == 1


def test_the_example_segments_an_image_with_exported_networks(registered, tmp_path, monkeypatch, capsys):
    done = call(export.main, "--format", "onnx", "--to", str(tmp_path / "out"), "--dry-run")
    assert "would export deconvnet and fcn8s of edeconvnet version 4" in done.stdout and not (tmp_path / "out").exists()
    done = call(export.main, "--format", "onnx", "--to", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "exported edeconvnet version 4" in done.stdout and done.stdout.count("scores differ from torch's by") == 2
    about = storage.read_json(str(tmp_path / "out/networks.json"))
    assert about["classes"] == list(NETWORK_CLASSES) and about["model"] == "models:/edeconvnet/4"
    assert about["input_size"] == {"deconvnet": 32, "fcn8s": None}
    imports = {node.names[0].name for node in ast.walk(ast.parse(EXAMPLE.read_text())) if isinstance(node, ast.Import)}
    assert imports - sys.stdlib_module_names == {"cv2", "numpy", "onnxruntime"}
    Image.fromarray(random_image(5, 50, 130)).save(tmp_path / "photo.png")
    masks = []
    for session, sizes in ((onnxruntime.InferenceSession, (None, 64)), (TorchSession, (64,))):
        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        for longest in sizes:  # FCN-8s sees the image as it is, or scaled down
            storage.write_json(str(tmp_path / "out/networks.json"), {**about, "input_size": {"deconvnet": 32, "fcn8s": longest}})
            masks.append(run_example(tmp_path, monkeypatch))
    assert masks[0].shape == (50, 130) and len(np.unique(masks[0])) > 1 and (masks[0] != masks[1]).any()
    assert (masks[1] == masks[2]).mean() > 0.999
    assert capsys.readouterr().out.count("circle") == 3


@pytest.mark.parametrize(("segment", "background"), [({}, True), ({"background": False}, False)])
def test_the_description_of_the_files_says_whether_there_is_a_background(registered, tmp_path, monkeypatch, segment, background):
    options = {"classes": NETWORK_CLASSES, "proposals": {}, "segment": segment, "max_pixels": 9}
    storage.write_json(str(registered / "options.json"), options)
    monkeypatch.setattr(network_export, "export_onnx", lambda network, file: 0.0)
    assert call(export.main, "--format", "onnx", "--to", str(tmp_path / "out")).returncode == 0
    assert storage.read_json(str(tmp_path / "out/networks.json"))["background"] is background


def test_settings_of_labels_and_of_networks_are_not_mixed(run):
    assert "onnx exports the networks: leave predictions out" in run("onnx").stderr
    assert "predictions is not given" in call(export.main, "--format", "coco", "--to", "x").stderr
