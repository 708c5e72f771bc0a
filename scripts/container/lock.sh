#!/usr/bin/env bash
# Writes constraints.txt anew: the versions that pip chooses today for the harness with every extra that images have.
# Run it on the Python of the CPU image (3.11), read the difference, and commit it.
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/pip" --disable-pip-version-check "$@"; }
pip install -q ".[ops,cuda,tensorboard,text]" setuptools packaging
# Installed without what it asks for: torch-npu names one exact torch, which need not be there today.
npu=$(pip index versions torch-npu 2>/dev/null | sed -n 's/^torch-npu (\(.*\))$/\1/p')
{
    echo "# Every package of an image, by scripts/container/lock.sh. torch without its local version: the base or the"
    echo "# index says which build."
    {
        pip freeze --all --exclude training-harness --exclude pip
        echo "torch-npu==${npu:-2.13.0}"
    } | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' | grep -E '^[A-Za-z0-9._-]+==' | LC_ALL=C sort -f
} >scripts/container/constraints.txt
git diff --stat scripts/container/constraints.txt
