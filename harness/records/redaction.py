"""Redaction of records for publication: hosts, users, paths, addresses, serial numbers and secrets are left out.

It does not look for what has to go; it knows what may stay. Numbers, words from a fixed list and texts of a fixed form
stay where the schema knows their field. Other texts stay only in the fields of schemas/public_fields.yaml, in
the form given there. Fields that the schema does not know are left out, names and all.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from harness.config import Config, is_part_of_the_work, iter_settings, workload_id
from harness.errors import RecordError
from harness.records.files import measurement_digest, seal

REDACTED = "redacted"
UNKNOWN = "(fields that this harness does not know)"
RECORD_SCHEMA, PUBLIC_FIELDS = "record.schema.json", "public_fields.yaml"

# What no name holds: addresses (IPv4, IPv6, MAC), hosts with their domain, user@host, UUIDs, serial numbers, tokens.
PRIVATE = re.compile(
    r"\d+\.\d+\.\d+\.\d+|[A-Za-z][\w-]*(\.[\w-]+)+\.[A-Za-z]{2,}"
    r"|([0-9A-Fa-f]{1,4}:){2}|[0-9A-Fa-f]{1,4}::|([0-9A-Fa-f]{2}-){5}|[\w.]@[\w.]"
    r"|[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-|\d{9}|(?<!\w)(sk|pk|hf|gh[a-z]|glpat|xox[a-z]|AKIA|ASIA|eyJ)[-_]?\w{12}"
    r"|(?<!\w)(?=[A-Za-z]*\d)(?=\w*\d[A-Za-z]+\d)(?=\w*[a-z])(?=\w*[A-Z])\w{16}",
    re.ASCII,
)
# A number of this module, and the name of a field.
NUMBER = re.compile(r"(host|device)-[0-9a-f]{1,6}-\d{1,6}")
FIELD = re.compile(r"[a-z_]+(\.[a-z0-9_]+)*")
USER = re.compile(
    r"(?:[/\\](?:home|users|u)[/\\]+|(?<![\w.])~|\buser(?:name)?[=:]|//(?=[^/@]+@))([^/\\\s:@,;'\"]{3,})", re.IGNORECASE
)
# Their form leaves no room for a secret; nobody needs to look at them.
FIXED_FORMS = ("parameter", "time", "digest")


@dataclass(frozen=True)
class _Rules:
    """Content of public_fields.yaml, by field."""

    texts: Mapping[str, str]
    """Name of the form that a whole text has to have."""
    beginnings: Mapping[str, str]
    """Name of the form of the beginning that stays."""
    keys: Mapping[str, str]
    """Name of the form of an object's keys."""
    numbered: Mapping[str, str]
    """Kind of what is numbered."""
    forms: Mapping[str, re.Pattern[str]]
    common_names: Sequence[str]


