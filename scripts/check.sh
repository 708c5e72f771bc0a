#!/usr/bin/env bash
# Checks format, lint, types and shell syntax: all that CI checks besides the tests.
# `scripts/check.sh --fix` formats and fixes first.
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
for script in scripts/*.sh scripts/*/*.sh .ci/run; do bash -n "$script"; done
echo "check: all passed"
