#!/bin/bash
# A study on a Ray cluster of Slurm's making, from the project's folder, which all nodes see, set up by `make .venv/installed`:
#
#   sbatch deploy/slurm.sh studies/nyu.yaml --set data.root=data/nyu-depth-v2.zip
#
# Two minutes before its time is over, or when it is preempted, every training stops at a checkpoint and the job goes back
# into the queue, where it continues.
#SBATCH --job-name=densedepth-study
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=densedepth-study-%j.log
set -euo pipefail

study=${1:?name a study, for example studies/nyu.yaml}
shift
bin="$PWD/.venv/bin"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_AUTH_MODE=token PYTHONPATH="$PWD"
[ -s "$HOME/.ray/auth_token" ] || "$bin/ray" get-auth-token --generate > /dev/null
chmod 600 "$HOME/.ray/auth_token"

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" "$bin/ray" start --head --port="$port" --block &
until "$bin/ray" health-check --address "$head:$port" 2> /dev/null; do sleep 1; done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  others=$((SLURM_JOB_NUM_NODES - 1))
  srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" "$bin/ray" start --address="$head:$port" --block &
fi

"$bin/python" -m study.run "$study" --resume --set resources.address="$head:$port" "$@" &
driver=$!
stopped=0
trap 'stopped=1; kill -TERM "$driver"' TERM
wait "$driver" && code=0 || code=$?
if [ "$stopped" = 1 ]; then
  wait "$driver" && code=0 || code=$?
  [ "$code" = 130 ] && scontrol requeue "$SLURM_JOB_ID"
fi
kill $(jobs -p) 2> /dev/null || true
exit "$code"
