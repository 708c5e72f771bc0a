#!/usr/bin/env bash
# Checks the harness on a CUDA or Ascend machine: runs verify_on_device.py in the active Python environment, installs
# nothing, and writes one file to send back.
#   scripts/verify_on_device.sh cuda
#   scripts/verify_on_device.sh npu --out verification workload.steps=60
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$project"
exec "${PYTHON:-python}" scripts/verify_on_device.py "$@"
