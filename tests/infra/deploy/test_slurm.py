"""The script for SLURM, with stand-ins for SLURM and Ray: it ends with the command's exit code, and continues after the time limit."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "infra" / "deploy" / "slurm" / "pipeline.sh"
COMMAND = """#!/bin/bash
trap 'echo checkpoint >>"$LOG"; exit 75' TERM
echo "command $RAY_ADDRESS ${#RAY_AUTH_TOKEN} $*" >>"$LOG"
echo ready
if [[ $1 == wait ]]; then /bin/sleep 30 & wait; fi
exit "$1"
"""
STAND_INS = {
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 "$@" &\nSLURM_NODEID=1 "$@" &\nwait\n',
    "ray": '#!/bin/bash\necho "ray $*" >>"$LOG"\n',
    "python": '#!/bin/bash\ngrep -c "^ray start" "$LOG"\n',  # how many nodes have joined
    "sleep": "#!/bin/bash\nexec /bin/sleep 0.02\n",
    "scontrol": '#!/bin/bash\necho "scontrol $*" >>"$LOG"\n',
    "hostname": "#!/bin/bash\necho node1\n",
    "train": COMMAND,
}


def started(folder: Path, *command: str) -> "subprocess.Popen[str]":
    """The script on two nodes, with a command that has been started."""
    for name, text in STAND_INS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_CPUS_ON_NODE": "8", "SLURM_NNODES": "2", "SLURM_JOB_ID": "42", "LOG": str(folder / "log")}
    env = {"PATH": f"{folder}:{os.environ['PATH']}", **slurm}
    process = subprocess.Popen(["bash", SCRIPT, *command], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_script_starts_ray_on_all_nodes_and_ends_with_the_exit_code_of_the_command(code: int, tmp_path: Path) -> None:
    assert started(tmp_path, "train", str(code)).wait(20) == code
    *nodes, command = [line for line in (tmp_path / "log").read_text().splitlines() if "health-check" not in line]
    assert sorted(nodes) == ["ray start --block --address=node1:6379", "ray start --head --block --port=6379"]
    assert command == f"command node1:6379 48 {code}"  # with a token, and not put into the queue again


def test_before_the_time_limit_the_command_writes_a_checkpoint_and_the_job_is_put_into_the_queue_again(tmp_path: Path) -> None:
    process = started(tmp_path, "train", "wait")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    assert (tmp_path / "log").read_text().splitlines()[-2:] == ["checkpoint", "scontrol requeue 42"]
