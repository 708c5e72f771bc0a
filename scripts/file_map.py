"""Writes the file map of harness/docs/development.md from the first sentence of each module's docstring.

python scripts/file_map.py            rewrites the map between its two marker comments
python scripts/file_map.py --check    writes nothing; exit code 1 if the map is out of date
"""

from __future__ import annotations

import argparse
import ast
import itertools
import re
import sys
from collections import defaultdict
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "harness" / "docs" / "development.md"
BEGIN, END = "<!-- file map: begin -->", "<!-- file map: end -->"
FOLDERS = ("harness", "scripts")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the map is out of date")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    renewed = insert_map(page, file_map())
    if options.check:
        if page != renewed:
            print(f"{PAGE.relative_to(PROJECT)}: the file map is out of date; run python scripts/file_map.py")
        return int(page != renewed)
    PAGE.write_text(renewed, encoding="utf-8")
    return 0


def insert_map(page: str, table: str) -> str:
    """Return the page with everything between its two markers replaced.

    Raises:
        ValueError: the page has not exactly one of each marker.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise ValueError(f"expected {BEGIN} and {END} once each in {PAGE.name}")
    return f"{head}{BEGIN}\n{table}{END}{tail}"


def file_map() -> str:
    """Return one Markdown table per folder: file name, first sentence."""
    by_folder: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for top in FOLDERS:
        for path in sorted((PROJECT / top).rglob("*")):
            if path.suffix in (".py", ".sh") and path.name != "__init__.py":
                folder = path.parent.relative_to(PROJECT).as_posix()
                by_folder[folder].append((path.name, summary(path.read_text(encoding="utf-8"), path.suffix)))
    tables = []
    for folder, files in sorted(by_folder.items()):
        package = PROJECT / folder / "__init__.py"
        about = summary(package.read_text(encoding="utf-8"), ".py") if package.exists() else ""
        rows = "".join(f"| `{name}` | {text} |\n" for name, text in files)
        tables.append(f"\n**`{folder}/`**" + (f" {about}" if about else "") + f"\n\n| file | |\n|---|---|\n{rows}")
    return "".join(tables) + "\n"


def summary(source: str, suffix: str) -> str:
    """Return the first sentence of a module's docstring, or of a shell script's head comment, without its period."""
    if suffix == ".py":
        text = ast.get_docstring(ast.parse(source)) or ""
    else:
        lines = [line for line in source.splitlines() if not line.startswith(("#!", "# shellcheck", "#SBATCH"))]
        # The comment ends at the first line that is none, or at an indented example.
        text = "\n".join(line[2:] for line in itertools.takewhile(lambda line: re.match(r"# \S", line), lines))
    paragraph = " ".join(text.split("\n\n")[0].split())
    # A sentence ends at a stop before a capital letter, or at the end of the paragraph.
    sentence = re.split(r"(?<=[.?!]) (?=[A-Z`])", paragraph, maxsplit=1)[0]
    return sentence.rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
