"""Shared helpers. Tests need no network, no accelerator and no earlier test."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness import log
from harness.backends.ascend.host import on_loader_path

# As harness/__main__.py does, before any test imports torch: an installed plug-in must not break these tests.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
# A caller may ignore them, as nohup does, and then every run of a test would too.
for number in (signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_DFL)
if not on_loader_path("libascendcl.so"):
    # Libraries that look for the plug-in themselves (transformers does) would import it, and fail for want of CANN.
    sys.modules.setdefault("torch_npu", None)  # type: ignore[arg-type]

PROJECT = Path(__file__).resolve().parent.parent

# What some options need from files, by the option.
_OF_FILES = {
    "data=text": {"data.path": "some/folder"},
    "data=tokens": {"data.path": "some/folder"},
    "model=hf": {"model.path": str(PROJECT / "tests" / "hf")},
    "experiment=finetune": {"data.path": "some/folder", "model.path": str(PROJECT / "tests" / "hf")},
}


def with_settings_of_files(settings: list[str]) -> list[str]:
    """Return settings with the paths that some of them need; a config.json that exists is put in place of another."""
    given = {word.partition("=")[0]: word for word in settings}
    for option, needed in _OF_FILES.items():
        for key, value in needed.items() if option in settings else ():
            given[key] = given[key] if key == "data.path" and key in given else f"{key}={value}"
    return list(given.values())


# Tests in these folders make whole runs: they count as slow, except those of QUICK_FILES.
RUNNING_FOLDERS = ("integration", "emulated")
QUICK_FILES = ("test_run.py", "test_bad_inputs.py")

Harness = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in RUNNING_FOLDERS and item.path.name not in QUICK_FILES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """Return a function that runs `python -m harness ARGV...` in a scratch folder.

    The process is a fork of one that has imported torch, which saves seconds. With fresh=True, or options of its own
    (cwd, preexec_fn, ...), it is a fresh interpreter.
    """
    from tests.ranks import shared_zygote
    from tests.zygote import last_values

    def run(*argv: str, timeout: float = 120, fresh: bool = False, env: Mapping[str, str] | None = None,
            **options: Any) -> subprocess.CompletedProcess[str]:  # fmt: skip
        variables = {**os.environ, **(env or {})}
        if fresh or options:
            return subprocess.run(
                [sys.executable, "-m", "harness", *last_values(argv)],
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env=variables,
                **{"cwd": tmp_path, **options},
            )
        process = shared_zygote().start(["harness", *argv], tmp_path, variables)
        out, errors = process.communicate(timeout)
        assert process.returncode is not None
        return subprocess.CompletedProcess(argv, process.returncode, out, errors)

    return run


@pytest.fixture(scope="session")
def layout_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of runs that tests of layouts share (tests/layouts.py)."""
    return tmp_path_factory.mktemp("layouts")


def load_script(name: str) -> ModuleType:
    """Return scripts/NAME as a module."""
    path = PROJECT / "scripts" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[path.stem] = module
    with pytest.MonkeyPatch.context() as patch:
        # As Python does for a script, for its imports from beside it.
        patch.syspath_prepend(path.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Leave torch's thread count as it was, whatever a test does to it."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else None
    yield
    if before is not None and torch is not None:
        torch.set_num_threads(before)


@pytest.fixture
def own_log() -> Iterator[None]:
    """For tests that choose JSON lines: what the whole process then does is put back."""
    root = logging.getLogger()
    handlers, level, show = root.handlers[:], root.level, warnings.showwarning
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook)
    yield
    logging.captureWarnings(False)
    root.handlers, warnings.showwarning = handlers, show
    root.setLevel(level)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    log.set_up([], {})


GOLDEN = PROJECT / "tests" / "golden"


def assert_golden(name: str, text: str) -> None:
    """Compare text with tests/golden/NAME. UPDATE_GOLDEN=1 writes the file instead: read the diff before you commit."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
