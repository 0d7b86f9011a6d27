"""Define the stage `prepare`, with which several pipelines begin: it makes or chooses a version of the table `images`."""

import logging
from functools import partial
from typing import Any

from deconvnet.datasets import images_table
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Stage, Stages, read_record
from infra.storage import tables
from workflows.cli import rejects_text
from workflows.pipelines.base import BasePipeline
from workflows.settings import as_dict

logger = logging.getLogger(__name__)


class PreparingPipeline(BasePipeline):
    """A pipeline with the stage `prepare`."""

    def _prepare_stage(self) -> Stage:
        """Define the stage `prepare`, which makes a version of the table `images` from the data set, or chooses an earlier one.

        If the data set's folder is missing, a workspace in which this stage is complete can still be used. A log message says so.

        Returns:
            The stage with its settings, inputs and outputs.

        Raises:
            UserError: if the data set's folder, or the version that the settings name, is missing, and the stage is not complete.
        """
        s = self.settings
        folder = {"images": self.table_folder("images")}
        if s.data.version is not None:
            chosen = {"version": s.data.version, "schema": tables.SCHEMA_VERSION}
            stage = Stage(
                "prepare", f"images@{s.data.version}", 1, chosen, (), (), partial(self._choose_version, s.data.version), folder
            )
            if not Stages(s.workspace, [stage]).plan()[0].complete:
                self._find_version(s.data.version)
            return stage
        # The recipe contains the names, sizes and times of the data set's files, but not the path of the folder: it may move.
        left_out = ("root", "background", "test_split", "version")
        settings = {key: value for key, value in as_dict(s.data).items() if key not in left_out}
        settings |= s.data.model_dump(include={"background", "test_split"}, exclude_defaults=True)  # older recipes lack both
        settings |= {"seed": s.seed, "folder": self._data_fingerprint(), "schema": tables.SCHEMA_VERSION}
        stage = Stage("prepare", "images and masks", images_table.PREPARE_VERSION, settings, (), (), self._prepare, folder)
        if self._data_absent:
            if not Stages(s.workspace, [stage]).plan()[0].complete:
                images_table.data_fingerprint(s.data, self.data_root)  # raises UserError, because there is no such folder
            logger.info(f"data.root {self.data_root} does not exist: the images of {s.workspace} are used as they are")
        return stage

    def _find_version(self, number: int) -> tables.Commit:
        """Return the commit record of the version of the table `images` that the setting `data.version` names.

        Args:
            number: value of the setting.

        Raises:
            UserError: if there is no such version, or it has other classes or another background than the settings.
        """
        folder = self.table_folder("images")
        found = tables.read_commit(tables.at_version(folder, number))
        if found is None:
            kept = ", ".join(map(str, tables.kept_versions(folder)))
            advice = f"its versions are {kept}: name one of them" if kept else "there is no such table"
            raise UserError(f"data.version {number} is not a version of {folder}: {advice}, or leave it out to read data.root")
        data = self.settings.data
        now = {"classes": list(images_table.class_names(data)), "background": data.background}
        for name, value in now.items():
            made_with = found.extra[name]
            if made_with != value:
                text = made_with if isinstance(made_with, str) else ",".join(made_with)
                raise UserError(
                    f"data.version {number} of {folder} was made with another data.{name}: set it to {text}, or name another "
                    "version"
                )
        return found

    def _choose_version(self, number: int, fingerprint: str) -> dict[str, Any]:
        """Use the version of the table `images` that the settings name, and log the data set.

        Args:
            number: number of the version.
            fingerprint: fingerprint of the stage. Not used.

        Returns:
            The summary of the stage, see `_prepared`.
        """
        return self._prepared(self._find_version(number))

    @property
    def _data_absent(self) -> bool:
        """Return whether the settings name a data folder (`data.root`) that does not exist."""
        return self.settings.data.root is not None and not storage.exists(self.data_root)

    def _data_fingerprint(self) -> str:
        """Compute the fingerprint of the data set, a digest of the names, sizes and times of its files.

        If the folder is missing, for example because the workspace was copied to another machine, return the fingerprint that was
        stored when the stage `prepare` last completed.

        Raises:
            UserError: if the folder is missing and the stage `prepare` has never completed.
        """
        if self._data_absent and (record := read_record(self.settings.workspace, "prepare")):
            return str(record.summary.get("folder"))
        return images_table.data_fingerprint(self.settings.data, self.data_root)

    def _earlier_images(self) -> tables.Commit | None:
        """Return the version of the table `images` whose images stay in their parts: the latest; None if there is none.

        Subclasses may override this method.
        """
        return tables.read_commit(self.table_folder("images"))

    def _prepare(self, fingerprint: str) -> dict[str, Any]:
        """Make a version of the table `images`, and log the data set and the rejected images.

        Args:
            fingerprint: fingerprint of the stage. It is stored with the table.

        Returns:
            The summary of the stage, see `_prepared`. It also has `folder` (digest of the names, sizes and times of the data
            set's files) and `earlier` (number of the version of the table whose images have stayed in their parts, or None).
        """
        s = self.settings
        folder = images_table.data_folder(s.data, s.seed, self.data_root)
        table, earlier = self.table_folder("images"), self._earlier_images()
        made = images_table.prepare_images(s.data, s.seed, table, fingerprint, folder, self.executor, earlier)
        summary = self._prepared(made)
        return {**summary, "folder": self._data_fingerprint(), "earlier": earlier.version if earlier else None}

    def _prepared(self, images: tables.Commit) -> dict[str, Any]:
        """Use a version of the table `images`, and log the data set and the rejected images.

        Args:
            images: commit record of the version.

        Returns:
            The summary of the stage, with these keys: `key` (digest of the data), `tables` (the version), `counts` (number of
            images by split) and `rejects` (number of images that can't be used).
        """
        self.use_version("images", images.version)
        self.write_rejects()
        key, counts = images.extra["digest"], images.extra["counts"]
        for run in (self.run_of_pipeline, self.run_of_stage):
            run.log_dataset(self.dataset_name, key, self.data_root, counts)
        split_sizes = ", ".join(f"{count:,} {split}" for split, count in counts.items())
        logger.info(f"  images@{images.version}: {split_sizes}; {rejects_text(images.rejects)}")
        return {"key": key, "tables": {"images": images.version}, "counts": counts, "rejects": len(images.rejects)}
