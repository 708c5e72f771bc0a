#!/usr/bin/env bash
# Installs the requirements of the tests and runs all of them. Arguments go to pytest: scripts/test.sh -m 'not slow'
set -euo pipefail
. "$(dirname "$0")/_env.sh"
make_environment "[dev]"
cd "$project"
# The Ascend tests run the real torch-npu, in the release of this torch, on an emulated CANN, which they build with g++.
# Without one of these they skip and name it.
torch_release=$(python -c "from importlib.metadata import version; print(version('torch').split('+')[0])")
if ! python -c "from importlib.metadata import version; version('torch-npu')" 2> /dev/null; then
  python -m pip install --quiet --disable-pip-version-check --no-deps "torch-npu==$torch_release" ||
    echo "test: torch-npu $torch_release cannot be installed here, so the Ascend tests will skip" >&2
fi
# Test files run beside each other, the long ones first, one more than there are cores, since some wait; -n 0 runs them
# one after another.
# Idle OpenMP threads sleep: spinning, they would take the cores of other tests.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
workers=$(python -c "import os; print(min(4, len(os.sched_getaffinity(0)) + 1))")
exec python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
