#!/usr/bin/env bash
#SBATCH --job-name=harness
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --output=harness-%j.log
#SBATCH --open-mode=append
# Started again after a pre-emption, or a host that failed; and goes on from its last checkpoint.
#SBATCH --requeue
# Two minutes before the time is up, and when pre-empted, every process gets SIGTERM: it ends its step and saves.
#SBATCH --signal=TERM@120
#
#   sbatch scripts/launch/slurm.sh                                   experiment=smoke, two CPU processes a node
#   sbatch scripts/launch/slurm.sh backend=cuda model=gpt2-1.5b ...
#
# Edit for another device: above add
#   #SBATCH --gpus-per-node=8       (NVIDIA)        #SBATCH --gres=npu:8       (Ascend; the name is your cluster's)
# and say PROCESSES=8 sbatch --export=ALL ... backend=cuda
# Records lie in runs/slurm-<job>, in the folder that sbatch was called in, which all nodes have to share.
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:?this file is started by sbatch}" || exit 2
settings=("$@")
[ $# -gt 0 ] || settings=(backend=cpu experiment=smoke workload.micro_batch_size=2)
run=runs/slurm-$SLURM_JOB_ID

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node need ports of their own.
port=$((20000 + SLURM_JOB_ID % 20000))

# The signals are the tasks' to act upon; this shell waits for them.
trap ':' TERM
# shellcheck disable=SC2016 # expanded on each node
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c 'exec "${PYTHON:-python}" -m harness torchrun --node-rank="$SLURM_NODEID" "$@"' node \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${PROCESSES:-2}" --master-addr="$head" --master-port="$port" \
  parallel="${PARALLEL:-ddp}" checkpoint.every="${CHECKPOINT_EVERY:-100}" resume=auto out="$run" log=json \
  "${settings[@]}" &
step=$!
# `wait` returns early at a signal; the last one has the step's own exit code.
while kill -0 "$step" 2>/dev/null; do
  wait "$step"
done
wait "$step"
code=$?

# Interrupted, and not by somebody's scancel, after which the job no longer counts as running: there is work left.
if [ "$code" = 143 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
