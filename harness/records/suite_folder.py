"""A suite's folder: WORKLOAD/REPEAT/record.json, and suite.json with the plan and what could not run. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, RecordError
from harness.records.files import has_valid_seal, seal, to_json_text, unreadable, write_atomically
from harness.regular_files import load_json
from harness.suites import Suite, suite_of

SUITE_FILE = "suite.json"
SCHEMA_VERSION = 1
REFUSED, UNAVAILABLE, OUT_OF_MEMORY, FAILED = "refused", "unavailable", "out of memory", "failed"
STATUSES = (REFUSED, UNAVAILABLE, OUT_OF_MEMORY, FAILED)


@dataclass(frozen=True)
class NotRun:
    """Reason for which a workload of a suite has no result."""

    status: str
    """One of STATUSES."""
    reason: str


@dataclass
class SuiteFolder:
    """The plan of a suite's runs, and their outcome."""

    path: Path
    suite: Suite
    settings: tuple[str, ...]
    """Of the user, for every workload."""
    repeats: int
    order: tuple[int, ...]
    """Number of the workload of each run; each number is there `repeats` times."""
    launcher: tuple[str, ...] = ()
    """Command that starts the processes of a run; empty for one process."""
    not_run: dict[str, NotRun] = field(default_factory=dict)
    """By the workload's name."""
    complete: bool = False
    """True when every workload has all its runs, or cannot run."""

    def runs(self) -> list[tuple[str, int]]:
        """Return name of workload and number of repeat of each run, in the order of the plan."""
        done = [0] * len(self.suite.workloads)
        found = []
        for number in self.order:
            done[number] += 1
            found.append((self.suite.workloads[number].name, done[number]))
        return found

    def save(self) -> None:
        """Write suite.json.

        Raises:
            RunFailed: the disk is full or not writable.
        """
        content = {
            "schema_version": SCHEMA_VERSION,
            "kind": "suite",
            "suite": self.suite.to_dict(),
            "settings": list(self.settings),
            "repeats": self.repeats,
            "launcher": list(self.launcher),
            "order": list(self.order),
            "complete": self.complete,
            "not_run": {name: asdict(found) for name, found in self.not_run.items()},
        }
        write_atomically(self.path / SUITE_FILE, to_json_text(seal(content)) + "\n")


def is_suite_folder(path: Path) -> bool:
    """Return whether a path is the folder of a suite."""
    try:
        return (path / SUITE_FILE).is_file()
    except OSError as error:
        raise unreadable(path, error) from error


def read_suite_folder(path: Path) -> SuiteFolder:
    """Return the plan and the outcome in a suite's folder.

    Raises:
        RecordError: suite.json is missing, damaged, edited, or of another version.
    """
    file = path / SUITE_FILE
    try:
        return _folder(path, load_json(file))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecordError(
            f"{file}: cannot be read as a suite: {reason}; run the suite again, or copy it again"
        ) from error


def begin_or_resume(wanted: SuiteFolder) -> SuiteFolder:
    """Return the folder of a suite's runs: an interrupted one, or the wanted one, whose suite.json is written.

    Raises:
        ConfigError: the folder holds something else, or cannot be created.
        RecordError: its suite.json is damaged.
    """
    path = wanted.path
    try:
        path.mkdir(parents=True, exist_ok=True)
        foreign = sorted(child.name for child in path.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"out: cannot create the folder {path}: {error.strerror}; choose another out=DIR") from error
    if not is_suite_folder(path):
        if foreign:
            raise ConfigError(f"out: {path} holds {foreign[0]} but no {SUITE_FILE}; choose another out=DIR")
        wanted.save()
        return wanted
    found = read_suite_folder(path)
    for what, then, now in (
        ("the suite", found.suite.name, wanted.suite.name),
        ("the workloads of the suite", found.suite.digest, wanted.suite.digest),
        ("the settings", " ".join(found.settings), " ".join(wanted.settings)),
        ("the launcher", " ".join(found.launcher), " ".join(wanted.launcher)),
        ("repeats", found.repeats, wanted.repeats),
    ):
        if then != now:
            raise ConfigError(
                f"out: {path} holds runs of another command: {what} was {then!r}, now {now!r}; choose another out=DIR"
            )
    return found


def _folder(path: Path, content: Any) -> SuiteFolder:
    """Return the folder that suite.json describes.

    Raises:
        ValueError: it describes none.
    """
    if not isinstance(content, dict) or content.get("kind") != "suite":
        raise ValueError("it is not of this harness")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version: found {content.get('schema_version')!r}, expected {SCHEMA_VERSION}")
    if not has_valid_seal(content):
        raise ValueError("it was changed after it was written (content_sha256 differs)")
    try:
        folder = SuiteFolder(
            path,
            suite_of(content["suite"]),
            tuple(map(str, content["settings"])),
            int(content["repeats"]),
            tuple(map(int, content["order"])),
            tuple(map(str, content["launcher"])),
            {name: NotRun(**found) for name, found in content["not_run"].items()},
            bool(content["complete"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{error} is missing or of another type") from error
    _check(folder)
    return folder


def _check(folder: SuiteFolder) -> None:
    names = {each.name for each in folder.suite.workloads}
    if sorted(folder.order) != sorted(list(range(len(names))) * folder.repeats):
        raise ValueError(f"order: found {len(folder.order)} runs, expected repeats={folder.repeats} of each workload")
    for name, found in folder.not_run.items():
        if name not in names or found.status not in STATUSES:
            raise ValueError(f"not_run: found {name!r} {found.status!r}")
