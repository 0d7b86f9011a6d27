"""Requests to S3, counted by a proxy in front of a server: a first run, nights with new images, and an epoch of training."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers import Answer, FlakyProxy, s3_server

FIRST, NIGHTS, CROPS = 160, (32, 32, 96, 32), 25_000
_KINDS = (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationObject", "png"))


class _Counting(FlakyProxy):
    """A proxy that counts requests by their method; a GET that lists keys is a LIST."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.counts: Counter[str] = Counter()

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Count a request and forward it."""
        self.counts["LIST" if "list-type=2" in urlsplit(path).query else method] += 1
        return super().forward(method, path, headers, body)

    def take(self) -> str:
        """The counts since the last call, as a text."""
        found, self.counts = self.counts, Counter()
        return ", ".join(f"{number:,} {kind}" for kind, number in sorted(found.items()))


def count(folder: Path, make_dataset: Callable[[Path, int, int], Path], stages: Callable[[str, str], object]) -> dict[str, str]:
    """Count the requests of each run; those that copy images to S3 before it are left out.

    Args:
        folder: an empty folder to work in.
        make_dataset: function that makes a data set: its folder, number of images, and how often each occurs.
        stages: function that runs the data stages, by the URIs of the data and of the workspace.

    Returns:
        The requests of each run.
    """
    from deconvnet.training.data.dataloader import BatchPlan
    from deconvnet.training.data.examples import open_examples
    from infra import storage
    from tests.benchmarks.scale import write_crops

    data = make_dataset(folder / "data", (FIRST + sum(NIGHTS)) // 4 + 1, 4)
    ids = sorted(path.stem for path in (data / "JPEGImages").iterdir())  # copies of an image are far apart
    lists = {split: (data / f"ImageSets/Segmentation/{split}.txt").read_text().split() for split in ("train", "val")}
    found: dict[str, str] = {}
    (folder / "server").mkdir()
    with s3_server(folder / "server") as server, _Counting(server.url) as proxy:
        server.create_bucket("bucket")
        os.environ.update(proxy.environment)
        for name, start, stop in _runs():
            for image_id in ids[start:stop]:
                for kind, suffix in _KINDS:
                    file = f"{kind}/{image_id}.{suffix}"
                    storage.write_bytes(f"s3://bucket/data/{file}", (data / file).read_bytes())
            for split, members in lists.items():
                lines = "".join(f"{each}\n" for each in members if each in set(ids[:stop]))
                storage.write_bytes(f"s3://bucket/data/ImageSets/Segmentation/{split}.txt", lines.encode())
            proxy.take()
            stages("s3://bucket/data", "s3://bucket/w")
            found[name] = proxy.take()
        write_crops("s3://bucket/crops", CROPS)
        proxy.take()
        plan = BatchPlan.of(open_examples("s3://bucket/crops", 224), 64, 1, 0)
        for _ in plan.reader(0).steps(0, plan.steps_per_epoch):
            pass
        found[f"an epoch of {CROPS:,} crops, {len(plan.examples.groups.nbytes):,} row groups"] = proxy.take()
    return found


def _runs() -> list[tuple[str, int, int]]:
    """The name of each run, and which images are new in it: the index of the first and that after the last."""
    runs = [(f"first run, {FIRST} images", 0, FIRST)]
    for number, new in enumerate(NIGHTS, 1):
        start = runs[-1][2]
        runs.append((f"night {number}, {new} new images", start, start + new))
    return runs
