"""The stages that learn an edge detector: photographs, their segments, the forest, and what it is worth."""

from collections.abc import Callable
from typing import Any

from deconvnet.datasets import images_table
from deconvnet.tracking.interface import open_tracker
from deconvnet.tracking.store import tracking_uri
from infra import storage
from infra.errors import UserError
from infra.runtime.ray_executor import RayExecutor
from infra.runtime.stages import Record, Stage, Stages
from infra.storage import tables
from proposals.edges.bsds import bsds_files
from workflows.settings import EdgeSettings, as_dict

FOREST = "edges.yml.gz"
REPORT = "report"


class EdgeTraining:
    """A workspace and its stages: prepare (where there are masks) → segments → forest → measure."""

    def __init__(self, settings: EdgeSettings, say: Callable[[str], None] = print) -> None:
        self.settings = settings
        self.say = say
        self.mlflow_run: Any = None
        self.root = settings.data.root or self.place("data")
        self.images = self.place("images") if settings.masks else None
        self.samples = self.place("segments")
        self.forest = self.place(FOREST)
        self.store = tracking_uri(settings.workspace, settings.tracking.uri) if settings.tracking.enabled else ""
        self.executor = RayExecutor(settings.cluster)
        self.stages = Stages(settings.workspace, self._stages())

    def place(self, *parts: str) -> str:
        """A place in the workspace."""
        return storage.join(self.settings.workspace, *parts)

    def _stages(self) -> list[Stage]:
        s = self.settings
        seed, schema = {"seed": s.seed}, {"schema": tables.SCHEMA_VERSION}
        bsds = {split: {f"bsds_{split}": _stamp(s.bsds, split)} for split in ("train", "val")}
        stages = []
        if self.images:
            folder = {"folder": images_table.data_fingerprint(s.data, self.root)}
            stages.append(
                Stage(
                    "prepare", "photographs", images_table.PREPARE_VERSION, {**as_dict(s.data), **seed, **folder, **schema}, (),
                    (storage.join(self.images, tables.COMMIT),), self._prepare,
                )
            )  # fmt: skip
        before = ("prepare",) if self.images else ()
        photographs = {"photographs": s.forest.photographs}
        growth = {key: value for key, value in as_dict(s.forest).items() if key not in photographs}
        return [
            *stages,
            Stage(
                "segments", "what is told apart in them", 1, {**seed, **schema, **bsds["train"], **photographs}, before,
                (storage.join(self.samples, tables.COMMIT),), self._segments,
            ),
            Stage("forest", "structured forest", 1, {**growth, **seed}, ("segments",), (self.forest,), self._forest),
            Stage(
                "measure", "what it is worth", 1, {**as_dict(s.proposals), **bsds["val"]}, (*before, "forest"),
                (self.place(REPORT, "edges.json"),), self._measure,
            ),
        ]  # fmt: skip

    def run(self, config: str) -> dict[str, Record]:
        """Run the stages that don't stand, as one MLflow run, on Ray. Returns their records by name."""
        s = self.settings
        storage.check_writable(s.workspace)
        tracker = open_tracker(s.tracking, s.workspace)
        stages = self.stages.stages
        with (
            self.executor,
            tracker.pipeline(config, as_dict(s), {"config": config, "workspace": s.workspace}) as parent,
        ):
            self.executor.check()

            def around(stage: Stage, fingerprint: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
                self.say(f"[{stages.index(stage) + 1}/{len(stages)}] {stage.name}: {stage.title}")
                with parent.stage(stage.name, fingerprint, dict(stage.settings)) as child:
                    self.mlflow_run = child
                    return run()

            def skipped(stage: Stage, record: Record) -> None:
                self.say(f"[{stages.index(stage) + 1}/{len(stages)}] {stage.name}: stands, not run again")

            records = self.stages.run(around, skipped)
            parent.log_metrics({f"seconds.{name}": record.seconds for name, record in records.items()})
            parent.log_metrics(records["measure"].summary)
        return records

    def _prepare(self, fingerprint: str) -> dict[str, Any]:
        s = self.settings
        root = images_table.data_folder(s.data, s.seed, self.root)
        made = images_table.prepare_images(s.data, s.seed, str(self.images), fingerprint, root, self.executor)
        self.say("  " + ", ".join(f"{count:,} {split}" for split, count in made.extra["counts"].items()) + self._aside(made))
        return {"key": made.extra["digest"], "rejects": len(made.rejects)}

    def _segments(self, fingerprint: str) -> dict[str, Any]:
        from proposals.edges.training.job import collect_samples

        s = self.settings
        made = collect_samples(
            self.images, s.bsds, self.samples, fingerprint,
            num_images=s.forest.photographs, seed=s.seed, executor=self.executor,
        )  # fmt: skip
        self.say(f"  {made.rows:,} photographs to learn from{self._aside(made)}")
        return {"photographs": made.rows, "rejects": len(made.rejects)}

    def _aside(self, made: tables.Commit) -> str:
        for reject in made.rejects[:5]:
            self.say(f"  set aside: {reject.image_id}: {reject.reason}")
        return f"; {len(made.rejects):,} set aside"

    def _forest(self, fingerprint: str) -> dict[str, Any]:
        from proposals.edges.training.forest import ForestOptions
        from proposals.edges.training.job import train_forest

        s = self.settings
        growth = s.forest.model_dump(exclude={"photographs"})
        self.say(
            f"  {s.forest.trees} trees of {s.forest.patches:,} patches; a tree takes minutes, and one at a time runs on each CPU"
        )
        trees = self.place("trees", fingerprint[:16])
        made = train_forest(self.samples, self.forest, ForestOptions(**growth), s.seed, trees, self.executor)
        storage.remove(self.place("trees"))  # those of runs that were killed, too
        self.say(f"  {made['nodes']:,} nodes, {made['bytes'] / 1e6:.1f} MB")
        self.mlflow_run.log_metrics({f"forest.{name}": value for name, value in made.items()})
        self.mlflow_run.log_bytes(storage.read_bytes(self.forest), FOREST)
        return made

    def _measure(self, fingerprint: str) -> dict[str, Any]:
        from deconvnet.reporting.edge_report import compare_edges

        s = self.settings
        found = compare_edges(self.images, s.bsds, self.forest, s.proposals, self.executor)
        for name, data in found.files.items():
            storage.write_bytes(self.place(REPORT, name), data)
        if picture := found.files.get("edges.png"):
            self.mlflow_run.log_bytes(picture, "edges.png")
        self.mlflow_run.log_bytes(found.markdown.encode(), "edges.md")
        return found.metrics


def _stamp(bsds: str | None, split: str) -> list[str]:
    """What tells a split of BSDS500 from what stood there before. Raises UserError where it isn't one."""
    if bsds and storage.is_s3(bsds):
        raise UserError(f"bsds {bsds} must be a folder on disk, which all nodes see")
    return (
        [f"{path.stem}@{storage.version_token(str(path))}" for pair in bsds_files(bsds, split) for path in pair] if bsds else []
    )
