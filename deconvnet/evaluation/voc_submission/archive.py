"""Write the archive that PASCAL VOC's test server accepts, and check an archive against the server's rules.

Source: the development kit of VOC 2012, sections 5.2 and 5.3. The archive holds one PNG of class ids for each image, of the
image's size, in the folder results/VOC2012/Segmentation/COMPETITION_SPLIT_cls. Competition 5 is for methods that were trained on
the challenge's own data only, and competition 6 is for all others. Networks that start from VGG-16 were trained on ImageNet as
well, so they belong to competition 6.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from deconvnet.datasets.palette import VOC_PALETTE

SUFFIXES = (".tar.gz", ".tgz")
NUM_CLASSES = 21
_ROOT = "results/VOC2012/Segmentation"
_MAX_NAMES = 3  # largest number of images named in a message


def masks_folder(competition: str, split: str) -> str:
    """Return the path of the masks' folder in the archive for PASCAL VOC's test server.

    Args:
        competition: "comp5" for methods trained on VOC's data only, or "comp6" for others.
        split: name of the VOC image list, such as "test".

    Returns:
        A path such as "results/VOC2012/Segmentation/comp6_test_cls".
    """
    return f"{_ROOT}/{competition}_{split}_cls"


def pack_masks(masks: Mapping[str, bytes], folder: str) -> bytes:
    """Pack masks into a gzipped tar archive. The same masks always give the same bytes.

    Args:
        masks: contents of the PNG files by image_id.
        folder: path of the masks' folder in the archive, as `masks_folder` returns it.

    Returns:
        The content of the archive file.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image_id in sorted(masks):
            member = tarfile.TarInfo(f"{folder}/{image_id}.png")  # time 0, owner 0, mode 0644
            member.size = len(masks[image_id])
            tar.addfile(member, io.BytesIO(masks[image_id]))
    return gzip.compress(packed.getvalue(), mtime=0)


def check_submission(
    archive: bytes, folder: str, sizes: Mapping[str, tuple[int, int]], num_classes: int = NUM_CLASSES
) -> list[str]:
    """Check an archive of masks against the rules of VOC's test server.

    Each image must have exactly one mask, and the archive must hold nothing else. A mask must be a paletted PNG in VOC's colours,
    of the size of its image, with class ids below `num_classes`.

    Args:
        archive: content of the gzipped tar archive.
        folder: path of the masks' folder in the archive, as `masks_folder` returns it.
        sizes: width and height in pixels of every image in the VOC image list, by image_id.
        num_classes: number of classes, including the background.

    Returns:
        A message for each kind of violation, which names up to three of the images concerned. Empty if the archive is valid.
    """
    faults: dict[str, list[str]] = {}
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for member in tar:
                if member.isdir() and f"{folder}/".startswith(f"{member.name}/"):
                    continue
                image_id = member.name.removeprefix(f"{folder}/").removesuffix(".png")
                if not member.isfile() or image_id not in sizes or member.name != f"{folder}/{image_id}.png":
                    faults.setdefault(f"not a mask of the list in {folder}", []).append(member.name)
                    continue
                if image_id in seen:
                    faults.setdefault("there more than once", []).append(image_id)
                seen.add(image_id)
                content = tar.extractfile(member)
                if fault := _mask_fault(content.read() if content else b"", sizes[image_id], num_classes):
                    faults.setdefault(fault, []).append(image_id)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        return [f"not a complete gzipped tar archive: {error}"]
    if missing := sorted(set(sizes) - seen):
        faults["without a mask"] = missing
    return [f"{fault}: {_some(names)}" for fault, names in faults.items()]


def _mask_fault(data: bytes, size: tuple[int, int], num_classes: int) -> str | None:
    """Check one mask against the rules of VOC's test server.

    Args:
        data: content of the mask's PNG file.
        size: width and height of the image in pixels.
        num_classes: number of classes, including the background.

    Returns:
        A phrase for the first rule that the mask breaks, such as "not a paletted PNG", or None if it breaks none.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode != "P":
                return "not a paletted PNG"
            if image.size != size:  # checked before the pixels are decoded
                return "not of its image's size"
            ids = np.asarray(image)
            palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    except (OSError, ValueError, SyntaxError):
        return "not a readable PNG"
    if (highest := int(ids.max())) >= num_classes:
        return f"with class ids over {num_classes - 1}" + (" (255 is void, allowed in the truth only)" if highest == 255 else "")
    same_colours = np.array_equal(palette[: highest + 1], VOC_PALETTE[: highest + 1])
    return None if same_colours else "not in VOC's colours"


def _some(names: Iterable[str]) -> str:
    """Format a list of names: the first three, and the number of the others if any, as in "a, b, c and 5 more"."""
    names = list(names)
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else "")
