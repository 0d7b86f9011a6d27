"""What all commands share: logging and exit codes."""

import ast
import contextlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from deconvnet.reporting.figure import RESULT_TITLES
from infra.errors import Interrupted, UserError
from infra.runtime.interrupts import caught_signals
from infra.storage.lock import Locked
from tests.conftest import ROOT
from workflows import cli
from workflows.cli import configure_logging, run
from workflows.cli.main import COMMANDS


def test_messages_are_printed_once_to_the_current_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()
    logging.getLogger("proposals.recall").info("  50 boxes find 92%%")
    assert capsys.readouterr().out == "  50 boxes find 92%%\n"
    with contextlib.redirect_stdout(io.StringIO()) as redirected:
        logging.getLogger("infra").warning("a warning")
        logging.getLogger("deconvnet").debug("not printed")
    assert redirected.getvalue() == "a warning\n" and not capsys.readouterr().out


class RemoteError(Exception):
    """An error as Ray wraps it: the task's own is its cause."""


def wrapped(error: Exception) -> Exception:
    outer = RemoteError("traceback of a task")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("data.root: there is no such folder"), 2, "error: data.root: there is no such folder"),
        (wrapped(UserError("a mask is damaged")), 2, "error: a mask is damaged"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: [Errno 13] Permission denied: '/x'"),
        (
            UserError("there is no file https://anne:pa/55@host/w.pth?X-Amz-Signature=5ec2e7: copy it"),
            2,
            "error: there is no file https://host/w.pth copy it",
        ),
        (OSError("https://host/w.pth?sig=5ec2e7 can't be read"), 2, "error: https://host/w.pth can't be read"),
        (Interrupted("stopped at https://host/w.pth?sig=5ec2e7"), 75, "stopped at https://host/w.pth"),
        (Locked("another run holds the lock"), 3, "another run holds the lock"),
        (Interrupted("stopped after stage 1"), 75, "stopped after stage 1"),
        (KeyboardInterrupt(), 75, "interrupted: nothing was written"),
    ],
)
def test_errors_have_exit_codes_and_no_traceback(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    assert run(main, "nothing was written") == code
    assert capsys.readouterr().err.strip() == message


def test_bugs_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


@pytest.fixture
def unread() -> Iterator[io.TextIOWrapper]:
    """A stream to a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as stream:
        yield stream


@pytest.mark.parametrize("length", [10, 100_000])
def test_a_reader_that_has_gone_ends_a_command_quietly(length: int, unread, monkeypatch, capsys) -> None:
    """A short output is still in Python's buffer when the command ends; a long one is not."""
    monkeypatch.setattr(sys, "stdout", unread)
    assert run(lambda: print("x" * length)) == 0
    monkeypatch.undo()
    unread.flush()  # as Python does at exit: no error
    assert capsys.readouterr().err == ""


def test_a_connection_that_breaks_in_the_middle_of_the_work_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        print("begun")
        raise BrokenPipeError(32, "Broken pipe")

    assert run(main) == 2
    out, err = capsys.readouterr()
    assert out.strip() == "begun" and err == "\nerror: [Errno 32] Broken pipe\n"


UNREAD = """
import contextlib, sys
from infra.errors import Interrupted
from workflows.cli.exit_codes import run

def main():
    sys.stdin.read()  # until the reader of the output has gone
    with contextlib.suppress(OSError):  # as logs and progress do
        print("a line", file=sys.STREAM, flush=True)
    if CODE:
        raise Interrupted("stopped")

sys.exit(run(main))
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("code", [0, 75])
def test_what_nobody_reads_does_not_change_the_exit_code(stream: str, code: int) -> None:
    """What could not be written stays in Python's buffer, and would make the exit code 120."""
    script = UNREAD.replace("STREAM", stream).replace("CODE", str(code))
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], env=buffered, cwd=ROOT, **pipes) as process:
        for pipe in (process.stdout, process.stderr, process.stdin):
            pipe.close()
        assert process.wait(60) == code


def test_the_exit_code_is_right_even_if_nobody_reads_the_message(unread, monkeypatch) -> None:
    def main() -> None:
        raise UserError("there is no such folder")

    monkeypatch.setattr(sys, "stderr", unread)
    assert run(main) == 2


