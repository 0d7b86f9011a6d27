"""The pipeline's stages, from settings: what each needs, makes and is skipped by. The rooms do the work."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from deconvnet.datasets import images_table
from deconvnet.models.architectures import architecture_of_stage
from deconvnet.tracking.descriptions import stage_description, unfinished_run_description
from deconvnet.tracking.interface import open_tracker
from deconvnet.tracking.starting_model import source_key, starting_model
from deconvnet.tracking.store import tracking_uri
from infra import storage
from infra.errors import Interrupted, UserError
from infra.redaction import without_secrets
from infra.runtime.ray_executor import RayExecutor
from infra.runtime.stages import Record, Stage, Stages, digest, recorded, standing
from infra.storage import tables
from proposals.changes import PreviousTable, find_changes
from proposals.job import edge_model_token
from workflows.pipelines import run_log
from workflows.pipelines.channel_pruning import start_of, start_stages, weights_stamp
from workflows.pipelines.run_log import RUN_FILE
from workflows.settings import Settings, as_dict

EXAMPLE_TABLES: tuple[tuple[str, Literal[1, 2], Literal["train", "dev"]], ...] = (
    ("stage1", 1, "train"),
    ("stage1_dev", 1, "dev"),
    ("stage2", 2, "train"),
    ("stage2_dev", 2, "dev"),
)


class Pipeline:
    """A workspace and its stages: prepare → proposals → examples → FCN-8s → stage 1 → stage 2 → evaluate → register.

    Batch-norm statistics are recomputed at the end of each training stage. `mlflow_run` is the run that the stage at work logs
    to, `mlflow_parent` that of all stages. previous: a finished workspace; what its tables hold of photographs that have not changed is taken over.
    """

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None] = print,
        previous: str | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """stopped: asked before each stage; Interrupted is raised where it says yes."""
        self.settings = settings
        self.previous = previous
        self.stopped = stopped
        self.say = say
        self.mlflow_run: Any = None
        self.mlflow_parent: Any = None
        self.root = settings.data.root or self.place("data")
        self.store = tracking_uri(settings.workspace, settings.tracking.uri) if settings.tracking.enabled else ""
        self.executor = RayExecutor(settings.cluster, stopped)
        self.stages = Stages(settings.workspace, self._stages())

    def place(self, *parts: str) -> str:
        """A place in the workspace."""
        return storage.join(self.settings.workspace, *parts)

    @property
    def images(self) -> str:
        return self.place("images")

    @property
    def proposals(self) -> str:
        return self.place("proposals")

    def examples(self, table: str) -> str:
        return self.place("examples", table)

    def model(self, stage: str) -> str:
        return self.place("models", stage)

    def _stages(self) -> list[Stage]:
        s = self.settings
        data = as_dict(s.data)
        classes, seed = {"classes": data["classes"]}, {"seed": s.seed}
        edges = {"edge_file": edge_model_token(s.proposals)}
        folder = {"folder": images_table.data_fingerprint(s.data, self.root)}
        window = {"context": s.examples.context, "window": s.examples.window}
        schema = {"schema": tables.SCHEMA_VERSION}
        done = tables.COMMIT
        stages = [
            Stage(
                "prepare", "photographs", images_table.PREPARE_VERSION, {**data, **seed, **folder, **schema}, (),
                (storage.join(self.images, done),), self._prepare,
            ),
            Stage(
                "proposals", "EdgeBox proposals", 1, {**as_dict(s.proposals), **edges, **schema}, ("prepare",),
                (storage.join(self.proposals, done),), self._proposals,
            ),
            Stage(
                "examples", "training crops", 1, {**as_dict(s.examples), **seed, **schema, "input_size": s.model.input_size},
                ("prepare", "proposals"), tuple(storage.join(self.examples(t), done) for t, _, _ in EXAMPLE_TABLES), self._examples,
            ),
            *start_stages(self, "fcn8s", self.images, "prepare"),
            self._training("fcn8s", "FCN-8s on whole photographs", "prepare"),
            *start_stages(self, "stage1", self.examples("stage1"), "examples"),
            self._training("stage1", "DeconvNet, stage 1: objects", "examples"),
            self._training("stage2", "DeconvNet, stage 2: proposals", "examples", "stage1"),
            Stage(
                "evaluate", "the five results", 3, {**as_dict(s.segment), **window, **classes, "split": "val"},
                ("prepare", "proposals", "fcn8s", "stage2"), (self.place("report", "results.json"),), self._evaluate,
            ),
        ]  # fmt: skip
        if s.tracking.enabled and s.tracking.register_model:
            where = {"model_name": s.tracking.model_name, "store": without_secrets(self.store), "max_pixels": s.data.max_pixels}
            database = (self.store.removeprefix("sqlite:///"),) if self.store.startswith("sqlite:///") else ()
            stages.append(
                Stage("register", "the model registry", 1, where, ("evaluate", "stage2", "fcn8s"), database, self._register)
            )
        return stages

    def _training(self, stage: str, title: str, *inputs: str) -> Stage:
        s = self.settings
        if start_of(s, stage):
            inputs = (*inputs, f"{stage}_start")
        sections: dict[str, Any] = as_dict(s, ("init", "seed"))
        sections["model"] = architecture_of_stage(stage).settings_used(s.model)
        if s.init.from_:
            sections["init_weights"] = source_key(s.init.from_, self.store)
        if s.model.vgg16:
            sections["vgg16_file"] = weights_stamp(s.model.vgg16)
        train = as_dict(getattr(s.train, stage))
        # How often it is logged and saved changes nothing of what is learned.
        matters = {key: value for key, value in train.items() if key not in ("checkpoint_every", "log_every")}
        settings = {**sections, "train": matters, "classes": list(s.data.classes), "bf16": s.compute.bf16}

        def run(fingerprint: str) -> dict[str, Any]:
            return self._train(stage, fingerprint)

        return Stage(stage, title, 1, settings, inputs, (storage.join(self.model(stage), "model.json"),), run)

    def run(self, config: str, go_on: Callable[[Stage], bool] = lambda stage: True) -> dict[str, Record]:
        """Run the stages that don't stand, as one MLflow run of the workspace, on Ray. Returns their records by name.

        config: what the run is named by. `go_on(stage)`, asked after each stage, ends it by False.
        """
        from deconvnet.training.ray_trainer import check_resources

        s = self.settings
        storage.check_writable(s.workspace)
        tracker = open_tracker(s.tracking, s.workspace)
        run_file = self.place(RUN_FILE)
        known = storage.read_json(run_file).get("mlflow_run_id") if storage.exists(run_file) else None
        stages = self.stages.stages
        with (
            self.executor,
            tracker.pipeline(run_log.name(config, s), as_dict(s), run_log.tags(config, s), resume_run_id=known) as parent,
            parent.system_metrics() if s.tracking.system_metrics else nullcontext(),
        ):
            self.mlflow_parent = parent
            storage.write_json(run_file, run_log.run_file(parent.run_id, config, s, [stage.name for stage in stages]))
            parent.describe(unfinished_run_description(config))
            # Now, rather than after an hour of mining.
            check_resources(s.compute, s.cluster.selector("training_nodes"))
            self.executor.check()

            def around(stage: Stage, fingerprint: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
                if self.stopped():
                    raise Interrupted(f"stopped before {stage.name}, as another run has taken the lock of this workspace")
                number = stages.index(stage) + 1
                self.say(f"[{number}/{len(stages)}] {stage.name}: {stage.title}")
                title, about = f"{number} {stage.name}", run_log.tags(config, s)
                with parent.stage(stage.name, fingerprint, dict(stage.settings), title, about) as child:
                    self.mlflow_run = child
                    child.describe(stage_description(stage.name))
                    summary = run()
                    run_log.describe_finished_stage(child, stage.name, summary, s.workspace)
                    return summary

            def skipped(stage: Stage, record: Record) -> None:
                self.say(f"[{stages.index(stage) + 1}/{len(stages)}] {stage.name}: stands, not run again")

            records = self.stages.run(around, skipped, go_on)
            run_log.log_finished_run(parent, config, s, records)
        return records

    def _prepare(self, fingerprint: str) -> dict[str, Any]:
        s = self.settings
        root = images_table.data_folder(s.data, s.seed, self.root)
        made = images_table.prepare_images(s.data, s.seed, self.images, fingerprint, root, self.executor)
        self._write_rejects()
        for run in (self.mlflow_parent, self.mlflow_run):
            run.log_dataset(self.dataset_name, made.extra["digest"], self.root, made.extra["counts"])
        counts = ", ".join(f"{count:,} {split}" for split, count in made.extra["counts"].items())
        self.say(f"  {counts}; {len(made.rejects):,} set aside")
        summary = {"key": made.extra["digest"], "counts": made.extra["counts"], "rejects": len(made.rejects)}
        if self.previous:
            changes = find_changes(self.images, storage.join(self.previous, "images"), self.changes, fingerprint, self.executor)
            before = recorded(self.previous, "prepare")
            summary |= {"changes": changes.extra, "since": before.key if before else None}
            self.say("  since the last run: " + ", ".join(f"{count:,} {change}" for change, count in changes.extra.items()))
            self.mlflow_run.log_metrics({f"photographs.{change}": count for change, count in changes.extra.items()})
        return summary

    @property
    def changes(self) -> str:
        return self.place("changes")

    def _previous_table(self, table: str, *stages: str) -> PreviousTable | None:
        """The previous workspace's table of this name, where the stages that it comes from did what they do now.

        It must still be the workspace that the photographs were compared with, and whole.
        """
        prepared = recorded(self.settings.workspace, "prepare")
        if self.previous is None or prepared is None:
            return None
        now = {stage.name: stage.recipe for stage in self.stages.stages}
        before = {name: standing(self.previous, name) for name in ("prepare", *stages)}
        compared = before["prepare"]
        if compared is None or compared.key != prepared.summary.get("since"):
            return None
        if any((record := before[name]) is None or record.recipe != now[name] for name in stages):
            return None
        return PreviousTable(storage.join(self.previous, table), self.changes)

    @property
    def dataset_name(self) -> str:
        """What reports and MLflow call the data."""
        return Path(self.settings.data.root).name if self.settings.data.root else "generated"

    def _proposals(self, fingerprint: str) -> dict[str, Any]:
        from proposals.job import make_proposals

        made = make_proposals(
            self.images, self.proposals, self.settings.proposals, fingerprint, self.executor,
            previous=self._previous_table("proposals", "proposals"),
        )  # fmt: skip
        self._write_rejects()
        self.say(f"  of {made.rows:,} photographs")
        self.measure_proposals("dev")
        return {"photographs": made.rows, "rejects": len(made.rejects)}

    def measure_proposals(self, split: str, report: str = "") -> None:
        """Say and log how many objects of `split` the proposals find, and write it at `report`; nothing where it has none."""
        from deconvnet.reporting.proposal_report import report_proposals

        title = f"{self.dataset_name} {split}"
        if not (found := report_proposals(self.images, self.proposals, split, self.settings.proposals, title, self.executor)):
            return
        self.say(f"  {found.recall.summary()} ({split})")
        for name, data in found.files.items() if report else ():
            storage.write_bytes(storage.join(report, name), data)
        if run := self.mlflow_run:
            run.log_bytes(found.files["proposals.png"], f"proposals/{split}.png")
            run.log_metrics({f"proposals.{split}.{name}": value for name, value in found.recall.as_dict().items()})

    def _examples(self, fingerprint: str) -> dict[str, Any]:
        from deconvnet.reporting import gallery
        from proposals.mining.job import mine_examples

        s = self.settings
        summary: dict[str, Any] = {}
        for table, stage, split in EXAMPLE_TABLES:
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
            )
            summary[table] = made.rows
            self.mlflow_run.log_dict(made.extra, f"examples/{table}.json")
        for table in ("stage1", "stage2"):
            drawn = gallery.draw_examples(self.examples(table), s.data.classes)
            storage.write_bytes(self.place("report", f"examples_{table}.png"), drawn)
            self.mlflow_run.log_bytes(drawn, f"examples/{table}.png")
        self._write_rejects()
        self.mlflow_run.log_metrics({f"examples.{table}": count for table, count in summary.items()})
        self.say("  " + ", ".join(f"{count:,} {table.replace('_', ' ')}" for table, count in summary.items()))
        return summary

    def _train(self, stage: str, fingerprint: str) -> dict[str, Any]:
        from deconvnet.reporting import training_curves
        from deconvnet.training.job import TrainingJob
        from deconvnet.training.ray_trainer import ReportCallback, train_on_ray

        s = self.settings
        architecture = architecture_of_stage(stage)
        init: str | None = self.model("stage1") if stage == "stage2" else None
        if init is None and s.init.from_:
            init = starting_model(s.init.from_, architecture.name, self.store, self.place("init"))
        job = TrainingJob(
            stage=stage,
            model=s.model.model_copy(update={"vgg16": start_of(s, stage) or s.model.vgg16}),
            settings=getattr(s.train, stage),
            compute=s.compute,
            examples_uri=self.images if architecture.whole_images else self.examples(stage),
            dev_uri=self.images if architecture.whole_images else self.examples(f"{stage}_dev"),
            classes=s.data.classes,
            checkpoints_uri=self.place("train"),
            run_name=f"{stage}-{fingerprint[:16]}",
            out_uri=self.model(stage),
            seed=s.seed,
            init=init,
        )
        with self.mlflow_run.training_metrics() as report:
            nodes = s.cluster.selector("training_nodes")
            outcome = train_on_ray(job, nodes=nodes, callbacks=[ReportCallback(report)], should_stop=self.stopped)
        self._keep(training_curves.draw_training_curves({stage: self.mlflow_run.history(training_curves.METRICS)}))
        return outcome

    def _evaluate(self, fingerprint: str) -> dict[str, Any]:
        from deconvnet.reporting import training_curves

        report = self.place("report")
        self.measure_proposals("val", report)
        histories = self.mlflow_parent.stage_histories(training_curves.STAGES, training_curves.METRICS)
        self._keep(training_curves.draw_training_curves(histories), report)
        results = self.evaluate("val", report)
        self._keep(run_log.report_files(self.settings.workspace), report)
        return {"mean_iou": {name: row["mean_iou"] for name, row in results["rows"].items()}}

    def evaluate(self, split: str, report: str, models: tuple[str, str] | None = None) -> dict[str, Any]:
        """Measure models on `split`: results.json (written last), results.md, analysis.json and pictures at `report`.

        models: the folders of a DeconvNet and an FCN-8s; the workspace's where None. Raises UserError where their classes are not
        the data's.
        """
        from deconvnet.evaluation.evaluator import EvaluationInputs
        from deconvnet.inference.predictor import PredictorOptions
        from deconvnet.reporting.evaluation_report import evaluate_and_report

        s = self.settings
        classes = s.data.classes
        models = models or (self.model("stage2"), self.model("fcn8s"))
        known = storage.read_json(storage.join(models[0], "model.json"))["classes"]
        if tuple(known) != classes:
            raise UserError(
                f"data.classes {', '.join(classes)} are not those that the models in {s.workspace} were trained with, "
                f"{', '.join(known)}: name the --config they were trained by"
            )
        options = PredictorOptions.from_settings(s.segment, s.examples)
        inputs = EvaluationInputs(*models, self.images, self.proposals, split, tuple(classes), options)
        results, files = evaluate_and_report(inputs, f"{self.dataset_name} {split}", self.executor, s.compute.gpu)
        self._keep(files, report)
        if run := self.mlflow_run:
            run.log_metrics(run_log.result_metrics(split, results))
        return results

    def _keep(self, files: Mapping[str, bytes], report: str = "") -> None:
        """Write files at `report`, if one is named, in this order, and log them to MLflow's `report/`, if a run is at work."""
        for name, data in files.items():
            if report:
                storage.write_bytes(storage.join(report, name), data)
            if self.mlflow_run:
                self.mlflow_run.log_bytes(data, f"report/{name}")

    def _register(self, fingerprint: str) -> dict[str, Any]:
        from deconvnet.inference.predictor import PredictorOptions
        from deconvnet.tracking.register import Ensemble, register

        s = self.settings
        ensemble = Ensemble(
            deconvnet_uri=self.model("stage2"),
            fcn8s_uri=self.model("fcn8s"),
            classes=s.data.classes,
            proposals=as_dict(s.proposals),
            segment=asdict(PredictorOptions.from_settings(s.segment, s.examples)),
            max_pixels=s.data.max_pixels,
        )
        version = register(
            self.mlflow_run, s.tracking.model_name, ensemble, storage.read_json(self.place("report", "results.json"))
        )
        self.say(f"  {s.tracking.model_name} version {version}, alias challenger")
        return {"model": s.tracking.model_name, "version": version}

    def _write_rejects(self) -> None:
        """Gather what the tables made so far set aside into `rejects`."""
        made = [tables.read_commit(t) for t in (self.images, self.proposals, *(self.examples(t) for t, _, _ in EXAMPLE_TABLES))]
        found = sorted({(r.image_id, r.path, r.stage, r.reason) for commit in made if commit for r in commit.rejects})
        rows = [dict(zip(tables.REJECTS.names, row, strict=True)) for row in found]
        fingerprint = digest(rows)
        part = tables.write_part(self.place("rejects"), fingerprint, 0, rows, tables.REJECTS)
        tables.commit(self.place("rejects"), fingerprint, [part])

    def rejects(self) -> int:
        """How many inputs were set aside."""
        commit = tables.read_commit(self.place("rejects"))
        return commit.rows if commit else 0
