#!/usr/bin/env bash
# Measures a GPU or another accelerator: its peaks, the harness on it, and other trainers. Runs measure_on_device.py in
# the active Python environment, which writes a table and the records. The other trainers take most of the time.
#   scripts/measure_on_device.sh cuda
#   scripts/measure_on_device.sh npu --no-peers
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$project"
exec "${PYTHON:-python}" scripts/measure_on_device.py "$@"
