"""Any door's settings: one YAML file, every field overridable on the command line, checked before anything starts.

What pydantic finds is turned into sentences.
"""

import argparse
import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_origin

import yaml
from pydantic import ValidationError

from infra import storage
from infra.errors import UserError
from infra.settings import Section
from workflows.describing import meaning, placeholder

CONFIGS = Path(__file__).parent / "configs"
_WORDS = {
    "model_type": "it is a section, and has settings below it",
    "string_type": "text is needed; a number that is meant as text goes in quotes: '2024'",
    "tuple_type": "a list is needed: [a, b] in YAML, a,b on the command line",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_parsing": "a number is needed",
    "bool_parsing": "true or false is needed",
}
"""What pydantic's faults of type are called here."""
_RENAMED = {
    "deconv_start": "decoder_init",
    "lr_factor": "gamma",
    "stop_after": "early_stopping_patience",
    "fcn_share": "fcn_weight",
    "spread_strength": "soft_nms_strength",
    "spread_power": "soft_nms_power",
    "spread_first": "soft_nms_first",
}
"""Settings by the names they had before."""


class DoorSettings(Section):
    """All settings of a door. `PLACES`: dotted names of those that are a path, s3:// prefix or models:/NAME@ALIAS."""

    PLACES: ClassVar[tuple[str, ...]] = ()


Kind = TypeVar("Kind", bound=DoorSettings)


def leaves(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting's dotted name and its pydantic field, in order."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{path}.")
        else:
            yield path, field


class _Parser(argparse.ArgumentParser):
    """argparse's, which says what an unknown option may have been meant to be."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            self.error(f"unknown: {' '.join(unknown)}; " + (f"did you mean {near[0]}?" if near else "--help lists what there is"))
        return found


def parser(description: str, kind: type[DoorSettings], config: Path) -> argparse.ArgumentParser:
    """A door's command line: --config (default: `config`), and an option for every setting of `kind`."""
    made = _Parser(
        usage="%(prog)s [--config FILE] [--SETTING VALUE …] [options]", description=description, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--config", default=str(config), metavar="FILE", help=f"YAML file of settings (default: {config.name})")
    group = made.add_argument_group(
        "settings", 'These override the file\'s. An empty value ("") unsets. Defaults: docs/settings.md.'
    )
    groups = {
        name: made.add_argument_group(name, (field.annotation.__doc__ or "").partition("\n")[0].replace("%", "%%"))
        for name, field in kind.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    for path, field in leaves(kind):
        groups.get(path.partition(".")[0], group).add_argument(
            f"--{path}",
            metavar="PLACE" if path in kind.PLACES else placeholder(field),
            dest=f"setting:{path}",
            help=meaning(path, field).replace("%", "%%"),
        )
    return made


def from_arguments(arguments: argparse.Namespace, kind: type[Kind]) -> Kind:
    """The settings that a parsed command line describes. Raises UserError."""
    overrides = {
        key.removeprefix("setting:"): value
        for key, value in vars(arguments).items()
        if key.startswith("setting:") and value is not None
    }
    return load(arguments.config, kind, overrides)


def load(config: str, kind: type[Kind], overrides: Mapping[str, str] | None = None) -> Kind:
    """Settings from a YAML file, with `overrides` (dotted name → text) on top. Raises UserError, one sentence a fault.

    Local paths are made absolute: jobs and MLflow run in other folders than the door.
    """
    raw = _read(config)
    fields = dict(leaves(kind))
    for path, text in (overrides or {}).items():
        _put(raw, path, _value(path, text, fields[path]))
    made = _validated(raw, kind, config)
    raw = made.model_dump(by_alias=True)
    for name in kind.PLACES:
        place = _get(raw, name)
        if place and not place.startswith("models:"):
            check_job_folder(name, place)
            _put(raw, name, storage.absolute(place))
    return _validated(raw, kind, config)


def _validated(raw: dict[str, Any], kind: type[Kind], config: str) -> Kind:
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_sentence(fault, kind, config) for fault in error.errors())) from None


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
    if field.annotation in (str, str | None):
        return text
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


def _get(raw: Mapping[str, Any], path: str) -> Any:
    *sections, key = path.split(".")
    for name in sections:
        raw = raw[name]
    return raw[key]


def shown(value: Any) -> str:
    """A value as it is quoted in a message: the start of a long one."""
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _sentence(fault: Any, kind: type[Section], config: str) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{path} is not given: name it by --{path}, or in {config}"
    if fault["type"] == "extra_forbidden":
        section, _, name = path.rpartition(".")
        if name in _RENAMED:
            return f"{path} (in {config}) is called {section}.{_RENAMED[name]} now: rename it"
        known = [name for name, _ in leaves(kind)] + list(kind.model_fields)
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; `--help` lists the settings"
        return f"unknown setting {path} (in {config} or on the command line){hint}"
    message = _WORDS.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    if not path:
        return message
    value = repr(shown(fault["input"])) if isinstance(fault["input"], str) else shown(fault["input"])
    return f"{path}: {value} won't do: {message[0].lower()}{message[1:]}"


def check_job_folder(name: str, place: str) -> None:
    """A job submitted with --working-dir runs in Ray's temporary copy: outputs there would vanish with it."""
    if "runtime_resources" in Path.cwd().parts and "://" not in place and not Path(place).is_absolute():
        raise UserError(
            f"{name} {place} is relative, and this job runs in Ray's temporary copy of the project: "
            f"give --{name} an absolute path that every node sees, or an s3:// one"
        )
