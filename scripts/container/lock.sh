#!/usr/bin/env bash
# Updates constraints.txt to the versions that pip chooses today for the harness with every extra. Run it
# with the Python of the CPU image (3.11) and PyPI's torch for Linux on x86, so that the requirements of CUDA builds are
# included; it downloads metadata only. Read the difference and commit it.
set -euo pipefail
cd "$(dirname "$0")/../.."

report=$(mktemp)
trap 'rm -f "$report"' EXIT
python=${PYTHON:-python3}
"$python" -m pip --disable-pip-version-check install --quiet --dry-run --ignore-installed --report "$report" \
  ".[ops,cuda,npu,tensorboard,text,hf,dev]" pip setuptools packaging
"$python" - "$report" > scripts/container/constraints.txt <<'P'
import json, sys

print("# Every package of an image and of the tests, by scripts/container/lock.sh. torch without its local version: the base")
print("# image or the index says which build.")
found = {each["metadata"]["name"]: each["metadata"]["version"] for each in json.load(open(sys.argv[1]))["install"]}
for name, version in sorted(found.items(), key=lambda pair: pair[0].lower()):
    if name != "training-harness":
        print(f"{name}=={version.split('+')[0]}")
P
git diff --stat scripts/container/constraints.txt
