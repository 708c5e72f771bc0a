"""`python -m harness peak`: measures the peak rates of a device."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from harness.analysis.format import UNKNOWN, byte_size, significant, tflops
from harness.commands.arguments import Parser
from harness.commands.preflight import ready_backend, report_once_per_host
from harness.composition import load
from harness.errors import ConfigError, ExitCode
from harness.records.peak import COLLECTIVES, PEAK_FILE
from harness.records.record import write_record
from harness.records.run_folder import check_no_existing_run, create_run_folder
from harness.report.console import WIDTH, PlainConsole
from harness.report.summary import other_load
from harness.text import counted, printable
from harness.world import from_environment


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "peak",
        "Measures matrix products in every supported precision, copies in device memory and from the host, and kernel "
        "launch overhead; with several devices, collectives by size of message too (peak_collective_seconds limits "
        "their time). Writes DIR/peak.json (default: runs/peaks/<UTC time>-<backend>), from which later runs on the "
        "same device and software take their measured peak. Takes one "
        "to three minutes; leave the machine idle meanwhile.",
        "0 ok, 2 bad usage or settings, 3 backend unavailable",
        usage="%(prog)s backend=NAME [backend.threads=N] [out=DIR]\n"
        "       python -m harness torchrun --nproc-per-node=N peak backend=NAME parallel=ddp",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, as on the command line of a run")
    return parser


def main(argv: list[str]) -> int:
    """Measure, write the record, print it, and return the exit code."""
    with report_once_per_host():
        config = load(build_parser().parse(argv).overrides)
        world = from_environment(config.parallel.name)
        if config.out is not None:
            # Checked before a minute of measurements.
            folder = Path(config.out).expanduser()
            check_no_existing_run(folder)
            if (folder / PEAK_FILE).exists():
                raise ConfigError(f"out: {folder} already holds a peak record; choose another out=DIR")
    backend = ready_backend(config, world)
    # Imported here, because it imports torch: only once the backend can run.
    from harness.training.measure_peak import measure_peak

    peak = measure_peak(config, backend, world)
    if world.is_main:
        folder = create_run_folder(config.out, backend.name, parent=Path(config.peak_dir).expanduser())
        print_peak(peak, write_record(folder, peak, PEAK_FILE))
    return ExitCode.OK


def print_peak(peak: dict[str, Any], path: Path) -> None:
    """Print a peak record, one line for each rate."""
    device = peak["device"]
    table = Table(title=f"peak {path}", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    threads = peak["effective_settings"]["threads"]
    table.add_row(
        "device",
        f"{device['kind']}: {device['name'] or UNKNOWN}" + (f", {counted(threads, 'thread')}" if threads else ""),
    )
    for precision, found in peak["matrix_products"].items():
        table.add_row(precision, "not supported" if found is None else _products(found))
    memory = peak["memory"]
    table.add_row("memory", f"{_giga(memory, 'bytes_per_second')} GB/s, copy, bytes read and written")
    launch = peak["launch"]
    table.add_row(
        "launch",
        f"{1e6 * launch['queued_seconds']:.2f} us when queued, {1e6 * launch['round_trip_seconds']:.2f} us round trip",
    )
    for name, found in (peak["host_copies"] or {}).items():
        if isinstance(found, dict):
            to, back = (_giga(found[way], "bytes_per_second") for way in ("to_device", "to_host"))
            table.add_row(f"{name} copies", f"host to device {to} GB/s, back {back} GB/s")
    for name, text in other_load(peak):
        table.add_row(name, f"{text}; the peak is too low: run again on an idle one")
    console = PlainConsole(WIDTH)
    console.print(table)
    if peak["collectives"] is not None:
        console.print(_collectives_table(peak["collectives"], peak["world_size"]))
        for name, reason in peak["collectives"]["missing_reasons"].items():
            console.print(Text(printable(f"{_title(name)}: not measured: {reason}")))


def _collectives_table(found: dict[str, Any], ranks: int) -> Table:
    """Return the latency of each collective and, one line for each size of message, its bandwidths."""
    names = [name for name in COLLECTIVES if found[name] is not None]
    table = Table(title=f"\ncollectives of {ranks} ranks, slowest rank: GB/s by message, algorithm (bus)",
                  title_justify="left", box=None, pad_edge=False, header_style="bold")  # fmt: skip
    for heading in ("", *map(_title, names)):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("latency", *(f"{significant(1e6 * found[name]['latency_seconds'])} us" for name in names))
    for entries in zip_longest(*(found[name]["sweep"] for name in names)):
        size = next(entry["bytes"] for entry in entries if entry is not None)
        table.add_row(byte_size(size), *("" if entry is None else _bandwidths(entry) for entry in entries))
    return table


def _bandwidths(entry: dict[str, Any]) -> str:
    algorithm, bus = (_short(entry[f"{kind}_bytes_per_second"] / 1e9) for kind in ("algorithm", "bus"))
    return f"{algorithm} ({bus})"


def _short(value: float) -> str:
    return "<0.01" if value < 0.01 else f"{value:.2f}" if value < 10 else significant(value)


def _title(name: str) -> str:
    return "send/receive" if name == "send_receive" else name.replace("_", "-")


def _products(found: dict[str, Any]) -> str:
    return (
        f"{tflops(found['best_flops'])} best, {tflops(found['median_flops'])} median, "
        f"{found['size']} x {found['size']} x {found['size']}"
    )


def _giga(found: dict[str, Any], unit: str) -> str:
    return f"{found[f'best_{unit}'] / 1e9:,.1f} (median {found[f'median_{unit}'] / 1e9:,.1f})"
