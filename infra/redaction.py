"""Secrets removed from text and settings before they are logged, stored or printed."""

import re
from collections.abc import Mapping
from typing import Any

_SECRET_KEY = re.compile(r"password|passwd|secret|token|credential|api_?key|access_?key", re.IGNORECASE)
_HIDDEN = "***"


def without_secrets(text: str) -> str:
    """Remove user, password, query and fragment from every URI in a text.

    Args:
        text: any text, for example an error message or a single URI.

    Returns:
        The text with `scheme://user:password@host/path?query#fragment` shortened to `scheme://host/path`.
    """
    text = re.sub(r"(?<=://)[^/\s@]*@(?=[^\s])", "", text)
    return re.sub(r"(\w://[^\s?#'\"]*)[?#][^\s'\"]*", r"\1", text)


def redacted(value: Any, key: str = "") -> Any:
    """Copy a JSON-like value with its secrets removed.

    Args:
        value: mapping, list, tuple, string, number, bool or None; nested as deep as wanted.
        key: name of the value in the mapping that holds it, "" if there is none.

    Returns:
        The same structure with tuples as lists. Strings are passed through `without_secrets`; values whose key looks like that of
        a secret (password, token, access_key, …) are replaced by `***`.
    """
    if value is not None and _SECRET_KEY.search(key):
        return _HIDDEN
    if isinstance(value, Mapping):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value
