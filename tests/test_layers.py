"""The architecture, held over the source: imports run downward, device words stay under backends/, settings explain
themselves, and everything in configs/ composes.

The rules are design rules, not style: a report is made on a laptop without torch, and a new accelerator is added
without touching the loop.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import config as config_module
from harness.commands.help import setting_meanings
from harness.composition import GROUPS, group_options, load
from harness.config import Config, iter_settings
from tests.conftest import PROJECT, with_settings_of_files

PACKAGE = PROJECT / "harness"
MODULES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Who may import whom: a module imports from its own part (harness/NAME.py or harness/NAME/) and from lower floors only.
FLOORS = {
    "harness": 0,
    "errors": 0,
    "file_formats": 0,
    "text": 0,
    "schemas": 0,
    "environment": 1,
    "regular_files": 1,
    "log": 1,
    "signals": 1,
    "streams": 1,
    "process_end": 1,
    "world": 1,
    "addresses": 2,
    "config": 2,
    "overrides": 2,
    "suggestions": 2,
    "huggingface": 3,
    "layout": 3,
    "schedule": 3,
    "suites": 3,
    "backends": 4,
    "records": 4,
    "validation": 4,
    "workload": 4,
    "analysis": 5,
    "composition": 5,
    "api": 6,
    "report": 6,
    "training": 6,
    "commands": 7,
    "__main__": 8,
}

# Packages that work where only the base dependencies without torch are importable.
WITHOUT_TORCH = ("harness.analysis", "harness.records", "harness.report")
# Of the backends, only the modules that run once the device is open.
WITH_TORCH = ("harness.workload", "harness.training", "harness.backends.eager", "harness.backends.kernels",
              "harness.backends.accumulation")  # fmt: skip
VENDORS = ("torch", "torch_npu", "torch_xla", "habana_frameworks", "poptorch", "intel_extension_for_pytorch", "pynvml")

FORBIDDEN = {
    "harness.analysis": ("torch", "harness.training", "harness.workload", "harness.backends"),
    "harness.records": ("torch", "harness.training", "harness.workload", "harness.backends"),
    "harness.report": ("torch", "harness.training", "harness.workload", "harness.backends"),
    "harness.workload": ("harness.training", "harness.backends"),
    "harness.backends": ("harness.training", "harness.workload", "harness.report", "harness.analysis"),
}

# Modules with the interface between devices and the rest.
SEAM = ("harness.backends.base", "harness.backends.failures", "harness.backends.sensors", "harness.backends.step")

# Imports that the floors forbid, with the reason why this one may stay.
ALLOWED_IMPORTS: set[tuple[str, str]] = {
    # For type checkers alone: the package offers the API, and imports it when it is used.
    ("harness", "harness.api"),
}

DEVICE_WORDS = {"cuda", "npu", "xpu", "hpu", "mps", "nccl", "hccl", "xccl"}
# Device words outside backends/, as (file, line of the constant that holds it), with the reason.
ALLOWED_WORDS = {
    # --help shows a user what to type.
    ("commands/help.py", "backend=cuda  precision=bf16|fp16|bf16_weights  seed=1  repeats=5  out=DIR  target_loss=1.5"),
}


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Yield every import of a module, those inside functions too; `from package import submodule` as both."""
    is_package = MODULES.get(module, Path()).name == "__init__.py"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                kept = parents[: len(parents) - node.level + 1]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            submodules = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES]
            # `from harness import backends` is an import of harness.backends, not of what is in harness.
            for name in submodules or [base]:
                yield Import(module, name, node.lineno)


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def floor(module: str) -> int:
    return FLOORS[part_of(module)]


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_violations(found: Import) -> list[str]:
    """Return what is wrong with one import, in words."""
    importer, imported = found.importer, found.imported
    record_problems = [
        f"{found}: {package} never does"
        for package, forbidden in FORBIDDEN.items()
        if is_in(importer, package) and any(is_in(imported, name) for name in forbidden)
    ]
    if (
        not is_in(imported, "harness")
        or part_of(importer) == part_of(imported)
        or (importer, imported) in ALLOWED_IMPORTS
    ):
        return record_problems
    if importer == "harness":
        record_problems.append(f"{found}: the package itself imports nothing")
    elif floor(imported) >= floor(importer):
        record_problems.append(f"{found}: imports run downward only")
    knows_a_backend = is_in(importer, "harness.training") and is_in(imported, "harness.backends")
    if knows_a_backend and imported not in SEAM:
        record_problems.append(f"{found}: of backends/, training knows the seam alone")
    return record_problems


