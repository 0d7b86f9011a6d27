"""Define a replica: the process that holds versions of a model and predicts images. Ray Serve runs it."""

import asyncio
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from deconvnet.evaluation.drift import read_statistics
from deconvnet.serving import http
from deconvnet.serving.http import Answer
from deconvnet.serving.routing import LoadedModel, different_pixels
from deconvnet.tracking import registry
from deconvnet.tracking.registry import Version
from infra.errors import BadInput
from proposals.image_codec import decode_mask, encode_jpeg

if TYPE_CHECKING:
    from deconvnet.inference.saved_ensemble import SavedEnsemble

WARMUP_SIZE = (375, 500)
"""Height and width in pixels of the image with which each replica warms up. Most VOC images have this size."""


@dataclass(frozen=True)
class ServedModel:
    """A model to serve, with the number and size of its replicas.

    A replica is a process that holds the model and predicts images.

    Attributes:
        version: version of the registered model that is served first.
        tracking_uri: URI of the MLflow store from which replicas fetch models.
        replicas: number of replicas.
        cpus: number of CPUs, and of torch threads, of each replica.
        gpus: share of a GPU that each replica takes, 0 to 1. With 0, replicas predict on CPUs.
        max_pixels: largest image that is accepted, in pixels. None for the limit that was registered with the model.
    """

    version: Version
    tracking_uri: str
    replicas: int = 1
    cpus: int = 1
    gpus: float = 0
    max_pixels: int | None = None

    @property
    def title(self) -> str:
        """Return the name and version of the model, for messages."""
        return self.version.title


class Replica:
    """A replica: a process of Ray Serve that holds versions of a model and predicts one image after another."""

    def __init__(self, model: ServedModel) -> None:
        """Create a replica without a model.

        Args:
            model: the model that will be served, and the size of this replica.
        """
        import cv2
        import torch

        torch.set_num_threads(model.cpus)
        cv2.setNumThreads(1)
        self.model = model
        self.ensembles: dict[Version, SavedEnsemble] = {}
        self.loaded: dict[Version, LoadedModel] = {}
        self.dropped: set[Version] = set()
        self.loading = asyncio.Lock()
        self.loader, self.worker = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    async def load(self, version: Version) -> LoadedModel:
        """Load a version beside the loaded ones, and predict a synthetic image, so that no request waits for compilation.

        Meanwhile images are predicted with the other versions.

        Args:
            version: the version. If it is loaded already, nothing happens.

        Returns:
            The version with its classes.

        Raises:
            UserError: if the version can't be downloaded, or is not one of this project's ensembles.
        """
        async with self.loading:
            if version not in self.ensembles:  # while this call waited, another one may have loaded it
                loop = asyncio.get_running_loop()
                loaded, ensemble = await loop.run_in_executor(self.loader, self._fetch, version)
                # In the thread that predicts, because compiled functions must not run in two threads at once.
                await loop.run_in_executor(self.worker, _warm_up, ensemble)
                self.loaded[version], self.ensembles[version] = loaded, ensemble
                self.dropped.discard(version)
        return self.loaded[version]

    def _fetch(self, version: Version) -> "tuple[LoadedModel, SavedEnsemble]":
        """Download a version and load it. Raise UserError if that fails.

        The files are deleted at once. Otherwise a replica that is killed would leave a copy of the model on the disk.
        """
        from deconvnet.inference.saved_ensemble import SavedEnsemble

        with TemporaryDirectory(prefix="deconvnet-served-") as folder:
            registry.fetch(version, self.model.tracking_uri, folder)
            ensemble = SavedEnsemble(folder, "cuda" if self.model.gpus else "cpu", self.model.max_pixels)
            return LoadedModel(version, tuple(ensemble.classes), ensemble.background, read_statistics(folder)), ensemble

    async def drop(self, versions: Collection[Version]) -> None:
        """Free the memory of versions, also of one that is being loaded. Others are ignored."""
        async with self.loading:
            self.dropped.update(versions)
            for version in versions:
                self.ensembles.pop(version, None)
                self.loaded.pop(version, None)

    async def predict(self, version: Version, data: bytes, with_overlay: bool, keep_mask: bool) -> Answer:
        """Predict an image. A version that is not loaded, because this replica has been restarted, is loaded first.

        Args:
            version: the version to predict with.
            data: the encoded image.
            with_overlay: whether the reply is the image with its mask drawn over it.
            keep_mask: whether the mask is needed in any case.

        Returns:
            The reply, and what the server counts of it.
        """
        if version not in self.ensembles:
            await self.load(version)
        work = partial(http.predict, self.ensembles[version], data, with_overlay=with_overlay, keep_mask=keep_mask)
        return await asyncio.get_running_loop().run_in_executor(self.worker, work)

    async def different_pixels(self, model: LoadedModel, data: bytes, other: LoadedModel, mask: bytes) -> float:
        """Predict an image, and compare the mask with that of another version.

        If this replica has been restarted, the version to predict with is loaded first.

        Args:
            model: the version to predict with.
            data: the encoded image.
            other: the version that has predicted `mask`.
            mask: the mask as PNG.

        Returns:
            The share of the pixels whose classes differ, 0 to 1.

        Raises:
            RuntimeError: if this version has been dropped, or can't use the image.
            UserError: if this version can't be loaded.
        """
        if model.version in self.dropped:
            raise RuntimeError(f"{model.version.title} was dropped")
        if model.version not in self.ensembles:
            await self.load(model.version)
        work = partial(http.predict, self.ensembles[model.version], data, keep_mask=True)
        answer = await asyncio.get_running_loop().run_in_executor(self.worker, work)
        if answer.mask is None:
            raise RuntimeError(answer.reply.body.decode())
        return different_pixels(decode_mask(mask), other.classes, decode_mask(answer.mask), model.classes)


def _warm_up(ensemble: "SavedEnsemble") -> None:
    """Predict a synthetic image with a model, unless it accepts only smaller images."""
    with suppress(BadInput):
        ensemble.predict(warmup_image())


def warmup_image() -> bytes:
    """Return a synthetic image of 500 x 375 pixels (width x height), encoded as JPEG."""
    from deconvnet.datasets.synthetic import generate

    return encode_jpeg(generate(0, 0, *WARMUP_SIZE)[0])
