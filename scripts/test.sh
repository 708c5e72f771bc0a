#!/usr/bin/env bash
# Installs what the tests need and runs all of them. Extra words go to pytest: scripts/test.sh -m 'not slow'
set -euo pipefail
. "$(dirname "$0")/_env.sh"
make_environment "[dev]"
cd "$project"
exec python -m pytest "$@"
