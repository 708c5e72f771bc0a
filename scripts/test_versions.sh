#!/usr/bin/env bash
# Runs the tests on the oldest and the newest Python and torch that pyproject.toml promises, each in an environment of
# its own (.venv-<Python>). Extra words go to pytest: scripts/test_versions.sh -m 'not slow'
# PAIRS="3.12:2.11.0" runs other pairs of Python and torch. Each Python has to be on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
for pair in ${PAIRS:-3.10:2.9.1 3.13:2.14.1}; do
  python=python${pair%%:*} torch=${pair##*:}
  if ! "$python" --version > /dev/null 2>&1; then
    echo "error: $python does not run here; install it, or name other versions in PAIRS (now $pair)" >&2
    exit 2
  fi
  echo "test_versions: $python, torch $torch"
  PYTHON=$python VENV=$PWD/.venv-${pair%%:*} TORCH=torch==$torch scripts/test.sh "$@"
done
