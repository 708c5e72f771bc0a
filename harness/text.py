"""Conversions between text and values: printable and comparable names, UTC times, number suffixes, override keys."""

from __future__ import annotations

import difflib
import re
import shlex
import unicodedata
from collections.abc import Iterable
from datetime import datetime, timezone

# Direction marks can reverse a text, so that it reads as what it is not.
DIRECTION_MARKS = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# What drivers and firmware print in place of a name: a number of a data sheet or a bus, or a word for none.
NO_NAME = re.compile(
    r"((device|[a-z]pu)[ -]?)?(0x[0-9a-f]+h?|\d+|\d[0-9a-f]{3}h)|device(\s+[0-9a-f]{4})?|"
    r"[0-9a-f]{4}:[0-9a-f]{4}|[-.?*]*|"
    r"null|none|n/?a|tbd|err(or)?!?|invalid|undefined|unknown( \w+)?|unspecified|default string|"
    r"not (specified|available|applicable|supported)|(to be filled by )?o\.?e\.?m\.?|system product name|"
    # An instruction set, and a host's number for a virtual processor.
    r"(aarch64|arm(v\d+\w*)?) processor.*|virtual cpu [0-9a-f]+|"
    # A bus address.
    r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]|"
    # Hexadecimal digits in lower case: A100 and A100-40 are names.
    r"(?-i:[0-9a-f]*[0-9][0-9a-f]*([ :./-][0-9a-f]+)+|[0-9a-f]{4,})|"
    r"0x[0-9a-f]+,? .*0x[0-9a-f]+",
    re.IGNORECASE,
)
NUMBER_SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


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


def true_name(name: str | None) -> str | None:
    """Return a device's or processor's reported name, or None if it is empty, a number or a word for none."""
    name = "".join(letter for letter in name or "" if unicodedata.category(letter) not in ("Cc", "Cs")).strip()
    # (null), [N/A], <unknown>, and a device's revision behind its number.
    bare = re.sub(r" \(rev [0-9a-f]+\)$", "", name)
    return None if NO_NAME.fullmatch(re.sub(r"^[\[(<](.*)[\])>]$", r"\1", bare)) else name


def normalized_name(name: str) -> str:
    """Return a name without what different writers write differently: upper case, spaces and hyphens."""
    return "".join(letter for letter in name.casefold() if letter not in " -_\t")


def shortened(text: str, length: int = 120) -> str:
    """Return at most `length` characters of a text, for quoting it in a message."""
    return text if len(text) <= length else f"{text[:length]}..."


def scaled_number(text: str) -> float:
    """Return the number that a text such as `70B` or `2.5e3` states, with K, M, B or T for 10^3 to 10^12.

    Raises:
        ValueError: the text states no number.
    """
    scale = NUMBER_SUFFIXES.get(text[-1:].upper())
    return float(text) if scale is None else float(text[:-1]) * scale


def nearest(found: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is spelled most like `found`, or None.

    A name with another number is another thing, however alike the spelling: H100 and A100, llama3 and llama2.
    """
    matches = difflib.get_close_matches(found, list(known), n=10, cutoff=cutoff)
    return next((match for match in matches if _same_generation(found, match) and _same_kind(found, match)), None)


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return the end of a message that names the nearest known name, or nothing."""
    match = nearest(found, known)
    return "" if match is None else f"; did you mean {match}?"


def _same_generation(one: str, two: str) -> bool:
    """Return whether the first words with a number agree: letters before it, the number, a letter after it if any."""
    words = [re.search(r"([a-z]*)[ _-]?(\d+)([a-z]?)", name.casefold()) for name in (one, two)]
    if words[0] is None or words[1] is None:
        return True
    (before, number, after), (other_before, other_number, other_after) = words[0].groups(), words[1].groups()
    return before == other_before and number == other_number and (after == other_after or not (after and other_after))


def _same_kind(one: str, two: str) -> bool:
    """Return whether two names may mean the same: of three letters, as tpu, npu and xpu, the first tells them apart."""
    return max(len(one), len(two)) > 3 or one[:1].casefold() == two[:1].casefold()


def shell_join(words: Iterable[str]) -> str:
    """Return a command line for a shell, with quotes only where a word needs them."""
    return " ".join(_shell_word(word) for word in words)


def _shell_word(word: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./-]+", word):
        return word
    # In double quotes a single one needs no escape, which shlex writes in five characters.
    if "'" in word and not re.search(r'["$`!\\\n]', word):
        return f'"{word}"'
    return shlex.quote(word)


def name_in_sentence(label: str) -> str:
    """Return a label for a sentence, in quotes where it would read as a word of the sentence or as a number."""
    return f"'{label}'" if re.fullmatch(r"[a-z]{2,}( [a-z]+)*|[\d.,]+", label) else label


def override_key(override: str) -> str:
    """Return the key that a command-line override sets: `seed` for `seed=1`, `+seed=1` and `++seed=1`."""
    return override.lstrip("+").split("=", 1)[0]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: 1 step, 1,200 steps; `plural` is for nouns that do not take an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def layered_settings(*layers: Iterable[str]) -> list[str]:
    """Return several lists of settings as one, in which each key is set once: by the last list that sets it."""
    settings: dict[str, str] = {}
    for layer in layers:
        settings |= {override_key(setting): setting for setting in layer}
    return list(settings.values())


def utc_now() -> str:
    """Return the time as ISO 8601 with seconds and offset, as records hold it: 2026-11-24T10:00:00+00:00."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def utc_stamp() -> str:
    """Return the time for a file or folder name: 20261124T100000Z."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def capitalized(text: str) -> str:
    """Return a text with an upper-case first letter and the rest as it is."""
    return text[:1].upper() + text[1:]
