"""The archive for VOC's test server: the content of a valid one, and every rule that one can break."""

import gzip
import io
import tarfile
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.palette import VOC_PALETTE
from deconvnet.evaluation.voc_submission.archive import check_submission, masks_folder, pack_masks
from proposals.image_codec import encode_mask

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
SIZES = {"2008_000006": (30, 20), "2008_000011": (16, 40), "2012_004328": (9, 9)}


def mask(size: tuple[int, int], *ids: int) -> bytes:
    """A mask of a size (width, height) that contains 0 and each of `ids`."""
    mask_ids = np.zeros((size[1], size[0]), np.uint8)
    mask_ids[0, : len(ids)] = ids
    return encode_mask(mask_ids, VOC_PALETTE)


def masks() -> dict[str, bytes]:
    return {name: mask(size, 20, 7) for name, size in reversed(SIZES.items())}


def check(archive: bytes) -> list[str]:
    return check_submission(archive, FOLDER, SIZES)


def test_an_archive_holds_the_masks_in_the_folder_that_the_server_reads() -> None:
    assert masks_folder("comp6", "test") == FOLDER
    assert masks_folder("comp5", "val") == "results/VOC2012/Segmentation/comp5_val_cls"
    archive = pack_masks(masks(), FOLDER)
    assert check(archive) == []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == [f"{FOLDER}/{name}.png" for name in sorted(SIZES)]
        content = tar.extractfile(f"{FOLDER}/2008_000006.png")
        assert content and content.read() == masks()["2008_000006"]


def test_the_same_masks_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = pack_masks(masks(), FOLDER)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert pack_masks(dict(sorted(masks().items())), FOLDER) == first


def png(mask_ids: np.ndarray, palette: np.ndarray | None = VOC_PALETTE) -> bytes:
    return encode_mask(mask_ids, palette)


def jpeg_called_png() -> bytes:
    sink = io.BytesIO()
    Image.new("L", SIZES["2008_000006"]).save(sink, "JPEG")
    return sink.getvalue()


BACKGROUND = np.zeros((20, 30), np.uint8)


@pytest.mark.parametrize(
    ("spoilt", "fault"),
    [
        (mask((30, 20), 255), "with class ids over 20 (255 is void, allowed in the truth only): 2008_000006"),
        (mask((30, 20), 21), "with class ids over 20: 2008_000006"),
        (mask((20, 30), 1), "not of its image's size: 2008_000006"),
        (png(BACKGROUND, None), "not a paletted PNG: 2008_000006"),
        (png(BACKGROUND, VOC_PALETTE[::-1]), "not in VOC's colours: 2008_000006"),
        (
            png(BACKGROUND + 3, np.vstack([VOC_PALETTE[:3], VOC_PALETTE[4:], VOC_PALETTE[:1]])),
            "not in VOC's colours: 2008_000006",
        ),
        (jpeg_called_png(), "not a readable PNG: 2008_000006"),
        (mask((30, 20), 1)[:-30], "not a readable PNG: 2008_000006"),
        (b"", "not a readable PNG: 2008_000006"),
    ],
)
def test_a_mask_that_breaks_a_rule_is_reported(spoilt: bytes, fault: str) -> None:
    assert check(pack_masks(masks() | {"2008_000006": spoilt}, FOLDER)) == [fault]


def without_one() -> bytes:
    return pack_masks({name: data for name, data in masks().items() if name != "2008_000011"}, FOLDER)


def with_one_more() -> bytes:
    return pack_masks(masks() | {"2009_000001": mask((4, 4), 1)}, FOLDER)


def elsewhere() -> bytes:
    return pack_masks(masks(), "Segmentation/comp6_test_cls")


def repacked(change: Callable[[tarfile.TarFile], None], mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar, tarfile.open(fileobj=io.BytesIO(pack_masks(masks(), FOLDER))) as right:
        for member in right:
            tar.addfile(member, right.extractfile(member))
        change(tar)
    return packed.getvalue()


def add_twice(tar: tarfile.TarFile) -> None:
    data = masks()["2012_004328"]
    member = tarfile.TarInfo(f"{FOLDER}/2012_004328.png")
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def add_link(tar: tarfile.TarFile) -> None:
    member = tarfile.TarInfo(f"{FOLDER}/2009_000001.png")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(member)


def add_folders(tar: tarfile.TarFile) -> None:
    for name in ("results", "results/VOC2012", FOLDER):
        member = tarfile.TarInfo(name)
        member.type = tarfile.DIRTYPE
        tar.addfile(member)


@pytest.mark.parametrize(
    ("archive", "faults"),
    [
        (without_one(), ["without a mask: 2008_000011"]),
        (with_one_more(), [f"not a mask of the list in {FOLDER}: {FOLDER}/2009_000001.png"]),
        (repacked(add_twice), ["there more than once: 2012_004328"]),
        (repacked(add_link), [f"not a mask of the list in {FOLDER}: {FOLDER}/2009_000001.png"]),
        (repacked(add_folders), []),
    ],
    ids=["a hole", "one too many", "twice", "a link", "folders"],
)
def test_an_archive_that_breaks_a_rule_is_reported(archive: bytes, faults: list[str]) -> None:
    assert check(archive) == faults


def test_masks_in_the_wrong_folder_are_reported_as_foreign_and_missing() -> None:
    foreign, missing = check(elsewhere())
    assert foreign.startswith("not a mask of the list") and missing == "without a mask: 2008_000006, 2008_000011, 2012_004328"


def test_many_faults_of_one_kind_are_one_line() -> None:
    sizes = {f"2008_{i:06}": (9, 9) for i in range(2000)}
    assert check_submission(pack_masks({}, FOLDER), FOLDER, sizes) == [
        "without a mask: 2008_000000, 2008_000001, 2008_000002 and 1,997 more"
    ]


@pytest.mark.parametrize(
    "archive",
    [b"", b"PK\x03\x04", pack_masks(masks(), FOLDER)[:-40], gzip.compress(b"no tar"), repacked(lambda tar: None, mode="w")],
    ids=["empty", "zip", "cut", "gzip", "tar"],
)
def test_files_that_are_not_gzipped_tar_archives_are_reported(archive: bytes) -> None:
    (fault,) = check(archive)
    assert fault.startswith("not a complete gzipped tar archive")
