"""The script for SLURM, with stand-ins for SLURM and Ray: its exit code is the command's, and it resumes after a time limit."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.infra.deploy.files import DOCKERFILE, INFRA

SCRIPT = INFRA / "slurm" / "pipeline.sh"
COMMAND = """#!/bin/bash
trap 'echo checkpoint >>"$LOG"; kill %1; exit 75' TERM
echo "command $RAY_ADDRESS $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN} $*" >>"$LOG"
echo ready
if [[ $1 == wait ]]; then /bin/sleep 30 & wait; fi
exit "$1"
"""
STAND_INS = {
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 "$@" &
SLURM_NODEID=1 "$@" &
trap 'kill $(jobs -pr)' TERM
wait
""",
    "ray": '#!/bin/bash\necho "ray $* $RAY_AUTH_MODE" >>"$LOG"\n[[ $* != *--block* ]] || exec /bin/sleep 30\n',
    "python": '#!/bin/bash\ngrep -c "^ray start" "$LOG"\n',  # how many nodes have joined
    "sleep": "#!/bin/bash\nexec /bin/sleep 0.02\n",
    "scontrol": '#!/bin/bash\necho "scontrol $*" >>"$LOG"\n',
    "hostname": "#!/bin/bash\necho node1\n",
    "train": COMMAND,
}


def started(folder: Path, *command: str, seconds: int = 900, **others: str) -> "subprocess.Popen[str]":
    """The script on two nodes, which may take so many seconds to start. Other keywords replace stand-ins."""
    for name, text in (STAND_INS | others).items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {
        "START_SECONDS": str(seconds),
        "SLURM_CPUS_ON_NODE": "8",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "42",
        "LOG": str(folder / "log"),
    }
    env = {"PATH": f"{folder}:{os.environ['PATH']}", **slurm}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(["bash", SCRIPT, *command], env=env, text=True, **pipes)


def ready(process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    """Wait until the command has been started."""
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_script_starts_ray_on_all_nodes_and_ends_with_the_exit_code_of_the_command(code: int, tmp_path: Path) -> None:
    assert ready(started(tmp_path, "train", str(code))).wait(120) == code
    *nodes, command = [line for line in (tmp_path / "log").read_text().splitlines() if "health-check" not in line]
    assert sorted(nodes) == ["ray start --block --address=node1:6379 token", "ray start --head --block --port=6379 token"]
    assert command == f"command node1:6379 token 48 {code}"  # with a token, and not put into the queue again


def test_before_the_time_limit_the_command_writes_a_checkpoint_and_the_job_is_put_into_the_queue_again(tmp_path: Path) -> None:
    process = ready(started(tmp_path, "train", "wait"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75
    assert (tmp_path / "log").read_text().splitlines()[-2:] == ["checkpoint", "scontrol requeue 42"]


def test_slurm_warns_the_script_in_time_for_a_checkpoint_and_lets_it_requeue_its_job() -> None:
    """The head of a Ray cluster gives its commands as long. SLURM reads options above the script's first command only."""
    options = re.findall(r"^#SBATCH (--\S+)$", SCRIPT.read_text().partition("\nset ")[0], re.MULTILINE)
    (seconds,) = (int(each.removeprefix("--signal=B:TERM@")) for each in options if each.startswith("--signal"))
    (needed,) = {int(each) for each in re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", DOCKERFILE)}
    assert seconds > needed
    assert {"--requeue", "--open-mode=append"} <= {*options}, "the job goes on, with the log of what came before"


@pytest.mark.parametrize("health", [0, 1], ids=["answers", "does not answer"])
def test_the_job_ends_if_ray_does_not_start(health: int, tmp_path: Path) -> None:
    """Otherwise it would take its nodes until the time limit, and wait. No node joins, so the stand-in for python counts none."""
    process = started(tmp_path, "train", "0", ray=f"#!/bin/bash\n[[ $1 == health-check ]] && exit {health}\nexit 1\n")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "" and err.splitlines()[-1] == "Ray did not start on all nodes"


def test_the_job_ends_if_one_node_does_not_start_although_the_others_wait(tmp_path: Path) -> None:
    head_only = "#!/bin/bash\n[[ $* == *--head* ]] && exec /bin/sleep 30\n[[ $1 == health-check ]] && exit 0\nexit 1\n"
    process = started(tmp_path, "train", "0", seconds=0, ray=head_only, python="#!/bin/bash\necho 1\n")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == "" and err.splitlines()[-1] == "Ray did not start on all nodes"
