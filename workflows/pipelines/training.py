"""Define the main pipeline: its stages, the inputs and settings of each, and the calls to the packages that do the work.

A stage is a named step of the pipeline, such as training FCN-8s.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from deconvnet.evaluation import EVALUATION_VERSION
from deconvnet.models.architectures import architecture_of_stage
from deconvnet.tracking.initial_model import InitialModel, find_initial_model, initial_model_folder
from infra import storage
from infra.errors import UserError
from infra.redaction import without_secrets
from infra.runtime.stages import Record, Stage
from workflows.pipelines.generations import prune_tables_after_run
from workflows.pipelines.init_weights import check_freeze, fitted_weights_uri, fitting_stages, vgg16_digest
from workflows.pipelines.run_log import TrackedPipeline, report_files, result_metrics
from workflows.settings import as_dict

if TYPE_CHECKING:
    from deconvnet.evaluation.inputs import EvaluationInputs

_NOT_LEARNED_FROM = ("checkpoint_every", "log_every")
"""Names of training settings that do not affect the trained network, so that changing them does not repeat the training."""

TRAINING_VERSION = 2
"""Version of the training stages, increased when the same settings train another network, as by another order of examples."""

logger = logging.getLogger(__name__)


class Pipeline(TrackedPipeline):
    """The main pipeline, with the stages prepare, proposals, examples, fcn8s, stage1, stage2, evaluate and register.

    The first three stages make tables and are defined in `DataPipeline`. The next three train networks: FCN-8s, and DeconvNet in
    two steps. The stage `evaluate` measures the networks and writes the report, and `register` adds their ensemble to MLflow's
    model registry.
    """

    def _check_start(self) -> None:
        """Check that no training freezes random weights, and that there are enough CPUs and GPUs for the training workers.

        Raises:
            UserError: if a training would freeze random weights, or there are too few CPUs or GPUs.
        """
        s = self.settings
        check_freeze(s, self._start)
        if s.executor == "ray":
            from deconvnet.training.ray_trainer import check_resources

            check_resources(s.compute, s.cluster)
        else:
            from infra.device import check_gpu

            check_gpu(s.compute.gpu)

    def _stages(self) -> list[Stage]:
        """List the stages in the order in which they run. The stage `register` is left out if the settings say so."""
        stages = [self._prepare_stage(), self._proposals_stage(), self._examples_stage()]
        stages += self._training_stages("fcn8s", "FCN-8s on whole images", "prepare")
        if self.settings.has_stage1:
            stages += self._training_stages("stage1", "DeconvNet, stage 1: objects", "examples")
            stages += self._training_stages("stage2", "DeconvNet, stage 2: proposals", "examples", "stage1")
        else:
            title = "DeconvNet on windows (no stage 1, as there are no objects)"
            stages += self._training_stages("stage2", title, "examples")
        stages.append(self._evaluate_stage())
        if self.settings.tracking.enabled and self.settings.tracking.register_model:
            stages.append(self._register_stage())
        return stages

    @cached_property
    def _start(self) -> InitialModel | None:
        """Return the networks that the setting `init.from` names, looked up once at planning; None if it is empty."""
        return find_initial_model(self.settings.init.from_, self.store) if self.settings.init.from_ else None

    def _training_table(self, stage: str) -> str:
        """Return the URI of the table on which the training stage `stage` trains a network ("fcn8s", "stage1" or "stage2")."""
        return self.images if architecture_of_stage(stage).whole_images else self.examples(stage)

    def _training_stages(self, stage: str, title: str, *inputs: str) -> list[Stage]:
        """Make a training stage and, if it starts from VGG-16 weights that are fitted to the network, the stage that fits them.

        Args:
            stage: name of the training stage: "fcn8s", "stage1" or "stage2".
            title: short description of the stage that is shown to the user.
            *inputs: names of the stages on which the training stage depends. The first one makes the table on which the network
                is trained.

        Returns:
            One or two stages, in the order in which they run.
        """
        s = self.settings
        table = partial(self._training_table, stage)
        fitting = fitting_stages(s, stage, table, inputs[0], self.executor, lambda: self.run_of_stage)
        model = architecture_of_stage(stage).settings_used(s.model)
        if s.model.vgg16:
            model["vgg16"] = vgg16_digest(s.model.vgg16)
        train = {key: value for key, value in as_dict(getattr(s.train, stage)).items() if key not in _NOT_LEARNED_FROM}
        settings = {
            "seed": s.seed,
            "model": model,
            **({"init_weights": self._start.key} if self._start else {}),
            "train": train,
            "classes": list(s.data.classes),
            "bf16": s.compute.bf16,
        }
        settings |= {} if s.compute.allreduce_dtype == "float32" else {"allreduce_dtype": s.compute.allreduce_dtype}
        outputs = (storage.join(self.model(stage), "model.json"),)
        inputs = (*inputs, *(each.name for each in fitting))
        return [*fitting, Stage(stage, title, TRAINING_VERSION, settings, inputs, outputs, partial(self._train, stage))]

    def _train(self, stage: str, fingerprint: str) -> dict[str, Any]:
        """Train the network of one stage, and write its model folder and training curves.

        If an interrupted training left a checkpoint, the training continues from it.

        Args:
            stage: name of the training stage: "fcn8s", "stage1" or "stage2".
            fingerprint: fingerprint of the stage. It names the folder of the stage's checkpoints.

        Returns:
            The summary of the stage: the numbers of `steps` and `epochs`, the mean IoU (0 to 1) on the dev examples at the end
            (`dev_mean_iou`) and at its best (`best_dev_mean_iou`), and the mean seconds per step by phase
            (`step_seconds`). Dev examples come from training images that are set aside.
        """
        from deconvnet.reporting import plots
        from deconvnet.training.job import TrainingJob

        s = self.settings
        architecture = architecture_of_stage(stage)
        init: str | None = self.model("stage1") if stage == "stage2" and s.has_stage1 else None
        if init is None and self._start:
            init = initial_model_folder(self._start, architecture.name, self.store, self.uri("init"))
        job = TrainingJob(
            stage=stage,
            model=s.model.model_copy(update={"vgg16": fitted_weights_uri(s, stage) or s.model.vgg16}),
            settings=getattr(s.train, stage),
            compute=s.compute,
            examples_uri=self._training_table(stage),
            dev_uri=self.images if architecture.whole_images else self.examples(f"{stage}_dev"),
            classes=s.data.classes,
            checkpoints_uri=self.uri("train"),
            run_name=f"{stage}-{fingerprint[:16]}",
            out_uri=self.model(stage),
            seed=s.seed,
            init=init,
            fingerprint=fingerprint,
        )
        with self.run_of_stage.training_metrics() as report:
            if s.executor == "ray":
                from deconvnet.training.ray_callbacks import LiveMetricsCallback, ReportCallback
                from deconvnet.training.ray_trainer import train_on_ray

                callbacks = [ReportCallback(report), LiveMetricsCallback(stage)]
                outcome = train_on_ray(job, cluster=s.cluster, callbacks=callbacks, should_stop=self.should_stop)
            else:
                from deconvnet.training.local_trainer import train_locally

                device = "cuda" if s.compute.gpu else "cpu"
                outcome = train_locally(job, device=device, on_report=report, should_stop=self.should_stop)
        self._write_report(plots.draw_training_curves({stage: self.run_of_stage.history(plots.TRAINING_METRICS)}))
        # The content key is the network's digest, because repeating a training (with other workers, say) gives other weights.
        return {**outcome, "key": storage.read_json(storage.join(self.model(stage), "model.json"))["sha256"]}

    def _evaluate_stage(self) -> Stage:
        """Define the stage `evaluate`, which measures the networks and writes the report, and return it with its settings."""
        s = self.settings
        window = {"context": s.examples.context, "window": s.examples.window}
        settings = {**as_dict(s.segment), **window, **s.proposals.windows, "classes": list(s.data.classes), "split": "val"}
        settings |= {} if s.data.has_background else {"background": s.data.background}
        inputs, outputs = ("prepare", "proposals", "fcn8s", "stage2"), (self.report("results.json"),)
        return Stage("evaluate", "the five results", EVALUATION_VERSION, settings, inputs, outputs, self._evaluate)

    def _evaluate(self, fingerprint: str) -> dict[str, Any]:
        """Evaluate the networks and the box proposals on the val images, and write the report.

        Args:
            fingerprint: fingerprint of the stage. Not used.

        Returns:
            The summary of the stage. Its key `mean_iou` has the mean IoU (0 to 1) of each of the five results by name.
        """
        from deconvnet.reporting import plots
        from deconvnet.tracking.interface import read_histories

        report, run = self.report(), self.run_of_pipeline
        self.measure_proposals("val", report)
        histories = read_histories(self.root, self.store, run.run_id, plots.TRAINING_STAGES, plots.TRAINING_METRICS)
        self._write_report(plots.draw_training_curves(histories), report)
        results = self.evaluate("val", report)
        self._write_report(report_files(self.settings.workspace), report)
        return {"mean_iou": {name: row["mean_iou"] for name, row in results["rows"].items()}}

    def evaluate(self, split: str, report: str, models: tuple[str, str] | None = None) -> dict[str, Any]:
        """Evaluate a DeconvNet, an FCN-8s and their ensemble on a split, write the report's files and log them.

        The file results.json is written last. The pictures and masks of the images are not logged, as there may be thousands.

        Args:
            split: name of the split whose images are predicted, such as "val".
            report: folder or bucket prefix to which the files are written.
            models: folders of a DeconvNet and an FCN-8s in a copy of a registered ensemble. None for those of this workspace.

        Returns:
            The content of results.json: the measures of the five results.

        Raises:
            UserError: if the networks were trained with other classes than those of the data.
        """
        from deconvnet.evaluation.image_measures import remove_other_files
        from deconvnet.evaluation.measurements import BATCHES
        from deconvnet.inference.int8.ranges_job import RangeInputs, record_missing_ranges
        from deconvnet.reporting.evaluation_report import evaluate_and_report

        inputs = replace(self.evaluation_inputs(split, models), report_uri=report)
        storage.remove(storage.join(report, "results.json"))  # else old results would stay beside new images until the end
        if inputs.options.int8:
            given = RangeInputs(inputs.deconvnet_uri, inputs.fcn8s_uri, self.images, self.proposals, inputs.options)
            record_missing_ranges(given, self.executor, registered=models is not None)
        results, files = evaluate_and_report(inputs, f"{self.dataset_name} {split}", self.executor, self.settings.compute.gpu)
        self._write_report(files, report)
        remove_other_files(report)
        storage.remove(storage.join(report, BATCHES))
        self.run_of_stage.log_metrics(result_metrics(split, results))
        return results

    def evaluation_inputs(self, split: str, models: tuple[str, str] | None = None) -> "EvaluationInputs":
        """Collect the inputs for an evaluation of a DeconvNet, an FCN-8s and their ensemble.

        Args:
            split: name of the split whose images are predicted, such as "val".
            models: folders of a DeconvNet and an FCN-8s in a copy of a registered ensemble. None for those of this workspace.

        Returns:
            The networks, the tables of images and box proposals, the split, the classes, and the options for predicting: those of
            the settings, or those with which the given networks were registered.

        Raises:
            UserError: if the networks were trained with other classes than those of the data.
        """
        from deconvnet.evaluation.inputs import EvaluationInputs
        from deconvnet.inference.predictor import PredictorOptions
        from deconvnet.inference.saved_ensemble import read_options

        s = self.settings
        if models is None:
            options = PredictorOptions.from_settings(s.segment, s.examples, s.proposals, s.data)
            models = self.model("stage2"), self.model("fcn8s")
        else:
            options = PredictorOptions(**read_options(models[0].rpartition("/")[0])["segment"])
        trained = storage.read_json(storage.join(models[0], "model.json"))["classes"]
        if tuple(trained) != s.data.classes:
            raise UserError(
                f"data.classes {', '.join(s.data.classes)} are not those that the models in {s.workspace} were trained with, "
                f"{', '.join(trained)}: name the --config they were trained with"
            )
        return EvaluationInputs(*models, self.images, self.proposals, split, s.data.classes, options)

    def _write_report(self, files: Mapping[str, bytes], report: str = "") -> None:
        """Write the report's files in the given order, and log them to the MLflow run of the stage.

        Args:
            files: contents of the files by name.
            report: folder or bucket prefix to write to. "" to log the files only.
        """
        for name, data in files.items():
            if report:
                storage.write_bytes(storage.join(report, name), data)
            self.run_of_stage.log_bytes(data, f"report/{name}")

    def _register_stage(self) -> Stage:
        """Define the stage `register`, which adds the ensemble to MLflow's model registry.

        If the registry is a SQLite file, this file is the output of the stage; otherwise the stage has no output file. In both
        cases the stage runs again if the registry no longer has the version.

        Returns:
            The stage with its settings, inputs and outputs.
        """
        s = self.settings
        # A store in the workspace is named by its path there, so that a moved workspace does not register its model again.
        store = without_secrets(self.store).replace(f"sqlite:///{storage.absolute(self.registry_workspace)}/", "")
        settings = {"model_name": s.tracking.model_name, "store": store, "max_pixels": s.data.max_pixels}
        database = (self.store.removeprefix("sqlite:///"),) if self.store.startswith("sqlite:///") else ()
        inputs = ("evaluate", "stage2", "fcn8s")
        return Stage("register", "the model registry", 2, settings, inputs, database, self._register, exists=self._is_registered)

    def _is_registered(self, record: Record) -> bool:
        """Return whether the registry still has the version that the stage `register` has made, given the stage's record.

        If the registry does not answer, the version is assumed to be there, and a warning says so.
        """
        from deconvnet.tracking.register import is_registered

        name, version = self.settings.tracking.model_name, record.summary["version"]
        try:
            return is_registered(self.store, name, version, record.fingerprint)
        except UserError as error:
            logger.warning(f"  can't check whether {name} version {version} is still registered, so this is assumed: {error}")
            return True

    def _end(self, config: str, records: Mapping[str, Record]) -> None:
        """Log the results, and delete the checkpoints and the table files that no version in use needs.

        In a generation, the table files are deleted later, at the end of the retraining.

        Args:
            config: name of the settings file, without its folder and extension.
            records: stored records of the complete stages, by the name of the stage.
        """
        super()._end(config, records)
        self.check_locks()
        if "evaluate" in records:  # the trainings are complete, so their checkpoints are not needed any more
            storage.remove(self.uri("train"))
        if self.registry_workspace == self.tables_root == self.root and "evaluate" in records:
            prune_tables_after_run(self.root, self.store, self.settings.tracking.model_name, self.locks[0])
