"""Retired words: names and phrases that the field's own words replaced, in no source, text, setting or test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import PROJECT

FOLDERS = (".ci", ".github", "configs", "harness", "scripts", "tests")
SUFFIXES = {
    ".cpp",
    ".css",
    ".h",
    ".html",
    ".j2",
    ".json",
    ".md",
    ".py",
    ".sh",
    ".svg",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
}
# Files that may hold every retired word.
EXEMPT = {
    "CHANGELOG.md": "history names what was renamed",
    "LICENSE": "Apache's text",
    "scripts/same_bits.py": "compares with commits from before the renaming",
    "tests/test_vocabulary.py": "this table",
}

# (pattern, replacement): names that mean something else in the field.
MISLEADING = [
    (r"\bwarmup_steps\b", "timing_warmup_steps or lr_warmup_steps"),
    (r"\blearning_rate_warmup_steps\b", "lr_warmup_steps"),
    (r"\bhidden_size\(|\bdef hidden\(|\.hidden\(", "intermediate_size, final_hidden_states"),
    (r"\bblock_steps\b|\bBlockWatch\b|\btiming\.blocks\b|\"timing\"\]\[\"blocks\"", "interval_steps, timing.intervals"),
    (r"\bclass Run\b|\bclaim_folder\b|\b_Claimed\b", "LoadedRecord, acquire_run_folder, create_run_folder"),
    (r"\bclass Finding\b", "ParityResult, AuditFinding"),
    (r"\bclass (Table|Group)\b", "PublishedTable, RunProcesses"),
    (r"\bclass Facts\b|\bdef facts\(|\.facts\(|\binspect_or_refuse\b", "RunDescription, describe, to_record"),
    (r"\bworkload[./]random\b|\banalysis[./]statistics\b", "philox, ratio_statistics"),
]
SETTINGS = [
    (r"\bmodel\.(width|heads|hidden|positions|kv_heads)=", "hidden_size, num_attention_heads, intermediate_size, ..."),
    (r"\bmodel\.layers\b(?![.=]\{|\.\d)|\bmodel\.layers=", "num_hidden_layers"),
    (r"\b(max_seq_len|norm_epsilon|rotary_base|tied_embeddings|init_std)\b", "Hugging Face's name"),
    (r"\bgradient_clip_norm\b", "max_grad_norm"),
    (r"\bfinal_learning_rate_fraction\b", "min_lr_ratio"),
    (r"\bshard_within_host\b", "parallel.data and parallel.shard"),
    (r"\bgather_in_compute_precision\b", "low_precision_all_gather"),
    (r"\binvalid_files=refuse\b", "invalid_files=error"),
    (r"(?<![\w.])peaks=", "peak_dir="),
]
RECORD = [
    (r"\b(began|ended)_utc\b", "started_at, finished_at"),
    (r"\[[\"']effective[\"']\]|[\"']effective[\"']:", "effective_settings"),
    (r"\bwaited_seconds_per_step\b", "exposed_communication_seconds"),
    (r"\btimes_the_others\b", "slowdown"),
    (r"\bhost_other_fraction\b", "other_processes_cpu_fraction"),
    (r"\bprofile\.parts\b|\bbetween_parts_seconds\b|\[[\"']parts[\"']\]", "phases, host_overhead_seconds"),
    (r"\boperand_bytes\b|\bflops_per_byte\b", "bytes_accessed, arithmetic_intensity"),
    (r"bound_by\W+arithmetic\b", "compute"),
    (r"\bmfu_of_catalogued_peak\b|\(?[\"']catalogued[\"'], [\"']measured[\"']", "mfu"),
    (r"\branks_differ\b", "rank_mismatch"),
    (r"\[[\"']word[\"']\]|[\"']word[\"']:|\[[\"']sentence[\"']\]|[\"']sentence[\"']:", "verdict, summary"),
    (r"\bcannot tell\b", "inconclusive"),
    (r"[\"']possible[\"']", "plausible"),
    (r"[\"']weak[\"']:|\.weak\b|\bWEAK_", "single_run"),
]
CLASSES_AND_FUNCTIONS = [
    (r"\bProgressed\b", "TrainingHistory"),
    (r"\bclass Spread\b|\bspread_model\b|\bspread\.(call|exchange)\b", "ParallelModel, parallelize_model"),
    (
        r"\bGradientExchange\b|\bALONE\b|\bdef (accumulating|exchanged)\(",
        "GradientSync, NO_SYNC, no_sync, ...",
    ),
    (r"\bclass (Keeper|Checkpoints)\b|\bmake_moments\b", "CheckpointManager, CheckpointStore"),
    (r"\bclass Session\b|\btrain_watched\b|\b_ask_device\b", "Trainer, train, collect_measurements"),
    (r"\b_book\b|\b_share_of_held_out\b", "_log_interval, _eval_shard"),
    (
        r"\bSupervisor\b|\bdef (look|known|written|_tell|_conclude)\(",
        "Watchdog: poll, first_failure, publish_failure, ...",
    ),
    (
        r"\btake_seats\b|\bdef (settle|form|_abandon)\(|\bwrite_last_words\b",
        "rendezvous, resolve_failure, on_fatal, ...",
    ),
    (r"\b_?refuse_\w+\(|\bdef refuse\(", "check_*, require_*, failure_for_all, unavailable_error"),
    (r"\.advanced\(|\bdef (advanced|beat)\(|\b(made|beat|pulse)=", "heartbeat()"),
    (r"\bPulse(Writer)?\b|\bruns_in\b|\bliving_pulses\b", "Heartbeat, HeartbeatWriter, read_heartbeats"),
    (r"\branks\.(leads|largest)\b|\bdef (leads|largest)\(|\bfrom_leader\b|\badded_digest\b", "is_main, all_max, ..."),
    (r"\bStopAgreement\b|\.ending\b|\bdef ending\(|\.grouped\b", "CoordinatedStop, begin_shutdown, is_distributed"),
    (r"\bmeter\.(sent|take)\b|\bdef (sent|take)\(|\badding_hook\b|\b_look_on\b", "add_payload, pop, allreduce_hook"),
    (r"\bListeners?\b|\blisteners_of\b|\bLoggedProgress\b|\bMetricsFile\b", "MetricsLogger, build_loggers, ..."),
    (r"\bclass Watches\b", "LoopObserver"),
    (r"\bclass (Ledger|Figures)\b|\bdef combined\(|\bwhy_no_energy\b", "EnergyIntegrator, RunningStats, merge_ranks"),
    (
        r"\bclass Ceilings\b|\b_stretch\(|\bSTRETCHES\b|\b_teller\b",
        "Microbenchmarks, _sample, SAMPLES, _progress_printer",
    ),
    (
        r"\bin_parts\b|\bdef (_looks|traced)\(|\bOperandBytes\b|\bPARTS\b|\bwatch_parts\b",
        "time_phases, trace_steps, ...",
    ),
    (r"\bwatched_eagerly\b|\bobserve_step\b|\bdef (resolve|tune)\(", "force_eager, observe_dtypes, resolve_track, ..."),
    (r"\bdef (condition|effective|tuned|classify|echo)\(|\bWholeStep\b", "clock_state, effective_settings, ..."),
    (r"\bhostile_variable_problems\b|\bDISTRESS\b", "unsafe_env_vars, THROTTLE_REASONS"),
    (r"\bdef assemble\(|\bown_times\b|\bclass Outcome\b|\bdef _settle\(", "build_record, rank_timing, RunResult, ..."),
    (
        r"\bconfig\.settings\b|\bdef (limited|flat|check_shares)\(",
        "bounded, iter_settings, flatten, check_batch_divides",
    ),
    (r"\bNOT_PART_OF_THE_WORK\b", "EXCLUDED_FROM_WORKLOAD_ID"),
    (r"\bsaid_once\b|\bSECONDS_FOR_THE_FIRST_TO_SPEAK\b|\bdef _say\(", "report_once_per_host, REPORTER_GRACE_SECONDS"),
    (r"\b_set_aside\b|\bdef (again|cut_off)\(", "_archive_record, resuming, existing_record, interrupted"),
    (r"\bclass Side\b|\blook_up\b|\bdef complaints\(|\bshape_complaint\b", "RunGroup, get_path, record_problems, ..."),
    (r"\bSmallerWorld\b", "ScalingBaseline"),
    (r"\bclass Limits\b|\ballowance\b|\bANY\b|\bsure: bool\b", "Bounds, rationale, ANY_DEVICE, severity"),
    (r"\bchips_meant\b|\bdef folded\(|\bnamed_model\b", "match_chips, normalized_name, model_preset"),
    (r"\bdef (drawn|thinned|short)\(|\bcolour", "render_svg, downsample, truncate, color"),
    (r"\bdef (path_of|quoted)\(|\bwords: (list|tuple|Sequence)\b", "expand_path, hydra_quote, argv or overrides"),
    (
        r"\b_?(MOST|LARGEST|LEAST|FEWEST|LONGEST|SMALLEST|SECONDS_TO)_[A-Z]\w*|\bLONGEST\b",
        "MAX_*, MIN_*, *_TIMEOUT_SECONDS",
    ),
]
PHRASES = [
    (r"\ballows? to be said\b", "compare recorded runs"),
    (r"\b(get|gets|got|gotten) (any |still |no )?(further|furthest)\b|\bgot least far\b", "progress"),
    (r"\btraining that does not fit here\b", "estimate a large training run"),
    (r"\breckon(s|ed|ing)?\b", "estimate"),
    (r"\b(not|is|are|was|were) to be had\b", "not supported, not available"),
    (r"\bstand(s|ing)? still\b|\bstood still\b", "exposed communication, waits, hangs"),
    (r"\badvanced (\d+|\{.*\}) times\b|\bs are allowed\b", "last progress 3 s ago (limit 600 s)"),
    (r"\bwithout a word\b|\blast words\b", "no progress for N s, stopped responding, error message"),
    (r"\bunder way or was cut off\b", "running or interrupted"),
    (r"\bas often (with|as)\b", "launch it N times with"),
    (r"\bsays? nothing (of|about)\b|\btells? nothing of\b", "cannot estimate run-to-run variance"),
    (r"\bwords allow\b|\bacross its border\b", "accepted range, interval crosses the bound"),
    (r"\bwould tell\b|\bmend(s|ed|ing)?\b", "run `harness peak` to ...; fix"),
    (r"\b1 updates\b", "one update"),
    (r"\bbef(all|alls|ell|allen)\b", "happens to"),
    (r"\bthe door\b", "entry point, __main__"),
    (r"\banew\b", "again, new"),
    (r"\bwhat is to come\b", "expected outcome"),
    (r"\bso many\b|\blook(s|ed|ing)? on\b", "the number or the duration, observe"),
    (r"\bit is told\b|\bis told by\b|\btells? of\b|\btold of\b", "name the data, the setting or the message"),
    (r"^[ \t]*\"\"\"(What|Who|Where|Why|Whether)\b", "begin with a noun, so that a search finds it"),
]
RETIRED = [
    *(
        (re.compile(pattern, re.MULTILINE), replacement)
        for pattern, replacement in (*MISLEADING, *SETTINGS, *RECORD, *CLASSES_AND_FUNCTIONS)
    ),
    *((re.compile(pattern, re.MULTILINE | re.IGNORECASE), replacement) for pattern, replacement in PHRASES),
]
# Uses that are right: (file, pattern of the line) and the reason.
MAY_STAY: dict[tuple[str, str], str] = {
    (
        "harness/suggestions.py",
        r"\"(workload\.(lr_warmup_steps|seq_len)|model\.tie_word_embeddings)\": ",
    ): "other programs' names",
    (
        "tests/test_docs.py",
        r"`workload\.warmup_steps=3`|`timing\.blocks`|model\.width=3",
    ): "examples of retired settings",
    ("harness/training/monitoring/heartbeat.py", r"def beat\("): "the object is the heartbeat; its method beats",
}


def files() -> Iterator[Path]:
    """Yield the project's text files; whatever git ignores lies outside FOLDERS or has another suffix."""
    yield from (path for path in PROJECT.iterdir() if path.is_file() and not path.name.startswith("."))
    for folder in FOLDERS:
        for path in (PROJECT / folder).rglob("*"):
            if path.suffix in SUFFIXES or path.parent.name == ".ci":
                yield path


