"""All settings of a run: one YAML file, every field overridable on the command line, checked before anything starts.

Each room owns the type of its part; this module composes them, and turns what pydantic finds into sentences.
"""

import argparse
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from deconvnet.data.generated import GENERATED_CLASSES
from deconvnet.settings import (
    ComputeSettings,
    DataSettings,
    InitSettings,
    ModelSettings,
    SegmentSettings,
    StageSettings,
    TrainSettings,
)
from infra import storage
from infra.errors import UserError
from infra.settings import ClusterSettings, Section, TrackingSettings
from proposals.settings import ExampleSettings, ProposalSettings

CONFIGS = Path(__file__).parent / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


class Settings(Section):
    """A pipeline run."""

    workspace: str = Field("runs/default", min_length=1, description="folder or s3:// prefix of all that the run makes")
    seed: NonNegativeInt = Field(0, description="of everything drawn: generated data, dev split, crops, initial weights")
    data: DataSettings = DataSettings()
    proposals: ProposalSettings = ProposalSettings()
    examples: ExampleSettings = ExampleSettings()
    model: ModelSettings = ModelSettings()
    init: InitSettings = InitSettings()
    compute: ComputeSettings = ComputeSettings()
    train: TrainSettings = TrainSettings()
    segment: SegmentSettings = SegmentSettings()
    tracking: TrackingSettings = TrackingSettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _across_sections(self) -> "Settings":
        for name in ("width", "fcn_width"):
            width = getattr(self.model, name)
            if not self.model.vgg16 or width in (1.0, None):
                continue
            raise ValueError(
                f"model.{name} {width} can't start from VGG-16 weights, which are as wide as the paper's: "
                f"set model.{name} 1.0, or leave model.vgg16 empty"
            )
        if self.segment.proposals > self.proposals.max_boxes:
            raise ValueError(
                f"segment.proposals {self.segment.proposals} is more than proposals.max_boxes {self.proposals.max_boxes}: "
                "lower the first or raise the second"
            )
        for name in TrainSettings.model_fields:
            _check_batch(name, getattr(self.train, name), self.compute.workers)
        if self.data.root is None and self.data.classes != GENERATED_CLASSES:
            raise ValueError(
                f"data.classes {_shown(self.data.classes)} don't fit the generated data (data.root is empty), whose classes are "
                f"{', '.join(GENERATED_CLASSES)}: leave data.classes out, or name a folder in data.root"
            )
        return self


def _check_batch(stage: str, settings: StageSettings, workers: int) -> None:
    if settings.batch % workers:
        fits = [n for n in range(1, settings.batch + 1) if settings.batch % n == 0 and n <= 2 * workers]
        raise ValueError(
            f"train.{stage}.batch {settings.batch} can't be shared equally by compute.workers {workers}: "
            f"{', '.join(map(str, fits))} workers would do, or a batch of {-(-settings.batch // workers) * workers}"
        )
    share = settings.batch // workers
    if settings.micro_batch is not None and share % settings.micro_batch:
        fits = [n for n in range(1, share + 1) if share % n == 0]
        raise ValueError(
            f"train.{stage}.micro_batch {settings.micro_batch} does not divide a worker's share of the batch, {share}: "
            f"{', '.join(map(str, fits))} would do"
        )


def leaves(section: type[Section] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting's dotted name and its pydantic field, in order."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{path}.")
        else:
            yield path, field


def parser(description: str) -> argparse.ArgumentParser:
    """A door's command line: --config, and an option for every setting."""
    made = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--config", default=str(QUICKSTART), metavar="FILE", help="YAML file of settings (default: quickstart.yaml)"
    )
    group = made.add_argument_group("settings", "override the file's; empty strings and `null` unset")
    for path, field in leaves():
        help_text = (field.description or path.rsplit(".", 1)[-1].replace("_", " ")).replace("%", "%%")
        group.add_argument(f"--{path}", metavar="VALUE", dest=f"setting:{path}", help=help_text)
    return made


def from_arguments(arguments: argparse.Namespace) -> Settings:
    """The settings that a parsed command line describes. Raises UserError."""
    overrides = {
        key.removeprefix("setting:"): value
        for key, value in vars(arguments).items()
        if key.startswith("setting:") and value is not None
    }
    return load(arguments.config, overrides)


