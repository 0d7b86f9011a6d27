"""Define the pipeline that trains and evaluates an edge detector, a structured forest.

The forest learns from the masks of a data set, from the hand-drawn boundaries of BSDS500, or from both.
"""

import logging
from collections.abc import Mapping
from typing import Any

from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Record, Stage
from infra.storage import tables
from proposals.edges.bsds import bsds_files
from workflows.cli import rejects_text
from workflows.pipelines.generations import prune_tables
from workflows.pipelines.prepare import PreparingPipeline
from workflows.settings import EdgeSettings, as_dict

FOREST = "edges.yml.gz"
"""Name of the file in the workspace that holds the trained forest."""
REPORT = "report"
"""Folder in the workspace for the evaluation of the forest."""

logger = logging.getLogger(__name__)


class EdgeTraining(PreparingPipeline):
    """The pipeline that trains and evaluates an edge detector, in up to four stages.

    The stage `prepare` makes the table `images`. It exists only if the forest learns from the data set's masks. `segments`
    collects images with segmentations, `forest` trains the structured forest, and `measure` evaluates it.

    Attributes:
        samples: URI of the table of images and segmentations that the forest learns from.
        forest: URI of the file with the trained forest.
    """

    settings: EdgeSettings
    command = "train_edges.py"

    def __init__(self, settings: EdgeSettings) -> None:
        """Plan the stages. None of them is run yet.

        Args:
            settings: all settings of the pipeline.

        Raises:
            UserError: if the data set or BSDS500 is not where the settings say.
        """
        self.samples = storage.join(settings.workspace, "segments")
        self.forest = storage.join(settings.workspace, FOREST)
        super().__init__(settings)

    @property
    def _images_or_none(self) -> str | None:
        """Return the URI of the table `images`, or None if the forest learns from BSDS500 only."""
        return self.images if self.settings.masks else None

    def _stages(self) -> list[Stage]:
        """List the stages in the order in which they run. `prepare` is left out if the forest learns from BSDS500 only."""
        s = self.settings
        seed, schema = {"seed": s.seed}, {"schema": tables.SCHEMA_VERSION}
        bsds = {split: {f"bsds_{split}": _bsds_version(s.bsds, split)} for split in ("train", "val")}
        stages: list[Stage] = []
        inputs: tuple[str, ...] = ()
        if s.masks:
            stages, inputs = [self._prepare_stage()], ("prepare",)
        drawn = {"photographs": s.forest.photographs}
        growth = {key: value for key, value in as_dict(s.forest).items() if key not in drawn}
        segments = {**seed, **schema, **bsds["train"], **drawn}
        measured = {**s.proposals.edge_box, **bsds["val"]}
        samples, figures = {"segments": self.samples}, self.uri(REPORT, "edges.json")
        return [
            *stages,
            Stage("segments", "segmentations", 1, segments, inputs, (), self._segments, samples),
            Stage("forest", "structured forest", 1, {**growth, **seed}, ("segments",), (self.forest,), self._forest),
            Stage("measure", "evaluation", 1, measured, (*inputs, "forest"), (figures,), self._measure),
        ]

    def _end(self, config: str, records: Mapping[str, Record]) -> None:
        """Log the metrics of the evaluation to the run of the whole pipeline, and delete old versions of the table `images`.

        If networks were also trained in this workspace, all versions are kept, because the champion may have been trained on any
        of them.

        Args:
            config: name of the settings file. Not used.
            records: stored records of the complete stages by name. The summary of `measure` has the metrics.
        """
        self.run_of_pipeline.log_metrics(records["measure"].summary)
        trained = any(storage.exists(self.uri(folder)) for folder in ("models", "generations"))
        if self.settings.masks and not trained:
            prune_tables(self.root, {}, self.locks[0])

    def _segments(self, fingerprint: str) -> dict[str, Any]:
        """Make the table of images and segmentations that the forest learns from.

        Args:
            fingerprint: fingerprint of the stage. It is stored with the table.

        Returns:
            The summary of the stage: `tables` (the version), and the number of `images` and of `rejects` (inputs that can't be
            used).
        """
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
        logger.info(f"  {made.rows:,} images to learn from; {rejects_text(made.rejects)}")
        return {"tables": {"segments": made.version}, "images": made.rows, "rejects": len(made.rejects)}

    def _forest(self, fingerprint: str) -> dict[str, Any]:
        """Train the forest, write its file, and log it to the tracker. The trees that an interrupted run finished are used again.

        Args:
            fingerprint: fingerprint of the stage. It names the folder in which finished trees are kept until the forest is
                complete.

        Returns:
            The summary of the stage: the number of `nodes`, and the size of the file in `bytes`.
        """
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
        """Compare the forest with the forest that comes with the project and with the image gradient, and write the report.

        Args:
            fingerprint: fingerprint of the stage. Not used.

        Returns:
            The summary of the stage: the metrics of the forest by name.
        """
        from deconvnet.reporting.edge_report import compare_edges

        s = self.settings
        found = compare_edges(self._images_or_none, s.bsds, self.forest, s.proposals, self.executor)
        for name, data in found.files.items():
            storage.write_bytes(self.uri(REPORT, name), data)
        if figure := found.files.get("edges.png"):
            self.run_of_stage.log_bytes(figure, "edges.png")
        self.run_of_stage.log_bytes(found.files["edges.md"], "edges.md")
        return found.metrics


def _bsds_version(bsds: str | None, split: str) -> list[str]:
    """Return tokens that change when the files of a split of BSDS500 change. The files are not read.

    Args:
        bsds: folder of BSDS500. None if it is not used.
        split: name of the split, "train" or "val".

    Returns:
        A text for each file, made from its name, size and time. An empty list if `bsds` is None.

    Raises:
        UserError: if the folder is not BSDS500 or is not on disk.
    """
    if not bsds:
        return []
    if storage.in_bucket(bsds):
        raise UserError(f"bsds {bsds} must be a folder on disk, which all nodes see")
    return [f"{path.stem}@{storage.version_token(str(path))}" for pair in bsds_files(bsds, split) for path in pair]
