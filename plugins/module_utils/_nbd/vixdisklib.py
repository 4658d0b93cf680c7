# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the nbdkit plugin that serves a disk through VMware's libvixDiskLib.

It runs in two ways, in a process of its own and with nothing but Python's standard library:

* ``nbdkit python vixdisklib.py parameters=<where>`` serves one disk;
* ``python3 vixdisklib.py prepare|end|cleanup parameters=<where>`` makes one call about a whole VM or an FCD.
  Storage vMotion is forbidden per VM, so with one nbdkit per disk the first process to finish would
  allow it again under the others: the caller prepares before the first disk and ends after the last.

``<where>`` is ``-<descriptor>`` or a file, which is deleted once read. How to start it: see plugins.py.

Nothing imported here may load OpenSSL (hashlib, ssl, tempfile): VDDK brings its own copy, and two in one
process have been seen to end in a panic.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import sys
import threading
from collections.abc import Sequence
from typing import Iterator

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import DiskError, Status
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.reopening import CHUNK, KEEP_ALIVE, LARGEST, SECTOR
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_disk import Disk
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_interface import (
    DISK_FULL,
    OPERATION_DISABLED,
    OUT_OF_MEMORY,
    READ_ONLY_DISK,
    Parameters,
    VddkError,
    read_parameters,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_library import Library

try:
    import nbdkit
except ImportError:  # outside nbdkit: the one-shot calls and the unit tests
    nbdkit = None

API_VERSION = 2

IDENTITY = b"holdfast.backup"
ERRNO = {OUT_OF_MEMORY: errno.ENOMEM, DISK_FULL: errno.ENOSPC, READ_ONLY_DISK: errno.EROFS}


class _Plugin:
    """What the callbacks below share: nbdkit runs one disk per process."""

    parameters: Parameters
    status: Status
    library: Library
    disk: Disk
    ended = threading.Event()


@contextlib.contextmanager
def _telling(status: Status) -> Iterator[None]:
    """Put errors into the status file, and let nbdkit answer with their errno."""
    try:
        yield
    except DiskError as error:
        status.error(error)
        if nbdkit is not None:
            nbdkit.set_error(ERRNO.get(error.code or 0, errno.EIO))
        raise


def config(key: str, value: str) -> None:
    """``parameters=<where>`` is the only setting."""
    if key != "parameters":
        raise VddkError("parameters", f"The plugin knows no setting {key}.")
    _Plugin.parameters = read_parameters(value)


def config_complete() -> None:
    """Load the library: what is wrong with it shows before anybody connects."""
    if not hasattr(_Plugin, "parameters"):
        raise VddkError("parameters", "The plugin needs parameters=<where>.")
    parameters = _Plugin.parameters
    _Plugin.status = Status(parameters.status_file, parameters.password, nbdkit.debug)
    with _telling(_Plugin.status):
        _Plugin.library = _load(parameters, _Plugin.status)


def _load(parameters: Parameters, status: Status) -> Library:
    library = Library(parameters.library_dir, status.log)
    library.check_able(parameters)
    status.event("loaded", library=library.path, version=".".join(map(str, library.version)))
    return library


def thread_model() -> int:
    """Many requests at once; each waits for its own completion."""
    return nbdkit.THREAD_MODEL_PARALLEL


def after_fork() -> None:
    """Start the library, now that this is the process that stays."""
    with _telling(_Plugin.status):
        _Plugin.library.start(_Plugin.parameters.config)
    _Plugin.disk = Disk(_Plugin.library, _Plugin.parameters, _Plugin.status)
    threading.Thread(target=_keep_alive, daemon=True).start()


def _keep_alive() -> None:
    while not _Plugin.ended.wait(KEEP_ALIVE / 2):
        _Plugin.disk.keep_alive()


def cleanup() -> None:
    """Close the disk and end the library, after the last client has gone."""
    _Plugin.ended.set()
    _Plugin.disk.close()
    _Plugin.library.Exit()


def open(readonly: bool) -> Disk:  # pylint: disable=redefined-builtin
    """All connections share the disk's one handle."""
    with _telling(_Plugin.status):
        _Plugin.disk.open()
    return _Plugin.disk


def get_size(disk: Disk) -> int:
    """Bytes."""
    return disk.capacity


def block_size(disk: Disk) -> tuple[int, int, int]:
    """Minimum, preferred, maximum."""
    return SECTOR, CHUNK, LARGEST


def can_write(disk: Disk) -> bool:
    """As the parameters say."""
    return not _Plugin.parameters.read_only


def can_flush(disk: Disk) -> bool:
    """A read-only disk has nothing to flush."""
    return not _Plugin.parameters.read_only


def can_multi_conn(disk: Disk) -> bool:
    """One handle serves all connections, so they agree."""
    return True


def can_extents(disk: Disk) -> bool:
    """Not for disks that are written: the library's answer would be out of date."""
    return disk.has_extents


def pread(disk: Disk, buf: memoryview, offset: int, flags: int) -> None:
    """Read into nbdkit's own buffer."""
    _check_alignment(offset, len(buf))
    with _telling(_Plugin.status):
        disk.read(buf, offset)


def pwrite(disk: Disk, buf: memoryview, offset: int, flags: int) -> None:
    """Write a copy of nbdkit's buffer, which is not writable and so has no address in Python."""
    _check_alignment(offset, len(buf))
    with _telling(_Plugin.status):
        disk.write(bytes(buf), offset)


def _check_alignment(offset: int, length: int) -> None:
    if offset % SECTOR or length % SECTOR:
        nbdkit.set_error(errno.EINVAL)
        raise VddkError(
            "request", f"Bytes {offset} + {length} are not whole sectors.", hint="Use nbdkit's blocksize filter."
        )


def flush(disk: Disk, flags: int) -> None:
    """Nothing acknowledged may be lost after this."""
    with _telling(_Plugin.status):
        disk.flush()


def extents(disk: Disk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """Blocks that were never written read as zeros."""
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(start, length, 0 if is_data else hole) for start, length, is_data in disk.extents(offset, count)]


def prepare(library: Library, parameters: Parameters, status: Status) -> None:
    """Forbid Storage vMotion of the VM or FCD: before its snapshot is taken. vCenter only."""
    with library.connect_params(parameters) as params:
        result = library.PrepareForAccess(params, IDENTITY)
        if result & 0xFFFF == OPERATION_DISABLED:
            # Perhaps by a run of ours that crashed; what others forbade stays forbidden.
            library.EndAccess(params, IDENTITY)
            result = library.PrepareForAccess(params, IDENTITY)
    library.check("prepare", f"Forbidding Storage vMotion of {parameters.owner}", result)
    status.event("prepared")


def end(library: Library, parameters: Parameters, status: Status) -> None:
    """Allow Storage vMotion again: after the snapshot was removed, and to tidy up after a crash."""
    with library.connect_params(parameters) as params:
        result = library.EndAccess(params, IDENTITY)
    library.check("end", f"Allowing Storage vMotion of {parameters.owner} again", result)
    status.event("ended")


def clean_up(library: Library, parameters: Parameters, status: Status) -> None:
    """Remove what crashed runs left, such as disks attached to this proxy by hotadd."""
    cleaned, remaining = ctypes.c_uint32(), ctypes.c_uint32()
    with library.connect_params(parameters, with_owner=False) as params:
        result = library.Cleanup(params, cleaned, remaining)
    library.check("cleanup", f"Cleaning up after earlier runs ({remaining.value} left)", result)
    status.event("cleaned", cleaned=cleaned.value, remaining=remaining.value)


CALLS = {"prepare": prepare, "end": end, "cleanup": clean_up}


def main(arguments: Sequence[str]) -> int:
    """``prepare|end|cleanup parameters=<where>``; returns the exit status."""
    call = CALLS.get(arguments[0]) if len(arguments) == 2 else None
    if call is None or not arguments[1].startswith("parameters="):
        sys.stderr.write(f"usage: vixdisklib.py {'|'.join(CALLS)} parameters=<file or -descriptor>\n")
        return 2
    try:
        parameters = read_parameters(arguments[1].partition("=")[2])
        status = Status(parameters.status_file, parameters.password)
        with _telling(status):
            library = _load(parameters, status)
            library.start(parameters.config)
            try:
                call(library, parameters, status)
            finally:
                library.Exit()
    except DiskError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__" and nbdkit is None:
    raise SystemExit(main(sys.argv[1:]))
