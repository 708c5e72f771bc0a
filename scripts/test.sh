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
# A test file for each core at a time, the long ones first; -n 0 among the extra words runs them one after another.
# Threads that wait for work sleep: spinning, they would take the other tests' cores.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
exec python -m pytest -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder "$@"
