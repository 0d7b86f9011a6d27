"""Define the first stages of the main pipeline, which make the tables of images, box proposals and training crops."""

import logging
from collections.abc import Callable, Collection
from typing import Any

from infra import storage
from infra.runtime.stages import Stage, read_record
from infra.storage import tables
from proposals.image_notes import count_changes
from proposals.job import PROPOSALS_VERSION, edge_model_digest
from proposals.mining import EXAMPLES_VERSION
from workflows.pipelines.prepare import PreparingPipeline
from workflows.pipelines.workspace import EXAMPLE_TABLES, ExampleTable, Workspace
from workflows.settings import Settings, as_dict

logger = logging.getLogger(__name__)


class DataPipeline(PreparingPipeline):
    """A pipeline with the stages prepare, proposals and examples.

    The stage `prepare` makes the table `images` from a data set, `proposals` finds boxes that may contain objects, and `examples`
    cuts the training crops.

    Attributes:
        settings: all settings of the pipeline.
        previous: URI of the complete workspace of an earlier run, to compare the images with. None if there is none.
    """

    settings: Settings

    def __init__(self, settings: Settings, previous: str | None = None, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Plan the stages. None of them is run yet.

        Args:
            settings: settings of the pipeline.
            previous: URI of the complete workspace of an earlier run, to compare the images with. None if there is none.
            should_stop: function that is called before each stage and now and then during long ones. Once it returns True, the
                run stops with the exception Interrupted.

        Raises:
            UserError: if a file or folder that the settings name does not exist.
        """
        self.previous = previous
        self.lock_minutes = settings.retrain.lock_minutes
        super().__init__(settings, should_stop)

    def _earlier_images(self) -> tables.Commit | None:
        """Return the version of the table `images` whose images stay in their parts; None if there is none.

        It is the version of the previous workspace if there is one, else the latest.
        """
        before = self._previous_images()
        return before or super()._earlier_images()

    def _previous_images(self) -> tables.Commit | None:
        """Return the previous workspace's version of the table `images`; None if there is none or its schema is outdated."""
        return tables.read_commit(Workspace(self.previous).images) if self.previous else None

    def _prepare(self, fingerprint: str) -> dict[str, Any]:
        """Make a version of the table `images`, and compare it with the previous workspace's version, if there is one.

        Args:
            fingerprint: fingerprint of the stage. It is stored with the table.

        Returns:
            The summary of the stage as in the base class. With a previous workspace, it also has `changes` (number of images by
            kind of change, see `image_notes.CHANGES`).
        """
        summary = super()._prepare(fingerprint)
        if not self.previous:
            return summary
        changes = count_changes(tables.require_commit(self.images), self._previous_images())
        logger.info("  since the last run: " + ", ".join(f"{count:,} {change}" for change, count in changes.items()))
        self.run_of_stage.log_metrics({f"images.{change}": count for change, count in changes.items()})
        return {**summary, "changes": changes}

    def _proposals_stage(self) -> Stage:
        """Define the stage `proposals`, which makes the table of box proposals, and return it with its settings and inputs."""
        s = self.settings.proposals
        settings: dict[str, Any] = {"kind": s.kind} if s.kind == "windows" else {**s.edge_box, "edge_model": edge_model_digest(s)}
        title = "none, as windows cover the images" if s.kind == "windows" else "EdgeBox proposals"
        settings["schema"] = tables.SCHEMA_VERSION
        folder = {"proposals": self.table_folder("proposals")}
        return Stage("proposals", title, PROPOSALS_VERSION, settings, ("prepare",), (), self._proposals, folder)

    def _proposals(self, fingerprint: str) -> dict[str, Any]:
        """Make a version of the table `proposals`, and log the recall: the share of the annotated objects that the boxes find.

        The recall is measured on the dev images. If the table had an earlier version, only the new parts are measured. If a
        killed run had already made this version, all its parts are measured.

        Args:
            fingerprint: fingerprint of the stage. It is stored with the table.

        Returns:
            The summary of the stage: `tables` (the version), and the number of `images` and of `rejects` (images that can't be
            used).
        """
        from proposals.job import make_proposals

        prepared = read_record(self.root, "prepare")
        earlier = prepared.summary.get("earlier") if prepared else None
        previous = None if earlier is None else tables.at_version(self.table_folder("images"), earlier)
        table, settings = self.table_folder("proposals"), self.settings.proposals
        before = tables.read_commit(table)
        made = make_proposals(self.images, table, settings, fingerprint, self.executor, previous=previous)
        self.use_version("proposals", made.version)
        self.write_rejects()
        logger.info(f"  proposals@{made.version}: {made.rows:,} images")
        skip_parts = {part.name for part in before.parts} if before and before.fingerprint != fingerprint else set()
        self.measure_proposals("dev", "", skip_parts)
        return {"tables": {"proposals": made.version}, "images": made.rows, "rejects": len(made.rejects)}

    def measure_proposals(self, split: str, report: str = "", skip_parts: Collection[str] = ()) -> None:
        """Measure what share of the annotated objects of a split the box proposals find, log the result, and write report files.

        Args:
            split: name of the split, such as "val". If its images have no objects, or no boxes but windows, nothing is done.
            report: folder or bucket prefix for the report files. "" to write no files.
            skip_parts: names of parts of the table `proposals` that are left out.
        """
        from deconvnet.reporting.proposal_report import report_proposals

        if self.settings.proposals.kind == "windows":
            return
        title = f"{self.dataset_name} {split}"
        found = report_proposals(self.images, self.proposals, split, self.settings.proposals, title, self.executor, skip_parts)
        if not found:
            return
        recall, files = found
        logger.info(f"  {recall.summary()} ({split})")
        for name, data in files.items() if report else ():
            storage.write_bytes(storage.join(report, name), data)
        self.run_of_stage.log_bytes(files["proposals.png"], f"proposals/{split}.png")
        self.run_of_stage.log_metrics({f"proposals.{split}.{name}": value for name, value in recall.as_dict().items()})

    def _examples_stage(self) -> Stage:
        """Define the stage `examples`, which cuts the training crops. Return it with its settings, inputs and outputs."""
        s = self.settings
        settings = {**as_dict(s.examples), "seed": s.seed, "schema": tables.SCHEMA_VERSION, "input_size": s.model.input_size}
        settings |= s.proposals.windows | ({} if s.data.has_background else {"background": s.data.background})
        folders = {f"examples/{name}": self.table_folder(f"examples/{name}") for name, _, _ in self._example_tables}
        inputs = ("prepare", "proposals")
        return Stage("examples", "training crops", EXAMPLES_VERSION, settings, inputs, (), self._examples, folders)

    @property
    def _example_tables(self) -> tuple[ExampleTable, ...]:
        """Return the tables of training crops that this run makes: those of stage 2 alone if there is no stage 1."""
        return tuple(each for each in EXAMPLE_TABLES if each[1] == 2 or self.settings.has_stage1)

    def _examples(self, fingerprint: str) -> dict[str, Any]:
        """Cut the training crops for both training stages of DeconvNet, and draw a figure of some of them.

        For each training stage there is a table of crops for training, and one (`_dev`) of crops from the dev images, which are
        training images that are set aside.

        Args:
            fingerprint: fingerprint of the stage. It is stored with the tables.

        Returns:
            The summary of the stage: number of crops by the name of the table, and `tables` (the versions).
        """
        from deconvnet.reporting import gallery
        from proposals.mining.job import mine_examples

        s = self.settings
        summary: dict[str, int] = {}
        versions: dict[str, int] = {}
        if not s.has_stage1:
            logger.info("  windows only, no crops of objects: stage 1 is skipped, stage 2 starts from the initial weights")
        for table, stage, split in self._example_tables:
            made = mine_examples(
                stage,
                self.images,
                self.proposals if stage == 2 else None,
                self.table_folder(f"examples/{table}"),
                s.examples,
                s.model.input_size,
                split=split,
                seed=s.seed,
                fingerprint=fingerprint,
                executor=self.executor,
                windows=(s.proposals.window_sizes if s.proposals.windows else (), s.proposals.window_overlap),
                background=s.data.has_background,
            )
            summary[table], versions[f"examples/{table}"] = made.rows, made.version
            self.use_version(f"examples/{table}", made.version)
            self.run_of_stage.log_dict(made.extra, f"examples/{table}.json")
        for table in ("stage1", "stage2") if s.has_stage1 else ("stage2",):
            figure = gallery.draw_examples(self.examples(table), s.data.classes, background=s.data.has_background)
            storage.write_bytes(self.report(f"examples_{table}.png"), figure)
            self.run_of_stage.log_bytes(figure, f"examples/{table}.png")
        self.write_rejects()
        self.run_of_stage.log_metrics({f"examples.{table}": count for table, count in summary.items()})
        logger.info("  " + ", ".join(f"{count:,} {table.replace('_', ' ')}" for table, count in summary.items()))
        return {"tables": versions, **summary}