ALL_IMPORTS = [found for module, path in MODULES.items() for found in imports_of(module, path.read_text())]


class TestImportsRunDownward:
    def test_no_import_runs_up_or_sideways(self) -> None:
        assert [words for found in ALL_IMPORTS for words in layer_violations(found)] == []

    def test_every_exception_is_needed(self) -> None:
        assert {(found.importer, found.imported) for found in ALL_IMPORTS} >= ALLOWED_IMPORTS

    @pytest.mark.parametrize(
        ("module", "source"),
        [
            ("harness.workload.model", "from harness.backends.base import Backend"),
            ("harness.workload.model", "from harness import backends"),
            ("harness.workload.model", "def f():\n    import harness.training.loop"),
            ("harness.workload.model", "from ..training import loop"),
            ("harness.backends.cpu", "from harness.workload.philox import words"),
            ("harness.backends.base", "from harness.report.summary import print_summary"),
            ("harness.training.loop", "from harness.backends.cpu import CpuBackend"),
            ("harness.training.loop", "from harness.commands.child_process import hydra_quote"),
            ("harness.training.loop", "from harness.report import summary"),
            ("harness.report.summary", "import torch.nn"),
            ("harness.report.summary", "def f():\n    from torch import nn"),
            ("harness.analysis.verdict", "from harness.workload.digest import init_digest"),
            ("harness.environment", "from harness.config import Config"),
            ("harness.analysis.gates", "from harness.report import format"),
            ("harness.errors", "from harness.config import Config"),
            ("harness.records.record", "from harness.backends import base"),
        ],
    )
    def test_the_rule_catches(self, module: str, source: str) -> None:
        assert [words for found in imports_of(module, source) for words in layer_violations(found)]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others."""

    def reached(start: str) -> set[str]:
        found, left = set(), [start]
        while left:
            for name in graph[left.pop()] - found:
                found.add(name)
                left.append(name)
        return found

    reach = {name: reached(name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


class TestNoCircles:
    def test_no_two_modules_import_each_other(self) -> None:
        """Imports for types alone count too: two modules that cannot be read one after the other are one module."""
        graph: dict[str, set[str]] = {name: set() for name in MODULES}
        for found in ALL_IMPORTS:
            if found.imported in MODULES and found.imported != found.importer:
                graph[found.importer].add(found.imported)
        assert circles(graph) == []

    def test_the_rule_catches(self) -> None:
        assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_nothing_at_the_door_imports_torch_or_a_vendor_package() -> None:
    """The entry point answers --help, bad settings and doctor without torch; so do reports, on a laptop without it."""
    names = [name for name in MODULES if not name.startswith(WITH_TORCH) and name != "harness.__main__"]
    assert {
        "harness.commands.train",
        "harness.commands.doctor",
        "harness.backends.base",
        "harness.report.summary",
    } <= set(names)
    script = (
        "import importlib, json, sys\n"
        "culprits = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "    for vendor in json.loads(sys.argv[2]):\n"
        "        if vendor in sys.modules: culprits.setdefault(vendor, name)\n"
        "print(json.dumps(culprits))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(["harness.__main__", *names]), json.dumps(VENDORS)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}, "package: the module whose import brought it in"


def words_of(text: str) -> set[str]:
    """Split a name or a text into words: TORCH_NPU, NpuBackend and npu:0 hold npu; input does not."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)}


