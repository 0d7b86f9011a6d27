"""A replica, as Ray Serve runs it: loading versions beside each other, predicting, comparing and dropping."""

import asyncio
import io
import json
import shutil
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deconvnet.evaluation.drift import STATISTICS_FILE, PredictionStatistics
from deconvnet.inference.saved_ensemble import Prediction, SavedEnsemble
from deconvnet.serving import replica as replicas
from deconvnet.serving.replica import Replica, ServedModel
from deconvnet.serving.routing import LoadedModel, different_pixels
from deconvnet.tracking import registry
from deconvnet.tracking.registry import Version
from proposals.edges.detector import PRETRAINED_FOREST
from proposals.image_codec import encode_jpeg
from tests.deconvnet.ensembles import CLASSES, EDGES, SEGMENT, random_image, save_networks
from tests.deconvnet.ensembles import prediction as made_prediction

PHOTO = encode_jpeg(random_image(0, 60, 80))
STATISTICS = PredictionStatistics(40, dict.fromkeys(CLASSES, 0.25), [0.5], [0.5, 0.5])
V1, V2 = (Version("shapes", str(i), f"id {i}", "nowhere") for i in (1, 2))


@pytest.fixture(scope="module")
def ensembles(tmp_path_factory: pytest.TempPathFactory) -> dict[Version, Path]:
    """Folders of two versions whose networks have other weights."""
    folders = {}
    for seed, version in enumerate((V1, V2), 1):
        folders[version] = tmp_path_factory.mktemp("ensemble")
        save_networks(folders[version], CLASSES, seed=10 * seed)
        shutil.copy(PRETRAINED_FOREST, folders[version] / "edges.yml.gz")
        edges = EDGES | {"edge_model": "edges.yml.gz"}
        options = {"classes": CLASSES, "proposals": edges, "segment": SEGMENT, "max_pixels": 10_000}
        (folders[version] / "options.json").write_text(json.dumps(options))
    (folders[V1] / STATISTICS_FILE).write_text(json.dumps(STATISTICS.as_dict()))
    return folders