@dataclass
class Redaction:
    """Texts that were left out of records and texts that stayed, for their owner to look at before publication."""

    keep_labels: bool = False
    """The owner's names of models and workloads stay."""
    replaced: dict[str, dict[str, str]] = field(default_factory=dict)
    """By field: its values, and what stands in their place."""
    kept: dict[str, set[str]] = field(default_factory=dict)
    """By field: the texts that stayed."""
    numbers: dict[str, dict[str, str]] = field(default_factory=dict)
    """By kind (host, device): the values that are numbered."""
    tag: str = "0"
    """Part of these numbers, so that those of two bundles differ."""

    def redact(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record without what is private, with a checksum of its own.

        That of the original is not kept: whoever guesses the rest could confirm a host's name with it.

        Raises:
            RecordError: a setting that is part of the work is private.
        """
        walk = _Walk(self, _private_words(record))
        # A record of a bundle can be redacted again: nothing changes, and it keeps the names of what it has lost.
        walk.fields.update(lost_fields(record))
        public = walk.mapping({key: value for key, value in record.items() if key != "redacted"}, _schema(), "")
        if workload_id(public["config"]) != record["workload_id"]:
            named = [name for name in walk.fields if is_part_of_the_work(name.removeprefix("config."))]
            settings = ", ".join(name for name in sorted(named) if name.startswith("config.")) or "an unknown setting"
            raise RecordError(f"{settings}: may be private, and is part of the work, so that it cannot be left out")
        public["redacted"] = {"fields": sorted(walk.fields)}
        return seal({key: value for key, value in public.items() if key != "content_sha256"})

    def number(self, kind: str, value: str) -> str:
        """Return host-TAG-1, host-TAG-2, ...: the same for a host with and without its domain, in either case."""
        known, name = self.numbers.setdefault(kind, {}), value.casefold()
        if name not in known:
            short, dot, _ = name.partition(".")
            same = [short] if dot else [other for other in known if other.startswith(f"{name}.")]
            new = f"{kind}-{self.tag}-{len({*known.values()}) + 1}"
            known[name] = known[same[0]] if len(same) == 1 and same[0] in known else new
        return known[name]


@dataclass
class _Walk:
    """One pass over a record, beside its schema."""

    report: Redaction
    private: re.Pattern[str] | None
    """Names of hosts and users that occur in the record."""
    fields: set[str] = field(default_factory=set)
    """Names of the known fields that changed."""

    def value(self, value: Any, node: Mapping[str, Any], path: str) -> Any:
        if isinstance(value, str):
            return self.text(value, node, path)
        if isinstance(value, Mapping):
            return self.mapping(value, node, path)
        if isinstance(value, list):
            return [self.value(item, node.get("items", {}), path) for item in value]
        return value

    def mapping(self, value: Mapping[str, Any], node: Mapping[str, Any], path: str) -> dict[str, Any]:
        found = {}
        for key, item in value.items():
            place = f"{path}.{key}".lstrip(".")
            below = _child(node, key)
            if below is None:
                self.report.replaced.setdefault(UNKNOWN, {})[place] = REDACTED
            elif key in _properties(node) or self.is_public_key(path, key):
                found[key] = self.value(item, below, place)
            else:
                self.note(path, key, REDACTED)
        return found

    def is_public_key(self, path: str, key: str) -> bool:
        form = _rules().keys.get(path)
        if form is None or _rules().forms[form].fullmatch(key) is None or (form == "word" and self.is_private(key)):
            return False
        if form in ("word", "reason"):
            # Those of the others are shown with their values.
            self.report.kept.setdefault(path, set()).add(key)
        return True

    def text(self, value: str, node: Mapping[str, Any], path: str) -> str:
        if value == REDACTED or _is_fixed(value, node):
            return value
        rules = _rules()
        if (kind := rules.numbered.get(path)) is not None:
            if NUMBER.fullmatch(value):
                return value
            return self.note(path, value, self.report.number(kind, value))
        field = path if path in {**rules.texts, **rules.beginnings} else f"{path.rpartition('.')[0]}.*"
        form, public = rules.texts.get(field), REDACTED
        if field in rules.beginnings:
            start = rules.forms[rules.beginnings[field]].match(value)
            public = start[0] if start else REDACTED
        elif form is not None and (rules.forms[form].fullmatch(value) or self.is_kept_label(form)):
            public = value
        if form not in FIXED_FORMS and field not in rules.beginnings and self.is_private(public, form):
            public = REDACTED
        if public != value:
            return self.note(path, value, public)
        if form not in FIXED_FORMS:
            self.report.kept.setdefault(path, set()).add(value)
        return value

    def is_kept_label(self, form: str) -> bool:
        return form == "published_name" and self.report.keep_labels

    def is_private(self, text: str, form: str | None = None) -> bool:
        """Return whether a text holds the name of a host or a user, or looks like an address or a secret."""
        # A driver names its device without regard to what hosts are called.
        if form != "product" and self.private is not None and self.private.search(_folded(text)):
            return True
        return form != "pattern" and PRIVATE.search(text) is not None

    def note(self, path: str, value: str, public: str) -> str:
        self.fields.add(path)
        self.report.replaced.setdefault(path, {})[value] = public
        return public


def _is_fixed(value: str, node: Mapping[str, Any]) -> bool:
    """Return whether the schema allows only certain words, or a form that is a digest's or a projection's."""
    if value in node.get("enum", ()) or value == node.get("const"):
        return True
    return "pattern" in node and re.search(node["pattern"], value) is not None


def _object_node(node: Mapping[str, Any]) -> Mapping[str, Any]:
    alternatives = [each for each in node.get("oneOf", ()) if each.get("type") == "object"]
    return alternatives[0] if alternatives else node


def _properties(node: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object_node(node).get("properties", {})


def _child(node: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """Return the schema of an object's entry; None if the schema does not know it."""
    if key in _properties(node):
        return _properties(node)[key]
    others = _object_node(node).get("additionalProperties")
    return others if isinstance(others, Mapping) else None


@cache
def _rules() -> _Rules:
    content = yaml.safe_load((files("harness") / "schemas" / PUBLIC_FIELDS).read_text(encoding="utf-8"))
    by_field = {
        section: {name: form for form, names in content[section].items() for name in names}
        for section in ("texts", "beginnings", "keys", "numbered")
    }
    forms = {name: re.compile(form) for name, form in content["forms"].items()}
    return _Rules(**by_field, forms=forms, common_names=content["common_names"])


@cache
def _schema() -> dict[str, Any]:
    """Return the schema of a record, with every setting of a run in it."""
    schema = json.loads((files("harness") / "schemas" / RECORD_SCHEMA).read_text(encoding="utf-8"))
    settings: dict[str, Any] = {}
    for key, item, _ in iter_settings(Config):
        section = settings
        *parents, name = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {"properties": {}})["properties"]
        section[name] = {"enum": [*item.metadata.get("choices", ()), item.default]}
    schema["properties"]["config"] = {"properties": settings}
    return schema


