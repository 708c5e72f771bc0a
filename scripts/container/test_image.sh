#!/usr/bin/env bash
# Tests the image: builds it twice and runs it as operations do, with any user number, read-only root, no network, no
# capabilities, little memory, records on a volume; stopped, out of memory, hung. Prints each check and some figures.
#
#   scripts/container/test_image.sh [BUILD OPTION ...]
#
#   ENGINE=podman|docker   container engine (default: the installed one)
#   BASE_SIZE_OF=IMAGE     image whose size is subtracted (default: BASE of the Dockerfile)
#   KEEP=1                 keep the images
#
# Arguments go to the engine's build: --secret id=pip.conf,src=pip.conf --build-arg BASE=...
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2

engine=${ENGINE:-$(command -v podman || command -v docker)} || {
  echo "error: neither podman nor docker is on the PATH" >&2
  exit 2
}
image=localhost/training-harness-test
work=$(mktemp -d)
failed=0 checks=0
trap '"$engine" rm -f harness-test >/dev/null 2>&1; rm -rf "$work"' EXIT

holds() { # holds WHAT COMMAND ...
  local what=$1
  shift
  checks=$((checks + 1))
  if "$@" >"$work/output" 2>&1; then
    echo "ok    $what"
  else
    echo "FAIL  $what (code $?)"
    tail -n 8 "$work/output" | sed 's/^/      /'
    failed=$((failed + 1))
  fi
}

ends_with() { # ends_with CODE COMMAND ...
  local wanted=$1 code=0
  shift
  "$@" || code=$?
  [ "$code" = "$wanted" ] || {
    echo "ended with $code, expected $wanted"
    return 1
  }
}

hardened=(--read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges --network none --user 12345:0)
run() { "$engine" run --rm "${hardened[@]}" "$@"; }

volume() { # a folder that group 0 may write to, as a volume of any user
  local folder=$work/$1
  mkdir -p "$folder"
  chgrp 0 "$folder" 2>/dev/null
  chmod 2777 "$folder"
  echo "$folder"
}

wait_for() { # wait_for FILE: until it is not empty, at most a minute
  for _ in $(seq 120); do
    [ ! -s "$1" ] || return 0
    sleep 0.5
  done
}

status_of() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"])' "$1"; }

# ---- two builds
commit=$(git rev-parse HEAD 2>/dev/null || true)
seconds=$SECONDS
for number in 1 2; do
  [ "$number" = 1 ] || again=--no-cache
  "$engine" build ${again:+"$again"} --build-arg COMMIT="$commit" -t "$image:$number" "$@" . >"$work/build-$number" 2>&1 || {
    tail -n 25 "$work/build-$number"
    echo "FAIL  build"
    exit 1
  }
  echo "figure  build $number took $((SECONDS - seconds)) s"
  seconds=$SECONDS
done
base=${BASE_SIZE_OF:-$(sed -n 's/^ARG BASE=//p' Dockerfile | head -n 1)}
# After a build some engines do not list the base image.
"$engine" image inspect "$base" >/dev/null 2>&1 || "$engine" pull "$base" >/dev/null 2>&1
size=$("$engine" image inspect --format '{{.Size}}' "$image:1")
base_size=$("$engine" image inspect --format '{{.Size}}' "$base" 2>/dev/null || echo 0)
echo "figure  image $((size / 1000000)) MB, of which the base $((base_size / 1000000)) MB; own layers $(((size - base_size) / 1000000)) MB"

for number in 1 2; do
  scripts/container/list_files.sh "$engine" "$image:$number" >"$work/files-$number"
done
echo "figure  $(grep -c '^file' "$work/files-1") files, $(grep -c '^package' "$work/files-1") packages"
holds "files and packages were listed" grep -q '^package' "$work/files-1"
holds "the same files and versions in both builds" diff "$work/files-1" "$work/files-2"
image=$image:1
holds "own layers at most 1.2 GB" [ $(((size - base_size) / 1000000)) -le 1200 ]
holds "no compiler, no pip in the environment" run --entrypoint sh "$image" -c \
  '! command -v gcc && ! command -v g++ && ! command -v make && [ ! -e /opt/harness/bin/pip ]'
holds "nothing of the build's secrets in it" run --user 0:0 --entrypoint sh "$image" -c \
  'for file in /run/secrets/pip.conf /run/secrets/certificates /root/.config/pip/pip.conf; do [ ! -e "$file" ] || exit 1
   done; [ ! -s /etc/pip.conf ]'
holds "--help" run "$image"

# ---- a run, doctor, compare: uid 12345, read-only root, 1 GiB
records=$(volume records)
tiny=(backend=cpu model=tiny workload.steps=60 workload.eval_every=0)
for number in 1 2; do
  holds "tiny in 1 GiB, run $number" run --memory 1g --memory-swap 1g -v "$records:/work/runs" "$image" \
    "${tiny[@]}" out="/work/runs/one/$number" log=json --metrics-file /work/runs/harness.prom
