#!/usr/bin/env bash
#SBATCH --job-name=deconvnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
# The pipeline on a SLURM cluster: Ray on all nodes of an allocation, and a command on the first one.
#   sbatch infra/deploy/slurm/pipeline.sh python workflows/train_pipeline.py --config … --workspace /shared/runs/voc2012 \
#       --compute.workers 8 --compute.min_workers 4 --replace-lost-run
# (--replace-lost-run: if SLURM restarts the job after a node failure, the command waits until the lock of the dead run expires.)
# A retraining, in place of train_pipeline.py, leaves its metrics in a file that a node_exporter (--collector.textfile.directory) reads:
#   … python workflows/retrain.py --config … --workspace … --replace-lost-run --exit-zero-if-locked \
#       --notify.metrics_to /shared/metrics/deconvnet.prom
# Submit it from the repository, with the environment active that has the project (pip install -c constraints.txt .) and a CUDA build of
# PyTorch, both on storage that all nodes share, as are the workspace and the data.
#
# All nodes must have joined Ray within START_SECONDS (900 if it is not set). Otherwise the job ends.
#
# Five minutes before the time limit, and when the job is preempted, SLURM sends SIGTERM to this script. The command then writes a
# checkpoint and ends with exit code 75; the job is put into the queue again, and resumes.
#
# Tested: shellcheck; run with stand-ins for srun, ray and scontrol (tests/infra/deploy/test_slurm.py). Not tested: a SLURM cluster.
set -euo pipefail

address=$(hostname):6379
export address
# Whoever can connect to Ray can run code as you, and SLURM's nodes are shared: a token for this allocation alone.
RAY_AUTH_TOKEN=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

# shellcheck disable=SC2016  # expanded on the nodes
srun --overlap --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none bash -c '
    if [[ $SLURM_NODEID == 0 ]]; then
        exec ray start --head --block --port="${address#*:}"
    fi
    for _ in {1..60}; do
        if ray health-check --address "$address" >/dev/null 2>&1; then
            exec ray start --block --address="$address"
        fi
        sleep 5
    done
    exit 1
' &
cluster=$!

export RAY_ADDRESS=$address
until [[ $(python -c 'import ray; ray.init(logging_level="ERROR"); print(len(ray.nodes()))' 2>/dev/null) == "$SLURM_NNODES" ]]; do
    if ! kill -0 "$cluster" 2>/dev/null || ((SECONDS > ${START_SECONDS:-900})); then
        echo "Ray did not start on all nodes" >&2
        kill "$cluster" 2>/dev/null || true
        exit 1
    fi
    sleep 2
done

stopped=
trap 'stopped=yes; trap "" TERM; kill -TERM "$!"' TERM
"$@" &
command=$!
code=0
wait "$command" || code=$?
if [[ $stopped ]]; then # the signal has interrupted `wait`
    code=0
    wait "$command" || code=$?
fi
kill "$cluster" || true
if [[ $stopped && $code == 75 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
