"""Predict the masks of all images in a VOC image list, for a submission to PASCAL VOC's test server.

The server refuses an incomplete submission. So an image that cannot be segmented is an error here and is not skipped.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch

from deconvnet.datasets import voc
from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.inference.int8.ranges import ranges_file
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
"""Version of the prediction code, on which the digest of a set of masks depends (`Recipe.key`).

Raise it when the same models and images would give other masks.
"""
_IMAGES_PER_UNIT = 4
_THREADS = 8  # number of files that this process reads at once


@dataclass(frozen=True)
class ListedImage:
    """An image named in a VOC image list, which is a text file with one image id per line.

    Attributes:
        image_id: id of the image in the list; the image file has the same name.
        uri: URI of the image file.
        width: width in pixels, after the rotation that the file's EXIF data ask for.
        height: height in pixels, after the same rotation.
        content: SHA-256 of the file, in hexadecimal.
    """

    image_id: str
    uri: str
    width: int
    height: int
    content: str


@dataclass(frozen=True)
class Recipe:
    """The networks and options for predicting the masks of a submission, and the result (way of predicting) to submit.

    Attributes:
        deconvnet: folder of a trained DeconvNet.
        fcn8s: folder of a trained FCN-8s.
        options: options for predicting with the networks.
        edge_boxes: keyword arguments of `proposals.edge_boxes`, which finds the boxes that may contain objects; None to use only
            the windows of `options`.
        result: name of the result to submit: "fcn8s", "deconvnet", "deconvnet_crf", "edeconvnet" or "edeconvnet_crf".
    """

    deconvnet: str
    fcn8s: str
    options: PredictorOptions
    edge_boxes: dict[str, Any] | None
    result: str

    def key(self, images: Sequence[ListedImage]) -> str:
        """Compute a digest of everything that the masks depend on.

        Args:
            images: the images to predict.

        Returns:
            A digest in hexadecimal. It changes with the networks, the ranges of their activations (if they compute in 8-bit
            integers), the options, the model of the edge detector (a structured forest) and the images.
        """
        files = [storage.join(folder, "model.safetensors") for folder in (self.deconvnet, self.fcn8s)]
        if self.edge_boxes and (forest := forest_uri(self.edge_boxes["edges"], self.edge_boxes["edge_model"])):
            files.append(forest)
        contents = [(image.image_id, image.content) for image in images]
        parts = [VERSION, asdict(self), [storage.version_token(file) for file in files], contents]
        if self.options.int8:  # only then, so that the keys of other masks stay the same as in earlier versions
            parts.append([ranges_file(folder) for folder in (self.deconvnet, self.fcn8s)])
        return digest(parts)


def list_split(root: str, split: str, max_pixels: int) -> list[ListedImage]:
    """List the images of a split and check that each can be decoded. Annotated masks need not exist.

    All image files are read, and the progress is displayed.

    Args:
        root: folder in the layout of PASCAL VOC, local or in a bucket.
        split: name of the image list, such as "test".
        max_pixels: images with more pixels are refused.

    Returns:
        The images sorted by id, each once.

    Raises:
        UserError: if an image is missing or unusable, because the server wants a mask of every image.
    """
    lines = voc.list_files(root, voc.IMAGES_DIR)
    files = {image_id: storage.join(root, voc.VocImageFiles(image_id, line).image.name) for image_id, line in lines.items()}
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
    """Predict the mask of every image and write it to a folder. Masks that already exist there are not predicted again.

    Args:
        images: the images of the list.
        recipe: the networks and options to predict with.
        folder: folder of the masks, local or in a bucket. It must not hold masks that were made with another recipe.
        executor: runs the workers, each of which holds both networks.
        gpu: whether each worker takes a GPU.

    Returns:
        A dict from image_id to the mask, a paletted PNG of class ids.

    Raises:
        UserError: if an image cannot be segmented, or no node has room for a worker.
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
    """Load the networks into a worker process and limit its CPU threads. The executor calls this once in each worker process.

    Args:
        recipe: the networks and options to predict with.
        folder: folder that the masks are written to, local or in a bucket.
        device: torch device to predict on, "cpu" or "cuda".
        threads: number of CPU threads that the worker may use.

    Returns:
        A function that takes the index of a batch and its images, and writes their masks as PNGs. It returns nothing. It raises
        UserError if an image cannot be segmented.
    """
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    predictor = Predictor.load(recipe.deconvnet, recipe.fcn8s, device, recipe.options)

    def work(index: int, unit: Sequence[ListedImage]) -> None:
        for listed in unit:
            try:
                image = decode_image(storage.read_bytes(listed.uri))
                boxes = edge_boxes(image, **recipe.edge_boxes)[0] if recipe.edge_boxes else np.zeros((0, 4), np.float32)
                mask = predictor.masks(image, boxes, (recipe.result,))[recipe.result]
            except (BadInput, OSError, cv2.error) as error:
                raise _unusable(listed.uri, error) from None
            storage.write_bytes(storage.join(folder, f"{listed.image_id}.png"), encode_mask(mask, VOC_PALETTE))

    return work


def _unusable(uri: str, error: Exception) -> UserError:
    """Create the error for an image that cannot be segmented.

    Args:
        uri: URI of the image file.
        error: the exception that says why.

    Returns:
        The error. The caller raises it.
    """
    reason = " ".join(str(error).split())
    return UserError(f"{uri} can't be segmented: {reason}. The server wants a mask for each image of the list")
