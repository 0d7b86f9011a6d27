"""The servers of the local cluster start, restart after a kill, and end with the process that started them."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from argparse import Namespace
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from requests.utils import should_bypass_proxies

from infra.deploy.local import cluster, servers
from infra.deploy.local.process import Server, find_program, free_port, free_ports, running, write_private
from infra.deploy.local.servers import postgres_programs, postgres_server
from infra.errors import UserError
from tests.conftest import ROOT
from tests.servers import is_listening


def web_server(folder: Path) -> Server:
    """Python's web server, not started yet."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    return Server("the web server", f"http://127.0.0.1:{port}", command, os.environ, folder / "log", lambda: is_listening(port))


def test_free_ports_are_unused_and_differ():
    found = free_ports(20)
    assert len(set(found)) == 20 and not any(is_listening(port) for port in found)


def test_a_killed_server_can_be_started_again(tmp_path: Path):
    with running(web_server(tmp_path)) as server:
        assert server.process
        first = server.process.pid
        server.kill()
        assert not server.ready()
        server.start()
        assert server.ready() and server.process and server.process.pid != first
    assert not server.ready()


def test_the_error_of_a_server_that_does_not_start_has_the_end_of_its_log(tmp_path: Path):
    server = web_server(tmp_path)
    server.command = [sys.executable, "-c", "raise SystemExit('no disk, no server')"]
    with pytest.raises(UserError, match=r"(?s)the web server does not start.*no disk, no server"), running(server):
        pass


def test_the_error_for_a_missing_program_names_its_package():
    with pytest.raises(UserError, match="no-such-program is not installed: pip install it"):
        find_program("no-such-program", "it")


@pytest.mark.parametrize("given", [{}, {"no_proxy": "a.example"}, {"NO_PROXY": "a.example"}])
def test_the_servers_of_a_cluster_are_reached_without_the_proxy_of_the_environment(given, monkeypatch):
    for name, value in {"no_proxy": "", "NO_PROXY": "", **given, "http_proxy": "http://proxy.example:3128"}.items():
        monkeypatch.setenv(name, value)
    found = []

    def start(folder: Path) -> None:
        urls = ("http://127.0.0.1:5000/x", "http://a.example", "http://b.example")
        found.extend(should_bypass_proxies(url, None) for url in urls)
        found.extend(bool(urllib.request.proxy_bypass(host)) for host in ("127.0.0.1:5000", "a.example", "b.example"))
        raise UserError("no S3 here")

    monkeypatch.setattr(cluster, "s3_server", start)
    with ExitStack() as stack, pytest.raises(UserError, match="no S3 here"):
        cluster._run(Namespace(), stack)
    assert found == [True, bool(given), False] * 2


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path):
    source = (
        "import os, pathlib, signal; from tests.infra.deploy.test_local_servers import web_server; "
        f"s = web_server(pathlib.Path({str(tmp_path)!r})); s.start(); print(s.process.pid, flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    process = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 20
    while process.exists() and "Z" not in (process / "stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the server still runs"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("lines", "accepts"),
    [
        (None, False),
        ("", False),
        ("71\n/data\n1700000000\n5432\n\n127.0.0.1\n", False),
        ("71\n/data\n1700000000\n5432\n\n127.0.0.1\n  6 0\nstarting\n", False),
        ("71\n/data\n1700000000\n5432\n\n127.0.0.1\n  6 0\nready   \n", True),
    ],
)
def test_postgres_that_still_starts_is_waited_for(tmp_path: Path, lines: str | None, accepts: bool):
    if lines is not None:
        (tmp_path / "postmaster.pid").write_text(lines)
    assert servers._accepts_clients(tmp_path) is accepts


def test_postgres_accepts_only_its_password():
    psycopg2 = pytest.importorskip("psycopg2")
    if postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed here")
    with postgres_server() as uri:
        address = uri.replace("+psycopg2", "")
        with closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:  # the server waits for its clients
            cursor.execute("select 1 + 1")
            assert cursor.fetchone() == (2,)
        secret = address.split(":")[2].split("@")[0]
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(address.replace(secret, "guess"))


@pytest.mark.parametrize("existing", [False, True])
def test_a_file_with_a_password_is_private_even_where_others_could_read_an_earlier_one(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "password"
    if existing:
        path.write_text("old")
        path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600
