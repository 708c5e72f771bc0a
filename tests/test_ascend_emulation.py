"""Detection of the emulator by its library: the loaded one, or else the first on the loader's path."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.backends.ascend import emulation
from harness.backends.ascend.emulation import LIBRARY, MARK, is_emulated


@pytest.fixture(autouse=True)
def _nothing_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)


def library(folder: Path, *, emulated: bool) -> Path:
    folder.mkdir()
    (folder / LIBRARY).write_bytes(b"\x7fELF" + (MARK.encode() if emulated else b"aclInit"))
    return folder


def test_no_library_at_all() -> None:
    assert is_emulated() is False


@pytest.mark.parametrize("emulated", [True, False])
def test_the_first_on_the_path_decides(emulated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = library(tmp_path / "first", emulated=emulated)
    second = library(tmp_path / "second", emulated=not emulated)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{first}:{second}")
    assert is_emulated() is emulated


@pytest.mark.parametrize("emulated", [True, False])
def test_the_loaded_one_outranks_the_path(emulated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of the environment or the file after the start do not affect the loaded library."""
    loaded = SimpleNamespace(**({MARK: 1} if emulated else {}))
    monkeypatch.setattr(emulation, "_loaded_library", lambda: loaded)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library(tmp_path / "path", emulated=not emulated)))
    assert is_emulated() is emulated


def test_a_library_that_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = library(tmp_path / "path", emulated=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))

    def unreadable(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    assert is_emulated() is False
