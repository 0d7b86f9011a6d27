"""Read the settings of a command from a YAML file and the command line, and check them before anything runs.

The command line overrides single settings of the file. pydantic-settings makes the command-line options and `--help` from the
types of the settings. All errors that pydantic finds are reported together. A sentence for each names the setting, its value and
the allowed values.
"""

import argparse
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, cast, get_args

import yaml
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource
from pydantic_settings.exceptions import SettingsError

from infra import storage
from infra.errors import UserError
from infra.redaction import without_secrets
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
"""Texts that replace pydantic's own messages, by the type of the error."""


class CommandSettings(Section):
    """Base class for the settings of a command.

    Attributes:
        RENAMED: dict from the old name of each renamed setting to its new name, both without the section. Error messages
            suggest the new name.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {}


SettingsType = TypeVar("SettingsType", bound=CommandSettings)


def setting_fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield all settings in a section and its subsections, in order.

    Args:
        section: class of the section.
        prefix: dotted name of the section with a dot at its end. "" for the top level.

    Yields:
        The dotted name of a setting, as in YAML, and its pydantic field.
    """
    for name, field in section.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from setting_fields(field.annotation, f"{path}.")
        else:
            yield path, field


class SettingsParser(argparse.ArgumentParser, Generic[SettingsType]):
    """A parser for the command line of a command, which makes the options from the command's settings.

    It has the option `--config FILE`, an option for each setting, and the options that are added with `add_argument`.
    """

    def __init__(self, description: str, settings_type: type[SettingsType], config: Path) -> None:
        """Create the parser.

        Args:
            description: text at the top of `--help`.
            settings_type: class of the command's settings.
            config: YAML file that is read if the command line has no `--config`.
        """
        super().__init__(
            usage="%(prog)s [--config FILE] [--SETTING VALUE ...] [options]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.settings_type = settings_type
        self.add_argument("--config", default=str(config), metavar="FILE", help=f"YAML file of settings (default: {config.name})")
        self._settings: CliSettingsSource[Any] = CliSettingsSource(
            cast(type[BaseSettings], settings_type),  # any pydantic model will do
            root_parser=self,
            add_argument_group_method=SettingsParser._add_section,
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_use_class_docs_for_groups=True,
        )
        for action in self._actions:
            if action.metavar == "bool" and "." not in action.dest:  # `--fold_case` alone means `--fold_case true`
                action.nargs, action.const = "?", "true"

    def _add_section(self, title: str, description: str | None = None, **options: Any) -> Any:
        """Add a group of options to `--help` for a section of the settings. pydantic-settings calls this method.

        Args:
            title: title of the group. The suffix " options" is removed.
            description: docstring of the section's class. Only its first line is shown.
            options: further arguments for `argparse.ArgumentParser.add_argument_group`.

        Returns:
            The new group.
        """
        return self.add_argument_group(title.removesuffix(" options"), (description or "").strip().partition("\n")[0], **options)

    def parse_settings(self, argv: Sequence[str] | None = None) -> tuple[SettingsType, argparse.Namespace]:
        """Parse the command line, read the YAML file, and check the settings.

        Args:
            argv: the arguments. None for those of the process.

        Returns:
            The settings, and the namespace of argparse. The namespace has the options that are not settings.

        Raises:
            UserError: if the command line or the file has errors. The message has a sentence for each.
        """
        options = self.parse_args(argv)
        sections = [action.dest for action in self._actions if action.help == argparse.SUPPRESS and action.dest in vars(options)]
        if sections:
            raise UserError(f"--{sections[0]} is a section, and has settings below it: --{sections[0]}.NAME; --help lists them")
        try:
            overrides = self._settings(parsed_args=options)()
        except SettingsError as error:
            raise UserError(str(error)) from None
        try:
            return self.settings_type.model_validate(_merged(_read(options.config), overrides)), options
        except ValidationError as error:
            raise UserError("\n".join(_sentence(fault, self.settings_type, options.config) for fault in error.errors())) from None

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the command line as argparse does, but suggest a similar option if there is an unknown one.

        Args:
            args: the arguments. None for those of the process.
            namespace: object that gets the values as attributes. None for a new one.

        Returns:
            The namespace with the values.

        Raises:
            UserError: if there is an unknown option.
        """
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists the options"
            shown = re.sub(r"(https?://[^/\s]*)\S*", r"\1/…", without_secrets(" ".join(unknown)))  # such a URL may be a secret
            raise UserError(f"unknown: {shown}; {hint}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message, instead of printing all options and exiting."""
        raise UserError(message)


def load(config: str, settings_type: type[SettingsType], arguments: Sequence[str] = ()) -> SettingsType:
    """Load settings from a YAML file, and override some of them.

    Args:
        config: local path or URI of the file.
        settings_type: class of the settings.
        arguments: options that override the file, as on the command line: ["--train.stage1.lr", "0.1"].

    Returns:
        The settings. Local paths in them are absolute.

    Raises:
        UserError: if the file or the options have errors. The message has a sentence for each.
    """
    parser: SettingsParser[SettingsType] = SettingsParser("", settings_type, Path(config))
    return parser.parse_settings(["--config", config, *arguments])[0]


def _merged(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the nested dict `raw` in which each value of `overrides` replaces the value of the same name."""
    both = {
        key: _merged(raw[key], value)
        for key, value in overrides.items()
        if isinstance(raw.get(key), dict) and isinstance(value, dict)
    }
    return {**raw, **overrides, **both}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that it refuses a key that is given twice. PyYAML itself would use the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Convert a parsed YAML mapping to a dict.

        Args:
            node: the mapping, with its keys and values.
            deep: True to fill nested collections at once, False to let PyYAML fill them later.

        Returns:
            The dict.

        Raises:
            yaml.constructor.ConstructorError: if a key is given twice.
        """
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:i]]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _read(config: str) -> dict[str, Any]:
    """Read a YAML file of settings.

    Args:
        config: local path or URI of the file.

    Returns:
        The values by name, nested by section. Variables such as ${NAME} are replaced.

    Raises:
        UserError: if the file can't be read, is not YAML, or does not contain a mapping.
    """
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
        raw = yaml.load(_expand(text, config), _Loader) or {}
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"--config {config}{line} can't be read as YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise UserError(f"--config {config} must hold sections and keys, not {type(raw).__name__}")
    return raw


