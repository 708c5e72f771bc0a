#!/usr/bin/env bash
# For the owner of a CUDA or Ascend machine: is the harness right on it? Runs the checks of verify_on_device.py with the
# Python environment that is active, installs nothing, and ends in one file to send back.
#   scripts/verify_on_device.sh cuda
#   scripts/verify_on_device.sh npu --out verification workload.steps=60
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$project"
exec "${PYTHON:-python}" scripts/verify_on_device.py "$@"
