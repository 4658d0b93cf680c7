# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the nbdkit plugin that takes in the blocks of a disk and keeps nothing but their hashes.

``nbdkit python hashing.py size=<bytes> capacity=<bytes> block=<bytes> digests=<file>`` runs in a process of its own,
with nothing but Python's standard library. Whatever is written into it must be whole blocks in the end; for each it
appends ``RECORD``, the block's number and its SHA-256, to the file. ``capacity`` is where the disk ends, if that is
before the end of its last sector. Hashing lets go of Python's lock, so several requests
are hashed at a time.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from typing import Any, ClassVar

try:
    import nbdkit
except ImportError:  # outside nbdkit
    nbdkit = None

API_VERSION = 2

RECORD = struct.Struct(">Q32s")


class _Plugin:
    """What the callbacks below share: nbdkit runs one disk per process."""

    size = 0
    capacity = 0
    block = 0
    file = -1
    lock = threading.Lock()
    incomplete: ClassVar[dict[int, tuple[bytearray, list[int]]]] = {}


def config(key: str, value: str) -> None:
    """Take a parameter."""
    if key == "digests":
        _Plugin.file = os.open(value, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    else:
        setattr(_Plugin, key, int(value))


def thread_model() -> Any:
    """Several requests at a time."""
    return nbdkit.THREAD_MODEL_PARALLEL


def open(readonly: bool) -> int:  # pylint: disable=redefined-builtin
    """A client has connected."""
    return 1


def get_size(handle: int) -> int:
    """The size of the disk in bytes."""
    return _Plugin.size


def can_multi_conn(handle: int) -> bool:
    """All connections write into one disk."""
    return True


def can_zero(handle: int) -> bool:
    """Zeros come as data."""
    return False


def pread(handle: int, buffer: bytearray, offset: int, flags: int) -> None:
    """There is nothing to read."""
    raise RuntimeError("This disk only takes in.")


def pwrite(handle: int, buffer: bytearray, offset: int, flags: int) -> None:
    """Take in a part of the disk: mostly a whole block."""
    view, end = memoryview(buffer), offset + len(buffer)
    while offset < end:
        number, within = divmod(offset, _Plugin.block)
        length = min(_Plugin.block - within, end - offset)
        _take(number, within, view[:length])
        view = view[length:]
        offset += length


def _take(number: int, within: int, data: memoryview) -> None:
    size = min(_Plugin.block, _Plugin.size - number * _Plugin.block)
    if len(data) < size:
        with _Plugin.lock:
            whole, missing = _Plugin.incomplete.setdefault(number, (bytearray(size), [size]))
            whole[within : within + len(data)] = data
            missing[0] -= len(data)
            if missing[0]:
                return
            del _Plugin.incomplete[number]
        data = memoryview(whole)
    digest = hashlib.sha256(data[: _Plugin.capacity - number * _Plugin.block]).digest()
    os.write(_Plugin.file, RECORD.pack(number, digest))
