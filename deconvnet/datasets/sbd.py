"""Adding the Semantic Boundaries Dataset (SBD; Hariharan et al., ICCV 2011) to a VOC 2012 folder, as the split `train_aug`.

SBD annotates 11,355 of VOC's images in MATLAB files. The file `dataset/cls/<id>.mat` has the class ids of the pixels in
GTcls.Segmentation. The file `dataset/inst/<id>.mat` has their object ids, counted from 1, in GTinst.Segmentation, and the class
of each object in GTinst.Categories. No pixel is void in either file.

The split `train_aug` has the images of SBD and of VOC's train, without those of VOC's val. These are the 10,582 images on which
VOC 2012 networks are commonly trained.
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
    """Decode one of SBD's MATLAB files.

    Args:
        data: content of the file.
        struct_name: name of the MATLAB struct to read: "GTcls" or "GTinst".

    Returns:
        The struct's Segmentation, a uint8 array (H, W), and its Categories, the class id of each object. Categories is empty for
        GTcls.

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
    """Decode the class mask and the object mask of one image from SBD's MATLAB files.

    Args:
        cls_mat: content of the image's file in SBD's folder `cls`, which has the class ids.
        inst_mat: content of the image's file in SBD's folder `inst`, which has the object ids and their classes.

    Returns:
        The class mask and the object mask, uint8 arrays (H, W); 0 is background.

    Raises:
        BadInput: if a file is damaged, or the two differ in size, or the object mask has an object without a class.
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
    """Convert SBD's masks to PNG files in a VOC 2012 folder, and write the list of its split `train_aug`.

    An image that already has a class mask and an object mask there is skipped. So VOC's own masks are kept, and an interrupted
    conversion can be resumed. The list is written last. Progress is shown on stderr.

    Args:
        sbd: path or URI of SBD's folder `dataset`, with cls, inst, train.txt and val.txt.
        voc_root: path or URI of the VOC 2012 folder.

    Returns:
        The number of images in `train_aug`, and a Reject with the reason for each image of SBD that was left out.

    Raises:
        UserError: if a list of image ids can't be read, in either data set.
    """
    val = set(voc.read_split(voc_root, "val"))
    train = voc.read_split(voc_root, "train")
    lists = [storage.join(sbd, f"{split}.txt") for split in ("train", "val")]
    candidates = sorted({image_id for path in lists for image_id in _read_ids(path)} - val - set(train))
    images, class_masks, object_masks = (
        voc.list_files(voc_root, folder) for folder in (voc.IMAGES_DIR, voc.CLASS_MASKS_DIR, voc.OBJECT_MASKS_DIR)
    )
    converted = class_masks.keys() & object_masks.keys()
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
    """Read the image ids in one of SBD's lists.

    Args:
        path: path or URI of train.txt or val.txt.

    Returns:
        The ids, in the order of the file.

    Raises:
        UserError: if there is no such file.
    """
    try:
        return storage.read_bytes(path).decode().split()
    except FileNotFoundError:
        raise UserError(f"there is no {path}: name SBD's `dataset` folder, which has train.txt, val.txt, cls and inst") from None


def _convert(sbd: str, voc_root: str, image_id: str) -> None:
    """Convert the masks of one image from SBD's MATLAB files to PNG files in the VOC folder.

    Args:
        sbd: path or URI of SBD's folder `dataset`.
        voc_root: path or URI of the VOC 2012 folder, in which the two PNG files are written.
        image_id: id of the image.

    Raises:
        BadInput: if one of SBD's files is missing or damaged.
    """
    try:
        cls_mat, inst_mat = (storage.read_bytes(storage.join(sbd, kind, f"{image_id}.mat")) for kind in ("cls", "inst"))
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {error.filename or error}") from None
    class_mask, object_mask = read_masks(cls_mat, inst_mat)
    for folder, mask in ((voc.CLASS_MASKS_DIR, class_mask), (voc.OBJECT_MASKS_DIR, object_mask)):
        storage.write_bytes(storage.join(voc_root, folder, f"{image_id}.png"), encode_mask(mask, VOC_PALETTE))
