# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one disk behind an ESXi host's NFC service, kept open through lost connections."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_fastlz import FastLZ
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import (
    SMALLEST_BUFFER,
    NfcError,
    Parameters,
    Ticket,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_session import Session
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_wire import Bytes, connect
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import Status
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.reopening import (
    LARGEST,
    SECTOR,
    VERBS,
    ReopeningDisk,
    allocated,
)


class Caller:
    """The module, behind an inherited socket: it sends the parameters first, and a ticket whenever it is asked.

    The password stays with it.
    """

    def __init__(self, descriptor: int) -> None:
        self._stream = socket.socket(fileno=descriptor).makefile("rw", encoding="utf-8")
        self._one = threading.Lock()
        self.parameters = Parameters.parse(self._stream.readline())

    def ticket(self) -> Ticket:
        """A new ticket for the disk."""
        with self._one:
            try:
                self._stream.write(json.dumps({"want": "ticket"}) + "\n")
                self._stream.flush()
                answer = json.loads(self._stream.readline())
            except (OSError, ValueError):
                raise NfcError("ticket", "The task that started the copy has gone.") from None
        if "error" in answer:
            raise NfcError("ticket", **answer["error"])
        return Ticket.parse(answer["ticket"])


def begin(
    get_ticket: Callable[[], Ticket], transport: str, timeout: float, buffer_size: int, fastlz: FastLZ | None = None
) -> tuple[Ticket, Session]:
    """A session with the largest buffers that the host agrees to.

    :param timeout: seconds without a byte from the host while it owes an answer
    :param buffer_size: bytes to begin with
    :param fastlz: have the host pack what is read
    """
    while True:
        ticket = get_ticket()
        wire = connect(ticket, transport, timeout)
        try:
            return ticket, Session(wire, buffer_size, fastlz)
        except NfcError as error:
            if error.stage != "session" or error.silent or buffer_size <= SMALLEST_BUFFER:
                raise _named(error, f"{ticket.host}:") from None
            buffer_size //= 2


def _named(error: NfcError, what: str) -> NfcError:
    return error.told(error.stage, f"{what} {error.message}")


class Disk(ReopeningDisk):
    """One disk. Every connection needs a ticket of its own.

    :param areas: (start, length) in use, sorted; None if that is not known
    """

    def __init__(
        self,
        parameters: Parameters,
        ticket: Callable[[], Ticket],
        status: Status,
        areas: list[tuple[int, int]] | None = None,
    ) -> None:
        name = f"{parameters.path} of {parameters.owner}"
        super().__init__(status, name, parameters.depth, parameters.retries, parameters.retry_delay)
        self._parameters = parameters
        self._ticket = ticket
        self._areas = areas
        self._buffer_size = parameters.buffer_size
        self._fastlz: FastLZ | None = None
        self.has_extents = areas is not None and parameters.read_only

    def _open_now(self) -> None:
        parameters = self._parameters
        ticket, session = self._new_session()
        path = ticket.path or parameters.path
        try:
            opened = session.open_disk(path, parameters.read_only)
            capacity = opened.capacity or parameters.capacity
            if capacity is None:
                raise NfcError("capacity", f"{ticket.host} does not tell the size of {parameters.path}.")
            self.capacity = self._check_capacity(capacity, parameters.capacity)
        except Exception as error:
            session.close()
            if isinstance(error, NfcError) and error.stage == "open":
                raise _named(error, f"Opening {path} of {parameters.owner} failed on {ticket.host}:") from None
            raise
        self._handle = session
        self._status.event(
            "opened",
            transport=parameters.transport,
            host=ticket.host,
            version=session.version,
            buffer_size=session.buffer_size,
            capacity=self.capacity,
            read_only=parameters.read_only,
            fastlz=self._fastlz is not None,
            generation=self._lost + 1,
        )

    def _new_session(self) -> tuple[Ticket, Session]:
        parameters = self._parameters
        try:
            if parameters.fastlz is not None and self._fastlz is None:
                self._fastlz = FastLZ(parameters.fastlz)
            ticket, session = begin(
                self._ticket, parameters.transport, parameters.timeout, self._buffer_size, self._fastlz
            )
        except NfcError as error:
            if error.stage == "connect" and not self._lost:
                # A host that was never reached is rather blocked than restarting.
                error.repeats = min(error.repeats, 2)
            raise
        self._buffer_size = session.buffer_size
        return ticket, session

    def _close_now(self) -> None:
        session, self._handle = self._handle, None
        if session is not None:  # a flush may have closed it just before
            session.close()

    # Requests

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from the disk."""
        for start in range(0, len(buffer), LARGEST):
            self._transfer("read", Session.read, buffer[start : start + LARGEST], offset + start)

    def write(self, data: Bytes, offset: int) -> None:
        """Write the data to the disk."""
        view = memoryview(data)
        for start in range(0, len(view), LARGEST):
            self._transfer("write", Session.write, view[start : start + LARGEST], offset + start)

    def _transfer(self, kind: str, function: Callable[..., NfcError | None], data: memoryview, offset: int) -> None:
        def attempt() -> NfcError | None:
            error = function(self._handle, data, offset)
            if error is None:
                return None
            what = f"{self._what(VERBS[kind])} at {offset}, {len(data)} bytes, failed:"
            return error.told(kind, f"{what} {error.message}")

        self._request(kind, attempt, len(data))

    def flush(self) -> None:
        """Let the host close the disk: NFC knows no other message that makes what was written durable.

        A failed flush is not repeated, and nothing is done after it: what a new session closes is not what the old
        one had.
        """
        with self._state:
            self._closing = True
            self._state.wait_for(lambda: self._in_flight == 0)
            try:
                if self._hopeless is not None:
                    raise self._hopeless
                if self._handle is not None:
                    session: Session = self._handle
                    try:
                        self._opener.submit(session.close_disk).result()
                    finally:
                        self._opener.submit(self._close_now).result()
            except NfcError as error:
                self._hopeless = self._hopeless or _named(error, f"{self._what('Flushing')} failed:")
                raise self._hopeless from None
            finally:
                self._closing = False
                self._state.notify_all()

    def _read_sector(self) -> None:
        self._handle.read(memoryview(bytearray(SECTOR)), 0)

    def extents(self, offset: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Cover the range with (start, length, is allocated)."""
        yield from allocated(self._areas or [], offset, offset + count)
