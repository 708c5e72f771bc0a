"""Bundles: records in one zip archive, redacted, each with its checksum. Equal records give an equal file.

A bundle holds bundle.json, the list of its records with the SHA-256 of each, and the records as N/R/record.json: entry
N, its repeat R. Folder names of the owner are not in it.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import has_valid_seal, seal, to_json_text, unreadable
from harness.records.record import RECORD_FILE, parse_record
from harness.regular_files import MAX_FILE_BYTES, open_regular, parse_json
from harness.text import shortened

BUNDLE_SUFFIX = ".zip"
MANIFEST_FILE = "bundle.json"
BUNDLE_VERSION = 1
MEMBER = re.compile(rf"\d{{1,6}}/\d{{1,6}}/{re.escape(RECORD_FILE)}")
# The first moment that a zip archive knows.
ZIP_HEAD = b"PK\x03\x04"
ENCRYPTED = 1
# As much as a host's memory holds; a few bytes of an archive can claim to be any size.
MAX_BUNDLE_BYTES = 8 * MAX_FILE_BYTES
# What zipfile raises for damaged archives, and for ones that were made to be.
DAMAGE = (OSError, zipfile.BadZipFile, zlib.error, struct.error, ValueError, KeyError, RuntimeError, EOFError)
NO_TIME = (1980, 1, 1, 0, 0, 0)
REMEDY = "use the bundle that its owner has published"


def is_bundle(path: Path) -> bool:
    """Return whether a file is read as a bundle: by its name, or as it begins as every zip archive does."""
    try:
        is_file = path.is_file()
    except OSError as error:
        raise unreadable(path, error) from error
    if not is_file:
        return False
    with suppress(OSError), open_regular(path) as file:
        return path.suffix.casefold() == BUNDLE_SUFFIX or file.read(len(ZIP_HEAD)) == ZIP_HEAD
    return False


def bundle_content(entries: Sequence[Sequence[dict[str, Any]]]) -> bytes:
    """Return the content of a bundle.

    Args:
        entries: the redacted records of each entry, repeat by repeat.
    """
    texts = {
        f"{entry}/{repeat}/{RECORD_FILE}": to_json_text(record) + "\n"
        for entry, records in enumerate(entries, 1)
        for repeat, record in enumerate(records, 1)
    }
    manifest = seal({
        "bundle_version": BUNDLE_VERSION,
        "records": [{"path": name, "sha256": _digest(text.encode())} for name, text in texts.items()],
    })  # fmt: skip
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in {MANIFEST_FILE: to_json_text(manifest) + "\n", **texts}.items():
            member = zipfile.ZipInfo(name, NO_TIME)
            member.compress_type = zipfile.ZIP_DEFLATED
            # Otherwise the system's number, and permissions, which differ between hosts.
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, text)
    return content.getvalue()


def read_bundle(path: Path) -> Iterator[tuple[Path, dict[str, Any] | RecordError]]:
    """Yield every record of a bundle, under the path that it would have below it, or why it cannot be used.

    Raises:
        RecordError: the file is not a bundle, or was changed.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            _check_members(path, archive)
            names = _manifest(path, archive)
            strangers = set(archive.namelist()) - {*names, MANIFEST_FILE}
            if strangers or len(archive.namelist()) != len(names) + 1:
                raise RecordError(f"{path}: holds other files than {MANIFEST_FILE} lists; {REMEDY}")
            for name, digest in names.items():
                try:
                    yield path / name, _record(path / name, archive, name, digest)
                except RecordError as error:
                    yield path / name, error
    except DAMAGE as error:
        raise RecordError(f"{path}: cannot be read as a bundle: {error}; {REMEDY}") from error


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise RecordError for members that no bundle has, before any is read."""
    for member in archive.infolist():
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & ENCRYPTED:
            raise RecordError(f"{path}: holds {shortened(member.filename, 60)!r}, compressed as in no bundle; {REMEDY}")
    sizes = [member.file_size for member in archive.infolist()]
    if max(sizes, default=0) > MAX_FILE_BYTES or sum(sizes) > MAX_BUNDLE_BYTES:
        raise RecordError(f"{path}: claims to hold {sum(sizes):,} bytes, more than any bundle; {REMEDY}")


def _manifest(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the digest of each record by its name."""
    if MANIFEST_FILE not in archive.namelist():
        raise RecordError(f"{path}: a zip archive without {MANIFEST_FILE}; expected one that `bundle` has written")
    try:
        manifest = parse_json(_read(path / MANIFEST_FILE, archive, MANIFEST_FILE))
        version = manifest["bundle_version"]
        names = {str(each["path"]): str(each["sha256"]) for each in manifest["records"]}
        valid = has_valid_seal(manifest) and all(map(MEMBER.fullmatch, names)) and isinstance(version, int)
    except (ValueError, KeyError, TypeError):
        valid, version, names = False, BUNDLE_VERSION, {}
    if isinstance(version, int) and version != BUNDLE_VERSION:
        raise RecordError(f"{path}: bundle_version {version}, this harness reads {BUNDLE_VERSION}; upgrade it")
    if not valid:
        raise RecordError(f"{path}: its {MANIFEST_FILE} is damaged or was changed; {REMEDY}")
    if not names:
        raise RecordError(f"{path}: holds no record; {REMEDY}")
    return names


def _record(place: Path, archive: zipfile.ZipFile, name: str, digest: str) -> dict[str, Any]:
    content = _read(place, archive, name)
    if _digest(content) != digest:
        raise RecordError(f"{place}: was changed after the bundle was written (its SHA-256 differs); {REMEDY}")
    record = parse_record(place, content)
    if not isinstance(record.get("redacted"), dict):
        raise RecordError(f"{place}: is not redacted; {REMEDY}")
    return record


def _read(place: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of a member."""
    try:
        with archive.open(name) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except DAMAGE as error:
        raise RecordError(f"{place}: cannot be read: {error}; {REMEDY}") from error
    if len(content) > MAX_FILE_BYTES:
        raise RecordError(f"{place}: has more than {MAX_FILE_BYTES} bytes; {REMEDY}")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
