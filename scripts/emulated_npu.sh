#!/usr/bin/env bash
# Runs a command on an emulated Ascend NPU, so that backend=npu can be tried on a machine without one:
#   scripts/emulated_npu.sh python -m harness backend=npu experiment=smoke
# The real torch-npu computes on a stand-in for CANN on the CPU. Its results are valid, its times are not: records say
# "emulated", and no report shows a speed for them.
set -euo pipefail
. "$(dirname "$0")/_env.sh"
if [ $# -eq 0 ]; then
  echo "usage: scripts/emulated_npu.sh COMMAND..." >&2
  exit 2
fi
make_environment "[npu]"
cann=$(cd "$project" && python -m tests.cann_emulator)
# shellcheck disable=SC1091 # created by the line before
. "$cann/set_env.sh"
exec "$@"
