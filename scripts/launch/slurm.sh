#!/usr/bin/env bash
#SBATCH --job-name=harness
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --output=harness-%j.log
#SBATCH --open-mode=append
# Requeued after a preemption or a failed host; the run resumes from its last checkpoint.
#SBATCH --requeue
# Every process gets SIGTERM two minutes before the time limit, and on preemption: it ends its step and saves.
#SBATCH --signal=TERM@120
#
#   sbatch scripts/launch/slurm.sh                                   experiment=smoke, two CPU processes a node
#   sbatch scripts/launch/slurm.sh backend=cuda parallel=ddp model=gpt2-1.5b ...
#
# Edit for another device: above add
#   #SBATCH --gpus-per-node=8       (NVIDIA)        #SBATCH --gres=npu:8       (Ascend; the name is your cluster's)
# and run PROCESSES=8 sbatch --export=ALL ... backend=cuda
# Records lie in runs/slurm-<job> in the folder of the sbatch command, which all nodes have to share.
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:?start this file with sbatch}" || exit 2
settings=("$@")
[ $# -gt 0 ] || settings=(backend=cpu experiment=smoke workload.micro_batch_size=2)
# Words of your own may name an experiment that has a layout.
[ $# -gt 0 ] || PARALLEL=${PARALLEL:-ddp}
run=runs/slurm-$SLURM_JOB_ID

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node need different ports.
port=$((20000 + SLURM_JOB_ID % 20000))

# 16 ports of the Ascend collective library.
export HCCL_IF_BASE_PORT=${HCCL_IF_BASE_PORT:-$((40000 + SLURM_JOB_ID % 1250 * 16))}

# The tasks act on signals; this shell waits for the tasks.
trap ':' TERM USR1
# shellcheck disable=SC2016 # expanded on each node
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c 'exec "${PYTHON:-python}" -m harness torchrun --node-rank="$SLURM_NODEID" "$@"' node \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="${PROCESSES:-2}" --master-addr="$head" --master-port="$port" \
  ${PARALLEL:+parallel="$PARALLEL"} checkpoint.every="${CHECKPOINT_EVERY:-100}" resume=auto out="$run" log=json \
  "${settings[@]}" &
step=$!
# `wait` returns early at a signal; the last one returns the exit code of the step.
while kill -0 "$step" 2>/dev/null; do
  wait "$step"
done
wait "$step"
code=$?

# Interrupted, but not by scancel, after which the job no longer counts as running: there is work left.
if [[ $code =~ ^(129|138|143)$ ]] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
