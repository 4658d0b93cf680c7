# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the nbdkit plugin that serves a disk through an ESXi host's NFC service, without VDDK.

``nbdkit python nfc_plugin.py parameters=-<descriptor>``: the descriptor is a socket to the module, see nfc.py. It runs
in a process of its own and with nothing but Python's standard library. How to start it: see plugins.py.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_disk import Caller, Disk
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import READ_ONLY, NfcError, read_areas
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import DiskError, Status
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.reopening import CHUNK, KEEP_ALIVE, LARGEST, SECTOR

try:
    import nbdkit
except ImportError:  # outside nbdkit: the unit tests
    nbdkit = None

API_VERSION = 2


class _Plugin:
    """What the callbacks below share: nbdkit runs one disk per process."""

    caller: Caller
    areas: list[tuple[int, int]] | None = None
    status: Status
    disk: Disk
    ended = threading.Event()


def _telling(call: Callable[..., None], *arguments: Any) -> None:
    """Put errors into the status file, and let nbdkit answer with their errno."""
    try:
        call(*arguments)
    except DiskError as error:
        _Plugin.status.error(error)
        number = errno.EROFS if error.code == READ_ONLY else errno.EIO
        nbdkit.set_error(errno.ENOMEM if error.out_of_memory else number)
        raise


def config(key: str, value: str) -> None:
    """``parameters=-<descriptor>`` is the only setting."""
    if key != "parameters" or not re.fullmatch(r"-\d+", value):
        raise NfcError("parameters", f"The plugin knows no setting {key}={value}.")
    _Plugin.caller = Caller(int(value[1:]))


def config_complete() -> None:
    """Read the areas in use: what is wrong with them shows before anybody connects."""
    if not hasattr(_Plugin, "caller"):
        raise NfcError("parameters", "The plugin needs parameters=-<descriptor>.")
    parameters = _Plugin.caller.parameters
    _Plugin.status = Status(parameters.status_file, debug=nbdkit.debug)
    if parameters.allocated_file:
        _Plugin.areas = read_areas(Path(parameters.allocated_file).read_text(encoding="ascii"))


def thread_model() -> int:
    """Many requests at once; each waits for its own answer."""
    return nbdkit.THREAD_MODEL_PARALLEL


def after_fork() -> None:
    """Begin, now that this is the process that stays."""
    _Plugin.disk = Disk(_Plugin.caller.parameters, _Plugin.caller.ticket, _Plugin.status, _Plugin.areas)
    threading.Thread(target=_keep_alive, daemon=True).start()


def _keep_alive() -> None:
    while not _Plugin.ended.wait(KEEP_ALIVE / 2):
        _Plugin.disk.keep_alive()


def cleanup() -> None:
    """Close the disk, after the last client has gone."""
    _Plugin.ended.set()
    _Plugin.disk.close()


def open(readonly: bool) -> Disk:  # pylint: disable=redefined-builtin
    """All connections share the disk's one session."""
    _telling(_Plugin.disk.open)
    return _Plugin.disk


def get_size(disk: Disk) -> int:
    """Bytes."""
    return disk.capacity


def block_size(disk: Disk) -> tuple[int, int, int]:
    """Minimum, preferred, maximum."""
    return SECTOR, CHUNK, LARGEST


def can_write(disk: Disk) -> bool:
    """As the parameters say."""
    return not _Plugin.caller.parameters.read_only


def can_flush(disk: Disk) -> bool:
    """A read-only disk has nothing to flush."""
    return not _Plugin.caller.parameters.read_only


def can_multi_conn(disk: Disk) -> bool:
    """One session serves all connections, so they agree."""
    return True


def can_extents(disk: Disk) -> bool:
    """If it is known what is in use."""
    return disk.has_extents


def pread(disk: Disk, buf: memoryview, offset: int, flags: int) -> None:
    """Read into nbdkit's own buffer."""
    _check_alignment(offset, len(buf))
    _telling(disk.read, buf, offset)


def pwrite(disk: Disk, buf: memoryview, offset: int, flags: int) -> None:
    """Write from nbdkit's own buffer."""
    _check_alignment(offset, len(buf))
    _telling(disk.write, buf, offset)


def _check_alignment(offset: int, length: int) -> None:
    if offset % SECTOR or length % SECTOR:
        nbdkit.set_error(errno.EINVAL)
        raise NfcError(
            "request", f"Bytes {offset} + {length} are not whole sectors.", hint="Use nbdkit's blocksize filter."
        )


def flush(disk: Disk, flags: int) -> None:
    """Nothing acknowledged may be lost after this."""
    _telling(disk.flush)


def extents(disk: Disk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """What was never written reads as zeros."""
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(start, length, 0 if is_data else hole) for start, length, is_data in disk.extents(offset, count)]
