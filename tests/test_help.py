"""Help and mistakes on the command line: every verb's --help comes from its parser, every mistake is one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.commands import VERBS
from harness.commands.arguments import HELP_WIDTH
from tests.conftest import PROJECT

# Options in the text of a help that are no options of its parser.
TORCHRUN_OPTIONS = {"--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--node-rank",
                    "--max-restarts", "--option"}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_comes_from_its_parser(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text == import_module(f"harness.commands.{verb}").build_parser().format_help()
    assert text.startswith(f"usage: python -m harness {verb} ")
    assert "exit codes: " in text
    assert max(map(len, text.splitlines())) <= HELP_WIDTH
    # Usage, description and notes name no option that the parser lacks.
    options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= options | TORCHRUN_OPTIONS


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str) -> None:
    parser = import_module(f"harness.commands.{verb}").build_parser()
    assert [action.dest for action in parser._actions if not action.help] == []


def test_the_runs_help_is_one_screen_and_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= HELP_WIDTH
    for verb, summary in VERBS.items():
        assert f"  {verb:10} {summary}" in lines


def test_no_help_imports_torch() -> None:
    code = (
        "import sys\n"
        "from harness.__main__ import main\n"
        "for verb in sys.argv[1:]: assert main([verb, '--help']) == 0\n"
        "assert main(['--help']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *VERBS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["doctor", "--jsn"], "doctor: unrecognized arguments: --jsn; did you mean --json?; python -m harness doctor "),
        (["helth"], "did you mean health?"),
        (["--setings"], "did you mean --settings?"),
        (["--lr", "3e-4"], "-h, -m; a setting is written key=value, without dashes"),
        (["-b", "8"], "-b: no such option"),
        (["workload.learning_rate", "3e-4"], "found no equals sign after workload.learning_rate, expected"),
        (["model", "=", "tiny"], "found no equals sign after model, expected model=VALUE without spaces"),
        (["model:tiny"], "found no equals sign after model, expected model=VALUE without spaces"),
        (["model = tiny"], "cannot read 'model = tiny': found a space before the equals sign"),
        (["seed=1", "workload.steps", "5"], "(1) cannot read 'workload.steps': found no equals sign; expected key=val"),
        (["train", "model=tiny"], "'train': no such command: to train, give the settings alone, as key=value"),
        (["help"], "'help': no such command, expected one of: audit"),
        (["version"], "did you mean --version?"),
        (["out='a"], "found a quote that is not closed"),
        (["workload.learning_rate=0,0003"], "a number has no comma: 0.001, 1000"),
        (["workload.steps=1,000"], "a number has no comma: 0.001, 1000"),
        (["workload.steps=1k"], "workload.steps: found '1k', expected a whole number"),
        (["parallel.timeout_seconds=10m"], "parallel.timeout_seconds: found '10m', expected a number"),
        (["model.hidden_size=[128]"], "model.hidden_size: found '[128]', expected a whole number"),
        (["backend=cuda:0"], "backend: found 'cuda:0', expected one of: cpu, cuda"),
        (["precision=16"], "precision: found '16', expected one of: fp32, bf16, fp16"),
        (["--seed=5"], "--seed=5: no such option, but a setting; write it without dashes: seed=5"),
        (["--workload.steps", "5"], "write it without dashes: workload.steps=VALUE"),
        (["--local-rank=0"], "torch.distributed.launch passes it; launch with python -m harness torchrun"),
        (["--cfg\r"], r"'--cfg\r': ends with a carriage return, so the script that runs this command has Windows line"),
        (["compare", "a\r"], r"sed -i 's/\r$//' SCRIPT"),
        (["backend={name: cpu}"], "backend: found {'name': 'cpu'}, expected one of: cpu, cuda"),
        (["backend=[cpu]"], "backend: found ['cpu'], expected one of: cpu, cuda"),
        (["backend=null"], "backend: found null, expected one of: cpu, cuda"),
        (["data.path=Größe"], "cannot read 'data.path=Größe': found 'ö', which is not ASCII, outside quotes"),
        (["model.num_hidden_layers=" + "[" * 2000 + "]" * 2000], "cannot read 'model.num_hidden_layers=[[["),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_remedy(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, error = capsys.readouterr()
    [line] = error.splitlines()
    assert out == ""
    assert line.startswith("error: ")
    assert message in line
    assert len(line) < 500


def test_letters_beyond_ascii_are_read_in_quotes() -> None:
    from harness.composition import load

    assert load(["out='Größe'"]).out == "Größe"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", [["--help"], ["health"]])
def test_an_output_that_cannot_be_written_is_one_line(argv: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "harness", *argv], stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            cwd=PROJECT, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.returncode == 5
    [line] = done.stderr.splitlines()
    assert line.startswith("error: standard output: cannot be written: No space left on device; free some space")


@pytest.mark.parametrize("argv", [["workload.steps=3"], ["--cfg"], ["-m", "seed=1,2"], ["peak"], ["doctor", "cpu"],
                                   ["torchrun", "--nproc-per-node=2", "parallel=ddp"]])  # fmt: skip
def test_a_deleted_working_directory_is_named(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(argv) == 2
    assert capsys.readouterr().err == (
        "error: the working directory does not exist any more; cd to an existing folder\n"
    )