@pytest.mark.parametrize("script", COMMANDS)
def test_commands_print_only_what_a_reader_that_has_gone_may_cost(script: str) -> None:
    """`print` inside a loop would end the work with exit code 0 if the reader has gone; what is logged would not."""
    tree = ast.parse((ROOT / f"workflows/{script}.py").read_text())
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)]
    calls = [node for loop in loops for node in ast.walk(loop) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def _swallow() -> None:
    """Turn the exception that a signal raises into another one, as the import of a C++ module does."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise ImportError("initialization failed") from None


def _blame() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise UserError("can't start Ray on this machine") from None


@pytest.mark.parametrize(
    "main", [lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: os.kill(os.getpid(), signal.SIGINT), _swallow, _blame]
)
def test_a_signal_is_an_interruption_whatever_it_breaks_off(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert run(main, "resumes") == 75 and capsys.readouterr().err == "\ninterrupted: resumes\n"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_end_of_a_training_stops_the_command_before_the_next_stage(number: signal.Signals) -> None:
    def main() -> None:
        with caught_signals():
            os.kill(os.getpid(), number)
        pytest.fail("the next stage began")

    assert run(main) == 75


def test_a_signal_that_the_shell_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(lambda: os.kill(os.getpid(), signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("program", "number", "code"),
    [
        ("/usr/bin/deconvnet", signal.SIGTERM, 75),
        (f"{ROOT}/workflows/predict.py", signal.SIGTERM, 75),
        ("workflows/predict.py", signal.SIGINT, 75),
        ("/home/user/mine.py", signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_a_command_that_is_stopped_while_it_is_imported_is_interrupted(program: str, number: signal.Signals, code: int) -> None:
    source = f"import sys, os; sys.argv[0] = {program!r}; import workflows; os.kill(os.getpid(), {int(number)})"
    assert subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True).returncode == code


@pytest.mark.parametrize("command", COMMANDS)
def test_the_scripts_import_nothing_heavy_before_the_handlers_are_set(command: str) -> None:
    tree = ast.parse((ROOT / f"workflows/{command}.py").read_text())
    modules = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    project = [name for name in modules if name.split(".")[0] in ("infra", "proposals", "deconvnet", "workflows")]
    assert set(project[: project.index("workflows")]) <= {"infra.errors"}


@pytest.mark.parametrize(
    ("iou", "missed"),
    [
        ({"background": 0.6, "cat": 0.0, "dog": 0.0, "cow": 0.2}, "  EDeconvNet+CRF finds no pixel of cat, dog (IoU 0)"),
        ({"background": 0.6, "cat": 0.01, "dog": None}, None),
    ],
)
def test_the_results_name_the_classes_of_which_nothing_is_found(iou, missed):
    """A network that predicts only background has a mean IoU of 0.2, like one that learns. A class may be in no image (None)."""
    rows = {name: {"mean_iou": 0.2, "pixel_accuracy": 0.6, "iou": dict.fromkeys(iou, 0.5)} for name in RESULT_TITLES}
    rows["edeconvnet_crf"]["iou"] = iou
    last = cli.results_text({"dataset": "d val", "images": 3, "rows": rows}).splitlines()[-1]
    assert last.startswith(missed) if missed else "nothing" not in last


def test_each_result_has_a_row_with_its_own_metrics():
    metrics = ("mean_iou", "pixel_accuracy", "boundary_f", "boundary_iou")
    values = [[(10 * row + column + 1) / 1000 for column in range(len(metrics))] for row in range(len(RESULT_TITLES))]
    rows = {name: dict(zip(metrics, found, strict=True)) for name, found in zip(RESULT_TITLES, values, strict=True)}
    name, heads, *lines = cli.results_text({"dataset": "d val", "images": 3, "rows": rows}).splitlines()
    assert name == "d val, 3 images" and re.split("  +", heads.strip()) == [
        "mean IoU",
        "pixel accuracy",
        "boundary F",
        "Boundary IoU",
    ]
    assert [line.split()[0] for line in lines] == list(RESULT_TITLES.values())
    assert [[float(text) for text in line.split()[1:]] for line in lines] == values