done
holds "the record belongs to uid 12345 and names its commit" python3 -c '
import json, os, sys
record, commit = json.load(open(sys.argv[1])), sys.argv[2]
# Without root the engine maps user numbers.
assert os.getuid() or os.stat(sys.argv[1]).st_uid == 12345, os.stat(sys.argv[1]).st_uid
assert record["status"] == "ok"
assert not commit or record["environment"]["git"] == {"commit": commit, "dirty": None}, record["environment"]["git"]
assert record["environment"]["container"] in ("podman", "docker"), record["environment"]["container"]
assert record["environment"]["memory_limit_bytes"] == 2**30, record["environment"]["memory_limit_bytes"]
' "$records/one/1/record.json" "$commit"
holds "doctor cpu" run --memory 1g "$image" doctor cpu --json
holds "doctor npu names what is missing, with 3" ends_with 3 run "$image" doctor npu
holds "compare" run -v "$records:/work/runs" "$image" compare /work/runs/one/1 /work/runs/one/2 --out /work/runs/report
holds "report written" [ -s "$records/report/report.html" ]
holds "a read-only folder ends with 2" ends_with 2 run "$image" "${tiny[@]}" out=/usr/no

# ---- CANN's environment, by a script that tests unset variables and returns the status of its last test
mkdir -p "$work/driver"
cat >"$work/set_env.sh" <<'S'
export ASCEND_HOME_PATH="/no where"
export LD_LIBRARY_PATH=/cann/lib64:$LD_LIBRARY_PATH
[ -n "$NOT_SET" ] && export NEVER=1
S
chmod -R a+rX "$work"
holds "set_env.sh and the driver's folder reach the run" run -v "$records:/work/runs" \
  -v "$work/set_env.sh:/usr/local/Ascend/cann/set_env.sh:ro" -v "$work/driver:/usr/local/Ascend/driver/lib64:ro" \
  "$image" "${tiny[@]}" out=/work/runs/cann
holds "... and are in its record" python3 -c '
import json, sys
path = json.load(open(sys.argv[1]))["environment"]["variables"]["LD_LIBRARY_PATH"]
assert path.startswith("/usr/local/Ascend/driver/lib64/driver:") and "/cann/lib64" in path, path
' "$records/cann/record.json"

# ---- SIGTERM
stopped=$(volume stopped)
"$engine" run -d --name harness-test "${hardened[@]}" -v "$stopped:/work/runs" "$image" \
  backend=cpu model=tiny workload.steps=1000000 workload.eval_every=0 out=/work/runs/stop >/dev/null 2>"$work/started"
wait_for "$stopped/stop/steps.jsonl"
holds "health of a run that makes progress" sh -c '"$0" exec harness-test python -m harness health | grep "^training: "' \
  "$engine"
seconds=$SECONDS
"$engine" stop -t 60 harness-test >/dev/null 2>&1
echo "figure  stopped after $((SECONDS - seconds)) s"
holds "stop: exit code 143" [ "$("$engine" inspect --format '{{.State.ExitCode}}' harness-test)" = 143 ]
holds "stop: an interrupted record" [ "$(status_of "$stopped/stop/record.json")" = interrupted ]
"$engine" rm -f harness-test >/dev/null 2>&1

# ---- out of memory
killed=$(volume killed)
"$engine" run -d --name harness-test "${hardened[@]}" --memory 1g --memory-swap 1g -v "$killed:/work/runs" "$image" \
  backend=cpu model=tiny workload.steps=1000000 workload.eval_every=0 out=/work/runs/big >/dev/null 2>"$work/started"
wait_for "$killed/big/steps.jsonl"
# Files in /tmp count towards the limit, and the kernel kills the largest process.
"$engine" exec harness-test dd if=/dev/zero of=/tmp/fill bs=1M count=2000 >/dev/null 2>&1
holds "out of memory: killed, 137" [ "$("$engine" wait harness-test)" = 137 ]
"$engine" rm -f harness-test >/dev/null 2>&1
holds "out of memory: finished intervals can be read" python3 -c '
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
assert rows and [row["step"] for row in rows] == list(range(1, len(rows) + 1)), rows[-1:]
print(len(rows), "steps")
' "$killed/big/steps.jsonl"

# ---- the command of the Kubernetes Job
job=$(volume job)
python3 - >"$work/args" <<'P'
import re
text = open("scripts/launch/kubernetes/job.yaml").read()
main = text[text.index("      containers:"):]
print("\n".join(re.findall(r"^            - (\S+)$", main, re.MULTILINE)))
P
mapfile -t args < <(grep -v '^name:' "$work/args")
holds "Kubernetes Job: ${args[*]}" run --memory 2g -v "$job:/work/runs" "$image" "${args[@]}"

echo "$checks checks, $failed failed"
[ "${KEEP:-}" = 1 ] || "$engine" rmi -f "$image" "${image%:1}:2" >/dev/null 2>&1
[ "$failed" = 0 ]
