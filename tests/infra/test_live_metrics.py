"""Metrics of running commands: what is counted where parts are made, few labels for reasons, and what a real Ray node exports."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from infra.live_metrics import OTHER_REASONS, LiveMetrics, Metric, RayMetrics, ReasonLabels
from infra.runtime.executor import Executor
from infra.runtime.local_executor import LocalExecutor
from infra.runtime.parts import REJECTS, ROWS, make_parts
from infra.runtime.ray_executor import RayExecutor
from infra.settings import ClusterSettings
from infra.storage import tables
from tests.waiting import wait_until

SCHEMA = pa.schema([("image_id", pa.string()), ("split", pa.string())])


class Recorder(LiveMetrics):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def update(self, metric: Metric, value: float, **labels: str) -> None:
        assert tuple(labels) == metric.labels
        key = (metric.name, *labels.values())
        self.values[key] = value + (self.values.get(key, 0) if metric.counter else 0)


def rows(unit: int) -> Iterator[Any]:
    """Two rows, and an image that is too large; of the units from 1 on, also one that is not there."""
    yield from ({"image_id": f"{unit}{letter}", "split": "train"} for letter in "ab")
    yield tables.Reject("large", "", "prepare", f"{unit}00×500 is larger than 1,000 pixels")
    if unit:
        yield tables.Reject("gone", "", "prepare", f"there is no file /data/{unit}.jpg")


def make(folder: Path, executor: Executor, units: int) -> None:
    make_parts(str(folder / "examples" / "counted"), "f", SCHEMA, range(units), rows, executor, title="test")


COUNTED = {
    (ROWS.name, "examples/counted"): 6,
    (REJECTS.name, "examples/counted", "...x... is larger than ... pixels"): 3,
    (REJECTS.name, "examples/counted", "there is no file ..."): 2,
}


def test_rows_and_rejects_are_counted_once_each_is_made(tmp_path: Path) -> None:
    with LocalExecutor(1) as executor:
        executor.metrics = recorder = Recorder()
        make(tmp_path, executor, 2)
        make(tmp_path, executor, 3)
    assert recorder.values == COUNTED, "parts that were there are not counted again"


def test_reasons_get_few_labels() -> None:
    labels = ReasonLabels()
    made = [labels.label(f"reason {chr(97 + i)}: {i}") for i in range(12)]
    assert made == [*(f"reason {chr(97 + i)}" for i in range(10)), OTHER_REASONS, OTHER_REASONS]
    assert ReasonLabels().count(["values run from 1 to 2.5", "values run from 3 to 4", "it's 'a'", "in [1, 2]"]) == {
        "values run from ... to ...": 2,
        "it...a'": 1,
        "in ...": 1,
    }
    assert len(ReasonLabels().label("x" * 500)) == 60


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("ray_session")
def test_a_node_of_ray_exports_the_metrics_for_prometheus(tmp_path: Path) -> None:
    import ray

    from deconvnet.training.ray_callbacks import LiveMetricsCallback

    make(tmp_path, RayExecutor(ClusterSettings()), 3)
    callback = LiveMetricsCallback("counted", RayMetrics())
    callback.after_report(None, [{"step": 3, "loss": 0.5, "dev_mean_iou": None, "time.optimiser_s": 0.25, "epoch": 1}], None)
    callback.after_report(None, [{}], None)
    RayExecutor(ClusterSettings()).metrics.update(ROWS, 1, table="Größen")
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    here = {"examples/counted", "Gr??en", "counted"}  # other tests on this Ray make tables, too
    found: dict[tuple[str, ...], float] = {}

    def exported() -> bool:
        for family in text_string_to_metric_families(requests.get(url, timeout=60).text):
            for sample in family.samples:
                if sample.name.startswith("ray_deconvnet_") and here & set(sample.labels.values()):
                    labels = [sample.labels[key] for key in ("stage", "table", "part", "reason") if key in sample.labels]
                    found[sample.name.removeprefix("ray_"), *labels] = sample.value
        return "deconvnet_train_step_seconds" in {name for name, *_ in found}

    wait_until(exported, seconds=120, description="the node exports the time of a step")
    assert found == COUNTED | {
        (ROWS.name, "Gr??en"): 1,
        ("deconvnet_train_step", "counted"): 3,
        ("deconvnet_train_loss", "counted"): 0.5,
        ("deconvnet_train_step_seconds", "counted", "optimiser"): 0.25,
    }
