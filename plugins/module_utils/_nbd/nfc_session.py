# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: one NFC session with an ESXi host, many requests at a time.

Whoever has a request queues it, sends what is queued, and waits for the answer. One of those who wait, the leader,
receives: what comes for others goes to where it belongs, too. Once it has all of its own, another one leads. As
answers mostly come in the order of the requests, a thread is woken once for each, when its own answer is due.

What is found to be wrong ends the session: whoever waits gets the error, and a new session with a new ticket has to be
made.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import nfc_interface as nfc
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_fastlz import FastLZ
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import Fragment, NfcError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_wire import Bytes, Wire

GOODBYE = 5.0  # seconds for each answer at the end
_CLOSED = "The session was closed."


class _Operation:
    """One operation in flight.

    :param kind: of the message that answers it
    :param view: where what is read goes
    :param total: bytes to read or write
    """

    def __init__(self, kind: int, offset: int = 0, total: int = 0, view: memoryview | None = None) -> None:
        self.kind = kind
        self.offset = offset
        self.total = total
        self.view = view
        self.missing = total
        self.fragments: dict[int, int] = {}  # start: length
        self.reply = b""
        self.error: NfcError | None = None
        self.done = False
        self.waits = False  # whoever it belongs to has sent all of it
        self.turn = threading.Lock()  # opens when it is done, or should lead
        self.turn.acquire()

    def finish(self, error: NfcError | None = None) -> None:
        """Let the waiting thread go on."""
        self.error = error
        self.done = True
        self.turn.release()


