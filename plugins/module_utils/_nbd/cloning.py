# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: copies of files, by shared blocks where the file system has them, and their hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable

_FICLONE = 0x40049409
_BUFFER = 1 << 20
_ZEROS = bytes(_BUFFER)


def can_reflink(directory: str) -> bool:
    """Whether files in a directory can share their blocks; leaves nothing there."""
    try:
        with tempfile.TemporaryFile(dir=directory) as one, tempfile.TemporaryFile(dir=directory) as other:
            one.write(_ZEROS)
            one.flush()
            return _share(one.fileno(), other.fileno())
    except OSError:
        return False


def clone(source: str, target: str, on_progress: Callable[[int], None]) -> tuple[bool, str]:
    """Make ``target`` a copy of a file: whether it shares its blocks, and the SHA-256 of what was copied.

    :param on_progress: gets the bytes done so far
    :raises OSError: a file cannot be read or written
    """
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            if _share(reader, writer):
                return True, _pass(writer, None, on_progress)  # what the copy holds is what must be right
            return False, _pass(reader, writer, on_progress)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def digest(path: str, on_progress: Callable[[int], None]) -> str:
    """SHA-256 of a file.

    :param on_progress: gets the bytes done so far
    """
    reader = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _pass(reader, None, on_progress)
    finally:
        os.close(reader)


def _share(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return False
    return True


def _pass(reader: int, writer: int | None, on_progress: Callable[[int], None]) -> str:
    """Hash a file, and write it where ``writer`` is given; holes remain holes."""
    size, position, hasher = os.fstat(reader).st_size, 0, hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER))
    while position < size:
        data, end = _data(reader, position, size)
        while position < data:
            count = min(len(_ZEROS), data - position)
            hasher.update(_ZEROS[:count])
            position += count
            on_progress(position)
        while position < end:
            count = os.preadv(reader, [buffer[: end - position]], position)
            if not count:
                raise OSError(errno.EIO, "The file became shorter")
            hasher.update(buffer[:count])
            if writer is not None:
                _write(writer, buffer[:count], position)
            position += count
            on_progress(position)
    if writer is not None:
        os.ftruncate(writer, size)
    return hasher.hexdigest()


def _write(writer: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(writer, data, position)
        data, position = data[count:], position + count


def _data(reader: int, position: int, size: int) -> tuple[int, int]:
    """Start and end of the next data of a file."""
    try:
        start = os.lseek(reader, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole
            return size, size
        return position, size
    return start, min(size, os.lseek(reader, start, os.SEEK_HOLE))
