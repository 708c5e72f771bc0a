#!/usr/bin/env bash
# One run on several devices of one or more hosts. Unedited it runs two processes on a CPU.
#
#   one host      scripts/launch/torchrun.sh                            two CPU processes, experiment=smoke
#                 PROCESSES=8 scripts/launch/torchrun.sh backend=cuda experiment=gpt2 \
#                   parallel=ddp out=eight
#   many hosts    on each of them; HEAD is the first host with a free port:
#                 NODES=2 NODE_RANK=0 HEAD=node0:29500 PROCESSES=8 scripts/launch/torchrun.sh backend=npu ...
#                 NODES=2 NODE_RANK=1 HEAD=node0:29500 PROCESSES=8 scripts/launch/torchrun.sh backend=npu ...
#
# For another device edit nothing; set backend=cuda or backend=npu, and PROCESSES=<devices of a host>. An experiment may
# set the layout (experiment=iflytek/node: fsdp); otherwise give parallel=ddp or parallel=fsdp, or PARALLEL=ddp.
# The exit code is the run's. SIGTERM and Ctrl-C reach the processes, which save a checkpoint and write the record.
set -euo pipefail

nodes=${NODES:-1}
processes=${PROCESSES:-2}
settings=("$@")
[ $# -gt 0 ] || settings=(backend=cpu experiment=smoke workload.micro_batch_size=4)
# Words of your own may name an experiment that has a layout.
[ $# -gt 0 ] || PARALLEL=${PARALLEL:-ddp}

options=(--nproc-per-node="$processes")
if [ "$nodes" = 1 ]; then
  options+=(--standalone)
else
  head=${HEAD:?with NODES=$nodes set HEAD=HOST:PORT, the first host and a free port on it}
  rank=${NODE_RANK:?with NODES=$nodes set NODE_RANK, from 0 to $((nodes - 1)), different on each host}
  options+=(--nnodes="$nodes" --node-rank="$rank" --master-addr="${head%:*}" --master-port="${head##*:}")
fi
exec "${PYTHON:-python}" -m harness torchrun "${options[@]}" ${PARALLEL:+parallel="$PARALLEL"} "${settings[@]}"
