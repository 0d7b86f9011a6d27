"""Remove secrets from text and settings before these are logged, stored or printed."""

import re
from collections.abc import Mapping
from typing import Any

_SECRET_KEY = re.compile(r"password|passwd|secret|token|credential|api_?key|access_?key", re.IGNORECASE)
_HIDDEN = "***"
# `user:password@` up to the last @, as a password may have "/" and "@"; or a user alone, who has no "/".
_USER = re.compile(r"(?<=://)(?:[^/\s:]*:[^\s?#]*@|[^/\s?#]*@)")
# An "@" after "?" or "#" may belong to a password or to the query, so it is unclear where the host begins.
_UNCLEAR = re.compile(r"(?<=://)[^/\s:]*:\S*[?#]\S*@\S*")
_QUERY = re.compile(r"(\w://[^\s?#]*)[?#][^\s'\"]*")


def without_secrets(text: str) -> str:
    """Remove the parts that may hold secrets (user names, passwords, queries and fragments) from all URIs in a text.

    A URI ends at a blank. Where it is ambiguous what belongs to a password, too much is removed rather than too little:
    `http://host:80/a@3` becomes `http://3`.

    Args:
        text: any text, for example an error message or a single URI.

    Returns:
        The text, in which each `scheme://user:password@host/path?query#fragment` is shortened to `scheme://host/path`, or to
        `scheme://***` if an "@" after "?" or "#" may end a password.
    """
    return _QUERY.sub(r"\1", _USER.sub("", _UNCLEAR.sub(_HIDDEN, text)))


def redacted(value: Any, key: str = "") -> Any:
    """Copy a JSON-like value and remove the secrets from the copy.

    A value is replaced by "***" if its key contains "password", "secret", "token", "credential", "access_key" or the like. From
    all other strings, the secrets in URIs are removed (see `without_secrets`).

    Args:
        value: mapping, list, tuple, string, number, bool or None. Mappings and sequences may be nested.
        key: key of the value in the mapping that contains it; "" if it is not in a mapping.

    Returns:
        A copy of the same structure, with lists in place of tuples.
    """
    if value is not None and _SECRET_KEY.search(key):
        return _HIDDEN
    if isinstance(value, Mapping):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value
