#!/usr/bin/env bash
# From nothing to a finished run: makes .venv, installs the harness, trains the small default model on the CPU
# (about two minutes on two cores) and shows the summary. Extra words are settings:
#   scripts/quickstart.sh workload.steps=100 out=my-run
set -euo pipefail
. "$(dirname "$0")/_env.sh"
make_environment ""
cd "$project"
echo "quickstart: python -m harness $*"
exec python -m harness "$@"
