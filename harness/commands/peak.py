"""`python -m harness peak`: what this device can do at most, measured, for runs to be held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from harness.analysis.format import tflops
from harness.commands.preflight import ready_backend, report_once_per_host
from harness.composition import load
from harness.errors import ConfigError, ExitCode
from harness.records.peak import PEAK_FILE
from harness.records.record import write_record
from harness.records.run_folder import create_run_folder, refuse_existing_run
from harness.report.console import WIDTH, PlainConsole
from harness.world import from_environment

HELP = """\
usage: python -m harness peak backend=NAME [backend.threads=N] [out=DIR]
       python -m harness torchrun --nproc-per-node=N peak backend=NAME parallel=ddp

Measures what the device can do at most: matrix products in every precision that it has, copies in its memory and from
the host, the time to launch an operation; of several devices, all-reduce too. Writes DIR/peak.json (default
runs/peaks/<UTC time>-<backend>), from which later runs on the same device and software take the peak that they are
held against. Takes one to three minutes; leave the machine alone meanwhile.

exit codes: 0 ok, 2 bad usage or settings, 3 backend unavailable\
"""


def main(words: list[str]) -> int:
    """Measure, write the record, print it, and return the exit code."""
    if {"-h", "--help"} & set(words):
        print(HELP)
        return ExitCode.OK
    with report_once_per_host():
        config = load(words)
        world = from_environment(config.parallel.name)
        if config.out is not None:
            # Now rather than when a minute has been spent on measuring.
            folder = Path(config.out).expanduser()
            refuse_existing_run(folder)
            if (folder / PEAK_FILE).exists():
                raise ConfigError(f"out: {folder} holds a peak already; choose another out=DIR")
    backend = ready_backend(config, world)
    # Here, since torch is imported with it: only once a backend has said that it can run.
    from harness.training.measure_peak import measure_peak

    peak = measure_peak(config, backend, world)
    if world.is_main:
        folder = create_run_folder(config.out, backend.name, parent=Path(config.peak_dir).expanduser())
        print_peak(peak, write_record(folder, peak, PEAK_FILE))
    return ExitCode.OK


def print_peak(peak: dict[str, Any], path: Path) -> None:
    """Print the ceilings, one a line."""
    device = peak["device"]
    table = Table(title=f"peak {path}", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    threads = peak["effective_settings"]["threads"]
    table.add_row("device", f"{device['kind']}: {device['name']}" + (f", {threads} threads" if threads else ""))
    for precision, found in peak["matrix_products"].items():
        table.add_row(precision, "not to be had" if found is None else _products(found))
    memory = peak["memory"]
    table.add_row("memory", f"{_giga(memory, 'bytes_per_second')} GB/s, a copy, read and written bytes")
    launch = peak["launch"]
    table.add_row(
        "launch",
        f"{1e6 * launch['queued_seconds']:.2f} us each of many, {1e6 * launch['round_trip_seconds']:.2f} us waited for",
    )
    for name, found in (peak["host_copies"] or {}).items():
        if isinstance(found, dict):
            to, back = (_giga(found[way], "bytes_per_second") for way in ("to_device", "to_host"))
            table.add_row(f"{name} copies", f"host to device {to} GB/s, back {back} GB/s")
    if peak["all_reduce"] is not None:
        table.add_row(
            "all-reduce",
            f"{_giga(peak['all_reduce'], 'bytes_per_second')} GB/s bus bandwidth over {peak['world_size']} processes, "
            f"at {peak['all_reduce']['bytes'] >> 20} MiB",
        )
    PlainConsole(WIDTH).print(table)


def _products(found: dict[str, Any]) -> str:
    return (
        f"{tflops(found['best_flops'])} at best, {tflops(found['median_flops'])} in the median, "
        f"{found['size']} x {found['size']} x {found['size']}"
    )


def _giga(found: dict[str, Any], unit: str) -> str:
    return f"{found[f'best_{unit}'] / 1e9:,.1f} (median {found[f'median_{unit}'] / 1e9:,.1f})"
