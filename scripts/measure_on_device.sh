#!/usr/bin/env bash
# For whoever has a GPU or another accelerator at hand: how much of it does the harness use, and how do others? Runs
# measure_on_device.py with the Python environment that is active, and ends in a table and the records. Most of
# the time goes to the peers.
#   scripts/measure_on_device.sh cuda
#   scripts/measure_on_device.sh npu --no-peers
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$project"
exec "${PYTHON:-python}" scripts/measure_on_device.py "$@"