def retired_words(path: Path) -> Iterator[str]:
    """Yield FILE:LINE, the word found and its replacement, for each retired word of a file."""
    name, text = path.relative_to(PROJECT).as_posix(), path.read_text(encoding="utf-8")
    for pattern, replacement in RETIRED:
        for found in pattern.finditer(text):
            line = text[text.rfind("\n", 0, found.start()) + 1 :].split("\n", 1)[0]
            if not any(name == file and re.search(stays, line) for file, stays in MAY_STAY):
                number = text.count("\n", 0, found.start()) + 1
                yield f"{name}:{number}: {found[0].strip()!r}: use {replacement}"


def test_no_retired_word_is_used() -> None:
    paths = [path for path in sorted(files()) if path.relative_to(PROJECT).as_posix() not in EXEMPT]
    found = [hit for path in paths for hit in retired_words(path)]
    assert not found, "\n".join([f"{len(found)} retired words:", *found])


def test_exceptions_are_needed() -> None:
    for file, stays in MAY_STAY:
        assert re.search(stays, (PROJECT / file).read_text(encoding="utf-8")), f"{file}: no line matches {stays!r}"


def test_ordinary_english_is_not_a_hit() -> None:
    sentence = "The run takes a look at what is known and written, and the user is told how far it came."
    assert not [pattern.pattern for pattern, _ in RETIRED if pattern.search(sentence)]
