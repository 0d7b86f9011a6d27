"""How long the table of a million images takes to become a version of its Delta Lake table, and the memory of the process."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

IMAGES = 1_000_000
_VAL = 1_000


def make_tiny_dataset(folder: Path, images: int) -> Path:
    """Make a data set in VOC's layout whose images are symbolic links to a single tiny one, and return its folder."""
    rng = np.random.default_rng(0)
    mask = np.zeros((24, 32), np.uint8)
    mask[6:18, 8:24] = 1
    files = {"JPEGImages": ("tiny.jpg", rng.integers(0, 255, (24, 32, 3), np.uint8)), "SegmentationClass": ("tiny.png", mask)}
    ids = [f"{number:07}" for number in range(images)]
    for kind, (name, pixels) in files.items():
        (folder / kind).mkdir(parents=True)
        cv2.imwrite(str(folder / name), pixels)
        for image_id in ids:
            (folder / kind / f"{image_id}{Path(name).suffix}").symlink_to(folder / name)
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(ids[:_VAL]) + "\n")
    (lists / "train.txt").write_text("\n".join(ids[_VAL:]) + "\n")
    return folder


def prepare(data: str, table: str) -> str:
    """Make the `images` table of a data set on this machine. Returns the rows, seconds, peak memory and listings of folders."""
    from deconvnet.datasets import voc
    from deconvnet.datasets.images_table import prepare_images
    from deconvnet.settings import DataSettings
    from infra import storage
    from infra.runtime.local_executor import LocalExecutor
    from infra.storage import tables

    listed: Counter[str] = Counter()
    seconds: dict[str, float] = {}

    def counted(list_files: Callable[..., Any]) -> Callable[..., Any]:
        def listing(*place: str, **options: bool) -> Any:
            listed["/".join(place)] += 1
            return list_files(*place, **options)

        return listing

    def timed(*arguments: Any, **options: Any) -> tables.Commit:
        begun = time.monotonic()
        made = commit(*arguments, **options)
        seconds["commit"] = time.monotonic() - begun
        return made

    commit, tables.commit = tables.commit, timed
    storage.list_files, voc.list_files = counted(storage.list_files), counted(voc.list_files)
    settings = DataSettings(root=data, classes=("background", "thing"), dev_fraction=0.001)
    begun = time.monotonic()
    with LocalExecutor(2) as executor:
        made = prepare_images(settings, 0, table, "f" * 64, data, executor)
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    for place, times in listed.items():
        print(f"listed {times} times: {place}", file=sys.stderr)
    return (
        f"{made.rows:,} rows, {len(made.parts):,} parts; commit {seconds['commit']:.1f} s of {time.monotonic() - begun:.0f} s; "
        f"driver's peak memory {peak / 1e3:.0f} MB; folders listed at most {max(listed.values())} times"
    )