def _expand(text: str, config: str) -> str:
    """Replace ${NAME} and ${NAME:-default} in a text by environment variables, so that one file serves several machines.

    As in a shell, the default replaces a variable that is unset or empty. Comment lines are left unchanged.

    Args:
        text: content of a settings file.
        config: path of the file, for the error message.

    Returns:
        The text with the values of the variables.

    Raises:
        UserError: if a variable is not set and the text gives no default for it.
    """

    def value_of(match: re.Match[str]) -> str:
        """Return the value of the environment variable that `match` names, or its default. Raise UserError if it has neither."""
        if match["name"] is None:
            return match[0]
        value = os.environ.get(match["name"])
        if not value and match["default"] is not None:
            return match["default"]
        if value is None:
            raise UserError(f"--config {config} uses ${{{match['name']}}}, and this variable is not set")
        return value

    return re.sub(r"^[ \t]*#.*$|\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", value_of, text, flags=re.MULTILINE)


def _sentence(fault: Any, settings_type: type[CommandSettings], config: str) -> str:
    """Write a sentence for the user about an error that pydantic found in the settings.

    Args:
        fault: one of the items of pydantic's `ValidationError.errors()`.
        settings_type: class of the settings.
        config: path of the settings file.

    Returns:
        The sentence. It names the setting, and says what is wrong and what to do or which values are allowed.
    """
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{path} is not given: set it by --{path}, or in {config}"
    if fault["type"] == "extra_forbidden":
        section, _, name = path.rpartition(".")
        if name in settings_type.RENAMED:
            return f"{path} (in {config}) is called {section}.{settings_type.RENAMED[name]} now: rename it"
        known = [name for name, _ in setting_fields(settings_type)] + list(settings_type.model_fields)
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; --help lists the settings"
        return f"unknown setting {path} (in {config} or on the command line){hint}"
    message = _TYPE_MESSAGES.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    if not path:
        return message
    text = "***" if _may_hold_secret(path, settings_type) else without_secrets(str(fault["input"]))
    text = text if len(text) <= 80 else text[:77] + "…"
    value = repr(text) if isinstance(fault["input"], str) else text
    return f"{path}: {value} is not allowed: {message[0].lower()}{message[1:]}"


def _may_hold_secret(path: str, settings_type: type[CommandSettings]) -> bool:
    """Return whether a rejected value may be or contain a secret, because its setting or a setting below it is a SecretStr.

    Args:
        path: dotted name of the setting or of the section.
        settings_type: class of the settings.
    """
    secret = [
        name for name, field in setting_fields(settings_type) if SecretStr in (field.annotation, *get_args(field.annotation))
    ]
    return any(f"{name}.".startswith(f"{path}.") for name in secret)
