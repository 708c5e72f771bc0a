#!/usr/bin/env bash
# Lists the contents of an image: every file with its size and mode, every Python and Debian package with its version.
#
#   scripts/container/list_files.sh ENGINE IMAGE
#
# Two builds of the same sources give the same list. It leaves out times, and files that hold them: compiled Python,
# caches and logs of the package managers.
set -euo pipefail

# shellcheck disable=SC2016 # expanded in the container
"$1" run --rm --network none --user 0:0 --entrypoint sh "$2" -c '
  find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/cache \
    -o -path /var/log -o -path /etc/hosts -o -path /etc/hostname -o -path /etc/resolv.conf \) -prune -o -type f \
    ! -name "*.pyc" -printf "file %m %s %p\n"
  if command -v dpkg-query >/dev/null; then dpkg-query -W -f "package debian \${Package} \${Version}\n"; fi
  python3 - <<P
from importlib import metadata
for each in metadata.distributions(path=__import__("glob").glob("/opt/harness/lib/python3*/site-packages")):
    print("package python", each.metadata["Name"], each.version)
P
' | LC_ALL=C sort
