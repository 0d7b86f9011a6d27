"""The device on which the networks and the CRF compute is that of the job."""

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deconvnet.evaluation import evaluator
from deconvnet.evaluation.inputs import EvaluationInputs
from deconvnet.evaluation.voc_submission.job import Recipe, predict_masks
from deconvnet.inference import predictor
from deconvnet.inference.batch import predict_images
from deconvnet.inference.predictor import Predictor, PredictorOptions
from infra.errors import UserError
from infra.runtime.executor import Actors
from tests.deconvnet.ensembles import CLASSES, EDGES, SEGMENT, random_networks

NETWORKS = random_networks()
THREADS = 3


class OneWorker:
    """Stands for an executor: it makes a worker, which loads its networks, and gives it no work."""

    def map_actors(self, units: Any, make: Any, actors: Actors, **_: Any) -> Any:
        self.gpus = actors.gpus
        with suppress(AttributeError):  # other workers load the networks as they are made
            assert make(THREADS).ensemble
        return iter(())


def predict_folder(folder: str, executor: Any, gpu: bool) -> None:
    predict_images(
        SimpleNamespace(units=[], state=None, fingerprint="f"), folder, folder, None, executor, Actors(gpus=float(gpu))
    )


def evaluate(folder: str, executor: Any, gpu: bool) -> None:
    inputs = EvaluationInputs(f"{folder}/deconvnet", f"{folder}/fcn8s", "", "", "val", CLASSES, PredictorOptions(), "")
    with pytest.raises(UserError, match="no annotated image"):
        evaluator.evaluate(inputs, "made up", executor, gpu)


def predict_submission(folder: str, executor: Any, gpu: bool) -> None:
    recipe = Recipe(f"{folder}/deconvnet", f"{folder}/fcn8s", PredictorOptions(), None, "fcn8s")
    predict_masks([], recipe, folder, executor, gpu)


@pytest.mark.parametrize("job", [predict_folder, evaluate, predict_submission])
@pytest.mark.parametrize("gpu", [False, True])
def test_workers_with_a_gpu_load_both_networks_to_it_and_use_their_own_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job, gpu
):
    loaded: list[tuple[str, str]] = []
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    def load_model(uri: str, device: str = "cpu") -> tuple[Any, dict[str, Any]]:
        loaded.append((Path(uri).name, device))
        return NETWORKS[uri.endswith("fcn8s")], {}

    monkeypatch.setattr(predictor, "load_model", load_model)
    monkeypatch.setattr(evaluator, "image_batches", lambda inputs: ["a batch"])
    for name in ("deconvnet", "fcn8s"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").touch()
    options = {"classes": CLASSES, "proposals": EDGES, "segment": SEGMENT, "max_pixels": 10_000}
    (tmp_path / "options.json").write_text(json.dumps(options))
    executor = OneWorker()
    job(str(tmp_path), executor, gpu)
    device = "cuda" if gpu else "cpu"
    assert loaded == [("deconvnet", device), ("fcn8s", device)] and executor.gpus == gpu
    assert threads == [THREADS], "with more, workers on one machine would slow each other down"


def test_the_crf_computes_on_the_device_of_the_networks(monkeypatch: pytest.MonkeyPatch):
    computed: list[Any] = []
    monkeypatch.setattr(predictor, "device_of", lambda network: "the networks' device")
    monkeypatch.setattr(predictor, "dense_crf", lambda image, p, device="cpu": computed.append(device) or p)
    image, boxes = np.zeros((32, 32, 3), np.uint8), np.zeros((0, 4), np.float32)
    networks = Predictor(*NETWORKS)
    networks.predict(image, boxes)
    networks.probabilities(image, boxes, ("deconvnet_crf", "edeconvnet_crf"))
    assert computed == ["the networks' device"] * 3
