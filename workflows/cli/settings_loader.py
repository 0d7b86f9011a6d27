"""Reads the settings of a command: a YAML file, overridden setting by setting on the command line, checked before anything runs.

pydantic-settings makes the options and `--help` from the settings' types. All faults that pydantic finds are reported together, each
as one sentence that names the setting, its value and what would be allowed.
"""

import argparse
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, cast

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource
from pydantic_settings.exceptions import SettingsError

from infra import storage
from infra.errors import UserError
from infra.settings import Section

_TYPE_MESSAGES = {
    "model_type": "it is a section, and has settings below it",
    "string_type": "text is needed; a number that is meant as text goes in quotes: '2024'",
    "tuple_type": "a list is needed: [a, b] in YAML, a,b on the command line",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_parsing": "a number is needed",
    "bool_parsing": "true or false is needed",
}
"""Our wording for pydantic's errors of type."""


class CommandSettings(Section):
    """All settings of a command.

    Attributes:
        PATHS: dotted names of the settings that are a local path, an s3:// URI or models:/NAME@ALIAS; local paths are made absolute.
        RENAMED: settings that had another name before, old name → new name, both without their section.
    """

    PATHS: ClassVar[tuple[str, ...]] = ()
    RENAMED: ClassVar[Mapping[str, str]] = {}


Kind = TypeVar("Kind", bound=CommandSettings)


