#!/usr/bin/env bash
# Writes constraints.txt anew: the versions that pip would choose today for the harness with every extra that images have.
# Run it on the Python of the CPU image (3.11) and with PyPI's own torch for Linux on x86, so that what CUDA builds ask
# for is in it; nothing is downloaded but metadata. Read the difference, and commit it.
set -euo pipefail
cd "$(dirname "$0")/../.."

report=$(mktemp)
trap 'rm -f "$report"' EXIT
python=${PYTHON:-python3}
"$python" -m pip --disable-pip-version-check install --quiet --dry-run --ignore-installed --report "$report" \
  ".[ops,cuda,npu,tensorboard,text]" pip setuptools packaging
"$python" - "$report" > scripts/container/constraints.txt <<'P'
import json, sys

print("# Every package of an image, by scripts/container/lock.sh. torch without its local version: the base image or the")
print("# index says which build.")
found = {each["metadata"]["name"]: each["metadata"]["version"] for each in json.load(open(sys.argv[1]))["install"]}
for name, version in sorted(found.items(), key=lambda pair: pair[0].lower()):
    if name != "training-harness":
        print(f"{name}=={version.split('+')[0]}")
P
git diff --stat scripts/container/constraints.txt
