#!/bin/sh
# Entry point of a container: sets up CANN's environment if the image has CANN, then replaces itself with the harness,
# so that signals reach it.
#
#   entry.sh backend=cpu            the same as python -m harness backend=cpu
set -e

if [ -z "${ASCEND_HOME_PATH:-}" ]; then
  for script in /usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh; do
    if [ -r "$script" ]; then
      # CANN's scripts need bash: run them in one and copy the variables. They also test unset variables, and
      # return the status of their last test.
      eval "$(bash -c '. "$1" >/dev/null 2>&1; export -p' entry "$script" |
        grep -E '^declare -x (ASCEND_|LD_LIBRARY_PATH|PATH|PYTHONPATH|TOOLCHAIN_HOME|CMAKE_PREFIX_PATH)' |
        sed 's/^declare -x /export /')"
      break
    fi
  done
fi
# The driver is mounted from the host; only its installer adds it to the loader's path.
driver=/usr/local/Ascend/driver/lib64
if [ -d "$driver" ]; then
  export LD_LIBRARY_PATH="$driver/driver:$driver/common:$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
exec python -m harness "$@"
