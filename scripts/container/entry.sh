#!/bin/sh
# What a container starts: CANN's environment where the image has CANN, then the harness in this very process, so that
# signals reach it.
#
#   entry.sh backend=cpu            the same as python -m harness backend=cpu
set -e

if [ -z "${ASCEND_HOME_PATH:-}" ]; then
  for script in /usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh; do
    if [ -r "$script" ]; then
      # CANN's scripts are bash's, so what they set is taken over from a bash. They also test variables that are
      # not set, and return what their last test said.
      eval "$(bash -c '. "$1" >/dev/null 2>&1; export -p' entry "$script" |
        grep -E '^declare -x (ASCEND_|LD_LIBRARY_PATH|PATH|PYTHONPATH|TOOLCHAIN_HOME|CMAKE_PREFIX_PATH)' |
        sed 's/^declare -x /export /')"
      break
    fi
  done
fi
# The driver is the host's, mounted; only its own installer tells the loader of it.
driver=/usr/local/Ascend/driver/lib64
if [ -d "$driver" ]; then
  export LD_LIBRARY_PATH="$driver/driver:$driver/common:$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
exec python -m harness "$@"
