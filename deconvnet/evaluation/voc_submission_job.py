"""Labelling a list of photographs for VOC's test server: a job of workers that hold the networks, one mask a photograph, none left out."""

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

VERSION = 1  # raise it when the same models and photographs come to give other masks
_SUFFIXES = (".jpg", ".jpeg", ".png")
_A_UNIT = 4  # photographs that an actor labels at a time
_AT_ONCE = 8  # photographs looked at by the driver, masks gathered


@dataclass(frozen=True)
class Listed:
    """A photograph of the list. width, height: px, as displayed; content: SHA-256 of the file."""

    image_id: str
    uri: str
    width: int
    height: int
    content: str


@dataclass(frozen=True)
class Recipe:
    """What masks are made by: folders of a DeconvNet and an FCN-8s, the options of `Predictor`, keywords of `edge_boxes`, one of RESULTS."""

    deconvnet: str
    fcn8s: str
    segment: PredictorOptions
    edges: dict[str, Any]
    result: str

    def key(self, photographs: Sequence[Listed]) -> str:
        """Tells the masks that it makes of `photographs` from all others."""
        files = [storage.join(folder, "model.safetensors") for folder in (self.deconvnet, self.fcn8s)]
        files += [forest] if (forest := forest_uri(self.edges["edges"], self.edges["edge_model"])) else []
        known = [(each.image_id, each.content) for each in photographs]
        return digest([VERSION, asdict(self), [storage.version_token(file) for file in files], known])


def list_split(root: str, split: str, max_pixels: int) -> list[Listed]:
    """The photographs of `split` in a folder of VOC's layout, sorted by id; each is read to its end. Masks need not be there.

    Raises UserError where one of the list is absent or can't be used: the server refuses a submission with a hole.
    """
    found: dict[str, str] = {}
    for name in sorted(storage.list_files(storage.join(root, voc.IMAGES_DIR)), key=_preference):
        found.setdefault(PurePosixPath(name).stem, storage.join(root, voc.IMAGES_DIR, name))
    ids = sorted(set(voc.read_split(root, split)))
    for image_id in ids:
        if image_id not in found or voc.invalid_id_reason(image_id):
            raise UserError(
                f"{voc.split_path(root, split)} lists {image_id!r}, and {storage.join(root, voc.IMAGES_DIR)} has no photograph of it: "
                "the server wants a mask for each of the list"
            )

    def look(image_id: str) -> Listed:
        try:
            data = storage.read_bytes(found[image_id])
            return Listed(image_id, found[image_id], *image_size(data, max_pixels), hashlib.sha256(data).hexdigest())
        except (BadInput, OSError) as error:
            raise _unusable(found[image_id], error) from None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(progress(pool.map(look, ids), len(ids), f"looking at {split}", "photographs"))


def label_list(
    photographs: Sequence[Listed], recipe: Recipe, place: str, executor: Executor, gpu: bool = False
) -> dict[str, bytes]:
    """A paletted PNG of class ids for each photograph, by image_id. They are kept in the folder `place`; what lies there is not made again.

    Raises UserError where a photograph can't be labelled, or Ray has no room.
    """
    there = set(storage.list_files(place))
    todo = [each for each in photographs if f"{each.image_id}.png" not in there]
    units = dict(enumerate([todo[i] for i in piece] for piece in tables.chunks(len(todo), _A_UNIT))) if todo else {}
    make = partial(labels_by, recipe, place, "cuda" if gpu else "cpu")
    actors = Actors(gpus=1.0 if gpu else 0.0, remedy="use nodes with more memory; finished masks are kept")
    for _ in executor.map_actors(units, make, actors, title="segmenting", unit="batches of images"):
        pass
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        masks = pool.map(lambda each: storage.read_bytes(storage.join(place, f"{each.image_id}.png")), photographs)
        return {each.image_id: mask for each, mask in zip(photographs, masks, strict=True)}


def labels_by(recipe: Recipe, place: str, device: str, threads: int) -> Work[None]:
    """The work of a worker that holds the networks: writes the masks of a unit, a list of images, to the folder `place`."""
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    predictor = Predictor.load(recipe.deconvnet, recipe.fcn8s, device, recipe.segment)

    def work(index: int, unit: Sequence[Listed]) -> None:
        for each in unit:
            try:
                image = decode_image(storage.read_bytes(each.uri))
                boxes, _ = edge_boxes(image, **recipe.edges)
                mask = predictor.masks(image, boxes, (recipe.result,))[recipe.result]
            except (BadInput, OSError, cv2.error) as error:
                raise _unusable(each.uri, error) from None
            storage.write_bytes(storage.join(place, f"{each.image_id}.png"), encode_mask(mask, VOC_PALETTE))

    return work


def _unusable(uri: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{uri} can't be labelled: {reason}. The server wants a mask for each photograph of the list")


def _preference(name: str) -> tuple[int, str]:
    """Of several files with one id the first is taken; what is no photograph comes last."""
    suffix = PurePosixPath(name).suffix.lower()
    return (_SUFFIXES.index(suffix) if suffix in _SUFFIXES else len(_SUFFIXES), name)
