"""The pipeline that trains an edge detector: images, their segmentations, the structured forest, and its evaluation."""

import logging
from collections.abc import Mapping
from typing import Any

from deconvnet.datasets import images_table
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Record, Stage
from infra.storage import tables
from proposals.edges.bsds import bsds_files
from workflows.pipelines.base import BasePipeline
from workflows.settings import EdgeSettings, as_dict

FOREST = "edges.yml.gz"
REPORT = "report"

logger = logging.getLogger(__name__)


class EdgeTraining(BasePipeline):
    """A workspace and its stages: prepare (only if masks are learned from), segments, forest, measure.

    Attributes:
        settings: all settings.
        forest: file of the forest.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        """Plan the stages. Raises UserError if the data or BSDS500 are not where the settings say."""
        self.settings = settings
        self.data_root = settings.data.root or storage.join(settings.workspace, "data")
        self.samples = storage.join(settings.workspace, "segments")
        self.forest = storage.join(settings.workspace, FOREST)
        super().__init__(settings, should_stop=lambda: False)

    @property
    def _images_or_none(self) -> str | None:
        """The `images` table; None if only BSDS500 is learned from."""
        return self.images if self.settings.masks else None

    def _stages(self) -> list[Stage]:
        """List the stages in order."""
        s = self.settings
        seed, schema = {"seed": s.seed}, {"schema": tables.SCHEMA_VERSION}
        bsds = {split: {f"bsds_{split}": _bsds_version(s.bsds, split)} for split in ("train", "val")}
        stages: list[Stage] = []
        inputs: tuple[str, ...] = ()
        if s.masks:
            folder = {"folder": images_table.data_fingerprint(s.data, self.data_root)}
            settings = {**as_dict(s.data), **seed, **folder, **schema}
            outputs = (storage.join(self.images, tables.COMMIT),)
            stages = [Stage("prepare", "images and masks", images_table.PREPARE_VERSION, settings, (), outputs, self._prepare)]
            inputs = ("prepare",)
        drawn = {"photographs": s.forest.photographs}
        growth = {key: value for key, value in as_dict(s.forest).items() if key not in drawn}
        segments = {**seed, **schema, **bsds["train"], **drawn}
        measured = {**as_dict(s.proposals), **bsds["val"]}
        commit, figures = storage.join(self.samples, tables.COMMIT), self.uri(REPORT, "edges.json")
        return [
            *stages,
            Stage("segments", "segmentations", 1, segments, inputs, (commit,), self._segments),
            Stage("forest", "structured forest", 1, {**growth, **seed}, ("segments",), (self.forest,), self._forest),
            Stage("measure", "evaluation", 1, measured, (*inputs, "forest"), (figures,), self._measure),
        ]

    def _end(self, config: str, records: Mapping[str, Record]) -> None:
        """Log the evaluation's numbers to the pipeline's run, too."""
        self.run_of_pipeline.log_metrics(records["measure"].summary)

    def _prepare(self, fingerprint: str) -> dict[str, Any]:
        """Make the `images` table."""
        s = self.settings
        folder = images_table.data_folder(s.data, s.seed, self.data_root)
        made = images_table.prepare_images(s.data, s.seed, self.images, fingerprint, folder, self.executor)
        counts = ", ".join(f"{count:,} {split}" for split, count in made.extra["counts"].items())
        logger.info(f"  {counts}{_log_rejects(made)}")
        return {"key": made.extra["digest"], "rejects": len(made.rejects)}

    def _segments(self, fingerprint: str) -> dict[str, Any]:
        """Make the table of images and segmentations to learn from."""
        from proposals.edges.training.job import collect_samples

        s = self.settings
        made = collect_samples(
            self._images_or_none,
            s.bsds,
            self.samples,
            fingerprint,
            num_images=s.forest.photographs,
            seed=s.seed,
            executor=self.executor,
        )
        logger.info(f"  {made.rows:,} images to learn from{_log_rejects(made)}")
        return {"images": made.rows, "rejects": len(made.rejects)}

    def _forest(self, fingerprint: str) -> dict[str, Any]:
        """Train the forest."""
        from proposals.edges.training.forest import ForestOptions
        from proposals.edges.training.job import train_forest

        s = self.settings
        options = ForestOptions(**s.forest.model_dump(exclude={"photographs"}))
        logger.info(f"  {s.forest.trees} trees of {s.forest.patches:,} patches; each takes one CPU for minutes")
        trees = self.uri("trees", fingerprint[:16])
        made = train_forest(self.samples, self.forest, options, s.seed, trees, self.executor)
        storage.remove(self.uri("trees"))  # also the trees of interrupted runs
        logger.info(f"  {made['nodes']:,} nodes, {made['bytes'] / 1e6:.1f} MB")
        self.run_of_stage.log_metrics({f"forest.{name}": value for name, value in made.items()})
        self.run_of_stage.log_bytes(storage.read_bytes(self.forest), FOREST)
        return made

    def _measure(self, fingerprint: str) -> dict[str, Any]:
        """Compare the forest with the pretrained one and with the gradient."""
        from deconvnet.reporting.edge_report import compare_edges

        s = self.settings
        found = compare_edges(self._images_or_none, s.bsds, self.forest, s.proposals, self.executor)
        for name, data in found.files.items():
            storage.write_bytes(self.uri(REPORT, name), data)
        if figure := found.files.get("edges.png"):
            self.run_of_stage.log_bytes(figure, "edges.png")
        self.run_of_stage.log_bytes(found.markdown.encode(), "edges.md")
        return found.metrics


def _log_rejects(made: tables.Commit) -> str:
    """Log the first rejects of a table; returns a text with their number."""
    for reject in made.rejects[:5]:
        logger.info(f"  rejected: {reject.image_id}: {reject.reason}")
    return f"; {len(made.rejects):,} rejected"


def _bsds_version(bsds: str | None, split: str) -> list[str]:
    """Identify the files of a split of BSDS500 by names, sizes and times. Raises UserError if the folder is not BSDS500."""
    if not bsds:
        return []
    if storage.is_s3(bsds):
        raise UserError(f"bsds {bsds} must be a folder on disk, which all nodes see")
    return [f"{path.stem}@{storage.version_token(str(path))}" for pair in bsds_files(bsds, split) for path in pair]
