"""Start server processes on this machine, wait until they answer, and stop them. Find free ports and installed programs."""

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
_PORTS = (12000, 32000)  # below the range of Linux's ephemeral ports, so that a restarted server finds its port free
_START_SECONDS = 120.0
_STOP_SECONDS = 15.0


def free_ports(count: int) -> list[int]:
    """Return a list of `count` different TCP ports of this machine that no program uses at the moment."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(*_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            found += [port] if port not in found else []
    return found


def free_port() -> int:
    """Return a TCP port of this machine that no program uses at the moment."""
    return free_ports(1)[0]


def find_program(name: str, package: str) -> str:
    """Find an installed program, first in the folder of this Python interpreter, then on PATH.

    Args:
        name: the file name of the program.
        package: the Python package that contains it, for the advice to `pip install` it in the error message.

    Returns:
        The path of the program.

    Raises:
        UserError: if it is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise UserError(f"the program {name} is not installed: pip install {package}")
    return found


def write_private(path: Path, text: str) -> None:
    """Write a text file that only its owner may read, such as a file with a password; an existing file is replaced."""
    path.unlink(missing_ok=True)  # the mode of an existing file would stay as it is
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def bypass_proxies() -> None:
    """Make this process and its children bypass `http_proxy` for servers on this machine."""
    hosts = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), HOST)))
    os.environ.update(no_proxy=hosts, NO_PROXY=hosts)  # programs read one or the other


@dataclass
class Server:
    """A server process that can be started, stopped, killed and started again.

    On Linux, the process is also terminated when the thread that started it ends. So if a test or command is killed, no server is
    left running.

    Attributes:
        name: a description of the server, for messages.
        url: the address of the server, for its clients.
        command: the command line.
        variables: all environment variables of the process, by name.
        log: file to which the output is appended.
        ready: function without arguments that returns whether the server is ready by now. `start` calls it repeatedly.
        user: name of the user that runs the process; None for the current user. Only root can choose another one.
        stop_seconds: seconds to wait after the stop signal before the process is killed.
        folder: working directory; None for the folder of the log.
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
        """Start the process, and wait until the server is ready.

        Raises:
            UserError: if the process ends or is not ready within two minutes. The message includes the end of the log.
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
        """Stop the process and all its children, and wait until it has ended. Do nothing if it is not running.

        Args:
            number: the signal to send first. SIGKILL follows if the process has not ended after `stop_seconds`.
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
        """Kill the process and all its children by SIGKILL, as if the power failed."""
        self.stop(signal.SIGKILL)


def _terminate_with_parent() -> list[str]:
    """Return a command prefix that makes Linux terminate the command when the thread that started it ends.

    The prefix is [] if the program `setpriv` is not installed. The command then outlives that thread.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def as_user(name: str | None) -> dict[str, Any]:
    """Return the keyword arguments for `subprocess.Popen` that run a process as another user. Only root may use them.

    Args:
        name: name of the user; None for the current user, which gives {}.

    Raises:
        KeyError: if there is no such user.
    """
    return {} if name is None else {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": ()}


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run a server for the duration of a `with` statement.

    Args:
        server: the server, which is not running yet.

    Yields:
        The same server, when it is ready.

    Raises:
        UserError: if it does not start.
    """
    try:
        server.start()
        yield server
    finally:
        server.stop()
