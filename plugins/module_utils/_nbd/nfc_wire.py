# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: bytes to and from an ESXi host's NFC service, past authd."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any, Iterator, Union

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import nfc_interface as nfc
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import NfcError, Ticket

Bytes = Union[bytes, memoryview]

CONNECT_TIMEOUT = 30.0  # seconds
_HEAD = nfc.HEADER.size + nfc.TRANSFER.size  # bytes before a fragment
_PARTS = 512  # that the kernel takes at a time; 1024 are its limit
_RECORDS = 1 << 20  # bytes of TLS that are taken from the kernel at a time; measured best of 128 KiB to 4 MiB


class Wire:
    """A connection to the NFC service. One thread may send while another one receives.

    :param timeout: seconds of silence that it bears
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._socket = sock
        # With a timeout of Python's the kernel would not wait for whole messages.
        sock.settimeout(None)
        self.set_timeout(timeout)

    def set_timeout(self, timeout: float) -> None:
        """Bear silence for so many seconds."""
        limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, parts: Sequence[Bytes]) -> None:
        """Send all of it; OSError if that cannot be done."""
        raise NotImplementedError

    def receive(self, view: memoryview) -> None:
        """Fill the view; TimeoutError if nothing has come for too long, any other OSError if there is no more."""
        raise NotImplementedError

    def _take(self, view: memoryview, flags: int = 0) -> int:
        """Wait for bytes of the kernel's, and tell how many came."""
        try:
            count = self._socket.recv_into(view, 0, flags)
        except BlockingIOError:
            raise TimeoutError from None
        if not count:
            raise ConnectionResetError("the host closed the connection")
        return count

    def shut(self) -> None:
        """Wake who receives: nothing more comes or goes."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the connection go, when nobody uses it."""
        self._socket.close()


class PlainWire(Wire):
    """TCP as it is: data go from the kernel to where they belong, and what stands before them comes by one call."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        super().__init__(sock, timeout)
        self._head = memoryview(bytearray(_HEAD))
        self._ahead = self._head[:0]  # received, and not asked for yet

    def send(self, parts: Sequence[Bytes]) -> None:
        """Send all of it."""
        rest = [memoryview(part) for part in parts]
        try:
            while rest:
                sent = self._socket.sendmsg(rest[:_PARTS])
                while rest and sent >= len(rest[0]):
                    sent -= len(rest.pop(0))
                if rest:
                    rest[0] = rest[0][sent:]
        except BlockingIOError:
            raise TimeoutError from None

    def receive(self, view: memoryview) -> None:
        """Fill the view."""
        size = len(view)
        got = min(size, len(self._ahead))
        view[:got], self._ahead = self._ahead[:got], self._ahead[got:]
        while got < size:
            if size >= _HEAD:
                got += self._take(view[got:], socket.MSG_WAITALL)
                continue
            come = self._take(self._head)
            part = min(come, size - got)
            view[got : got + part], self._ahead = self._head[:part], self._head[part:come]
            got += part


class TlsWire(Wire):
    """TLS over TCP, of which many records are taken from the kernel, or given to it, at a time.

    OpenSSL allows no two calls at a time on one connection. It works on memory here, so that no call ever waits for
    the host, and whoever sends does not wait for the one who receives.
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        super().__init__(sock, timeout)
        self._come, self._go = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context().wrap_bio(self._come, self._go)
        self._one_call = threading.Lock()
        self._records = memoryview(bytearray(_RECORDS))
        self._shake_hands()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._send_records()
                self._take_records()
        self._send_records()

    @property
    def certificate(self) -> bytes:
        """Of the host, in DER."""
        return self._tls.getpeercert(binary_form=True) or b""

    def send(self, parts: Sequence[Bytes]) -> None:
        """Send all of it."""
        for part in parts:
            rest = memoryview(part)
            while rest:
                with self._one_call:
                    rest = rest[self._tls.write(rest[:_RECORDS]) :]
                if self._go.pending >= _RECORDS:
                    self._send_records()
        self._send_records()

    def receive(self, view: memoryview) -> None:
        """Fill the view."""
        got, size = 0, len(view)
        one_call = self._one_call
        read: Callable[[int, memoryview], Any] = self._tls.read  # which returns a number if it is given a buffer
        while got < size:
            try:
                with one_call:
                    count = read(size - got, view[got:])  # one record at most
            except ssl.SSLWantReadError:
                self._take_records()
                continue
            if not count:
                raise ConnectionResetError("the host closed the connection")
            got += count

    def _send_records(self) -> None:
        with self._one_call:
            records = self._go.read()
        try:
            self._socket.sendall(records)
        except BlockingIOError:
            raise TimeoutError from None

    def _take_records(self) -> None:
        count = self._take(self._records)
        with self._one_call:
            self._come.write(self._records[:count])


