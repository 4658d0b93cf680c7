# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: whether a host lets us read a disk over NFC, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_disk import begin
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import (
    LARGEST_BUFFER,
    NfcError,
    Ticket,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_session import Session
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.reopening import SECTOR

TIMEOUT = 60.0  # seconds
_PIECE = 512 << 10  # bytes per request
_DEPTH = 8  # requests in flight

NOTHING: Mapping[str, Any] = {
    "works": False,
    "stage": "ticket",
    "problem": None,
    "next_step": None,
    **dict.fromkeys(("host", "port", "nfc_version", "buffer_size", "capacity", "bytes_read", "seconds", "rate")),
}


def check(
    ticket: Callable[[], Mapping[str, Any]], transport: str, path: str | None, capacity: int | None, length: int
) -> dict[str, Any]:
    """Come as far as it goes, and tell how far that was.

    :param ticket: gets a new ticket, as the JSON form of ``nfc_interface.Ticket``
    :param path: of the disk to read; None to end after the handshake
    :param capacity: that it must have, in bytes
    :param length: bytes to read for the rate
    :returns: the keys of :data:`NOTHING`; ``stage`` is where it ended, or ``read`` or ``handshake`` when all is well
    """
    found = dict(NOTHING)

    def get() -> Ticket:
        given = Ticket.parse(ticket())
        found.update(host=given.host, port=given.port, stage="connect")
        return given

    try:
        _ticket, session = begin(get, transport, TIMEOUT, LARGEST_BUFFER)
        try:
            found.update(stage="handshake", nfc_version=session.version, buffer_size=session.buffer_size)
            if path is not None:
                _read(session, path, capacity, length, found)
            found["works"] = True
        finally:
            session.close()
    except NfcError as error:
        found.update(stage=error.stage, problem=error.message, next_step=error.hint)
    except BackupError as error:
        found.update(problem=error.message, next_step=error.next_step)
    return found


def _read(session: Session, path: str, capacity: int | None, length: int, found: dict[str, Any]) -> None:
    found["stage"] = "open"
    opened = session.open_disk(path, read_only=True)
    found["capacity"] = opened.capacity or capacity
    if opened.capacity and capacity and opened.capacity != capacity:
        message = f"The host tells of {opened.capacity} bytes of {path}, vCenter of {capacity}."
        raise NfcError("capacity", message, hint="Run it again; if it stays so, use VDDK, and please report this.")
    found["stage"] = "read"
    _fetch(session, 0, SECTOR)
    end = min(length, found["capacity"] or SECTOR)
    started = time.monotonic()
    with ThreadPoolExecutor(_DEPTH) as pool:
        starts = range(0, end, _PIECE)
        list(pool.map(lambda start: _fetch(session, start, min(_PIECE, end - start)), starts))
    seconds = time.monotonic() - started
    found.update(bytes_read=end, seconds=round(seconds, 3), rate=round(end / seconds) if seconds else 0)


def _fetch(session: Session, offset: int, length: int) -> None:
    error = session.read(memoryview(bytearray(length)), offset)
    if error is not None:
        raise NfcError("read", f"Reading {length} bytes at {offset} failed: {error.message}", error.code, error.hint)
