"""How the data stages and the dataloader scale: `make bench-scale`, ARGS="speed memory reading night commit requests".

Each takes minutes. Run nothing else meanwhile.

speed    images per second of the stage `proposals` on Ray with 1 and 2 workers, against a multiprocessing.Pool of it
memory   peak resident memory of the driver and of the workers for 200 images, and for ten times as many
reading  bytes that 1, 2, 4 and 8 training workers read in an epoch, and the memory of one, for a table and a ten times larger one
night    bytes and seconds of prepare, proposals and crops when 1 % of 2,000 images are new, of the first run's (half an hour)
commit   seconds and memory that it takes to make a table of a million tiny images (a quarter of an hour)
requests requests to S3 of the data stages, when images are new, and of an epoch of training
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DECONVNET_SHARED", ROOT.parent / "shared"))
SPEED_IMAGES = 320  # 10 parts: the same number for each of two workers
MEMORY_IMAGES = 200
ROUNDS = 2
READING_CROPS = (6_000, 60_000)
FED_STEPS = 240
NIGHT_IMAGES = 2_000
DATA_STAGES = ("prepare", "proposals", "examples")
FROM_SCRATCH = ("--model.vgg16", "", "--train.fcn8s.freeze", "", "--train.stage1.freeze", "")


def make_dataset(folder: Path, images: int, times: int = 1) -> Path:
    """Make a data set in VOC's layout from the VOC sample. Copies of an image are far apart, or Parquet would store them once.

    Args:
        folder: where to make it; files are symbolic links.
        images: number of images of the sample.
        times: how often each image occurs, under different ids.

    Returns:
        The folder.
    """
    sample = SHARED / "voc-sample"
    ids = [i for split in ("train", "val") for i in (sample / f"ImageSets/Segmentation/{split}.txt").read_text().split()]
    chosen = ids[:: len(ids) // images][:images]
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for kind, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("SegmentationObject", "png")):
        (folder / kind).mkdir(parents=True)
        for image_id in chosen:
            for n in range(times):
                (folder / kind / f"{n}_{image_id}.{suffix}").symlink_to(sample / kind / f"{image_id}.{suffix}")
    for number, image_id in enumerate(chosen):
        lists["val" if number % 5 == 0 else "train"] += [f"{n}_{image_id}" for n in range(times)]
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in lists.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def speed(folder: Path) -> list[tuple[str, str]]:
    """Images per second of Ray and of a process pool. A small job starts the workers first, so start-up is not measured.

    Args:
        folder: an empty folder to work in.

    Returns:
        Pairs of what was measured and the measurement.
    """
    from deconvnet.datasets.images_table import prepare_images
    from deconvnet.settings import DataSettings
    from infra.runtime.ray_executor import RayExecutor
    from infra.settings import ClusterSettings
    from infra.storage import tables
    from proposals.job import make_proposals
    from proposals.settings import ProposalSettings

    uris = {}
    for name, count in (("all", SPEED_IMAGES), ("few", 64)):
        root = make_dataset(folder / name, count)
        uris[name] = str(folder / f"images-{name}")
        with RayExecutor(ClusterSettings(num_cpus=2)) as executor:
            prepare_images(DataSettings(root=str(root)), 0, uris[name], "i" * 16, str(root), executor)
    rows = list(tables.iter_rows(uris["all"], ["image_id", "image"]))
    settings = ProposalSettings()

    def by_pool(workers: int) -> float:
        with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
            work = partial(_propose, keywords=settings.edge_box)
            pool.map(work, rows[: 2 * workers], 1)
            started = time.perf_counter()
            for _ in pool.imap(work, rows, 4):
                pass
            return len(rows) / (time.perf_counter() - started)

    def by_ray(workers: int, number: int) -> float:
        with RayExecutor(ClusterSettings(num_cpus=workers)) as executor:
            make_proposals(uris["few"], str(folder / f"few-{workers}-{number}"), settings, "p" * 16, executor)
            started = time.perf_counter()
            commit = make_proposals(uris["all"], str(folder / f"all-{workers}-{number}"), settings, "p" * 16, executor)
            return commit.rows / (time.perf_counter() - started)

    found = []
    for workers in (1, 2):
        pairs = [(by_pool(workers), by_ray(workers, n)) for n in range(ROUNDS)]
        ratios = ", ".join(f"{ray / pool:.2f}" for pool, ray in pairs)
        pool, ray = (max(pair[i] for pair in pairs) for i in (0, 1))
        what = f"proposals, {workers} worker{'s' if workers > 1 else ''}, {len(rows)} images"
        found.append((what, f"Ray {ray:.2f}/s, Pool {pool:.2f}/s; ratio {ratios} (each pair one after the other)"))
    return found


def _one_thread() -> None:
    """Keep OpenCV to one thread in a process of the pool."""
    import cv2

    cv2.setNumThreads(1)


def _propose(row: dict, keywords: dict) -> object:
    """The proposals of one row of the table `images`."""
    from proposals.edgebox import EdgeBoxOptions
    from proposals.job import proposals_row

    return proposals_row(row, EdgeBoxOptions(**keywords))


def memory(folder: Path) -> list[tuple[str, str]]:
    """Peak memory over the stages prepare, proposals and examples.

    Args:
        folder: an empty folder to work in.

    Returns:
        Pairs of what was measured and the measurement.
    """
    found = []
    for times in (1, 10):
        root = make_dataset(folder / f"data-{times}", MEMORY_IMAGES, times)
        code = (
            "from workflows.pipelines.training import Pipeline; from workflows.settings import load; import sys;"
            "pipeline = Pipeline(load('workflows/configs/voc_sample.yaml', *sys.argv[1:]));"
            "pipeline.run('scale', lambda stage: stage.name != 'examples')"
        )
        workspace = folder / f"w-{times}"
        options = ["--data.root", str(root), "--workspace", str(workspace), *FROM_SCRATCH]
        options += ["--compute.gpu", "false", "--compute.cpus_per_worker", "1"]
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code, *options], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        with watch_memory(process.pid) as peaks:
            assert process.wait() == 0
        size = sum(f.stat().st_size for f in workspace.rglob("*.parquet"))
        tables = f"{size / 1e6:,.0f} MB of tables in {time.perf_counter() - started:,.0f} s"
        measured = f"driver {peaks['driver']:,.0f} MB, largest worker {peaks['worker']:,.0f} MB"
        found.append((f"{MEMORY_IMAGES * times:,} images ({tables})", measured))
    return found


def reading(folder: Path) -> list[tuple[str, str]]:
    """What training workers read in an epoch, and the memory of one that makes all batches.

    The crops are those of full size (256 px, 48 kB). Bytes are those that Python's process asks the system for (`rchar` of
    /proc/self/io), which includes the footers of the files.

    Args:
        folder: an empty folder to work in.

    Returns:
        Pairs of what was measured and the measurement.
    """
    found = []
    for crops in READING_CROPS:
        table = write_crops(str(folder / str(crops)), crops)
        code = "import sys; from tests.benchmarks.scale import read_epochs, feed; print({}(sys.argv[1], int(sys.argv[2])))"
        name = f"{crops:,} crops"
        for workers in (1, 2, 4, 8):
            measured = _in_process(code.format("read_epochs"), table, workers)
            found.append(
                (f"{name}, {workers} worker{'s' if workers > 1 else ''}: read in an epoch, of the table's bytes", measured)
            )
        found.append((f"{name}, feeding process", _in_process(code.format("feed"), table, FED_STEPS)))
    return found


def write_crops(uri: str, count: int) -> str:
    """Write an `examples` table of `count` crops with 1, 1 and 4 repeats in turn, 290 to a part, and return its URI."""
    from infra.storage import tables
    from proposals import schemas
    from proposals.image_codec import encode_jpeg, encode_mask
    from tests.benchmarks.common import sample_images

    cut = [np.ascontiguousarray(image[:256, :256]) for image in sample_images(64) if min(image.shape[:2]) >= 256]
    stored = [(encode_jpeg(each, 95), encode_mask((each.mean(axis=2) // 13).astype(np.uint8))) for each in cut]

    def rows(numbers: range) -> Iterator[dict[str, object]]:
        for n in numbers:
            image, mask = stored[n % len(stored)]
            fixed = {"stage": 2, "box": [0.0, 0.0, 9.0, 9.0], "class_ids": [2 if n % 3 == 2 else 1], "iou": 1.0}
            yield {"image_id": f"{n:08}", **fixed, "image": image, "mask": mask}

    parts = [tables.write_part(uri, "b" * 16, i, rows(n), schemas.EXAMPLES) for i, n in enumerate(tables.chunks(count, 290))]
    tables.commit(uri, "b" * 16, parts, {"repeats_by_class": {"1": 1, "2": 4}})
    return uri


def read_epochs(table: str, workers: int) -> str:
    """Read the share of each of some workers in an epoch, one after the other. Returns the bytes as a multiple of the table's."""
    from deconvnet.training.data.dataloader import BatchPlan
    from deconvnet.training.data.examples import open_examples

    plan = BatchPlan.of(open_examples(table, 224), 64, workers, 0)
    size = sum(f.stat().st_size for f in Path(table).rglob("*.parquet"))
    before, each, counted = _bytes()[0], [], 0
    for rank in range(workers):
        reader = plan.reader(rank)
        for _ in reader.steps(0, plan.steps_per_epoch):
            pass
        each.append(_bytes()[0] - before - sum(each))
        counted += reader.bytes_read
    share = f"; by a worker {min(each) / size:.3f} to {max(each) / size:.3f}" if workers > 1 else ""
    return f"{sum(each) / size:.3f} (encoded images and masks {counted / plan.examples.groups.nbytes.sum():.3f}){share}"