def connect(ticket: Ticket, transport: str, timeout: float) -> Wire:
    """Go through authd to the NFC service.

    :param transport: ``nbdssl``, or ``nbd``: the login is encrypted, what follows is not
    :param timeout: seconds of silence that the wire bears
    :raises NfcError: it cannot be reached, or refuses
    """
    address = f"{ticket.host}:{ticket.port}"
    with _errors(address):
        sock = socket.create_connection((ticket.host, ticket.port), timeout=CONNECT_TIMEOUT)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            _expect(_line(sock), nfc.AUTHD_READY, address, "its banner")
            sock = tls = _context().wrap_socket(sock)
            _check_certificate(tls.getpeercert(binary_form=True) or b"", address, ticket.thumbprint)
            known = [ticket.thumbprint, *_log_in(tls, ticket, transport, address)]
            # Without a word the same connection goes on unencrypted, or with another TLS session.
            sock = socket.socket(fileno=tls.detach())
            sock.settimeout(CONNECT_TIMEOUT)
            if transport == "nbd":
                return PlainWire(sock, timeout)
            wire = TlsWire(sock, CONNECT_TIMEOUT)
            _check_certificate(wire.certificate, address, *known)
            wire.set_timeout(timeout)
            return wire
        except BaseException:
            sock.close()
            raise


@contextlib.contextmanager
def _errors(address: str) -> Iterator[None]:
    try:
        yield
    except (socket.gaierror, UnicodeError) as error:  # the latter of what can be no name, like esx..example.com
        hint = "Let the proxy resolve the names of all ESXi hosts: by DNS or /etc/hosts."
        message = f"The name of the ESXi host {address} cannot be resolved: {getattr(error, 'strerror', error)}."
        raise NfcError("connect", message, hint=hint, repeats=2) from None
    except ssl.SSLError as error:
        raise nfc.lost("connect", f"TLS with {address} failed: {error}.") from None
    except OSError as error:
        cause = "no answer in time" if isinstance(error, (TimeoutError, socket.timeout)) else error.strerror or error
        raise nfc.lost("connect", f"The connection to {address} failed: {cause}.") from None


def _context() -> ssl.SSLContext:
    """The certificate is ours to check, by its thumbprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.options |= ssl.OP_NO_RENEGOTIATION  # which needs who receives to send
    return context


def _check_certificate(certificate: bytes, address: str, *thumbprints: str) -> None:
    """Refuse a certificate that has none of the thumbprints, which came by a way that is trusted."""
    seen = [nfc.thumbprint(certificate, like=wanted) for wanted in thumbprints]
    if not any(nfc.same_thumbprint(*pair) for pair in zip(seen, thumbprints)):
        raise NfcError(
            "thumbprint",
            f"The certificate of {address} has the thumbprint {seen[0]}, not {thumbprints[0]} as vCenter says.",
            hint="See what answers there. If the host got a new certificate, reconnect it to vCenter.",
        )


def _log_in(tls: ssl.SSLSocket, ticket: Ticket, transport: str, address: str) -> list[str]:
    """Talk to authd; returns the thumbprints that it tells of the service behind it."""
    tls.sendall(f"SESSION {ticket.session}\r\n".encode())  # without a reply
    _ask(tls, "BANNER ", nfc.AUTHD_READY, address)
    told = _ask(tls, f"THUMBPRINT_SHA2 {nfc.HASH.decode()}", nfc.AUTHD_OK, address).split()
    service = ticket.service + ("ssl" if transport == "nbdssl" else "")
    _ask(tls, f"PROXY {service}", nfc.AUTHD_OK, address)
    return [word for word in told if len(word.replace(":", "")) == 64]


def _ask(tls: ssl.SSLSocket, command: str, wanted: int, address: str) -> str:
    tls.sendall(f"{command}\r\n".encode())
    return _expect(_line(tls), wanted, address, command)


def _expect(line: str, wanted: int, address: str, what: str) -> str:
    """What follows the status of a line that has the wanted one."""
    status, _space, text = line.partition(" ")
    if status == str(wanted):
        return text
    hint, repeats = "See to the log of the host (hostd, vpxa).", 0
    if status == str(nfc.AUTHD_NO_LOGIN):
        # A new ticket may do: this one may have been too old.
        hint, repeats = "Check that the clocks of vCenter and the host agree, and the privileges on the VM.", 2
    elif what.startswith("PROXY") and what.endswith("ssl"):
        hint = "The host cannot encrypt NFC. Let it, or allow plain text by transports: [nbd]."
    elif what.startswith("PROXY"):
        hint = "The host does not serve NFC. Check that its licence and services allow backups."
    raise NfcError("authd", f"{address} answered {what.strip()} with: {line.rstrip('.')}.", hint=hint, repeats=repeats)


def _line(sock: socket.socket) -> str:
    """One line, and not a byte more: what follows may be of another layer."""
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionResetError(f"the host closed the connection{' after: ' if line else ''}{line!r}")
        line += byte
        if len(line) > nfc.AUTHD_LONGEST:
            raise nfc.broken("authd", "The host sends a line without end.")
    return line.decode("ascii", "replace").strip()
