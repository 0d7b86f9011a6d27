"""What all tests share: a real Ray, the sample images, random numbers; and how tests are divided among processes."""

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from infra.runtime.local_executor import LocalExecutor
from infra.runtime.ray_executor import RayExecutor
from infra.settings import ClusterSettings
from tests.ray_head import Head

ROOT = Path(__file__).resolve().parent.parent

# A shell ignores Ctrl-C for what it runs in the background, and child processes inherit this. Tests of Ctrl-C need the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Torch's threads, here and in the commands that tests start: the processes of tests use all cores, and their data is tiny.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis would fail a test that takes longer than 0.2 s once, as any may on a busy machine.
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")

# Triton reads this when it is imported. Where there is no GPU, tests run its kernels in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


# The files of tests are kept in memory where there is room: on a disk, each commit of SQLite and each `fsync` takes milliseconds.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= 8 * 2**30 and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


KERNELS = ("deconvnet/models/fused", "deconvnet/crf", "proposals/edges")
"""Folders of tests of kernels that numba compiles, which takes a minute in a new clone."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Divide the tests among the processes of pytest-xdist: one process runs all tests on the session's Ray.

    The other tests of a file stay together, so that what they share is made once, and so do the tests of clusters, whose nodes
    have fixed addresses, and of storage, which share servers. Beside Ray's tests, those of kernels that numba compiles begin: in
    a new clone, pipelines in several processes would otherwise compile the same kernels at the same time. Then what takes longest
    is begun: files whose tests start a Ray of their own, then storage.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    starts_ray = {item.path for item in items if item.get_closest_marker("ray")}
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif item.get_closest_marker("xdist_group") is None:
            place = item.path.relative_to(ROOT / "tests")
            group = "storage" if "storage" in place.parts or place.name == "test_prepare.py" else str(place)
            group = str(place.parent) if str(place.parent) in KERNELS else group
            item.add_marker(pytest.mark.xdist_group("cluster" if place.parts[0] == "cluster" else group))
    groups = {item: item.get_closest_marker("xdist_group").args[0] for item in items}
    first = "ray", *KERNELS
    items.sort(
        key=lambda item: (
            first.index(groups[item]) if groups[item] in first else len(first),
            item.path not in starts_ray,
            groups[item] != "storage",
        )
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin each test with one torch thread: earlier tests' jobs set their own number, and sums would be rounded otherwise."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("DECONVNET_SHARED", ROOT.parent / "shared"))
    if not (folder / "voc-sample").is_dir():
        pytest.skip(f"no shared data at {folder} (set DECONVNET_SHARED)")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A real Ray with two CPUs, started once for the tests that need one."""
    import ray

    # Workers import the test modules by the names pytest gives them.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(
        os.pathsep
    )
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=256 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        _system_config={"metrics_report_interval_ms": 1000},  # for the test of metrics; otherwise ten seconds
    )
    make_record = logging.getLogRecordFactory()
    logging.setLogRecordFactory(partial(_record_without_frames, make_record))
    yield
    logging.setLogRecordFactory(make_record)
    ray.shutdown()


def _record_without_frames(make: Callable[..., logging.LogRecord], *args: Any, **options: Any) -> logging.LogRecord:
    """Make a record of the log with the text of its error alone.

    pytest keeps the records of a test, and the frames of an error keep the actors of the job that failed, which take CPUs.
    """
    record = make(*args, **options)
    if record.exc_info:
        record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
    return record


@pytest.fixture(scope="module")
def ray_head() -> Iterator[Head]:
    """A head node with two CPUs, to which jobs are submitted."""
    from infra.deploy.local.cluster import ray_cluster

    with ray_cluster((), head_cpus=2) as cluster:
        yield Head(cluster)


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a new MLflow store (SQLite), to be copied: making one takes seconds."""
    from deconvnet.tracking.store import check_store

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    check_store(f"sqlite:///{database}")
    return database


@pytest.fixture(scope="session")
def make_store(new_store: Path) -> Callable[[Path], str]:
    """A function that gives a workspace (a folder) a new MLflow store, and returns the store's URI."""

    def make(workspace: Path) -> str:
        (workspace / "mlflow").mkdir(parents=True)
        shutil.copy(new_store, workspace / "mlflow")
        return f"sqlite:///{workspace}/mlflow/mlflow.db"

    return make


@pytest.fixture
def executor() -> LocalExecutor:
    """Runs a job's units one after another in this process."""
    return LocalExecutor(1)


@pytest.fixture
def ray_executor(ray_session: None) -> RayExecutor:
    """Runs a job's units on the session's Ray."""
    return RayExecutor(ClusterSettings())


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same every time."""
    return np.random.default_rng(0)
