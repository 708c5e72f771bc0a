#!/usr/bin/env bash
# Installs the harness and makes a first run and a comparison: creates .venv, trains the small default model on the CPU
# (about two minutes on two cores), shows the summary, and compares one CPU thread with all of them (one more minute).
# Arguments are settings of the first run:
#   scripts/quickstart.sh workload.steps=100 out=my-run
set -euo pipefail
. "$(dirname "$0")/_env.sh"
make_environment ""
cd "$project"
echo "quickstart: python -m harness $*"
python -m harness "$@"
comparison=(compare --run 'experiment=smoke backend.threads=1' --run 'experiment=smoke' --repeats 5)
comparison+=(--label 'one thread' --label 'all threads')
echo
echo "quickstart: python -m harness $(printf '%q ' "${comparison[@]}")"
exec python -m harness "${comparison[@]}"
