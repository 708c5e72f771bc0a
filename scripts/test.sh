#!/usr/bin/env bash
# Installs what the tests need and runs all of them. Extra words go to pytest: scripts/test.sh -m 'not slow'
set -euo pipefail
. "$(dirname "$0")/_env.sh"
make_environment "[dev]"
cd "$project"
# The Ascend tests run the real torch-npu, of the release that belongs to this torch, on an emulated CANN, which they
# build with g++. Where one of these cannot be had they skip, naming it.
torch_release=$(python -c "from importlib.metadata import version; print(version('torch').split('+')[0])")
if ! python -c "from importlib.metadata import version; version('torch-npu')" 2> /dev/null; then
  python -m pip install --quiet --disable-pip-version-check --no-deps "torch-npu==$torch_release" ||
    echo "test: torch-npu $torch_release cannot be installed here: the Ascend tests will skip" >&2
fi
# Some test files at a time, one more than cores, since many tests wait; -n 0 among the extra words runs them one
# after another.
workers=$(($(nproc) < 4 ? $(nproc) + 1 : 4))
exec python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
