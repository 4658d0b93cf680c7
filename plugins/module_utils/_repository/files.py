# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: durable and careful file work in a repository."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from contextlib import contextmanager
from typing import Callable, Iterator

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, NoSpace, RepositoryError

_BUFFER = 1 << 20
_NEXT_STEPS = {
    errno.EROFS: "Mount the repository read-write.",
    errno.EACCES: "Give the user that runs the module read and write access to the repository.",
    errno.EPERM: "Give the user that runs the module read and write access to the repository.",
    errno.ENOENT: "See that the repository is mounted and nothing else deletes from it.",
    errno.ESTALE: "Mount the repository again.",
    errno.EIO: "Check the storage of the repository.",
}


@contextmanager
def reporting(action: str) -> Iterator[None]:
    """Turn an OSError into an error that says what could not be done.

    :param action: like "write the manifest"
    :raises NoSpace: the file system or quota is full
    :raises RepositoryError: anything else that the system refuses
    """
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        message = f"Cannot {action}:{where} {error.strerror or error}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(message, "Free space in the repository or delete old restore points.") from error
        next_step = _NEXT_STEPS.get(error.errno or 0, "Check the repository's file system.")
        raise RepositoryError(message, next_step) from error


def open_plain(path: str) -> int:
    """A descriptor of an existing regular file; a symbolic link or anything else is refused.

    :raises Damaged: it is not a regular file
    :raises OSError: as open(2)
    """
    try:
        # Without O_NONBLOCK a fifo in a hostile repository would hold the reader for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged(f"{path} is a symbolic link.", "A repository holds only plain files.") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged(f"{path} is not a regular file.", "A repository holds only plain files.")
    return descriptor


def read(path: str, limit: int) -> bytes:
    """At most ``limit`` + 1 bytes of a regular file."""
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read(limit + 1)


def digest(path: str, check: Callable[[int], None] = lambda count: None) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a regular file.

    :param check: called after each block with its bytes; what it raises ends the reading
    """
    with os.fdopen(open_plain(path), "rb", buffering=0) as file:
        checksum, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(_BUFFER))
        while True:
            count = file.readinto(buffer)
            if not count:
                return size, checksum.hexdigest()
            checksum.update(buffer[:count])
            size += count
            check(count)


def write(path: str, data: bytes, temporary: str | None = None) -> None:
    """Put a file of mode 0600 in place, whole or not at all, and durable.

    :param temporary: where it is made, in the same directory; of a name of its own where several may write at once
    """
    temporary = temporary or f"{path}.new"
    remove(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    sync_directory(os.path.dirname(path))


def sync(path: str) -> None:
    """Bring a file's content to the storage."""
    descriptor = open_plain(path)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    """Bring a directory's names to the storage."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_directory(path: str) -> bool:
    """Whether it is a directory itself, not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def is_plain(path: str) -> bool:
    """Whether it is a regular file itself, not a link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def remove(path: str) -> None:
    """Remove a file, a link (not what it points to) or a whole directory, if it is there."""
    try:
        if is_directory(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
