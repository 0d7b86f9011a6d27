"""The Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), joined into a VOC 2012 folder as the split `train_aug`.

SBD labels 11,355 of VOC's photographs in MATLAB files: `dataset/cls/<id>.mat` has GTcls.Segmentation (class ids), and
`dataset/inst/<id>.mat` GTinst.Segmentation (object ids from 1) and GTinst.Categories (each object's class). Neither has void.
With VOC's own train and without VOC's val these are the 10,582 of the paper (§5).
"""

import io
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from tqdm import tqdm

from deconvnet.datasets import voc
from deconvnet.datasets.palette import VOC_PALETTE
from infra import storage
from infra.errors import BadInput, UserError
from infra.storage.tables import Reject
from proposals.image_codec import encode_mask

STAGE = "sbd"
TRAIN_AUG = "train_aug"


def read_mat(data: bytes, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Segmentation (uint8 H×W) and Categories (class ids by object; () where there are none) of the struct `name`.

    Raises BadInput with the reason.
    """
    if not data:
        raise BadInput("the file is empty")
    try:
        struct: Any = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False, variable_names=[name])[name]
        segmentation = np.asarray(struct.Segmentation)
        categories = tuple(int(each) for each in np.atleast_1d(getattr(struct, "Categories", ())))
    except KeyError:
        raise BadInput(f"the file has no {name}") from None
    except AttributeError:
        raise BadInput(f"{name} has no Segmentation") from None
    except (MatReadError, ValueError, TypeError, IndexError, EOFError, OSError, NotImplementedError, zlib.error) as error:
        raise BadInput(f"not a readable MATLAB file: {error}") from None
    if segmentation.ndim != 2:
        raise BadInput(f"{name}.Segmentation has {segmentation.ndim} dimensions, 2 are needed")
    return segmentation.astype(np.uint8), categories


def masks_of(cls_mat: bytes, inst_mat: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Class mask and object mask (both uint8 H×W) of one SBD photograph. Raises BadInput."""
    classes, _ = read_mat(cls_mat, "GTcls")
    objects, categories = read_mat(inst_mat, "GTinst")
    if objects.shape != classes.shape:
        raise BadInput(f"GTinst is {objects.shape[1]}×{objects.shape[0]}, GTcls {classes.shape[1]}×{classes.shape[0]}")
    if int(objects.max(initial=0)) > len(categories):
        raise BadInput(f"GTinst has objects up to {int(objects.max())}, and Categories names {len(categories)}")
    return classes, objects


def add_sbd_to_voc(sbd: str, voc_root: str) -> tuple[int, list[Reject]]:
    """Convert SBD's masks into `voc_root` and write its split `train_aug`. Returns its length and what was left out.

    `sbd` is the unpacked `dataset` folder (cls, inst, train.txt, val.txt). Masks that `voc_root` has stay as they are, so VOC's own
    count, and a run that was stopped goes on; the split's list is written last. Raises UserError where a folder is not
    what it should be.
    """
    val = set(voc.read_split(voc_root, "val"))
    train = voc.read_split(voc_root, "train")
    lists = [storage.join(sbd, f"{split}.txt") for split in ("train", "val")]
    candidates = sorted({each for path in lists for each in _ids(path)} - val - set(train))
    done = _stems(voc_root, voc.CLASS_MASKS_DIR) & _stems(voc_root, voc.OBJECT_MASKS_DIR)
    photographs = _stems(voc_root, voc.IMAGES_DIR)
    rejects: list[Reject] = []
    for image_id in tqdm([each for each in candidates if each not in done], desc="SBD masks", unit="mask"):
        try:
            if voc.invalid_id_reason(image_id):
                raise BadInput("an id must be a plain file name, without a path")
            if image_id not in photographs:
                raise BadInput(f"{voc.IMAGES_DIR} has no photograph of this id")
            _convert(sbd, voc_root, image_id)
        except BadInput as error:
            rejects.append(Reject(image_id, storage.join(sbd, "cls", f"{image_id}.mat"), STAGE, str(error)))
    left_out = {reject.image_id for reject in rejects}
    joined = sorted({*train, *(each for each in candidates if each not in left_out)} - val)
    storage.write_bytes(voc.split_path(voc_root, TRAIN_AUG), "".join(f"{each}\n" for each in joined).encode())
    return len(joined), rejects


def _ids(path: str) -> Iterable[str]:
    try:
        return storage.read_bytes(path).decode().split()
    except FileNotFoundError:
        raise UserError(f"there is no {path}: name SBD's `dataset` folder, which has train.txt, val.txt, cls and inst") from None


def _stems(root: str, folder: str) -> set[str]:
    return {name.rsplit(".", 1)[0] for name in storage.list_files(storage.join(root, folder))}


def _convert(sbd: str, voc_root: str, image_id: str) -> None:
    try:
        cls_mat, inst_mat = (storage.read_bytes(storage.join(sbd, kind, f"{image_id}.mat")) for kind in ("cls", "inst"))
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {error.filename or error}") from None
    classes, objects = masks_of(cls_mat, inst_mat)
    for folder, mask in ((voc.CLASS_MASKS_DIR, classes), (voc.OBJECT_MASKS_DIR, objects)):
        storage.write_bytes(storage.join(voc_root, folder, f"{image_id}.png"), encode_mask(mask, VOC_PALETTE))