def tag_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a tag that differs between sets of records, whatever their order."""
    text = " ".join(sorted(map(measurement_digest, records)))
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def lost_fields(record: Mapping[str, Any]) -> list[str]:
    """Return the fields that a record of a bundle has lost; none of another record."""
    redacted = record.get("redacted")
    fields = redacted.get("fields") if isinstance(redacted, Mapping) else None
    known = isinstance(fields, list) and all(isinstance(name, str) and FIELD.fullmatch(name) for name in fields)
    return list(fields) if known and fields is not None else []


def _folded(text: str) -> str:
    """Return a text in which all spellings of a name are the same: capitals, composed letters, ligatures."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _private_words(record: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Return a pattern of the names of hosts and users that occur in a record, for a folded text."""
    words = set[str]()
    for path, text in _texts(record, ""):
        words.update(USER.findall(text))
        if _rules().numbered.get(path) == "host" and not NUMBER.fullmatch(text):
            # A label may hold the host without its domain, or the domain alone.
            words.update((text, *(part for part in text.split(".") if not part.isdecimal())))
    chosen = sorted({_folded(word.strip(".")) for word in words}, key=lambda word: (-len(word), word))
    chosen = [word for word in chosen if len(word) > 1 and word not in _rules().common_names]
    if not chosen:
        return None
    # Short names stand alone; longer ones may be a part of a word.
    return re.compile(
        "|".join(re.escape(word) if len(word) > 5 else rf"(?<![^\W_]){re.escape(word)}(?![^\W_])" for word in chosen)
    )


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a record with its field, keys of objects too."""
    if isinstance(value, str):
        yield path, value
    items: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}".lstrip("."), item) for key, item in value.items()]
        yield from ((f"{path}.", str(key)) for key in value)
    elif isinstance(value, list):
        items = [(path, item) for item in value]
    for place, item in items:
        yield from _texts(item, place)
