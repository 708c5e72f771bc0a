"""Foreign text, made harmless for whatever shows it, or comparable."""

from __future__ import annotations

import unicodedata

# Marks that turn the direction of text around can make it read as what it is not.
DIRECTION_MARKS = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object) -> str:
    """Return text on one line, with everything escaped that a terminal, a page or a picture could choke on.

    Labels, paths and error texts come from records, and records come from strangers: control characters (a
    terminal obeys them, XML forbids them) and halves of surrogate pairs (UTF-8 forbids them) are shown as escapes.
    """
    return "".join(_printable(character) for character in str(text))


def _printable(character: str) -> str:
    if character in "\n\r\t\u2028\u2029":
        return " "
    if unicodedata.category(character) in ("Cc", "Cs") or character in DIRECTION_MARKS:
        return character.encode("unicode_escape").decode("ascii")
    # XML forbids these two although Unicode only calls them unassigned.
    return "\ufffd" if character in "\ufffe\uffff" else character


def normalized_name(name: str) -> str:
    """Return a name without what different writers write differently: upper case, spaces and hyphens."""
    return "".join(letter for letter in name.casefold() if letter not in " -_\t")
