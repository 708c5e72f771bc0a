#!/bin/sh
# Installs Python, if the image lacks it, and the given Debian packages.
#
#   python.sh with-venv|without-venv ["PACKAGE ..."]
set -eu

wanted=${2:-}
if ! command -v python3 >/dev/null; then
  wanted="$wanted python3"
fi
if [ "$1" = with-venv ] && ! python3 -c 'import ensurepip' 2>/dev/null; then
  wanted="$wanted python3-venv"
fi
if [ -n "${wanted# }" ]; then
  apt-get update
  # shellcheck disable=SC2086 # a list of packages
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $wanted
  rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
fi
python3 - <<'P'
import sys
if sys.version_info < (3, 11):
  sys.exit(f"BASE: its Python is {sys.version.split()[0]}, expected 3.11 or later, as the pinned versions need")
P
