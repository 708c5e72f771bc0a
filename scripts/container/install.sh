#!/bin/sh
# Installs the packages of an image into /opt/harness, with the versions of constraints.txt.
#
#   install.sh dependencies EXTRA    the requirements of pyproject.toml with these extras ("ops,cuda")
#   install.sh harness EXTRA         the harness itself, and a check that every package is pinned
#
# pip's settings and certificates, if any, lie in /run/secrets during the build.
set -eu

what=$1 extra=$2
here=$(dirname "$0")
venv=/opt/harness tools=/build/tools
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
export PIP_CONSTRAINT="$here/constraints.txt"
[ ! -f /run/secrets/pip.conf ] || export PIP_CONFIG_FILE=/run/secrets/pip.conf
[ ! -f /run/secrets/certificates ] || export PIP_CERT=/run/secrets/certificates

if [ "$what" = dependencies ]; then
  python3 -m venv "$tools"
  # Older releases of pip cannot install into another environment.
  "$tools/bin/pip" install pip setuptools packaging
  # The base's torch is used, if it has one. Without pip: nothing is installed in a running container.
  python3 -m venv --system-site-packages --without-pip "$venv"
  "$tools/bin/python" "$here/check_pins.py" requirements pyproject.toml "$extra" >/build/requirements.txt
  "$tools/bin/pip" --python "$venv/bin/python" install --requirement /build/requirements.txt
  # The packages' tests, a sixth of the size; nothing imports them.
  find "$venv"/lib/python3*/site-packages -type d \( -name tests -o -path '*/torch/test' \) -prune -exec rm -rf {} +
  exit
fi

"$tools/bin/pip" wheel --no-deps --no-build-isolation --wheel-dir /build/wheels .
"$tools/bin/pip" --python "$venv/bin/python" install --no-deps /build/wheels/*.whl
"$venv/bin/python" -m harness --version
"$tools/bin/python" "$here/check_pins.py" installed "$venv" "$here/constraints.txt" "$extra"