class Session:
    """What follows authd: the classic handshake, and then messages in both ways at any time."""

    def __init__(self, wire: Wire, buffer_size: int, fastlz: FastLZ | None = None) -> None:
        """Say hello and open the session.

        :param buffer_size: the most bytes of data in a message
        :param fastlz: have the host pack what is read
        :raises NfcError: of the stage ``session`` if the host does not want it so
        """
        self.buffer_size = buffer_size
        self.version = 0
        self._wire = wire
        self._fastlz = fastlz
        self._packing = nfc.FASTLZ if fastlz else 0
        self._sending = threading.Lock()
        self._state = threading.Lock()  # guards what follows
        self._next = 0
        self._unsent: list[Bytes] = []  # in the order of the operations' numbers
        self._waiting: dict[int, _Operation] = {}
        self._led = False  # somebody receives
        self._failure: NfcError | None = None
        self._handle: int | None = None
        self._greeted = False
        try:
            self._shake_hands()
            self._greeted = True
            self._call("session", nfc.OPEN_SESSION, nfc.open_session(buffer_size))
            self._call("options", nfc.SOCKET_OPTIONS, bytes(12))
            self._call("options", nfc.RESOURCE_POOL, (1).to_bytes(4, "little"))
        except BaseException:
            self.close()
            raise

    # The beginning and the end

    def _shake_hands(self) -> None:
        try:
            self._wire.send([nfc.classic(nfc.CLASSIC_HANDSHAKE, text=nfc.HASH)])
            self._wire.send([nfc.classic(nfc.CLASSIC_PARAMETERS)])
            if nfc.number_at(self._classic(nfc.CLASSIC_PARAMETERS_REPLY), 16) != 1:
                raise nfc.broken("handshake", "The host did not accept the parameters of the NFC session.")
            self._wire.send([nfc.classic(nfc.CLASSIC_VERSION, nfc.PROTOCOL_VERSION)])
            self.version = nfc.number_at(self._classic(nfc.CLASSIC_VERSION), 4)
            self._wire.send([nfc.connection_data()])
            self._wire.send([nfc.classic(nfc.CLASSIC_FEATURES, nfc.FEATURES)])
            self._wire.send([nfc.classic(nfc.CLASSIC_AIO)])
            self._classic(nfc.CLASSIC_AIO)
        except OSError as error:
            cause = "no answer in time" if isinstance(error, TimeoutError) else error
            raise nfc.lost("handshake", f"The host broke off the NFC handshake: {cause}.") from None

    def _classic(self, kind: int) -> bytes:
        message = bytearray(nfc.CLASSIC_SIZE)
        self._wire.receive(memoryview(message))
        if nfc.number_at(message, 0) != kind:
            raise nfc.broken(
                "handshake", f"The host sent a message of type {nfc.number_at(message, 0)} instead of {kind}."
            )
        return bytes(message)

    def open_disk(self, path: str, read_only: bool) -> nfc.OpenFile:
        """Open a disk by its path; one for each session."""
        name = path.encode()
        opened = nfc.OpenFile.parse(self._call("open", nfc.OPEN_FILE, nfc.open_file(name, read_only), name))
        self._handle = opened.handle
        return opened

    def close_disk(self) -> None:
        """Have the host close the disk, and say so."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._call("close", nfc.CLOSE_FILE, handle.to_bytes(8, "little"))

    def close(self) -> None:
        """Take leave if the connection still stands, and end it. Nobody may wait for an answer any more."""
        if self._greeted and self._failure is None:
            with contextlib.suppress(NfcError, OSError):
                self._wire.set_timeout(GOODBYE)
                self.close_disk()
                self._call("close", nfc.CLOSE_SESSION, bytes(4))
                self._wire.send([nfc.classic(nfc.CLASSIC_COMPLETE)])
        self._fail(NfcError("close", _CLOSED, repeats=1))
        self._wire.close()

    # Requests

    def read(self, view: memoryview, offset: int) -> NfcError | None:
        """Fill the view from the disk; returns what went wrong, and the view is ours no more."""
        operation = _Operation(nfc.IO, offset, len(view), view)
        payload = nfc.read_request(self._handle or 0, offset, len(view), self._packing)
        if self._start(operation, [(payload, b"")]):
            self._send_unsent()
            self._wait(operation)
        return operation.error

    def write(self, data: Bytes, offset: int) -> NfcError | None:
        """Write to the disk, with one answer for all of it; returns what went wrong."""
        view, total = memoryview(data), len(data)
        operation = _Operation(nfc.IO, offset, total)
        fragments = []
        for start in range(0, total, self.buffer_size):
            piece = view[start : start + self.buffer_size]
            fragments.append((nfc.write_fragment(self._handle or 0, offset, total, start, len(piece)), piece))
        with self._sending:  # no other thread may still have to do with the data when this one goes on
            started = self._start(operation, fragments)
            self._send()
        if started:
            self._send_unsent()
            self._wait(operation)
        return operation.error

    def _call(self, stage: str, kind: int, payload: bytes, extra: bytes = b"") -> bytes:
        """One message and its answer."""
        operation = _Operation(kind)
        if self._start(operation, [(payload, extra)]):
            self._send_unsent()
            self._wait(operation)
        if operation.error:
            raise operation.error.told(stage, operation.error.message)
        return operation.reply

    # What goes

    def _start(self, operation: _Operation, messages: Sequence[tuple[bytes, Bytes]]) -> bool:
        """Give the operation its number and queue its messages, or end it if the session has failed."""
        with self._state:
            if self._failure is not None:
                operation.error = self._failure
                return False
            number = self._next
            self._next += 1
            self._waiting[number] = operation
            for payload, extra in messages:
                self._unsent += nfc.message(operation.kind, number, payload), extra
        return True

    def _send_unsent(self) -> None:
        """Send what is queued, unless another thread does: it goes on as long as there is something."""
        while self._unsent and self._sending.acquire(blocking=False):
            try:
                self._send()
            finally:
                self._sending.release()

    def _send(self) -> None:
        """Send what is queued while holding the right to. Its failure reaches whoever waits."""
        with self._state:
            parts, self._unsent = self._unsent, []
        if parts and self._failure is None:
            try:
                self._wire.send(parts)
            except OSError as error:
                self._fail(_broken_off(error))

    def _fail(self, error: NfcError) -> None:
        """End the session. Whoever leads finds that there is no more to receive, and ends what others wait for."""
        with self._state:
            if self._failure is None:
                self._failure = error
        self._wire.shut()

    # What comes

    def _wait(self, operation: _Operation) -> None:
        """Wait for the end of an operation; receive while nobody else does."""
        with self._state:
            operation.waits = True
            leads = not self._led and not operation.done
            self._led = self._led or leads
        if not leads:
            operation.turn.acquire()
        if not operation.done:
            self._lead(operation)

    def _lead(self, operation: _Operation) -> None:
        """Receive until the operation is done, and have somebody else go on."""
        try:
            while not operation.done and self._failure is None:
                self._receive_one()
        except NfcError as error:
            self._fail(error)
        except OSError as error:
            self._fail(_broken_off(error))
        except BaseException as error:  # whoever waits must not wait for ever
            self._fail(nfc.broken("receive", f"What the host sent could not be taken: {error!r}."))
            if not isinstance(error, Exception):
                raise
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """Let another one of those who wait lead, or all of them go if the session has failed."""
        with self._state:
            if self._failure is not None:
                for other in self._waiting.values():
                    other.finish(self._failure)
                self._waiting.clear()
            # Whoever still sends must not lead: the host may have to get rid of something before it takes more.
            following = next((other for other in self._waiting.values() if other.waits), None)
            self._led = following is not None
            if following is not None:
                following.turn.release()

    def _receive_one(self) -> None:
        header = bytearray(nfc.HEADER.size)
        self._wire.receive(memoryview(header))
        magic, kind, size, number = nfc.HEADER.unpack(header)
        operation = self._waiting.get(number)
        if magic != nfc.MAGIC or size > nfc.LARGEST_PAYLOAD:
            raise nfc.broken("receive", f"The host sent what is no message: {header.hex()}.")
        if operation is None or kind not in (nfc.ERROR, operation.kind):
            raise nfc.broken("receive", f"The host sent a message of type {kind} that answers nothing.")
        payload = bytearray(size)
        self._wire.receive(memoryview(payload))
        if kind == nfc.ERROR:
            code = nfc.error_code(payload)
            self._finish(number, operation, NfcError("request", f"The host refused with the code {code}.", code))
        elif kind != nfc.IO:
            operation.reply = bytes(payload)
            self._finish(number, operation)
        else:
            answer = Fragment.parse(payload)
            if operation.view is None:
                self._finish(number, operation)
            else:
                self._take(number, operation, operation.view, answer)

    def _take(self, number: int, operation: _Operation, view: memoryview, fragment: Fragment) -> None:
        """Receive a fragment of a read; it need not be the next one."""
        start, length = fragment.start, fragment.length
        fits = 0 < length <= operation.missing and start + length <= operation.total
        same = fragment.offset == operation.offset and fragment.total & 0xFFFFFFFF == operation.total
        fastlz = self._fastlz if fragment.packing == nfc.FASTLZ else None
        whole = 0 < fragment.extra <= length if fastlz else fragment.extra == length and not fragment.packing
        if not fits or not same or not whole or start in operation.fragments:
            raise nfc.broken("read", f"The host sent a fragment that does not fit: {fragment}.")
        operation.fragments[start] = length
        place = view[start : start + length]
        if fastlz:
            packed = bytearray(fragment.extra)
            self._wire.receive(memoryview(packed))
            fastlz.unpack(packed, place)
        else:
            self._wire.receive(place)
        operation.missing -= length
        if not operation.missing:
            end = 0
            for start, length in sorted(operation.fragments.items()):
                if start != end:
                    raise nfc.broken("read", f"The host's fragments overlap at {start}.")
                end += length
            self._finish(number, operation)

    def _finish(self, number: int, operation: _Operation, error: NfcError | None = None) -> None:
        del self._waiting[number]
        operation.finish(error)


def _broken_off(error: OSError) -> NfcError:
    if isinstance(error, TimeoutError):
        silence = nfc.lost("receive", "The host did not answer in time.", nfc.HOST)
        silence.silent = True
        return silence
    return nfc.lost("receive", f"The connection to the host broke: {error.strerror or error}.", nfc.HOST)
