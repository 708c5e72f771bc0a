#!/usr/bin/env bash
# One run on several devices, of one host or of several; runs unedited on a CPU, as two processes.
#
#   one host      scripts/launch/torchrun.sh                            two CPU processes, experiment=smoke
#                 PROCESSES=8 scripts/launch/torchrun.sh backend=cuda model=gpt2-124m out=eight
#   many hosts    on each of them, HEAD being the first one's name and a free port there:
#                 NODES=2 NODE_RANK=0 HEAD=node0:29500 PROCESSES=8 scripts/launch/torchrun.sh backend=npu ...
#                 NODES=2 NODE_RANK=1 HEAD=node0:29500 PROCESSES=8 scripts/launch/torchrun.sh backend=npu ...
#
# Edit for another device: nothing; say backend=cuda or backend=npu, and PROCESSES=<devices of a host>.
# Ends with the run's exit code. SIGTERM and Ctrl-C reach the processes, which save and leave a record.
set -euo pipefail

nodes=${NODES:-1}
processes=${PROCESSES:-2}
settings=("$@")
[ $# -gt 0 ] || settings=(backend=cpu experiment=smoke workload.micro_batch_size=4)

options=(--nproc-per-node="$processes")
if [ "$nodes" = 1 ]; then
  options+=(--standalone)
else
  head=${HEAD:?with NODES=$nodes say HEAD=HOST:PORT, the first host and a free port there}
  rank=${NODE_RANK:?with NODES=$nodes say NODE_RANK, from 0 to $((nodes - 1)), another on each host}
  options+=(--nnodes="$nodes" --node-rank="$rank" --master-addr="${head%:*}" --master-port="${head##*:}")
fi
exec "${PYTHON:-python}" -m harness torchrun "${options[@]}" parallel="${PARALLEL:-ddp}" "${settings[@]}"