def code_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every name, attribute and string constant; docstrings and comments are no code."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, (str, bytes)) and id(node) not in docstrings:
                text = node.value.decode(errors="replace") if isinstance(node.value, bytes) else node.value
                for part in text.splitlines():
                    yield line, part.strip()
            continue
        # Every identifier of the grammar: names, attributes, arguments, keywords, definitions, imported modules.
        for field in ("id", "attr", "arg", "name", "asname", "module", "rest"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield line, value
        for name in getattr(node, "names", []):
            if isinstance(name, str):
                yield line, name


class TestDeviceWords:
    def test_occur_only_under_backends(self) -> None:
        found, allowed = [], set()
        for path in sorted(PACKAGE.rglob("*.py")):
            name = path.relative_to(PACKAGE).as_posix()
            if name.startswith("backends/"):
                continue
            for line, text in code_texts(path.read_text()):
                if not words_of(text) & DEVICE_WORDS:
                    continue
                if (name, text) in ALLOWED_WORDS:
                    allowed.add((name, text))
                else:
                    found.append(f"harness/{name}:{line}: {text}")
        assert found == []
        assert allowed == ALLOWED_WORDS, "an exception that is no longer needed"

    @pytest.mark.parametrize(
        "source",
        [
            "device = 'cuda:0'",
            "x.cuda()",
            "import torch.npu",
            "from torch import npu as device",
            "from harness.backends.npu import Thing",
            "class NpuThing: pass",
            "def f(is_cuda): pass",
            "f(cuda=True)",
            "y = f'{x}-NCCL'",
            "TORCH_NPU_X = 1",
            "z = {'backend': 'hccl'}",
            "match x:\n    case {'a': 1, **cuda}: pass",
            "def f():\n    global npu",
        ],
    )
    def test_the_rule_catches(self, source: str) -> None:
        assert any(words_of(text) & DEVICE_WORDS for _, text in code_texts(source))

    @pytest.mark.parametrize(
        "source",
        [
            "input = 1",
            "'''cuda'''",
            "x = 1  # npu",
            "def f():\n    '''On npu.'''",
            "class A:\n    x: int\n    '''cuda'''",
        ],
    )
    def test_the_rule_lets_pass(self, source: str) -> None:
        assert not any(words_of(text) & DEVICE_WORDS for _, text in code_texts(source))


class TestSettings:
    def test_every_field_has_a_docstring_below_it(self) -> None:
        meanings = setting_meanings()
        leaves = [key for key, _, _ in iter_settings(Config)]
        bare = {key for key in leaves if not meanings.get(key, "").strip()}
        assert bare == set(), "no docstring below"
        assert set(meanings) == set(leaves)

    def test_every_config_class_is_reached(self) -> None:
        """A dataclass that hangs on nothing would escape the rule above."""
        tree = ast.parse(Path(config_module.__file__).read_text())
        classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        annotations = {
            ast.unparse(item.annotation)
            for node in tree.body
            if isinstance(node, ast.ClassDef)
            for item in node.body
            if isinstance(item, ast.AnnAssign)
        }
        assert classes - {"Config"} <= annotations


OPTIONS = [
    f"{path.parent.name}={path.stem}"
    for path in sorted((PROJECT / "configs").glob("*/*.yaml"))
    if path.parent.name in GROUPS
]


class TestConfigs:
    @pytest.mark.parametrize("word", OPTIONS)
    def test_every_option_composes(self, word: str) -> None:
        group, option = word.split("=")
        # A workload may need a longer context than the default model has.
        companions = ["model.max_position_embeddings=1000000"] if group == "workload" else []
        config = load(with_settings_of_files([word, *companions]))
        chosen = getattr(config, group)
        assert option == (chosen if group == "experiment" else chosen.name)

    def test_every_file_is_offered(self) -> None:
        offered = {f"{group}={option}" for group, options in group_options().items() for option in options}
        assert set(OPTIONS) <= offered
        assert {word.split("=")[0] for word in OPTIONS} == set(GROUPS), "a group without a single file"
