"""A process that holds a lock, and whether a lock is held."""

import os
import subprocess
import sys

from infra import storage
from tests.conftest import ROOT

_HOLD = """
import sys
from infra.storage.lock import Locked, hold_lock
print("ready", flush=True)
sys.stdin.readline()
try:
    with hold_lock(sys.argv[1], sys.argv[2]):
        print("holds", flush=True)
        sys.stdin.readline()
except Locked as error:
    print(error, flush=True)
"""


def start_process(uri: str, name: str) -> "subprocess.Popen[str]":
    """Start a process that takes the lock when it gets a line, and releases it when it gets another one."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _HOLD, uri, name]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def said(process: "subprocess.Popen[str]") -> str:
    """The next line that a process prints."""
    assert process.stdout
    return process.stdout.readline().rstrip("\n")


def go(process: "subprocess.Popen[str]") -> None:
    """Send a line to a process."""
    assert process.stdin
    process.stdin.write("\n")


def is_free(uri: str) -> bool:
    """Whether the lock was released: its file stays, for the fencing token."""
    return storage.read_json(uri)["expires"] == 0
