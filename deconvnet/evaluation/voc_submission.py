"""What PASCAL VOC's test server takes: masks packed in one archive, and what in an archive breaks its rules.

The rules are the VOC 2012 development kit's (§5.2, §5.3): one PNG of class ids a photograph, at its size, below
results/VOC2012/Segmentation/COMPETITION_SPLIT_cls. Competition 5 is for what learned from the challenge's own data alone, 6 for all else;
networks that start from VGG-16, which saw ImageNet, are 6.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from deconvnet.datasets.palette import VOC_PALETTE

COMPETITIONS = ("comp5", "comp6")
SUFFIXES = (".tar.gz", ".tgz")
NUM_CLASSES = 21
_ROOT = "results/VOC2012/Segmentation"
_NAMED = 3  # photographs that a fault names


def masks_folder(competition: str, split: str) -> str:
    """Where an archive has its masks: results/VOC2012/Segmentation/comp6_test_cls."""
    return f"{_ROOT}/{competition}_{split}_cls"


def pack(masks: Mapping[str, bytes], folder: str) -> bytes:
    """A gzipped tar of masks (image_id → PNG) in `folder`. The same masks give the same bytes, whenever and whoever packs them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for image_id in sorted(masks):
            member = tarfile.TarInfo(f"{folder}/{image_id}.png")  # time 0, owner 0, -rw-r--r--
            member.size = len(masks[image_id])
            tar.addfile(member, io.BytesIO(masks[image_id]))
    return gzip.compress(packed.getvalue(), mtime=0)


def check_submission(
    archive: bytes, folder: str, sizes: Mapping[str, tuple[int, int]], num_classes: int = NUM_CLASSES
) -> list[str]:
    """What breaks the server's rules, a sentence a kind; [] where nothing does.

    sizes: width and height, px, of each photograph of the list by image_id. Every one must have its mask in `folder`, and nothing else
    may lie in the archive; a mask is a paletted PNG in VOC's colours, as large as its photograph, of ids below `num_classes`.
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
                if fault := _fault(content.read() if content else b"", sizes[image_id], num_classes):
                    faults.setdefault(fault, []).append(image_id)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        return [f"not a whole gzipped tar: {error}"]
    if missing := sorted(set(sizes) - seen):
        faults["without a mask"] = missing
    return [f"{fault}: {_some(names)}" for fault, names in faults.items()]


def _fault(data: bytes, size: tuple[int, int], num_classes: int) -> str | None:
    """What is wrong with a mask for a photograph of `size` (width, height), without its name."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode != "P":
                return "not a paletted PNG"
            if image.size != size:  # before its pixels are unpacked
                return "not of its photograph's size"
            ids = np.asarray(image)
            palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    except (OSError, ValueError, SyntaxError):
        return "not a PNG that can be read"
    if (highest := int(ids.max())) >= num_classes:
        return f"with class ids over {num_classes - 1}" + (" (255 is void, which is for truth alone)" if highest == 255 else "")
    right = np.array_equal(palette[: highest + 1], VOC_PALETTE[: highest + 1])
    return None if right else "not in VOC's colours"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
