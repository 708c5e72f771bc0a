"""`experiment=autotune`: search for the settings that train a fixed global batch fastest. Torch opens no device here.

Neither the micro-batch size nor, with track=tuned, the track's settings are part of the work: runs of two devices, each
with its own best, are comparable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import log
from harness.analysis.search import Candidate, Question, micro_batch_sizes
from harness.backends.base import Backend
from harness.commands.child_process import KILLED, hydra_quote
from harness.composition import load
from harness.config import OPERATIONS, STOCK, STOCK_TRACK, Config, TrackConfig, unused_operations
from harness.errors import BackendUnavailable, ConfigError, ExitCode
from harness.layout import Layout
from harness.records.record import RECORD_FILE, SCHEMA_VERSION, write_record
from harness.records.run_folder import AUTOTUNE_FILE, create_run_folder
from harness.records.search import MICRO_BATCH_SIZE, tuned_work
from harness.report.search import print_search
from harness.text import layered_settings, override_key, shell_join, utc_now

HARNESS = ("python", "-m", "harness")
OWN_KEYS = ("autotune", "profile", "repeats", "out", MICRO_BATCH_SIZE)
# Values to try of the settings that are no kernels; the budgets keep all, recompute what costs nothing, and half.
COMPILE, ADAMW, BUDGETS = ("no", "blocks", "model"), ("foreach", "fused"), (1.0, 0.95, 0.5)


def track_options(config: Config, backend: Backend) -> dict[str, tuple[Any, ...]]:
    """Return the values of each track setting that is left to the backend and that the model uses."""
    if config.track.name == "portable":
        return {}
    kernels = backend.kernels()
    known: dict[str, tuple[Any, ...]] = {
        "compile": COMPILE,
        **{operation: (STOCK, *sorted(kernels.get(operation, {}))) for operation in OPERATIONS},
        "adamw": ADAMW,
        "activation_memory_budget": BUDGETS,
    }
    if backend.compile_problems():
        known["compile"] = ("no",)
    unused = unused_operations(config)
    return {key: known[key] for key in known if getattr(config.track, key) is None and key not in unused}


class Search:
    """Asks one question after another, each candidate in several runs, in turn and in fresh processes."""

    def __init__(
        self,
        config: Config,
        backend: Backend,
        overrides: list[str],
        folder: Path,
        run_job: Callable[[list[str], Path], int],
    ) -> None:
        self._config, self._backend, self._overrides = config, backend, overrides
        self._folder, self._run_job = folder, run_job
        self.found: dict[str, Any] = {}
        """The answers so far, by setting."""
        self._changed: set[str] = set()
        """Settings whose answer is not what a run with the other answers would have by itself."""
        self.questions: list[Question] = []
        self._run: dict[str, Any] = {}
        """Sections of a run's record that say on which device and software it ran."""

    def ask_all(self) -> int:
        """Ask for the micro-batch size, then for each setting of the track, and write the answers after each question.

        Returns:
            OK, or the exit code of a run that failed for another reason than memory, with settings that the backend
            would choose.
        """
        options = track_options(self._config, self._backend)
        defaults = {**STOCK_TRACK, **self._backend.tuned_defaults(self._config)}
        only = {key: values[0] for key, values in options.items() if len(values) == 1}
        self.found = {f"track.{key}": value for key, value in only.items()}
        self._changed = {f"track.{key}" for key, value in only.items() if value != defaults[key]}
        if options and self._config.repeats == 1:
            log.warning("autotune: repeats=1 shows no run-to-run variance, so no setting of the track is changed")
            options = {}
        sizes = micro_batch_sizes(self._config.workload.global_batch_size)
        code = self._ask(Question(MICRO_BATCH_SIZE, [Candidate(size) for size in sizes], has_default=False))
        for key, values in options.items():
            if code != ExitCode.OK:
                return code
            default = getattr(self._resolved({}), key)
            others = [value for value in values if value != default and self._is_allowed(f"track.{key}", value)]
            if others:
                code = self._ask(Question(f"track.{key}", [Candidate(value) for value in (default, *others)]))
        if code == ExitCode.OK:
            self._write(complete=True)
        return code

    def command(self) -> list[str]:
        """Return the command that uses the answers so far that are not the backend's choice."""
        return [*HARNESS, *self._own(), *(f"{key}={self.found[key]}" for key in self.found if key in self._changed)]

    def command_by_search(self) -> list[str]:
        """Return the command that reads the answers from the search."""
        own = [] if self._folder.parent == Path(self._config.autotune_dir).expanduser() else [
            f"autotune_dir={hydra_quote(self._folder)}"
        ]  # fmt: skip
        return [*HARNESS, *layered_settings(self._own(), ["autotuned=true", *own])]

    def _own(self) -> list[str]:
        return [override for override in self._overrides if override != "experiment=autotune"]

    def _job(self, more: Mapping[str, Any]) -> list[str]:
        settings = [f"{key}={value}" for key, value in {**self.found, **more}.items()]
        return layered_settings(self._overrides, ["autotune=false", "profile=false", "repeats=1"], settings)

    def _resolved(self, more: Mapping[str, Any]) -> TrackConfig:
        """Return the track of a run with the answers so far and more settings.

        Raises:
            ConfigError: they contradict each other: only compiled parts have a memory budget, for instance.
        """
        from harness.training.tuning import resolve_track

        return resolve_track(load(self._job(more)), self._backend, Layout(), sharded=False, alone=True)

    def _is_allowed(self, key: str, value: Any) -> bool:
        try:
            self._resolved({key: value})
        except ConfigError:
            return False
        return True

    def _ask(self, question: Question) -> int:
        self.questions.append(question)
        repeats, candidates = self._config.repeats, question.candidates
        for number in range(1, repeats + 1):
            # Back and forth, so that a load that grows or fades does not favor one end.
            for candidate in candidates if number % 2 else reversed(candidates):
                if not candidate.runs_well:
                    continue
                run = self._folder / f"{question.name}-{candidate.value}" / str(number)
                log.info(f"{question.key}={candidate.value}, run {number} of {repeats}")
                code = self._run_job(self._job({question.key: candidate.value}), run)
                self._add_result(candidate, code, run / RECORD_FILE)
                if candidate.exit_code is not None and (candidate is candidates[0] or not question.has_default):
                    ended = f"autotune: the run with {question.key}={candidate.value} ended with exit code {code}"
                    log.error(f"{ended}; the rest is not run")
                    return code
                if not candidate.fits and question.key == MICRO_BATCH_SIZE:
                    # Larger sizes need more memory.
                    for larger in candidates:
                        larger.fits = larger.fits and larger.value < candidate.value
        answer = question.answer()
        self.found[question.key] = answer.value
        if not (question.has_default and answer is candidates[0]):
            self._changed.add(question.key)
        self._write(complete=False)
        return ExitCode.OK

    def _add_result(self, candidate: Candidate, code: int, path: Path) -> None:
        """Add the result of a run to its candidate."""
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if code == ExitCode.OK and record is not None:
            if record["device"]["emulated"]:
                raise BackendUnavailable(
                    "autotune: the device is an emulation, which has no speed; run on a real device"
                )
            self._run = record
            candidate.tokens_per_second.append(record["timing"]["tokens_per_second"])
            candidate.peak_allocated_bytes = (record["memory"] or {}).get("peak_allocated_bytes")
            used = (record.get("contention") or {}).get("other_processes_cpu_fraction") or 0.0
            candidate.other_processes_cpu_fraction = max(candidate.other_processes_cpu_fraction, used)
        # A host that runs out of memory kills the process, which then leaves no record.
        elif (record is not None and record["status"] == "oom") or (record is None and code == KILLED):
            candidate.fits = False
        else:
            candidate.exit_code = code

    def _write(self, *, complete: bool) -> None:
        """Write the answers so far: an unfinished search is shown, and not used."""
        result = {
            "schema_version": SCHEMA_VERSION,
            "kind": "autotune",
            "complete": complete,
            "finished_at": utc_now(),
            "work": tuned_work(self._config),
            "backend": self._run["backend"],
            "device": self._run["device"],
            "effective_settings": {"threads": self._backend.device_threads()},
            "questions": [
                {
                    "key": question.key,
                    "candidates": [asdict(each) for each in question.candidates],
                    "answer": question.answer().value,
                    "not_told_apart": [each.value for each in question.close()],
                }
                for question in self.questions
            ],
            "settings": self.found,
        }
        write_record(self._folder, result, AUTOTUNE_FILE)


