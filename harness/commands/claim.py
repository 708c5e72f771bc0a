"""`python -m harness claim`: published claims, the commands that test them, and the verdict of published rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import yaml
from rich.table import Table
from rich.text import Text

from harness import log
from harness.analysis.audit.reading import read_rows
from harness.analysis.audit.summary import Audit, audit, judge_by_rows, rows_about
from harness.analysis.chips import catalogue
from harness.analysis.claims import ANY_DEVICE, Claim, chips_of, find_claim, load_claims
from harness.commands.arguments import Parser, expand_path
from harness.config import config_directory
from harness.errors import ExitCode
from harness.report.audit_table import grade
from harness.report.console import WIDTH, PlainConsole
from harness.text import printable

FORMATS = ("table", "json")
DEVICES_OF_A_NODE = 8
MANY_HOSTS = "/cluster"


def build_parser() -> Parser:
    """Return the parser of the verb."""
    parser = Parser(
        "claim",
        "Without NAME: every claim of configs/claim/, the ratio that its wording accepts, and the verdict of the "
        "published rows. With NAME: the claim, the commands that test it, and the rows.",
        "0 ok, 2 bad usage or file",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one claim")
    parser.add_argument(
        "--evidence",
        metavar="FILE",
        type=expand_path,
        default=config_directory() / "published.yaml",
        help="published rows to judge by, as for audit (default: configs/published.yaml)",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="output format (default: table)")
    return parser


def main(argv: list[str]) -> int:
    """Print the claims, or one of them, and return the exit code."""
    options = build_parser().parse(argv)
    evidence = audit(*read_rows(options.evidence))
    for line in evidence.unread:
        log.warning(f"{options.evidence}: left out: {line}")
    claims = list(load_claims().values()) if options.name is None else [find_claim(options.name)]
    if options.format == "json":
        print(json.dumps([_to_dict(claim, evidence) for claim in claims], indent=1))
    elif options.name is None:
        _print_list(claims, evidence)
    else:
        _print_one(claims[0], evidence)
    return ExitCode.OK


def how_to_test(claim: Claim) -> dict[str, list[str]]:
    """Return, by experiment, the commands that test a claim: the reference's, the subject's, the comparison."""
    return {experiment: list(_commands(claim, experiment)) for experiment in claim.experiment}


def _commands(claim: Claim, experiment: str) -> Iterator[str]:
    folder = f"runs/{claim.name}/{experiment.rsplit('/', 1)[-1]}"
    for side, written in (("reference", claim.reference), ("subject", claim.subject)):
        backend = _backend(written)
        if backend is None:
            yield f"{written}: no backend drives it yet; harness/docs/backends.md describes how to add one"
            continue
        settings = " ".join([f"experiment={experiment} backend={backend}", *changes(claim)])
        launcher = f"python -m harness torchrun --nproc-per-node={DEVICES_OF_A_NODE}"
        if experiment.endswith(MANY_HOSTS):
            # The same command on every host; HEAD is one of them.
            launcher += " --nnodes=$NODES --rdzv-backend=c10d --rdzv-endpoint=$HEAD:29500 --rdzv-id=$n"
        if _needs_launcher(experiment):
            command = f"for n in 1 2 3 4 5; do {launcher} {settings} out={folder}/{side}/$n; done"
        else:
            command = f"python -m harness {settings} out={folder}/{side}"
        yield command if written == ANY_DEVICE else f"{command}  # on {written}"
    yield f"python -m harness compare {folder}/reference {folder}/subject --claim {claim.name} --out {folder}/verdict"


def changes(claim: Claim) -> list[str]:
    """Return the settings that give an experiment the claim's size and precision."""
    return [*claim.settings, *([f"precision={claim.precision}"] if claim.precision is not None else [])]


def _backend(chips: str) -> str | None:
    """Return the backend of the chips that a claim names; a rehearsal's is the CPU. None if no backend runs them."""
    if chips == ANY_DEVICE:
        return "cpu"
    vendors = {chip.vendor for chip in chips_of(chips)}
    found = {catalogue().backends.get(vendor) for vendor in vendors}
    return found.pop() if len(found) == 1 else None


def _needs_launcher(experiment: str) -> bool:
    file = config_directory() / "experiment" / f"{experiment}.yaml"
    overrides = yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", [])
    return any("override /parallel" in each for each in overrides)


def _to_dict(claim: Claim, evidence: Audit) -> dict[str, object]:
    return {
        **asdict(claim),
        "how_to_test": how_to_test(claim),
        "evidence": {
            **asdict(judge_by_rows(claim, evidence)),
            "rows": [row.row.name for row in rows_about(claim, evidence)],
        },
    }


def _print_list(claims: list[Claim], evidence: Audit) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("claim", "of", "accepted ratio", "published rows"):
        table.add_column(column, overflow="fold", no_wrap=column == "claim")
    for claim in claims:
        verdict = judge_by_rows(claim, evidence)
        table.add_row(
            Text(claim.name),
            Text(f"{claim.subject} against {claim.reference}"),
            Text(f"{claim.quantity} ratio {claim.accepted_range}"),
            Text(verdict.verdict),
        )
    console = PlainConsole(WIDTH)
    console.print(table)
    console.print(Text("\npython -m harness claim NAME: the commands that test it, and the reason of the verdict"))


def _print_one(claim: Claim, evidence: Audit) -> None:
    console = PlainConsole(WIDTH)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    stated = "" if claim.stated is None else f"{claim.stated:.4g}; "
    verdict = judge_by_rows(claim, evidence)
    for name, text in (
        ("claim", claim.statement),
        ("source", f"{claim.source} ({claim.date})"),
        ("subject", _chips(claim.subject)),
        ("reference", _chips(claim.reference)),
        ("stated", f"{claim.quantity} ratio, subject over reference: {stated}accepted range {claim.accepted_range}"),
        ("why", claim.rationale),
        ("workload", claim.workload),
        ("note", claim.note),
        ("evidence", f"{verdict.verdict}: {verdict.reason}"),
        *(("", f"{row.row.name}: time ratio {row.ratio:.3f}, {grade(row)}") for row in rows_about(claim, evidence)),
    ):
        if text is not None:
            table.add_row(name, Text(printable(text)))
    console.print(table)
    for experiment, commands in how_to_test(claim).items():
        # Not in the table: a command must stay on one line, to be copied.
        print(f"\ncommands that test it, experiment={experiment}:")
        for command in commands:
            print(f"  {command}")


def _chips(written: str) -> str:
    chips = chips_of(written)
    return "any device" if written == ANY_DEVICE else f"{written}: {', '.join(chip.name for chip in chips)}"
