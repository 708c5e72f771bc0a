"""Null each kernel that a training launches, one after the other, and print the outcomes.

    python -m tests.emulated.programs.nulled REFERENCE.json STEPS SETUP...

REFERENCE.json holds the CPU's results by setup. Each kernel gets a process of its own, forked before the device is
opened: a kernel's error ends torch-npu's task queue for good. Prints {kernel: {setup: distance or exception}}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch  # noqa: F401 (first: the plug-in needs its libraries)
import torch_npu  # type: ignore[import-not-found] # noqa: F401

from tests.cann_emulator import control
from tests.emulated.training import Setup, distance, train


def main(argv: Sequence[str]) -> None:
    reference_file, steps, *names = argv
    reference = json.loads(Path(reference_file).read_text())

    def trained(nulled: str, setups: list[str]) -> dict[str, Any]:
        return in_child(lambda: outcome(nulled, setups, reference, int(steps)))

    launched_by = {name: trained("", [name])["launched"] for name in names}
    kernels = sorted({kernel for launched in launched_by.values() for kernel in launched})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(
            lambda kernel: trained(kernel, [name for name in names if kernel in launched_by[name]]), kernels
        )
    print(json.dumps({kernel: outcome["results"] for kernel, outcome in zip(kernels, found, strict=True)}))


def outcome(nulled: str, setups: list[str], reference: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train with a kernel nulled, until a setup differs."""
    results: dict[str, Any] = {}
    control.null(nulled)
    for name in setups:
        try:
            results[name] = distance(reference[name], train("npu", Setup(*name.split("-")), steps))
        except Exception as error:  # noqa: BLE001 (any exception means that the nulled kernel was detected)
            results[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if results[name] != 0.0:
            break
    return {"results": results, "launched": control.launched()}


def in_child(work: Any) -> Any:
    """Return what `work` returns in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(writing, "w") as pipe:
                json.dump(work(), pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    # A process that died without output counts as detected too.
    return json.loads(text) if text else {"results": {"": "the process died"}, "launched": []}


if __name__ == "__main__":
    main(sys.argv[1:])
