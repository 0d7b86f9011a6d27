"""What the data stages need as the data grows: `python tests/benchmarks/scale.py [speed] [memory]`. Minutes each; alone on the machine.

speed    proposals a second by Ray Data with 1 and 2 workers, against a bare multiprocessing.Pool of the same function
memory   peak resident memory of the driver and of the workers, for 200 photographs and for the same ten times over
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DECONVNET_SHARED", ROOT.parent / "shared"))
SPEED_PHOTOGRAPHS = 320  # 10 parts: as many for each of two workers
MEMORY_PHOTOGRAPHS = 200
ROUNDS = 2


def folder(place: Path, photographs: int, times: int = 1) -> Path:
    """A VOC-layout folder with the sample's first photographs, `times` over under other ids. Files are links."""
    sample = SHARED / "voc-sample"
    ids = [i for split in ("train", "val") for i in (sample / f"ImageSets/Segmentation/{split}.txt").read_text().split()]
    chosen = ids[:: len(ids) // photographs][:photographs]
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationObject", "png")):
        (place / kind).mkdir(parents=True)
        for image_id in chosen:
            for n in range(times):
                (place / kind / f"{image_id}_{n}.{suffix}").symlink_to(sample / kind / f"{image_id}.{suffix}")
    for number, image_id in enumerate(chosen):
        lists["val" if number % 5 == 0 else "train"] += [f"{image_id}_{n}" for n in range(times)]
    (place / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in lists.items():
        (place / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    return place


@contextmanager
def ray_of(cpus: int) -> Iterator[None]:
    from infra.runtime.cluster import connected
    from infra.settings import ClusterSettings

    with connected(ClusterSettings(num_cpus=cpus)):
        yield


def speed(place: Path) -> list[tuple[str, str]]:
    """Photographs a second; start-up excluded on both sides: a first, small job has started the workers."""
    from deconvnet.datasets.images_table import prepare_images
    from deconvnet.settings import DataSettings
    from infra.runtime.ray_executor import RayExecutor
    from infra.settings import ClusterSettings
    from infra.storage import tables
    from proposals.job import make_proposals
    from proposals.settings import ProposalSettings

    uris = {}
    for name, count in (("all", SPEED_PHOTOGRAPHS), ("few", 64)):
        root = folder(place / name, count)
        uris[name] = str(place / f"images-{name}")
        with ray_of(2):
            prepare_images(DataSettings(root=str(root)), 0, uris[name], "i" * 16, str(root), RayExecutor(ClusterSettings()))
    rows = list(tables.iter_rows(uris["all"], ["image_id", "image"]))
    settings = ProposalSettings()

    def by_pool(workers: int) -> float:
        with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
            work = partial(_propose, keywords=settings.model_dump())
            pool.map(work, rows[: 2 * workers], 1)
            started = time.perf_counter()
            for _ in pool.imap(work, rows, 4):
                pass
            return len(rows) / (time.perf_counter() - started)

    def by_ray(workers: int, number: int) -> float:
        with ray_of(workers):
            make_proposals(
                uris["few"], str(place / f"few-{workers}-{number}"), settings, "p" * 16, RayExecutor(ClusterSettings())
            )
            started = time.perf_counter()
            commit = make_proposals(
                uris["all"], str(place / f"all-{workers}-{number}"), settings, "p" * 16, RayExecutor(ClusterSettings())
            )
            return commit.rows / (time.perf_counter() - started)

    found = []
    for workers in (1, 2):
        pairs = [(by_pool(workers), by_ray(workers, n)) for n in range(ROUNDS)]
        ratios = ", ".join(f"{ray / pool:.2f}" for pool, ray in pairs)
        pool, ray = (max(pair[i] for pair in pairs) for i in (0, 1))
        found.append((f"proposals, {workers} worker{'s' if workers > 1 else ''}, {len(rows)} photographs",
                      f"Ray Data {ray:.2f}/s, Pool {pool:.2f}/s; ratio {ratios} (each pair one after the other)"))  # fmt: skip
    return found


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _propose(row: dict, keywords: dict) -> object:
    from proposals.edgebox import EdgeBoxOptions
    from proposals.job import proposals_row

    return proposals_row(row, EdgeBoxOptions(**keywords))


def memory(place: Path) -> list[tuple[str, str]]:
    """Peaks over prepare, proposals and crops."""
    found = []
    for times in (1, 10):
        root = folder(place / f"data-{times}", MEMORY_PHOTOGRAPHS, times)
        code = (
            "from workflows.pipelines.training import Pipeline; from workflows.settings import load; import sys;"
            "Pipeline(load('workflows/configs/voc_sample.yaml', *sys.argv[1:])).run('scale', lambda stage: stage.name != 'examples')"
        )
        options = ["--data.root", str(root), "--workspace", str(place / f"w-{times}"), "--compute.gpu", "false", "--compute.cpus_per_worker", "1",
                   "--model.vgg16", ""]  # fmt: skip
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code, *options], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        with watched(process.pid) as peaks:
            assert process.wait() == 0
        size = sum(f.stat().st_size for f in (place / f"w-{times}").rglob("*.parquet"))
        tables = f"{size / 1e6:,.0f} MB of tables in {time.perf_counter() - started:,.0f} s"
        found.append((f"{MEMORY_PHOTOGRAPHS * times:,} photographs ({tables})",
                      f"driver {peaks['driver']:,.0f} MB, largest worker {peaks['worker']:,.0f} MB"))  # fmt: skip
    return found


@contextmanager
def watched(pid: int) -> Iterator[dict[str, float]]:
    """Peaks of resident memory (VmHWM, MB) of the process, and of the largest Ray worker below it, until the block ends."""
    peaks = {"driver": 0.0, "worker": 0.0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            try:
                below = psutil.Process(pid).children(recursive=True)
            except psutil.NoSuchProcess:
                return
            for process in [psutil.Process(pid), *below]:
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    kind = "driver" if process.pid == pid else "worker" if "ray::" in " ".join(process.cmdline()) else None
                except (OSError, psutil.Error):
                    continue
                if kind and "VmHWM" in status:
                    peaks[kind] = max(peaks[kind], int(status.split("VmHWM:")[1].split()[0]) / 1e3)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def main() -> int:
    wanted = sys.argv[1:] or ["speed", "memory"]
    for name in wanted:
        place = Path(tempfile.mkdtemp(prefix=f"scale-{name}-"))
        try:
            for what, measured in {"speed": speed, "memory": memory}[name](place):
                print(f"| {what} | {measured} |", flush=True)
        finally:
            shutil.rmtree(place, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