def load(config: str, overrides: Mapping[str, str] | None = None) -> Settings:
    """Settings from a YAML file, with `overrides` (dotted name → text) on top. Raises UserError, one sentence a fault."""
    raw = _read(config)
    kinds = dict(leaves())
    for path, text in (overrides or {}).items():
        _put(raw, path, _value(path, text, kinds[path]))
    data = raw.setdefault("data", {})
    if isinstance(data, dict) and not data.get("root"):
        data.setdefault("classes", GENERATED_CLASSES)
    try:
        made = Settings.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_sentence(fault, config) for fault in error.errors())) from None
    return _absolute(made)


def _read(config: str) -> dict[str, Any]:
    try:
        text = storage.read_bytes(config).decode()
    except (FileNotFoundError, IsADirectoryError):
        near = CONFIGS / Path(config).name
        hint = f"; did you mean {near}?" if near.is_file() else f"; those that come with the project are in {CONFIGS}"
        raise UserError(f"--config {config}: there is no such file{hint}") from None
    except UnicodeDecodeError:
        raise UserError(f"--config {config} is not a text file") from None
    try:
        raw = yaml.safe_load(_expand(text, config)) or {}
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"--config {config}{line} is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"--config {config} must hold sections and keys, not {type(raw).__name__}")
    return raw


def _expand(text: str, config: str) -> str:
    """${NAME} and ${NAME:-default}, so that a file can serve several machines."""

    def one(match: re.Match[str]) -> str:
        value = os.environ.get(match["name"], match["default"])
        if value is None:
            raise UserError(f"--config {config} uses ${{{match['name']}}}, and this variable is not set")
        return value

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", one, text)


def _value(path: str, text: str, field: Any) -> Any:
    if get_origin(field.annotation) is tuple and not text.strip().startswith("["):
        return [part.strip() for part in text.split(",")]
    if text == "":
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _put(raw: dict[str, Any], path: str, value: Any) -> None:
    *sections, key = path.split(".")
    for name in sections:
        below = raw.get(name)
        if not isinstance(below, dict):
            below = {}
            raw[name] = below
        raw = below
    raw[key] = value


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _sentence(fault: Any, config: str) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = [name for name, _ in leaves()] + list(Settings.model_fields)
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; `--help` lists the settings"
        return f"unknown setting {path} (in {config} or on the command line){hint}"
    message = fault["msg"].removeprefix("Value error, ")
    if not path:
        return message
    value = repr(_shown(fault["input"])) if isinstance(fault["input"], str) else _shown(fault["input"])
    return f"{path}: {value} won't do: {message[0].lower()}{message[1:]}"


def _absolute(settings: Settings) -> Settings:
    """Local paths made absolute: jobs and MLflow run in other folders than the door."""
    _check_job_folder(settings)
    model, data, edges = settings.model, settings.data, settings.proposals
    start = settings.init.from_
    if start and not start.startswith("models:"):
        start = storage.absolute(start)
    return settings.model_copy(
        update={
            "workspace": storage.absolute(settings.workspace),
            "data": data.model_copy(update={"root": data.root and storage.absolute(data.root)}),
            "model": model.model_copy(update={"vgg16": model.vgg16 and storage.absolute(model.vgg16)}),
            "proposals": edges.model_copy(update={"edge_model": edges.edge_model and storage.absolute(edges.edge_model)}),
            "init": settings.init.model_copy(update={"from_": start}),
        }
    )


def _check_job_folder(settings: Settings) -> None:
    """A job submitted with --working-dir runs in Ray's temporary copy: outputs there would vanish with it."""
    if "runtime_resources" not in Path.cwd().parts:
        return
    places = {
        "workspace": settings.workspace,
        "data.root": settings.data.root,
        "model.vgg16": settings.model.vgg16,
        "proposals.edge_model": settings.proposals.edge_model,
        "init.from": settings.init.from_,
    }
    for name, value in places.items():
        if value and not value.startswith("models:") and "://" not in value and not Path(value).is_absolute():
            raise UserError(
                f"{name} {value} is relative, and this job runs in Ray's temporary copy of the project: "
                f"give --{name} an absolute path that every node sees, or an s3:// one"
            )


def as_dict(settings: Section, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Settings as JSON-able values, by the names used in YAML."""
    dumped = settings.model_dump(mode="json", by_alias=True)
    return dumped if only is None else {key: dumped[key] for key in only}
