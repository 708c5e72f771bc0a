#!/usr/bin/env bash
# What a change has to pass besides the tests: format, lint, types, shell scripts. You and CI run the same.
# `scripts/check.sh --fix` formats and mends what can be mended.
set -euo pipefail
. "$(dirname "$0")/_env.sh"
make_environment "[dev]"
cd "$project"
if [ "${1:-}" = --fix ]; then
  ruff format .
  ruff check --fix .
fi
ruff format --check .
ruff check .
pyright --pythonpath "$venv/bin/python"
for script in scripts/*.sh .ci/run; do bash -n "$script"; done
echo "check: all passed"
