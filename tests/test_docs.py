"""Documentation: links, commands, settings, options, fields and file names in Markdown exist."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.cautions import CHECKS, MOVES_TIMES
from harness.analysis.parity import TESTS
from harness.commands import VERBS
from harness.composition import GROUPS, group_options, load
from harness.config import Config, iter_settings
from harness.errors import ConfigError, ExitCode
from harness.layout import layout_of
from harness.validation import check_layout
from tests.conftest import PROJECT, with_settings_of_files

TOP_FOLDERS = ("harness", "configs", "scripts", "tests", ".github", ".ci")
PAGES = [
    PROJECT / "README.md",
    PROJECT / "CHANGELOG.md",
    # Golden files are pages of reports, whose pictures are not kept.
    *sorted(page for folder in TOP_FOLDERS for page in (PROJECT / folder).rglob("*.md") if "golden" not in page.parts),
]
MAX_README_LINES = 160
SETTINGS = {key for key, _, _ in iter_settings(Config)}
SECTIONS = {key.split(".")[0] for key in SETTINGS if "." in key}
RECORD_SCHEMA = json.loads((PROJECT / "harness" / "schemas" / "record.schema.json").read_text())
GROUP_OPTIONS = group_options()
TRAIN_OPTIONS = {"--cfg", "--settings", "-m", "--multirun", "--version", "-h", "--help", "--metrics-file"}
# Backends that a page describes and nobody has: examples of how to add one.
EXAMPLE_BACKENDS = ("mychip",)
# `key=value` that is not a setting of the harness.
OTHER_KEYS = ("key",)
# Files of the example of a backend, of runs and of Ascend hosts.
OTHER_FILES = {"backend.py", "__init__.py", "set_env.sh", "report.md", "summary.md"}
FILE_NAMES = {path.name for folder in TOP_FOLDERS for path in (PROJECT / folder).rglob("*")} | {
    path.name for path in PROJECT.iterdir()
}
TEST_CODE = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "tests").rglob("test_*.py"))
FILE_ENDINGS = ("py", "json", "jsonl", "yaml", "md", "sh", "cpp", "h")


def slug(heading: str) -> str:
    """Return GitHub's anchor of a heading."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@dataclass(frozen=True)
class Page:
    """A Markdown file, taken apart."""

    links: tuple[str, ...]
    anchors: frozenset[str]
    spans: tuple[str, ...]
    """Inline code, on one line each."""
    block_lines: tuple[str, ...]
    """Lines of indented or fenced code, with backslash continuations joined."""


