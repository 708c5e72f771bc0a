# shellcheck shell=bash
# Environment of the other scripts, which source this file: finds Python, creates .venv and activates it.
# PYTHON names another interpreter, VENV another folder.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$project/.venv}

make_environment() { # make_environment EXTRAS
  local extras=$1 python=${PYTHON:-python3}
  if ! command -v "$python" > /dev/null; then
    echo "error: $python is not on the PATH; install Python 3.10 or later, or set PYTHON" >&2
    exit 2
  fi
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $("$python" --version) is too old, expected Python 3.10 or later; set PYTHON to a newer one" >&2
    exit 2
  fi
  # Where venv's own pip was missing, Python is there and pip is not.
  "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$python" -m venv "$venv" || {
    echo "error: cannot create a virtual environment in $venv; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 2
  }
  # The versions that are tested together. torch first and with an exact version: with a range pip may take a newer
  # build with gigabytes of GPU libraries. TORCH=torch==X.Y.Z selects another release, TORCH= (empty) keeps the
  # installed one; then, and on a Python older than the one of the pins, pip chooses the other packages too.
  local pins=$project/scripts/container/constraints.txt constraints=() pinned torch
  pinned=$(grep '^torch==' "$pins")
  torch=${TORCH-$pinned}
  if [ "$torch" = "$pinned" ] && "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    constraints=(--constraint "$pins")
  fi
  if [ -n "$torch" ] && ! "$venv/bin/python" -c "
import sys
from importlib.metadata import version
sys.exit(version('torch').split('+')[0] != '${torch##*==}')" 2> /dev/null; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$torch"
  fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${constraints[@]+"${constraints[@]}"} \
    -e "$project$extras"
  export PATH="$venv/bin:$PATH"
}