def run_autotune(
    config: Config, backend: Backend, overrides: list[str], run_job: Callable[[list[str], Path], int]
) -> int:
    """Search, print a table of each question, write the answers, and print the commands that use them.

    Args:
        overrides: the command line's settings.
        run_job: runs `python -m harness` with the given overrides and run folder; returns the exit code.

    Raises:
        ConfigError: the folder holds another search.
        RunFailed: no micro-batch size fits into the device's memory.
        BackendUnavailable: the device is an emulation, which has no speed.
    """
    label = f"autotune-{config.backend.name}-{config.model.name}"
    folder = create_run_folder(config.out, label, parent=Path(config.autotune_dir).expanduser())
    kept = [override for override in overrides if override_key(override) not in OWN_KEYS]
    search = Search(config, backend, kept, folder, run_job)
    finished = False
    try:
        code = search.ask_all()
        finished = code == ExitCode.OK
    finally:
        print_search(search.questions, folder)
        answered = [question for question in search.questions if question.key in search.found]
        if answered:
            fastest = "inconclusive" if any(question.close() for question in answered) else "fastest"
            print(f"{'' if finished else 'unfinished, '}{fastest}: {shell_join(search.command())}")
    if finished:
        print(f"the same by this search: {shell_join(search.command_by_search())}")
    return code
