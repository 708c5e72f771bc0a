"""Results of `--expect` as JUnit XML, which the test reports of CI systems read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from harness import log
from harness.records.files import write_with_folders
from harness.text import printable


@dataclass(frozen=True)
class TestCase:
    """One thing of which something was expected."""

    # Not a test of ours, whatever pytest thinks of its name.
    __test__ = False

    name: str
    shown: bool
    message: str
    """Expectation and verdict, in a line."""
    details: str = ""


def write_junit(file: Path, suite: str, cases: Sequence[TestCase]) -> None:
    """Write a file with one test suite; an earlier one is replaced.

    Args:
        suite: the verb.

    Raises:
        RunFailed: it cannot be written.
    """
    failures = str(sum(not case.shown for case in cases))
    counts = {"tests": str(len(cases)), "failures": failures, "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", counts)
    parent = ElementTree.SubElement(root, "testsuite", {"name": f"harness {suite}", **counts})
    for case in cases:
        element = ElementTree.SubElement(parent, "testcase", classname=f"harness.{suite}", name=printable(case.name))
        details = "\n".join(map(printable, [case.message, *case.details.splitlines()]))
        if case.shown:
            ElementTree.SubElement(element, "system-out").text = details
        else:
            failure = ElementTree.SubElement(element, "failure", message=printable(case.message), type="expectation")
            failure.text = details
    ElementTree.indent(root)
    write_with_folders(file, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n", "--junit")
    log.info(f"written: {file}")
