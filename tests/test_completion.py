"""Completion of the command line, in the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.commands import VERBS
from harness.errors import ExitCode
from harness.report.completion import SHELLS
from tests.conftest import PROJECT

BASH = """
source "$0"
COMP_LINE=$1 COMP_POINT=$2
read -ra COMP_WORDS <<< "$1"
COMPREPLY=()
if [[ $1 == python* ]]; then _python_m_harness; else _harness; fi
printf '%s\\n' "${COMPREPLY[@]}"
"""
# Its completion functions run only while a line is edited: what they call there is replaced.
ZSH = """
compdef() { :; }
compset() { :; }
_files() { print FILES; }
_python() { print FILES; }
compadd() {
    while [[ $1 != -- ]]; do shift; done
    shift
    local -a found=(${(M)@:#${words[CURRENT]}*})
    (( $#found )) && print -l -- $found
}
source "$0"
words=(${=1})
[[ $1 == *' ' ]] && words+=('')
CURRENT=$#words
if [[ $1 == python* ]]; then _python_m_harness; else _harness; fi
"""
FISH = "source $argv[1]; complete -C $argv[2]"

CASES = [
    ("harness hist", {"history"}),
    ("python -m harness hist", {"history"}),
    ("harness compare --form", {"--format"}),
    ("harness compare a b --format ", {"table", "json"}),
    ("harness compare a b --expect ", {"equivalent", "faster", "not-slower", "supported"}),
    ("harness backend=cu", {"backend=cuda"}),
    ("harness workload.ste", {"workload.steps="}),
    ("harness fingerprint=f", {"fingerprint=false"}),
    ("harness precision=bf16_", {"precision=bf16_weights"}),
    ("harness suite sm", {"smoke"}),
    ("harness suite smoke backend=np", {"backend=npu"}),
    ("harness completion z", {"zsh"}),
    ("python -m harness torchrun profile=t", {"profile=true"}),
]


def complete(shell: str, script: Path, line: str) -> set[str]:
    """Return what a shell offers at the end of a line, as whole words."""
    if shell == "bash":
        command = ["bash", "-c", BASH, str(script), line, str(len(line))]
    else:
        command = [*(["zsh", "-fc", ZSH] if shell == "zsh" else ["fish", "-Nc", FISH]), str(script), line]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    found = {word.split("\t")[0] for word in done.stdout.splitlines() if word}
    # bash is given only what follows the last `=`.
    before = line.rsplit(maxsplit=1)[-1].rpartition("=") if shell == "bash" and not line.endswith(" ") else ("", "", "")
    return {f"{before[0]}{before[1]}{word}" for word in found}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture
def script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == ExitCode.OK
    (tmp_path / "script").write_text(capsys.readouterr().out)
    return tmp_path / "script"


def test_words(shell: str, script: Path) -> None:
    for line, expected in CASES:
        assert complete(shell, script, line) == expected, line
    assert set(VERBS) <= complete(shell, script, "harness ")


def test_paths(shell: str, script: Path) -> None:
    for line in ("harness compare CHANGE", "harness data.path=CHANGE"):
        [found] = complete(shell, script, line)
        assert found == "FILES" or found.endswith("CHANGELOG.md"), line


def test_other_programs_of_python_are_left_alone(shell: str, script: Path) -> None:
    found = complete(shell, script, "python CHANGE")
    # bash then has its own default.
    assert found in ({"CHANGELOG.md"}, {"FILES"}, set())


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == ExitCode.USAGE
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