def parse(text: str) -> Page:
    text = text.replace("\r\n", "\n")
    prose, block, fenced, previous_blank = [], [], False, True
    for line in text.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or (line.startswith("    ") and (previous_blank or (block and block[-1] is not None))):
            block.append(line.strip())
            continue
        else:
            prose.append(line)
        previous_blank = not line.strip()
        if not previous_blank:
            block.append(None)
    joined = "\n".join(line for line in block if line is not None)
    block_lines = re.sub(r"\\\n\s*", " ", joined).split("\n")
    body = "\n".join(prose)
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", body)]
    without_code = re.sub(r"(?<!`)`[^`]+`(?!`)", "code", body)
    return Page(
        tuple(re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", without_code)),
        frozenset(slug(found) for found in re.findall(r"^#+ (.*)$", body, re.MULTILINE)),
        tuple(spans),
        tuple(line for line in block_lines if line),
    )


PARSED = {page: parse(page.read_text(encoding="utf-8")) for page in PAGES}


def problems_of_link(page: Path, target: str) -> Iterator[str]:
    if re.match(r"[a-z]+:", target):
        return
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.exists():
        yield f"link to {target}: no such file"
    elif anchor and path.suffix == ".md" and anchor not in parse(path.read_text(encoding="utf-8")).anchors:
        yield f"link to {target}: no such heading"


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words after every `python -m harness` in a code span or line."""
    for found in re.finditer(r"(?:python|python3) -m harness\b(.*?)(?=(?:python|python3) -m harness|$)", text):
        rest = re.split(r"\s#\s|\s&&|;\s|\s>\s", found[1] + " ")[0]
        try:
            yield shlex.split(rest)
        except ValueError:
            yield rest.split()


def problems_of_command(argv: list[str]) -> Iterator[str]:
    """Yield what is wrong with the words after `python -m harness`."""
    plain = [word for word in argv if word not in ("...", ">", "|")]
    verb = plain[0] if plain and re.fullmatch(r"[a-z]+", plain[0]) else "train"
    if verb != "train" and verb not in VERBS:
        yield f"python -m harness {verb}: no such command"
        return
    settings = (
        [word for word in plain if re.match(r"~?[a-z_.]+=", word)] if verb in ("train", "torchrun", "peak") else []
    )
    for word in plain:
        option = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][a-z-]*", option) and option not in options_of(verb):
            yield f"python -m harness {verb}: no option {option}"
    for index, word in enumerate(plain[:-1]):
        if verb == "compare" and word == "--run":
            yield from problems_of_settings(plain[index + 1].split())
    yield from problems_of_settings(settings)
    if verb == "torchrun" and settings:
        yield from problems_of_layout(argv, settings)


def problems_of_layout(argv: list[str], settings: list[str]) -> Iterator[str]:
    """Yield why torchrun's processes, if their number is given, cannot share the work of a run, or of `peak`."""
    numbers = dict(re.findall(r"--(nnodes|nproc-per-node)=(\d+)", " ".join(argv)))
    if "nproc-per-node" not in numbers or "peak" in argv:
        return
    processes = int(numbers.get("nnodes", 1)) * int(numbers["nproc-per-node"])
    with contextlib.suppress(ConfigError):
        config = load([word for word in settings if not is_placeholder(word.partition("=")[2])])
        try:
            check_layout(config, layout_of(config.parallel, processes))
        except ConfigError as error:
            yield f"{' '.join(argv)}: {error}"


@functools.cache
def options_of(verb: str) -> set[str]:
    if verb == "train":
        return TRAIN_OPTIONS
    if verb == "torchrun":
        from torch.distributed.run import get_args_parser

        return set(get_args_parser()._option_string_actions)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        importlib.import_module(f"harness.commands.{verb}").main(["--help"])
    return {"--help", "-h", *re.findall(r"--[a-z][a-z-]*", shown.getvalue())}


def problems_of_settings(argv: list[str]) -> Iterator[str]:
    """Yield what Hydra and the limits say to the settings of a run."""
    argv = [word for word in argv if word.startswith("data.path=") or not is_placeholder(word.partition("=")[2])]
    if any(f"backend={name}" in argv for name in EXAMPLE_BACKENDS):
        argv = [word for word in argv if not word.startswith("backend=")]
    # Of a sweep, the first.
    error = error_of_settings(tuple(with_settings_of_files([word.partition(",")[0] for word in argv])))
    if error:
        yield f"{' '.join(argv)}: {error}"


@functools.cache
def error_of_settings(argv: tuple[str, ...]) -> str | None:
    try:
        load(list(argv))
    except ConfigError as error:
        return str(error)
    return None


def is_placeholder(value: str) -> bool:
    """Return whether a value stands for any (N, DIR, ...), lists several, or is empty."""
    return re.fullmatch(r'[A-Z.$"]*|.*[|{].*', value) is not None


def problems_of_span(page: Path, span: str) -> Iterator[str]:
    """Yield what is wrong with the settings, record fields, files and tests that inline code names."""
    for key, value in re.findall(r"(?<![\w./$=-])([a-z][a-z_.]*)=([^\s,]*)", span) if "--" not in span else []:
        # Layouts, as the scripts take them, are settings of `parallel`.
        if f"parallel.{key}" in SETTINGS and (key not in GROUPS or value.isdecimal()):
            continue
        if key not in (*GROUPS, *SETTINGS, *OTHER_KEYS):
            yield f"`{span}`: no setting {key}"
        elif key in GROUPS and not is_placeholder(value) and value not in (*GROUP_OPTIONS[key], *EXAMPLE_BACKENDS):
            yield f"`{span}`: no {key} {value}"
    for word in span.split():
        first, _, rest = word.partition(".")
        is_key = re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", word) and rest not in FILE_ENDINGS
        if (
            is_key
            and first in (*SECTIONS, *RECORD_SCHEMA["properties"])
            and word not in SETTINGS
            and not in_record(word)
        ):
            yield f"`{span}`: {word} is neither a setting nor a field in record.schema.json"
        yield from problems_of_file(page, word.strip(",;:()"))
    for name in re.findall(r"\btest_\w+\b(?!\.)", span):
        if f"def {name}(" not in TEST_CODE:
            yield f"`{span}`: no test {name}"


def in_record(dotted: str) -> bool:
    """Return whether the record's schema has a field, in objects, lists and alternatives of them."""
    nodes: list[Any] = [RECORD_SCHEMA]
    for key in dotted.split("."):
        for node in nodes:
            nodes += [node["items"]] if "items" in node else node.get("anyOf", [])
        nodes = [node["properties"][key] for node in nodes if key in node.get("properties", {})]
    return bool(nodes)


def problems_of_file(page: Path, word: str) -> Iterator[str]:
    """Yield a problem if a word looks like a file of this repository and is none."""
    if re.search(r"[<>$*?{}\"'=]|\.\.\.", word):
        return
    in_repository = word.startswith((*(f"{folder}/" for folder in TOP_FOLDERS), "./scripts/"))
    beside_page = re.fullmatch(r"[\w-]+(/[\w.-]+)+", word) and (page.parent / Path(word).parts[0]).is_dir()
    bare = re.fullmatch(r"[\w-]+\.(py|sh|md|toml|cpp|h)", word) and word not in OTHER_FILES
    if (
        (in_repository and not (PROJECT / word).exists())
        or (beside_page and not ((page.parent / word).exists() or (PROJECT / word).exists()))
        or (bare and word not in FILE_NAMES)
    ):
        yield f"`{word}`: no such file"


def problems_of_line(page: Path, line: str) -> Iterator[str]:
    """Yield what is wrong with a line of code: commands of the harness, and scripts with their options."""
    for argv in commands(line):
        yield from problems_of_command(argv)
    for script, rest in re.findall(r"(?:^|\s)(?:\./)?(scripts/[\w/]+\.(?:py|sh))(.*)", line.partition(" # ")[0]):
        path = PROJECT / script
        if not path.exists():
            yield f"{script}: no such file"
        elif path.suffix == ".py":
            source = path.read_text(encoding="utf-8")
            for option in re.findall(r"\s(--[a-z][a-z-]*)", rest):
                if f'"{option}"' not in source:
                    yield f"{script}: no option {option}"


def problems_of_page(page: Path, parsed: Page) -> list[str]:
    found = []
    for link in parsed.links:
        found += problems_of_link(page, link)
    for span in parsed.spans:
        found += problems_of_span(page, span)
        found += problems_of_line(page, span)
    for line in parsed.block_lines:
        found += problems_of_line(page, line)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_what_a_page_names_exists(page: Path) -> None:
    assert problems_of_page(page, PARSED[page]) == []


@pytest.mark.parametrize(
    "text",
    [
        "[x](no-such-file.md)",
        "[x](harness/docs/glossary.md#no-such-heading)",
        "[x](#nothing)",
        "`model.width`",
        "`workload.warmup_steps=3`",
        "`backend=tpu`",
        "`widht=3`",
        "`timing.blocks`",
        "`harness/analysis/README.md`",
        "`no_such_file.py`",
        "`test_no_such_test`",
        "`python -m harness comprae a b`",
        "`python scripts/bench_data.py --no-such-option`",
        "`scripts/no_such_script.sh`",
        "\n    python -m harness compare a b --expct faster\n",
        "\n    python -m harness model=small workload.seq_len=0\n",
        "\n    python -m harness model=small \\\n      precision=fp8\n",
        "\n    python -m harness compare --run 'experiment=smoke model.width=3' --run 'experiment=smoke'\n",
        "\n    python -m harness torchrun --nproc-per-nod=2 parallel=ddp\n",
        "\n    python -m harness torchrun --nproc-per-node=8 parallel=ddp\n",
        "\n    python -m harness torchrun --nnodes=2 --nproc-per-node=3 parallel=mesh parallel.tensor=4\n",
        "```\npython -m harness dcotor\n```",
    ],
)
def test_a_mistake_is_found(text: str) -> None:
    assert problems_of_page(PROJECT / "README.md", parse(text)) != []


@pytest.mark.parametrize(
    "text",
    [
        "[x](harness/docs/glossary.md)",
        "[x](https://hydra.cc)",
        "`model.hidden_size=64`",
        "`losses.train`",
        "`out=DIR`",
        "`CANN_EMULATOR_FAIL=name=code,...`",
        "\n    python -m harness -m seed=1,2 out=DIR\n",
        "\n    docker build --secret id=pip.conf,src=pip.conf .\n",
    ],
)
def test_what_is_right_passes(text: str) -> None:
    assert problems_of_page(PROJECT / "README.md", parse(text)) == []


def test_the_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_the_file_map_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts" / "file_map.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_exit_code_is_documented() -> None:
    text = (PROJECT / "harness" / "docs" / "how-a-run-works.md").read_text(encoding="utf-8")
    table = text.split("## Exit codes")[1]
    documented = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in row.split(", ")}
    assert documented == set(map(int, ExitCode))