@pytest.fixture
def fetched(ensembles: dict[Version, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The registry gives out these folders, and records the numbers of the versions."""
    from infra import storage

    log: list[str] = []

    def fetch(version: Version, store: str, target: str) -> None:
        log.append(version.number)
        storage.copy_tree(str(ensembles[version]), target)

    monkeypatch.setattr(registry, "fetch", fetch)
    monkeypatch.setattr(replicas, "warmup_image", lambda: PHOTO)  # a large one takes longer
    return log


def test_a_replica_predicts_with_two_versions_and_drops_one(
    fetched: list[str], ensembles: dict[Version, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it leaves no files, not even while it runs: a replica may be killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def run() -> None:
        replica = Replica(ServedModel(V1, "store"))
        first = await replica.load(V1)
        assert first == LoadedModel(V1, CLASSES, True, STATISTICS) == await replica.load(V1) and fetched == ["1"]
        assert not [*tmp_path.glob("deconvnet-*")]
        second, same = await asyncio.gather(replica.load(V2), replica.load(V2))
        assert second == same and fetched == ["1", "2"] and second.statistics is None, "registered by an earlier program"
        masks = {}
        for version in (V1, V2):
            answer = await replica.predict(version, PHOTO, False, True)
            masks[version] = SavedEnsemble(str(ensembles[version])).predict(PHOTO).mask
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.reply.body))), masks[version])
        expected = different_pixels(masks[V1], CLASSES, masks[V2], CLASSES)
        assert (
            0
            < expected
            == await replica.different_pixels(second, PHOTO, first, (await replica.predict(V1, PHOTO, False, True)).mask)
        )
        assert not [*tmp_path.glob("deconvnet-*")]
        await replica.drop([V1, V1])
        assert list(replica.ensembles) == list(replica.loaded) == [V2]
        with pytest.raises(RuntimeError, match="shapes version 1 was dropped"):
            await replica.different_pixels(first, PHOTO, second, b"")
        with pytest.raises(RuntimeError, match="not an image"):
            await replica.different_pixels(second, b"text", second, b"")

    asyncio.run(run())


@pytest.mark.parametrize(("gpus", "device"), [(0.5, "cuda"), (0, "cpu")])
def test_a_replica_uses_the_threads_and_the_device_of_its_size(gpus: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr(registry, "fetch", lambda *given: None)

    def make(folder: str, *given: Any) -> SimpleNamespace:
        made.append(given)
        return SimpleNamespace(classes=CLASSES, background=True)

    monkeypatch.setattr("deconvnet.inference.saved_ensemble.SavedEnsemble", make)
    Replica(ServedModel(V1, "store", cpus=2, gpus=gpus, max_pixels=5000))._fetch(V1)
    assert made == [(device, 5000)] and torch.get_num_threads() == 2


def test_a_replica_that_was_restarted_loads_the_version_that_is_asked_for(fetched: list[str]) -> None:
    async def run() -> list[int]:
        replica = Replica(ServedModel(V1, "store", max_pixels=5000))
        answers = await asyncio.gather(*(replica.predict(V2, PHOTO, True, False) for _ in range(3)))
        assert fetched == ["2"] and answers[0].reply.media_type == "image/jpeg"
        large = encode_jpeg(random_image(0, 60, 90))
        return [answer.reply.status for answer in (*answers, await replica.predict(V2, large, False, False))]

    assert asyncio.run(run()) == [200, 200, 200, 400]


@pytest.fixture
def empty_models(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Models that need no networks, and predict half of the image otherwise with version 2. Returns what was done, by thread."""
    log: list[tuple[str, int]] = []

    def fetch(replica: Replica, version: Version) -> tuple[LoadedModel, SimpleNamespace]:
        log.append(("fetch", threading.get_ident()))
        masks = {V1: np.zeros((2, 4), np.uint8), V2: np.repeat([[0], [1]], 4, axis=1).astype(np.uint8)}
        prediction = made_prediction(np.zeros((2, 4, 3), np.uint8), masks[version], 0.5)

        def predict(data: bytes) -> Prediction:
            log.append(("predict", threading.get_ident()))
            return prediction

        return LoadedModel(version, CLASSES, True), SimpleNamespace(classes=CLASSES, background=True, predict=predict)

    monkeypatch.setattr(Replica, "_fetch", fetch)
    monkeypatch.setattr(replicas, "warmup_image", lambda: PHOTO)
    return log


def test_a_model_has_predicted_once_when_it_counts_as_loaded_in_the_thread_of_all_predictions(
    empty_models: list[tuple[str, int]],
) -> None:
    """The first prediction compiles, and what is compiled must not run in two threads at once. Files are fetched in another."""

    async def run() -> list[str]:
        replica = Replica(ServedModel(V1, "store"))
        await replica.load(V1)
        before = [what for what, _ in empty_models]
        await replica.predict(V1, PHOTO, False, False)
        return before

    assert asyncio.run(run()) == ["fetch", "predict"]
    (_, fetching), *predictions = empty_models
    assert len(predictions) == 2 and len(set(predictions)) == 1 and ("predict", fetching) not in predictions


@pytest.mark.usefixtures("empty_models")
def test_a_replica_that_was_restarted_loads_the_challenger_that_predicts_in_the_shadow_too() -> None:
    async def run() -> tuple[float, float]:
        replica, (first, second) = (
            Replica(ServedModel(V1, "store")),
            (LoadedModel(version, CLASSES, True) for version in (V1, V2)),
        )
        mask = (await replica.predict(V1, PHOTO, False, True)).mask
        before = await replica.different_pixels(second, PHOTO, first, mask)
        await replica.drop([V2])
        with pytest.raises(RuntimeError, match="shapes version 2 was dropped"):
            await replica.different_pixels(second, PHOTO, first, mask)
        await replica.load(V2)
        return before, await replica.different_pixels(second, PHOTO, first, mask)

    assert asyncio.run(run()) == (0.5, 0.5)


@pytest.mark.usefixtures("empty_models")
def test_a_version_that_is_dropped_while_it_is_loaded_does_not_stay() -> None:
    async def run() -> Replica:
        replica = Replica(ServedModel(V1, "store"))
        await asyncio.gather(replica.load(V2), replica.drop([V2]))
        return replica

    replica = asyncio.run(run())
    assert not replica.ensembles and not replica.loaded
