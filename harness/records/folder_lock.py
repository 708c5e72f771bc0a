"""The lock of a run's folder: an exclusive lock on its config.yaml, which holds on one host and over NFS."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.errors import ConfigError
from harness.records.files import flush_to_disk, sync_folder

# Of a folder of many runs.
LOCK_FILE = ".lock"
# NFS is the reason to lock a file that is open for writing: it refuses an exclusive lock on any other.
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HELD_ELSEWHERE = (errno.EWOULDBLOCK, errno.EACCES)
_locks: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class LockUnavailable(Exception):
    """The file system has no locks."""


class FolderLock:
    """A file, created if it is missing, and locked until `release`, or until this process ends.

    The file itself is the lock, not one beside it: whoever deletes it deletes what a second run would resume from.

    Args:
        new: the file must not exist. Its creation then reserves the folder also where there are no locks.

    Raises:
        FileExistsError: it exists, although it must not.
        BlockingIOError: another process holds the lock.
        LockUnavailable: the file system has no locks, and the file need not be new.
        OSError: it cannot be opened for writing, is a link or no regular file, or was replaced in this moment.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        self._path = path
        self._descriptor, self.created = _open(path, new=new)
        try:
            self._lock(required=not new)
        except BaseException:
            self.discard()
            raise
        _locks.add(self)

    @property
    def is_empty(self) -> bool:
        """True if nothing has been written: the file is new, or the process that created it was killed at once."""
        return os.fstat(self._descriptor).st_size == 0

    def write(self, content: bytes) -> None:
        """Write the content of an empty file, and wait until it is on disk.

        Raises:
            OSError: the disk is full or not writable.
        """
        written = 0
        while written < len(content):
            written += os.write(self._descriptor, content[written:])
        flush_to_disk(self._descriptor)
        sync_folder(self._path.parent)

    def discard(self) -> None:
        """Delete the file if this process has created it, and release the lock."""
        if self._descriptor >= 0 and self.created:
            with suppress(OSError):
                os.unlink(self._path)
        self.release()

    def release(self) -> None:
        if self._descriptor < 0:
            return
        with suppress(OSError):
            # A process forked without Python's knowledge may have the file open too.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._close()

    def _close(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1

    def _lock(self, *, required: bool) -> None:
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(self._path))
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_ELSEWHERE:
                # Whoever holds it has found the file empty, and uses it.
                self.created = False
                raise BlockingIOError(*error.args) from error
            if required:
                raise LockUnavailable(error.strerror) from error
        now = os.lstat(self._path)
        if (now.st_dev, now.st_ino) != (found.st_dev, found.st_ino):
            self.created = False
            raise OSError(errno.ESTALE, "was replaced by another process just now", str(self._path))


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Hold the lock of a folder of many runs, whose plan cannot be it, since it is replaced; without locks, do nothing.

    Args:
        option: the option that names the folder.

    Raises:
        ConfigError: another process holds it.
    """
    try:
        lock = FolderLock(folder / LOCK_FILE, new=False)
    except BlockingIOError as error:
        raise ConfigError(
            f"{option}: another command runs into {folder}; wait until it has ended, or choose another {option}"
        ) from error
    except (LockUnavailable, OSError):
        yield
        return
    try:
        yield
    finally:
        lock.discard()


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock of a file; False if that cannot be found out."""
    with suppress(OSError):
        descriptor = os.open(path, _FLAGS)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _HELD_ELSEWHERE
        finally:
            os.close(descriptor)
    return False


def _open(path: Path, *, new: bool) -> tuple[int, bool]:
    """Return a descriptor of the file, and whether it was created."""
    try:
        return os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        if new:
            raise
        return os.open(path, _FLAGS), False


def _close_in_child() -> None:
    """Close the locks that a forked process has inherited: it may live longer than the run."""
    for lock in list(_locks):
        lock._close()


os.register_at_fork(after_in_child=_close_in_child)