def test_the_table_of_tests_and_that_of_cautions_are_complete() -> None:
    text = (PROJECT / "harness" / "docs" / "comparing.md").read_text()
    for test in TESTS:
        assert f"| `{test.key}` | {test.measures} | {test.detects} | {test.multiple:g} |" in text, test.key
    section = text[text.index("## Cautions") :].split("## ")[1]
    named = [*dict(CHECKS), "different harness", "timed differently", "saved differently", "wider limits"]
    assert [name for name in named if f"*{name}*" not in section] == []
    # Those that move times come first.
    moving = section[: section.index("*straggler*")]
    assert set(re.findall(r"\*([a-z ]+)\*", moving)) == MOVES_TIMES


def test_nothing_says_to_install_from_an_index_what_is_on_none() -> None:
    """The harness is installed from a clone: pip install -e ."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert "README.md" in listed
    found = [
        name
        for name in listed.splitlines()
        if (PROJECT / name).is_file()
        and re.search(rb"pip3? install[^\n`]*[ \"']training-harness(?!-)", (PROJECT / name).read_bytes())
    ]
    assert found == []


def test_every_page_is_in_the_readmes_index() -> None:
    links = PARSED[PROJECT / "README.md"].links
    pages = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "harness" / "docs").glob("*.md")}
    assert pages <= set(links)
