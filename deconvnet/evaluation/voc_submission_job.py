"""Predict the masks of a VOC list of images for the test server: one mask for every image, or an error."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import cv2

from deconvnet.datasets import voc
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.inference.predictor import Predictor, PredictorOptions
from infra import storage
from infra.errors import BadInput, UserError
from infra.runtime.executor import Actors, Executor, Work
from infra.runtime.progress import progress
from infra.runtime.stages import digest
from infra.storage import tables
from proposals import edge_boxes
from proposals.edges.detector import forest_uri
from proposals.image_codec import decode_image, encode_mask, image_size

VERSION = 1
"""Part of the key of a set of masks; raise it if the same models and images lead to other masks."""
_SUFFIXES = (".jpg", ".jpeg", ".png")
_IMAGES_PER_UNIT = 4
_THREADS = 8  # files that this process reads at once


@dataclass(frozen=True)
class ListedImage:
    """An image of a VOC list.

    Attributes:
        image_id: name in the list.
        uri: the image file.
        width: px, with the EXIF orientation applied.
        height: likewise.
        content: SHA-256 of the file.
    """

    image_id: str
    uri: str
    width: int
    height: int
    content: str


@dataclass(frozen=True)
class Recipe:
    """How masks are predicted: networks, options and which result.

    All images of a submission share it.

    Attributes:
        deconvnet: model folder of a DeconvNet.
        fcn8s: model folder of an FCN-8s.
        options: options of the predictor.
        edge_boxes: keyword arguments of `proposals.edge_boxes`.
        result: the result to submit, one of `deconvnet.inference.predictor.RESULTS`.
    """

    deconvnet: str
    fcn8s: str
    options: PredictorOptions
    edge_boxes: dict[str, Any]
    result: str

    def key(self, images: Sequence[ListedImage]) -> str:
        """Digest everything that the masks of images depend on.

        Args:
            images: the images to predict.

        Returns:
            A hexadecimal digest; it changes with the models, the options, the forest of the edge detector and the images.
        """
        files = [storage.join(folder, "model.safetensors") for folder in (self.deconvnet, self.fcn8s)]
        files += [forest] if (forest := forest_uri(self.edge_boxes["edges"], self.edge_boxes["edge_model"])) else []
        contents = [(image.image_id, image.content) for image in images]
        return digest([VERSION, asdict(self), [storage.version_token(file) for file in files], contents])


def list_split(root: str, split: str, max_pixels: int) -> list[ListedImage]:
    """List the images of a split and check that each can be decoded. Masks need not exist.

    Args:
        root: folder in VOC's layout, local or s3.
        split: name of the list, such as "test".
        max_pixels: larger images are refused.

    Returns:
        The images, sorted by id, each once.

    Raises:
        UserError: if an image is missing or unusable, since the server refuses a submission without a mask for it.
    """
    files: dict[str, str] = {}
    for name in sorted(storage.list_files(storage.join(root, voc.IMAGES_DIR)), key=_preference):
        files.setdefault(PurePosixPath(name).stem, storage.join(root, voc.IMAGES_DIR, name))
    ids = sorted(set(voc.read_split(root, split)))
    for image_id in ids:
        if image_id not in files or voc.invalid_id_reason(image_id):
            raise UserError(
                f"{voc.split_path(root, split)} lists {image_id!r}, and {storage.join(root, voc.IMAGES_DIR)} has no image of it: "
                "the server wants a mask for each image of the list"
            )

    def inspect(image_id: str) -> ListedImage:
        try:
            data = storage.read_bytes(files[image_id])
            return ListedImage(image_id, files[image_id], *image_size(data, max_pixels), hashlib.sha256(data).hexdigest())
        except (BadInput, OSError) as error:
            raise _unusable(files[image_id], error) from None

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(progress(pool.map(inspect, ids), len(ids), f"checking {split}", "images"))


def predict_masks(
    images: Sequence[ListedImage], recipe: Recipe, folder: str, executor: Executor, gpu: bool = False
) -> dict[str, bytes]:
    """Predict the mask of every image.

    Args:
        images: the list.
        recipe: how masks are predicted.
        folder: where masks are kept, local or s3; a mask that exists there is not predicted again.
        executor: runs the workers.
        gpu: each worker takes a GPU.

    Returns:
        Paletted PNGs of class ids by image_id.

    Raises:
        UserError: if an image cannot be segmented, or the executor has no room for a worker.
    """
    existing = set(storage.list_files(folder))
    left = [image for image in images if f"{image.image_id}.png" not in existing]
    units = dict(enumerate([left[i] for i in chunk] for chunk in tables.chunks(len(left), _IMAGES_PER_UNIT))) if left else {}
    make = partial(_make_worker, recipe, folder, "cuda" if gpu else "cpu")
    actors = Actors(gpus=1.0 if gpu else 0.0, remedy="use nodes with more memory; finished masks are kept")
    for _ in executor.map_actors(units, make, actors, title="segmenting", unit="batches of images"):
        pass
    with ThreadPoolExecutor(_THREADS) as pool:
        masks = pool.map(lambda image: storage.read_bytes(storage.join(folder, f"{image.image_id}.png")), images)
        return {image.image_id: mask for image, mask in zip(images, masks, strict=True)}


def _make_worker(recipe: Recipe, folder: str, device: str, threads: int) -> Work[None]:
    """Load the networks; return the work that writes the masks of a unit, a list of images."""
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    predictor = Predictor.load(recipe.deconvnet, recipe.fcn8s, device, recipe.options)

    def work(index: int, unit: Sequence[ListedImage]) -> None:
        for listed in unit:
            try:
                image = decode_image(storage.read_bytes(listed.uri))
                boxes, _ = edge_boxes(image, **recipe.edge_boxes)
                mask = predictor.masks(image, boxes, (recipe.result,))[recipe.result]
            except (BadInput, OSError, cv2.error) as error:
                raise _unusable(listed.uri, error) from None
            storage.write_bytes(storage.join(folder, f"{listed.image_id}.png"), encode_mask(mask, VOC_PALETTE))

    return work


def _unusable(uri: str, error: Exception) -> UserError:
    """The error for an image that cannot be segmented."""
    reason = " ".join(str(error).split())
    return UserError(f"{uri} can't be segmented: {reason}. The server wants a mask for each image of the list")


def _preference(name: str) -> tuple[int, str]:
    """Sort key that puts the file to use first among those of one id, and files that are not images last."""
    suffix = PurePosixPath(name).suffix.lower()
    return (_SUFFIXES.index(suffix) if suffix in _SUFFIXES else len(_SUFFIXES), name)
