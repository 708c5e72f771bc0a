#!/usr/bin/env bash
# Rehearses the judgment of a claim from runs to verdict, on two CPU cores, in about four minutes: one thread against
# two refutes "almost the same time", one against itself supports it, an emulated Ascend NPU does not test it. Exit code
# 1 if a verdict differs. Other load on the machine disturbs the times.
set -euo pipefail
. "$(dirname "$0")/_env.sh"
make_environment ""
out=${1:-$(mktemp -d)}
one='experiment=iflytek/smoke backend.threads=1'
two='experiment=iflytek/smoke backend.threads=2'

verdict_of() { # verdict_of FOLDER: the verdict on the claim in verdict.json
  python - "$1/verdict.json" <<'PYTHON'
import json, sys
[pair] = json.load(open(sys.argv[1]))["pairs"]
print(pair["claim"]["verdict"])
PYTHON
}

expect() { # expect VERDICT FOLDER WHAT
  local found
  found=$(verdict_of "$2")
  printf '%-13s %s\n' "$found" "$3"
  if [ "$found" != "$1" ]; then
    echo "rehearse_claim: found $found, expected $1; see $2/report.html" >&2
    failed=1
  fi
}

failed=0
python -m harness compare --run "$one" --run "$two" --claim rehearsal --out "$out/two" > /dev/null
expect refuted "$out/two" "one thread against two"
python -m harness compare --run "$one" --run "$one" --claim rehearsal --out "$out/itself" > /dev/null
expect supported "$out/itself" "one thread against itself"
if python -c "from importlib.metadata import version; version('torch-npu')" 2> /dev/null; then
  "$project/scripts/emulated_npu.sh" python -m harness experiment=iflytek/smoke backend=npu repeats=1 \
    out="$out/npu" > /dev/null
  python -m harness compare "$out/two/reference" "$out/npu" --claim rehearsal --out "$out/emulated" > /dev/null
  expect "not tested" "$out/emulated" "one thread against an emulated NPU"
else
  echo "not checked   an emulated NPU: torch-npu is not installed"
fi
exit "$failed"
