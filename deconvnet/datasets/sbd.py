"""The Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), added to a VOC 2012 folder as the split `train_aug`.

SBD annotates 11,355 of VOC's images in MATLAB files: `dataset/cls/<id>.mat` has GTcls.Segmentation (class ids),
`dataset/inst/<id>.mat` has GTinst.Segmentation (object ids from 1) and GTinst.Categories (the class of each object). Neither has
void. Together with VOC's train and without VOC's val they are the 10,582 training images of the paper (section 5).
"""

import io
import zlib
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


def read_mat(data: bytes, struct_name: str) -> tuple[np.ndarray, tuple[int, ...]]:
    """Read one of SBD's MATLAB files.

    Args:
        data: content of the file.
        struct_name: "GTcls" or "GTinst".

    Returns:
        Segmentation, a uint8 array (H, W), and Categories, the class id of each object (empty for GTcls).

    Raises:
        BadInput: if the file is damaged or lacks the struct.
    """
    if not data:
        raise BadInput("the file is empty")
    try:
        content = loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False, variable_names=[struct_name])
        struct: Any = content[struct_name]
        segmentation = np.asarray(struct.Segmentation)
        categories = tuple(int(each) for each in np.atleast_1d(getattr(struct, "Categories", ())))
    except KeyError:
        raise BadInput(f"the file has no {struct_name}") from None
    except AttributeError:
        raise BadInput(f"{struct_name} has no Segmentation") from None
    except (MatReadError, ValueError, TypeError, IndexError, EOFError, OSError, NotImplementedError, zlib.error) as error:
        raise BadInput(f"not a readable MATLAB file: {error}") from None
    if segmentation.ndim != 2:
        raise BadInput(f"{struct_name}.Segmentation has {segmentation.ndim} dimensions, 2 are needed")
    return segmentation.astype(np.uint8), categories


def read_masks(cls_mat: bytes, inst_mat: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the masks of one image.

    Args:
        cls_mat: content of its file in `cls`.
        inst_mat: content of its file in `inst`.

    Returns:
        Class mask and object mask, uint8 arrays (H, W).

    Raises:
        BadInput: if a file is damaged or the two don't fit.
    """
    class_mask, _ = read_mat(cls_mat, "GTcls")
    object_mask, categories = read_mat(inst_mat, "GTinst")
    if object_mask.shape != class_mask.shape:
        sizes = [f"{mask.shape[1]}×{mask.shape[0]}" for mask in (object_mask, class_mask)]
        raise BadInput(f"GTinst is {sizes[0]}, GTcls {sizes[1]}")
    if int(object_mask.max(initial=0)) > len(categories):
        raise BadInput(f"GTinst has objects up to {int(object_mask.max())}, and Categories names {len(categories)}")
    return class_mask, object_mask


def add_sbd_to_voc(sbd: str, voc_root: str) -> tuple[int, list[Reject]]:
    """Convert SBD's masks into a VOC 2012 folder and write its split `train_aug`.

    Masks that the folder already has are kept: so VOC's own are preferred, and an interrupted conversion is resumed. The list of
    the split is written last.

    Args:
        sbd: SBD's `dataset` folder, with cls, inst, train.txt and val.txt.
        voc_root: the VOC 2012 folder.

    Returns:
        Number of images in `train_aug`, and the images of SBD that were left out, with reasons.

    Raises:
        UserError: if a list of either data set can't be read.
    """
    val = set(voc.read_split(voc_root, "val"))
    train = voc.read_split(voc_root, "train")
    lists = [storage.join(sbd, f"{split}.txt") for split in ("train", "val")]
    candidates = sorted({image_id for path in lists for image_id in _read_ids(path)} - val - set(train))
    converted = _stems(voc_root, voc.CLASS_MASKS_DIR) & _stems(voc_root, voc.OBJECT_MASKS_DIR)
    images = _stems(voc_root, voc.IMAGES_DIR)
    rejects: list[Reject] = []
    for image_id in tqdm([each for each in candidates if each not in converted], desc="SBD masks", unit="mask"):
        try:
            if reason := voc.invalid_id_reason(image_id):
                raise BadInput(reason)
            if image_id not in images:
                raise BadInput(f"{voc.IMAGES_DIR} has no image of this id")
            _convert(sbd, voc_root, image_id)
        except BadInput as error:
            rejects.append(Reject(image_id, storage.join(sbd, "cls", f"{image_id}.mat"), STAGE, str(error)))
    left_out = {reject.image_id for reject in rejects}
    train_aug = sorted({*train, *(each for each in candidates if each not in left_out)} - val)
    storage.write_bytes(voc.split_path(voc_root, TRAIN_AUG), "".join(f"{each}\n" for each in train_aug).encode())
    return len(train_aug), rejects


def _read_ids(path: str) -> list[str]:
    """Read the ids in one of SBD's lists. Raises UserError if there is no such file."""
    try:
        return storage.read_bytes(path).decode().split()
    except FileNotFoundError:
        raise UserError(f"there is no {path}: name SBD's `dataset` folder, which has train.txt, val.txt, cls and inst") from None


def _stems(root: str, folder: str) -> set[str]:
    """Return the names without suffix of the files in a folder of `root`."""
    return {name.rsplit(".", 1)[0] for name in storage.list_files(storage.join(root, folder))}


def _convert(sbd: str, voc_root: str, image_id: str) -> None:
    """Convert the masks of one image from SBD's files to PNG. Raises BadInput if SBD's files are missing or damaged."""
    try:
        cls_mat, inst_mat = (storage.read_bytes(storage.join(sbd, kind, f"{image_id}.mat")) for kind in ("cls", "inst"))
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {error.filename or error}") from None
    class_mask, object_mask = read_masks(cls_mat, inst_mat)
    for folder, mask in ((voc.CLASS_MASKS_DIR, class_mask), (voc.OBJECT_MASKS_DIR, object_mask)):
        storage.write_bytes(storage.join(voc_root, folder, f"{image_id}.png"), encode_mask(mask, VOC_PALETTE))
