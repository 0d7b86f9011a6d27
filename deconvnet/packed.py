"""A pack: one folder with all that a bare machine trains and evaluates on (`workflows/pack.py` makes it, `deconvnet.plain` uses it).

Unpacked it holds `settings.json`, the tables `images` and `proposals`, and VGG-16's weights where training starts from them. Packed,
files are in slices that can be sent one by one, and `pack.json` names each slice and its digest: a folder without it, or with other
bytes than it names, is no pack.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.errors import UserError

MANIFEST = "pack.json"
SETTINGS = "settings.json"
FORMAT = 1
SLICE_BYTES = 16 * 10**6


def seal(content: Path, pack: Path) -> int:
    """Make the new folder `pack` of the files below `content`; returns its bytes."""
    files: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(p for p in content.rglob("*") if p.is_file()):
        name = path.relative_to(content).as_posix()
        several = path.stat().st_size > SLICE_BYTES
        files[name] = []
        for number, data in enumerate(_slices(path)):
            slice_name = f"{name}.{number:03}" if several else name
            target = pack / slice_name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            files[name].append({"name": slice_name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    (pack / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n")
    return sum(each["bytes"] for slices in files.values() for each in slices)


def unpack(pack: Path, folder: Path) -> str:
    """Put the pack's files together in `folder`, where they aren't already; returns the digest that tells this pack from others.

    Raises UserError where `pack` is not a whole, undamaged pack.
    """
    manifest = _manifest(pack)
    digest = hashlib.sha256(manifest).hexdigest()
    done = folder / MANIFEST
    if done.exists() and done.read_bytes() == manifest:
        return digest
    shutil.rmtree(folder, ignore_errors=True)
    for name, slices in json.loads(manifest)["files"].items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for each in slices:
                file.write(_checked(pack, each))
    done.write_bytes(manifest)
    return digest


def _slices(path: Path) -> Iterator[bytes]:
    """The file's bytes in order; an empty file is one empty slice."""
    with path.open("rb") as file:
        data = file.read(SLICE_BYTES)
        yield data
        while data := file.read(SLICE_BYTES):
            yield data


def _manifest(pack: Path) -> bytes:
    try:
        content = (pack / MANIFEST).read_bytes()
    except OSError:
        raise UserError(
            f"{pack} is not a whole pack: it has no {MANIFEST}; make it by workflows/pack.py, and send all of it"
        ) from None
    try:
        found = json.loads(content)
    except ValueError:
        raise UserError(f"{pack / MANIFEST} is damaged: send it again") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{pack} was packed by another version of the project: make it again by workflows/pack.py")
    return content


def _checked(pack: Path, about: Mapping[str, Any]) -> bytes:
    """A slice's bytes, as they were packed."""
    path = pack / about["name"]
    try:
        data = path.read_bytes()
    except OSError:
        raise UserError(f"{pack} is not whole: it lacks {about['name']}, which {MANIFEST} names; send it again") from None
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise UserError(f"{path} is damaged: it holds other bytes than were packed; send it again")
    return data
