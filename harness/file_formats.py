"""Recognition of files by their first bytes: pointers, archives, binary formats and error pages under another name."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

HEAD_BYTES = 4096
# The Git LFS specification: pointer files are shorter than this.
MAX_POINTER_BYTES = 1024

_DECOMPRESS = "decompress it"
_UNPACK = "unpack it and name a file inside"
_EXPORT = "export it as text or tokens"
_WEIGHTS = "name a file of training data"
# Each pattern is too long to begin raw tokens by chance.
_FORMATS = tuple(
    (re.compile(pattern, re.DOTALL), name, remedy)
    for pattern, name, remedy in (
        (rb"\x1f\x8b\x08[\0-\x1f].{4}[\0\x02\x04][\0-\x0d\xff]", "a gzip file", _DECOMPRESS),
        (rb"BZh[1-9]1AY&SY", "a bzip2 file", _DECOMPRESS),
        (rb"\xfd7zXZ\0", "an xz file", _DECOMPRESS),
        (rb"\x28\xb5\x2f\xfd", "a Zstandard file", _DECOMPRESS),
        (rb"\x04\x22\x4d\x18", "an LZ4 file", _DECOMPRESS),
        (rb"\xff\x06\0\0sNaPpY", "a Snappy file", _DECOMPRESS),
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive (.zip, .npz, .xlsx, .docx, or an object saved by PyTorch)", _UNPACK),
        (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
        (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
        (rb".{257}ustar", "a tar archive", _UNPACK),
        (rb"\x93NUMPY", "a NumPy array", "give it a name that ends in .npy"),
        (rb"PAR1", "a Parquet file", _EXPORT),
        (rb"ARROW1\0\0", "an Arrow file", _EXPORT),
        (rb"\xff{4}.{2}\0\0\x10\0\0\0", "an Arrow stream", _EXPORT),
        (rb"FEA1", "a Feather file", _EXPORT),
        (rb"Obj\x01", "an Avro file", _EXPORT),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
        (rb"SQLite format 3\0", "an SQLite database", _EXPORT),
        (rb"\x80[\x04\x05]\x95.{6}\0\0", "a Python pickle", _EXPORT),
        (rb"\x80[\x02\x03].{0,40}c[a-z_][\w.]+\n\w+\n", "a Python pickle", _EXPORT),
        (rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", "an object saved by PyTorch", _EXPORT),
        (rb"%PDF-", "a PDF document", _EXPORT),
        (rb"\{\\rtf", "a rich-text document (RTF)", "save it as plain text"),
        (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Microsoft Office document", _EXPORT),
        (rb"\x89PNG\r\n\x1a\n", "a PNG image", _EXPORT),
        (rb"\xff\xd8\xff[\xdb\xe0\xe1\xee]", "a JPEG image", _EXPORT),
        (rb"GIF8[79]a", "a GIF image", _EXPORT),
        (rb"RIFF.{4}(WAVE|AVI |WEBP)", "a file of sound, film or pictures (RIFF)", _EXPORT),
        (rb"OggS\0|fLaC\0|ID3[\x02-\x04]\0", "a file of sound", _EXPORT),
        (rb"%!PS-", "a PostScript document", _EXPORT),
        (rb"\x7fELF", "an executable", _EXPORT),
        (rb"GGUF", "a GGUF file of model weights", _WEIGHTS),
        (rb".{4}\0{4}\{\s*\"", "a safetensors file of model weights", _WEIGHTS),
        (rb"MMIDIDX\0\0", "the index of a Megatron-LM data set", "name the .bin file beside it"),
        # The length of the first record and its checksum; then an Example, its Features, and the first of these.
        (rb"[^\0].{2}\0{5}.{4}\n[^\0].{0,2}\n[^\0].{0,2}\n", "a TFRecord file", _EXPORT),
        (
            rb"\0\x05\x16\x07\0\x02\0\0",
            "a file of attributes that macOS writes (AppleDouble)",
            "remove it: it holds no data",
        ),
        (rb"TNTIDX\0\0", "the index of a fairseq data set", _EXPORT),
        (rb"LITPKDS", "a packed data set of lit-gpt", _EXPORT),
    )
)
# Version-control systems put these in place of a large file until its content is fetched.
_POINTERS = (
    (re.compile(rb"version https://(git-lfs\.github|hawser\.github)\.com/spec/"), "Git LFS", "git lfs pull"),
    (re.compile(rb"\S*/?annex/objects/\S+\s*\Z"), "git-annex", "git annex get"),
    (re.compile(rb"(md5: \w+\s+)?(frozen: \w+\s+)?outs:\s+- (md5|hash|etag|path|size):? "), "DVC", "dvc pull"),
    (re.compile(rb"# xet version "), "Git Xet", "git xet checkout"),
    (re.compile(rb"Subproject commit [0-9a-f]{40}(-dirty)?\s*\Z"), "Git submodules", "git submodule update --init"),
)
_HTML = re.compile(rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*<(!doctype\s+html|(html|head)[\s>])", re.IGNORECASE | re.DOTALL)
_HTML_NAMES = re.compile(
    r"\.(x?html?|xht|php|aspx?|jsp|vue|svelte|erb|ejs|hbs|j2|jinja2?|tmpl|tpl|mdx?)$", re.IGNORECASE
)
_CLOUD_ERROR = re.compile(rb"(<\?xml[^>]*>\s*)?<Error>\s*<Code>")
_REFUSALS = re.compile(
    rb"([45]\d\d:? )?(not found|entry not found|repository not found|file not found|access denied|forbidden|"
    rb"unauthorized|invalid username or password|bad gateway|service unavailable|internal server error|"
    rb"\{\s*\"error\":[^{}]*\}|\{\s*\"message\":[^{}]*\"(documentation_url|status|code)\":[^{}]*\})\.?\s*\Z",
    re.IGNORECASE,
)


def foreign_format(head: bytes, name: str) -> tuple[str, str] | None:
    """Return what a file is that is neither text nor raw tokens, and the remedy: ("a gzip file", "decompress it").

    Args:
        head: the first HEAD_BYTES of the file, or all of it.
        name: its name; a page of HTML is foreign only under a name that says something else.
    """
    for pattern, format_name, remedy in _FORMATS:
        if pattern.match(head):
            return format_name, remedy
    return _pointer(head) or _utf16(head) or _error_page(head, name)


def _pointer(head: bytes) -> tuple[str, str] | None:
    if len(head) >= MAX_POINTER_BYTES:
        return None
    for pattern, system, command in _POINTERS:
        if pattern.match(head):
            return f"a pointer file of {system} in place of the file itself", f"fetch that with {command}"
    return None


def _utf16(head: bytes) -> tuple[str, str] | None:
    """Recognize UTF-16 and UTF-32 by their byte-order mark; without one, the bytes may as well be tokens."""
    marks = ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
    for mark, encoding in marks:
        if head.startswith(mark):
            # Whole units only; a surrogate pair may be cut at the end.
            text = head[: len(head) // 4 * 4].decode(encoding, errors="replace")
            if sum(letter.isprintable() or letter.isspace() for letter in text) > 0.95 * len(text) > 0:
                return f"{encoding} text", f"convert it with iconv -f {encoding} -t UTF-8"
    return None


def _error_page(head: bytes, name: str) -> tuple[str, str] | None:
    """Recognize the answer of a server that was saved under the name of the file that it refused."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _HTML.match(text) and not _HTML_NAMES.search(name):
        return (
            "a page of HTML, as servers send for errors and logins",
            "download it again, or name it .html if it is text",
        )
    if _CLOUD_ERROR.match(text) or (len(head) < MAX_POINTER_BYTES and _REFUSALS.match(text)):
        return "the error message of a server", "download it again"
    return None


def read_head(path: Path) -> bytes:
    """Return the first HEAD_BYTES of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def special_file(path: Path) -> str | None:
    """Return the kind of a file that holds no data, such as "a named pipe (FIFO)"; None for a regular file or a folder.

    Opening a FIFO waits for a writer, and reading a device such as /dev/zero never ends.

    Raises:
        OSError: it does not exist, or cannot be examined.
    """
    mode = os.stat(path).st_mode
    kinds = {stat.S_IFIFO: "a named pipe (FIFO)", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
             stat.S_IFBLK: "a block device"}  # fmt: skip
    return kinds.get(stat.S_IFMT(mode))
