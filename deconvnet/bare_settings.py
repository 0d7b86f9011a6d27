"""A pack's settings on a machine without pydantic: names and values, and changes to them from the command line.

They were checked when they were packed; a change must name one that is there, and be of its kind.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from infra.errors import UserError

FIXED = {
    "examples.min_iou": "the pack holds the boxes of its own",
    "examples.min_object_side": "the pack holds the boxes of its own",
    "model.vgg16": "the pack holds the weights",
}


class Section(SimpleNamespace):
    """Settings by name, as the pydantic section of the same names has them."""

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """As JSON values."""
        return {name: value.model_dump() if isinstance(value, Section) else value for name, value in vars(self).items()}


def section(values: Mapping[str, Any]) -> Section:
    """The section of nested `values`."""
    return Section(**{name: section(value) if isinstance(value, dict) else value for name, value in values.items()})


def changed(values: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with the `changes`, each "section.field=value". Raises UserError for one that can't be made."""
    made = json.loads(json.dumps(values))
    known = dict(_leaves(made))
    for change in changes:
        name, _, text = change.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"--set {change}: unknown setting {name}; {f'did you mean {near[0]}?' if near else 'see settings.json'}"
            )
        if name in FIXED:
            raise UserError(f"--set {change}: {name} can't be changed here ({FIXED[name]}): pack again with another one")
        *path, field = name.split(".")
        target = made
        for part in path:
            target = target[part]
        target[field] = _value(change, text, known[name])
    return made


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _value(change: str, text: str, old: Any) -> Any:
    """`text` as a value of the kind that `old` is of; where there is none yet, or it is unset, anything will do."""
    try:
        value = json.loads(text) if text else None
    except ValueError:
        value = text
    kinds = [{bool: "true or false", int: "a number", float: "a number", str: "a word"}.get(type(v)) for v in (old, value)]
    if None not in (old, value) and (kinds[0] != kinds[1] or (isinstance(old, int) and not isinstance(value, int))):
        raise UserError(f"--set {change}: {kinds[0] or 'a list'} is needed, as {json.dumps(old)} is")
    return value