def setting_fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting below a section, in order.

    Args:
        section: a section's type.
        prefix: dotted name of the section, with a dot at its end; "" at the top.

    Yields:
        The setting's dotted name as it is written in YAML, and its pydantic field.
    """
    for name, field in section.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from setting_fields(field.annotation, f"{path}.")
        else:
            yield path, field


class SettingsParser(argparse.ArgumentParser, Generic[Kind]):
    """The command line of a command: `--config FILE`, an option for every setting, and options added by `add_argument`."""

    def __init__(self, description: str, kind: type[Kind], config: Path) -> None:
        """Make the parser.

        Args:
            description: text at the top of `--help`.
            kind: type of the command's settings.
            config: YAML file that is read where no --config is given.
        """
        super().__init__(
            usage="%(prog)s [--config FILE] [--SETTING VALUE ...] [options]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.kind = kind
        self.add_argument("--config", default=str(config), metavar="FILE", help=f"YAML file of settings (default: {config.name})")
        self._settings: CliSettingsSource[Any] = CliSettingsSource(
            cast(type[BaseSettings], kind),  # any pydantic model will do
            root_parser=self,
            add_argument_group_method=SettingsParser._add_section,
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_use_class_docs_for_groups=True,
        )

    def _add_section(self, title: str, description: str | None = None, **options: Any) -> Any:
        """A group of options in `--help`, described by the first line of its type's docstring."""
        return self.add_argument_group(title.removesuffix(" options"), (description or "").strip().partition("\n")[0], **options)

    def parse_settings(self, argv: Sequence[str] | None = None) -> tuple[Kind, argparse.Namespace]:
        """Parse the command line and load the settings.

        Args:
            argv: the arguments; None: those of the process.

        Returns:
            The settings, and all options as argparse returns them (for those that are not settings).

        Raises:
            UserError: one sentence for each fault of the command line or the file.
        """
        options = self.parse_args(argv)
        sections = [action.dest for action in self._actions if action.help == argparse.SUPPRESS and action.dest in vars(options)]
        if sections:
            raise UserError(f"--{sections[0]} is a section, and has settings below it: --{sections[0]}.NAME; --help lists them")
        try:
            overrides = self._settings(parsed_args=options)()
        except SettingsError as error:
            raise UserError(str(error)) from None
        return _load(options.config, self.kind, _unset_empty(overrides)), options

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but the error on an unknown option names the most similar known one."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the options"
            raise UserError(f"unknown: {' '.join(unknown)}; {hint}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise argparse's own errors as UserError, without the list of all options."""
        raise UserError(message)


def load(config: str, kind: type[Kind], arguments: Sequence[str] = ()) -> Kind:
    """Load settings from a YAML file, with command-line options on top.

    Args:
        config: local path or s3:// URI of the file.
        kind: type of the settings.
        arguments: options that override the file, as on the command line: ["--train.stage1.lr", "0.1"].

    Returns:
        The settings. Local paths in them are absolute, because jobs and MLflow run in other folders than the command.

    Raises:
        UserError: one sentence for each fault.
    """
    parser: SettingsParser[Kind] = SettingsParser("", kind, Path(config))
    return parser.parse_settings(["--config", config, *arguments])[0]


def _load(config: str, kind: type[Kind], overrides: Mapping[str, Any]) -> Kind:
    """The file's settings with `overrides` (nested as in YAML) on top, validated."""
    settings = _validated(_merged(_read(config), overrides), kind, config)
    raw = settings.model_dump(by_alias=True)
    for name in kind.PATHS:
        *sections, key = name.split(".")
        section = raw
        for part in sections:
            section = section[part]
        if (path := section[key]) and not path.startswith("models:"):
            check_job_folder(name, path)
            section[key] = storage.absolute(path)
    return _validated(raw, kind, config)


def _unset_empty(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Options with "" in place of a value become None at any depth."""
    return {
        key: _unset_empty(value) if isinstance(value, dict) else None if value == "" else value
        for key, value in overrides.items()
    }


def _merged(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with `overrides` on top, section by section."""
    both = {
        key: _merged(raw[key], value)
        for key, value in overrides.items()
        if isinstance(raw.get(key), dict) and isinstance(value, dict)
    }
    return {**raw, **overrides, **both}


def _validated(raw: dict[str, Any], kind: type[Kind], config: str) -> Kind:
    """The settings; raises UserError with one sentence for each fault that pydantic finds."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_sentence(fault, kind, config) for fault in error.errors())) from None


def _read(config: str) -> dict[str, Any]:
    """The content of a YAML file; raises UserError where it can't be read or is not a mapping."""
    try:
        text = storage.read_bytes(config).decode()
    except (FileNotFoundError, IsADirectoryError):
        configs = Path(__file__).parent.parent / "configs"
        near = configs / Path(config).name
        hint = f"; did you mean {near}?" if near.is_file() else f"; those that come with the project are in {configs}"
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
    """Replace ${NAME} and ${NAME:-default} by environment variables, so that one file serves several machines."""

    def value_of(match: re.Match[str]) -> str:
        value = os.environ.get(match["name"], match["default"])
        if value is None:
            raise UserError(f"--config {config} uses ${{{match['name']}}}, and this variable is not set")
        return value

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", value_of, text)


def _sentence(fault: Any, kind: type[CommandSettings], config: str) -> str:
    """One of pydantic's errors as a sentence."""
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{path} is not given: set it by --{path}, or in {config}"
    if fault["type"] == "extra_forbidden":
        section, _, name = path.rpartition(".")
        if name in kind.RENAMED:
            return f"{path} (in {config}) is called {section}.{kind.RENAMED[name]} now: rename it"
        known = [name for name, _ in setting_fields(kind)] + list(kind.model_fields)
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; --help lists the settings"
        return f"unknown setting {path} (in {config} or on the command line){hint}"
    message = _TYPE_MESSAGES.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    if not path:
        return message
    text = str(fault["input"])
    text = text if len(text) <= 80 else text[:77] + "…"
    value = repr(text) if isinstance(fault["input"], str) else text
    return f"{path}: {value} is not allowed: {message[0].lower()}{message[1:]}"


def check_job_folder(name: str, path: str) -> None:
    """Refuse a relative path in a job submitted with --working-dir: Ray deletes its copy of the folder, and outputs with it.

    Args:
        name: the setting or option, without its dashes.
        path: its value.

    Raises:
        UserError: if the path is relative and the working directory is Ray's copy.
    """
    if "runtime_resources" in Path.cwd().parts and "://" not in path and not Path(path).is_absolute():
        raise UserError(
            f"{name} {path} is relative, and this job runs in Ray's temporary copy of the project: "
            f"give --{name} an absolute path that every node sees, or an s3:// one"
        )
