"""Define the first stages of the main pipeline, which make the tables of images, box proposals and training crops."""

import logging
from collections.abc import Callable
from typing import Any

from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Stage, read_record, up_to_date_record
from infra.storage import tables
from proposals.changes import PreviousTable, find_changes
from proposals.job import edge_model_digest
from workflows.pipelines.base import BasePipeline
from workflows.pipelines.workspace import EXAMPLE_TABLES, ExampleTable
from workflows.settings import Settings, as_dict

logger = logging.getLogger(__name__)


class DataPipeline(BasePipeline):
    """A pipeline with the stages prepare, proposals and examples.

    The stage `prepare` makes the table `images` from a data set, `proposals` finds boxes that may contain objects, and `examples`
    cuts the training crops.

    Attributes:
        settings: all settings of the pipeline.
        previous: URI of a complete workspace of an earlier run. The rows of unchanged images are copied from its tables. None if
            there is no such workspace.
    """

    settings: Settings

    def __init__(self, settings: Settings, previous: str | None = None, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Plan the stages. None of them is run yet.

        Args:
            settings: settings of the pipeline.
            previous: URI of a complete workspace of an earlier run. The rows of unchanged images are copied from its tables. None
                if there is no such workspace.
            should_stop: function that is called before each stage and now and then during long ones. Once it returns True, the
                run stops with the exception Interrupted.

        Raises:
            UserError: if a file or folder that the settings name does not exist.
        """
        self.previous = previous
        self.lock_minutes = settings.retrain.lock_minutes
        super().__init__(settings, should_stop)

    def _prepare(self, fingerprint: str) -> dict[str, Any]:
        """Make the table `images`, and compare it with that of the previous workspace, if there is one.

        Args:
            fingerprint: digest of the stage's code version, settings and inputs. It is stored with the tables.

        Returns:
            The summary of the stage, with the keys `key`, `counts`, `rejects` and `folder` of the base class. With a previous
            workspace, it also has `changes` (number of images by kind of change) and `since` (digest of the data there, or None).
        """
        summary = super()._prepare(fingerprint)
        return {**summary, **self._find_changes(self.previous, fingerprint)} if self.previous else summary

    def _find_changes(self, previous: str, fingerprint: str) -> dict[str, Any]:
        """Make the table `changes`, which compares the images with those of the previous workspace, and log its counts.

        Args:
            previous: URI of the previous workspace.
            fingerprint: digest of the stage `prepare`: its code version, settings and inputs. It is stored with the table.

        Returns:
            A dict with two keys. `changes` is a dict with the number of images that are "new", "changed", "relabelled" (only the
            mask or the split differs), "same" or "gone". `since` is the digest of the data in the previous workspace, or None if
            it is not known.

        Raises:
            UserError: if another run changes the previous workspace at this time.
        """
        before = read_record(previous, "prepare")
        changes = find_changes(self.images, storage.join(previous, "images"), self.changes, fingerprint, self.executor)
        if before != read_record(previous, "prepare"):
            raise UserError(f"{previous} was changed by another run while its images were compared: run the same command again")
        logger.info("  since the last run: " + ", ".join(f"{count:,} {change}" for change, count in changes.extra.items()))
        self.run_of_stage.log_metrics({f"images.{change}": count for change, count in changes.extra.items()})
        return {"changes": changes.extra, "since": before.key if before else None}

    def _previous_table(self, table: str, *stages: str) -> PreviousTable | None:
        """Find a table of the previous workspace from which rows may be copied.

        Args:
            table: path of the table in a workspace, such as "examples/stage1".
            *stages: names of the stages that the table depends on. The last one makes the table.

        Returns:
            The table, with the changes of the images since it was made. None if there is no previous workspace, or if one of the
            stages is not complete there or was run with another code version or other settings than here.
        """
        prepared = read_record(self.settings.workspace, "prepare")
        if self.previous is None or prepared is None:
            return None
        recipes = {stage.name: stage.recipe for stage in self.stages.stages}
        before = {name: up_to_date_record(self.previous, name) for name in ("prepare", *stages)}
        compared = before["prepare"]
        if compared is None or compared.key != prepared.summary.get("since"):
            return None
        records = [record for name in stages if (record := before[name]) is not None and record.recipe == recipes[name]]
        if len(records) < len(stages):
            return None
        return PreviousTable(storage.join(self.previous, table), self.changes, records[-1].fingerprint)

    def _proposals_stage(self) -> Stage:
        """Define the stage `proposals`, which makes the table of box proposals, and return it with its settings and inputs."""
        s = self.settings.proposals
        settings: dict[str, Any] = {"kind": s.kind} if s.kind == "windows" else {**s.edge_box, "edge_model": edge_model_digest(s)}
        title = "none, as windows cover the images" if s.kind == "windows" else "EdgeBox proposals"
        outputs = (storage.join(self.proposals, tables.LOG),)
        settings["schema"] = tables.SCHEMA_VERSION
        return Stage("proposals", title, 1, settings, ("prepare",), outputs, self._proposals)

    def _proposals(self, fingerprint: str) -> dict[str, Any]:
        """Make the table `proposals`, and log the recall of the box proposals: the share of the annotated objects that they find.

        The recall is measured on the dev images, which are training images that are set aside for choosing settings.

        Args:
            fingerprint: digest of the stage's code version, settings and inputs. It is stored with the table.

        Returns:
            The summary of the stage: the number of `images`, and of `rejects` (images that can't be used).
        """
        from proposals.job import make_proposals

        previous = self._previous_table("proposals", "proposals")
        settings = self.settings.proposals
        made = make_proposals(self.images, self.proposals, settings, fingerprint, self.executor, previous=previous)
        self.write_rejects()
        logger.info(f"  of {made.rows:,} images")
        self.measure_proposals("dev")
        return {"images": made.rows, "rejects": len(made.rejects)}

    def measure_proposals(self, split: str, report: str = "") -> None:
        """Measure what share of the annotated objects of a split the box proposals find, log the result, and write report files.

        Args:
            split: name of the split, such as "val". If its images have no objects, or no boxes but windows, nothing is done.
            report: folder or s3:// prefix for the report files. "" to write no files.
        """
        from deconvnet.reporting.proposal_report import report_proposals

        if self.settings.proposals.kind == "windows":
            return
        title = f"{self.dataset_name} {split}"
        found = report_proposals(self.images, self.proposals, split, self.settings.proposals, title, self.executor)
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
        outputs = tuple(storage.join(self.examples(name), tables.LOG) for name, _, _ in self._example_tables)
        return Stage("examples", "training crops", 1, settings, ("prepare", "proposals"), outputs, self._examples)

    @property
    def _example_tables(self) -> tuple[ExampleTable, ...]:
        """Return the tables of training crops that this run makes: those of stage 2 alone if there is no stage 1."""
        return tuple(each for each in EXAMPLE_TABLES if each[1] == 2 or self.settings.has_stage1)

    def _examples(self, fingerprint: str) -> dict[str, Any]:
        """Cut the training crops for both training stages of DeconvNet, and draw a figure of some of them.

        For each training stage there is a table of crops for training, and one (`_dev`) of crops from the dev images, which are
        training images that are set aside.

        Args:
            fingerprint: digest of the stage's code version, settings and inputs. It is stored with the tables.

        Returns:
            The summary of the stage: number of crops by the name of the table.
        """
        from deconvnet.reporting import gallery
        from proposals.mining.job import mine_examples

        s = self.settings
        summary: dict[str, Any] = {}
        if not s.has_stage1:
            logger.info("  windows, and no crops of objects: stage 1 is left out, and stage 2 starts from the initial weights")
        for table, stage, split in self._example_tables:
            made = mine_examples(
                stage,
                self.images,
                self.proposals if stage == 2 else None,
                self.examples(table),
                s.examples,
                s.model.input_size,
                split=split,
                seed=s.seed,
                fingerprint=fingerprint,
                previous=self._previous_table(f"examples/{table}", "proposals", "examples"),
                executor=self.executor,
                windows=(s.proposals.window_sizes if s.proposals.windows else (), s.proposals.window_overlap),
                background=s.data.has_background,
            )
            summary[table] = made.rows
            self.run_of_stage.log_dict(made.extra, f"examples/{table}.json")
        for table in ("stage1", "stage2") if s.has_stage1 else ("stage2",):
            figure = gallery.draw_examples(self.examples(table), s.data.classes, background=s.data.has_background)
            storage.write_bytes(self.report(f"examples_{table}.png"), figure)
            self.run_of_stage.log_bytes(figure, f"examples/{table}.png")
        self.write_rejects()
        self.run_of_stage.log_metrics({f"examples.{table}": count for table, count in summary.items()})
        logger.info("  " + ", ".join(f"{count:,} {table.replace('_', ' ')}" for table, count in summary.items()))
        return summary