def feed(table: str, steps: int) -> str:
    """Make batches from some steps before the end of the first epoch on. Returns the memory that it takes beyond the imports."""
    from deconvnet.training.data.dataloader import BatchLoader, BatchPlan
    from deconvnet.training.data.examples import open_examples

    before = psutil.Process().memory_info().rss
    plan = BatchPlan.of(open_examples(table, 224), 64, 1, 0)
    first = max(0, plan.steps_per_epoch - steps // 2)
    peak = now = 0
    for _ in BatchLoader(plan).batches(first, first + steps):
        now = psutil.Process().memory_info().rss - before
        peak = max(peak, now)
    size = plan.examples.groups.nbytes.sum()
    memory = f"memory beyond the imports at most {peak / 1e6:.0f} MB over {steps} steps of 64"
    return f"{size / 1e6:,.0f} MB of images and masks; {memory}"


def night(folder: Path, images: int = NIGHT_IMAGES) -> list[tuple[str, str]]:
    """What the data stages read, write and take when 1 % of the images are new.

    Everything runs in this process, of which the system counts the bytes (`rchar` and `wchar` of /proc/self/io). What Matplotlib
    reads of its fonts for three figures, about 40 MB, is left out.

    Args:
        folder: an empty folder to work in.
        images: number of images of the first run; those of the sample occur several times under different ids.

    Returns:
        Pairs of what was measured and the measurement.
    """
    times = 10
    make_dataset(folder / "few", 20)
    _data_stages(folder / "few", folder / "warm")  # so that imports do not count
    make_dataset(folder / "data", images // times, times)
    measured = {"first run": _data_stages(folder / "data", folder / "w")}
    # Further copies of the first images, in the folder and the lists of a larger data set.
    make_dataset(folder / "more", images // times, times + 1)
    new = {f"{path.stem}" for path in sorted((folder / "more/JPEGImages").glob(f"{times}_*.jpg"))[: images // 100]}
    for kind in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        for image_id in new:
            path = next((folder / "more" / kind).glob(f"{image_id}.*"))
            (folder / "data" / kind / path.name).symlink_to(path.resolve())
    for split in ("train", "val"):
        file = f"ImageSets/Segmentation/{split}.txt"
        more = [image_id for image_id in (folder / "more" / file).read_text().split() if image_id in new]
        (folder / "data" / file).write_text((folder / "data" / file).read_text() + "".join(f"{each}\n" for each in more))
    measured[f"{len(new)} new images"] = _data_stages(folder / "data", folder / "w")
    full = measured.pop("first run")
    texts = [("first run", full, full), *((name, each, full) for name, each in measured.items())]
    return [
        (f"{images:,} images, {name}: {stage}", _against(found[stage], whole[stage]))
        for name, found, whole in texts
        for stage in (*DATA_STAGES, "all")
    ]


def commit(folder: Path) -> list[tuple[str, str]]:
    """How a table of a million images becomes a version, see `tests.benchmarks.commit`; `folder` is an empty folder."""
    from tests.benchmarks.commit import IMAGES, make_tiny_dataset

    data = make_tiny_dataset(folder / "data", IMAGES)
    code = "import sys; from tests.benchmarks.commit import prepare; print(prepare(*sys.argv[1:]))"
    return [(f"{IMAGES:,} images", _in_process(code, data, folder / "w/images"))]


def requests(folder: Path) -> list[tuple[str, str]]:
    """Requests to S3 of the data stages and of an epoch, see `tests.benchmarks.s3_requests`; `folder` is an empty folder."""
    from tests.benchmarks import s3_requests

    return list(s3_requests.count(folder, make_dataset, _data_stages).items())


def _data_stages(data: Path | str, workspace: Path | str) -> dict[str, tuple[int, int, float]]:
    """Run prepare, proposals and examples, and return bytes read, bytes written and seconds of each stage, and of all."""
    from pytest import MonkeyPatch

    from deconvnet.reporting import panels, proposal_report
    from workflows.pipelines.training import Pipeline
    from workflows.settings import load

    fonts = 0

    def without_fonts(draw: Callable[..., bytes]) -> Callable[..., bytes]:
        def drawn(*given: object) -> bytes:
            nonlocal fonts
            before = _bytes()[0]
            png = draw(*given)
            fonts += _bytes()[0] - before
            return png

        return drawn

    options = ["--data.root", str(data), "--workspace", str(workspace), *FROM_SCRATCH, "--executor", "local"]
    options += ["--cluster.num_cpus", "1", "--tracking.enabled", "false", "--compute.gpu", "false"]
    pipeline = Pipeline(load(str(ROOT / "workflows/configs/voc_sample.yaml"), *options))

    def now() -> tuple[int, int, float]:
        read, written = _bytes()
        return read - fonts, written, time.perf_counter()

    counted = [now()]

    def count(stage: object) -> bool:
        counted.append(now())
        return len(counted) <= len(DATA_STAGES)

    with MonkeyPatch.context() as patch:
        for module, name in ((panels, "example_crops"), (proposal_report, "recall_curves")):
            patch.setattr(module, name, without_fonts(getattr(module, name)))
        pipeline.run("scale", count)
    found = {
        stage: tuple(b - a for a, b in zip(*each, strict=True))
        for stage, each in zip(DATA_STAGES, pairwise(counted), strict=True)
    }
    return found | {"all": tuple(b - a for a, b in zip(counted[0], counted[-1], strict=True))}


def _against(found: tuple[int, int, float], whole: tuple[int, int, float]) -> str:
    """Write bytes and seconds, and their shares of those of the first run."""
    read, written, seconds = found
    bytes_share, seconds_share = sum(found[:2]) / sum(whole[:2]), seconds / whole[2]
    amounts = f"{read / 1e6:,.1f} MB read, {written / 1e6:,.1f} MB written, {seconds:,.1f} s"
    return f"{amounts}; of the first run's bytes {bytes_share:.1%}, seconds {seconds_share:.1%}"


def _bytes() -> tuple[int, int]:
    """The bytes that this process has read from files, and those that it has written."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"]), int(counters["wchar"])


def _in_process(code: str, *arguments: object) -> str:
    """Run Python code in a process of its own, and return what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.check_output(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True).strip()


@contextmanager
def watch_memory(pid: int) -> Iterator[dict[str, float]]:
    """Watch a process and its Ray workers until the block ends.

    Yields:
        Peak resident memory (VmHWM) in MB: "driver" of the process, "worker" of its largest Ray worker; updated while it runs.
    """
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
    """Run the measurements named on the command line, or all, each in a temporary folder."""
    measures = {"speed": speed, "memory": memory, "reading": reading, "night": night, "commit": commit, "requests": requests}
    wanted = sys.argv[1:] or list(measures)
    for name in wanted:
        folder = Path(tempfile.mkdtemp(prefix=f"scale-{name}-"))
        try:
            for what, measured in measures[name](folder):
                print(f"| {what} | {measured} |", flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
