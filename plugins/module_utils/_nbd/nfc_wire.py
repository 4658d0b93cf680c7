# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: bytes to and from an ESXi host's NFC service, past authd.

One thread receives while others send, each whole messages. OpenSSL allows no two calls at a time on one connection,
so the encrypted wire never waits inside a call.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from typing import Iterator, Protocol, Union

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import nfc_interface as nfc
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import NfcError, Ticket

Bytes = Union[bytes, memoryview]

CONNECT_TIMEOUT = 30.0  # seconds


class Wire(Protocol):
    """A connection to the NFC service."""

    def send(self, parts: Sequence[Bytes]) -> None:
        """Send all of it; OSError if that cannot be done."""

    def receive(self, view: memoryview) -> None:
        """Fill the view; TimeoutError if nothing has come for too long, any other OSError if there is no more."""

    def shut(self) -> None:
        """Wake who receives: nothing more comes or goes."""

    def close(self) -> None:
        """Let the connection go, when nobody uses it."""


class PlainWire:
    """TCP as it is: data go from the kernel to where they belong."""

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._socket = sock
        # With a timeout of Python's the kernel would not wait for whole messages.
        sock.settimeout(None)
        limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, parts: Sequence[Bytes]) -> None:
        """Send all of it."""
        rest = [memoryview(part) for part in parts]
        try:
            while rest:
                sent = self._socket.sendmsg(rest)
                while rest and sent >= len(rest[0]):
                    sent -= len(rest.pop(0))
                if rest:
                    rest[0] = rest[0][sent:]
        except BlockingIOError:
            raise TimeoutError from None

    def receive(self, view: memoryview) -> None:
        """Fill the view."""
        got, size = 0, len(view)
        while got < size:
            try:
                count = self._socket.recv_into(view[got:], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise _silence(got) from None
            if not count:
                raise ConnectionResetError("the host closed the connection")
            got += count

    def shut(self) -> None:
        """Wake who receives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the connection go."""
        self._socket.close()


class TlsWire:
    """TLS over TCP."""

    def __init__(self, sock: ssl.SSLSocket, timeout: float) -> None:
        self._socket = sock
        self._timeout = timeout
        self._one_call = threading.Lock()
        sock.setblocking(False)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable.register(sock, select.POLLOUT)

    def send(self, parts: Sequence[Bytes]) -> None:
        """Send all of it."""
        for part in parts:
            rest = memoryview(part)
            while rest:
                try:
                    with self._one_call:
                        rest = rest[self._socket.send(rest) :]
                except ssl.SSLWantWriteError:
                    self._wait(self._writable)
                except ssl.SSLWantReadError:
                    time.sleep(0.001)  # the receiving thread reads it

    def receive(self, view: memoryview) -> None:
        """Fill the view."""
        got, size = 0, len(view)
        one_call, take = self._one_call, self._socket.recv_into
        while got < size:
            try:
                with one_call:
                    count = take(view[got:])
            except ssl.SSLWantReadError:
                try:
                    self._wait(self._readable)
                except TimeoutError:
                    raise _silence(got) from None
                continue
            except ssl.SSLWantWriteError:
                self._wait(self._writable)
                continue
            if not count:
                raise ConnectionResetError("the host closed the connection")
            got += count

    def _wait(self, ready: select.poll) -> None:
        if not ready.poll(self._timeout * 1000):
            raise TimeoutError

    def shut(self) -> None:
        """Wake who receives."""
        with contextlib.suppress(OSError):
            # The method of SSLSocket would make who receives take the bytes as they are.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the connection go."""
        self._socket.close()


def _silence(got: int) -> OSError:
    """Between messages silence may be all right, in the middle of one it is not."""
    return ConnectionAbortedError("the host fell silent in the middle of a message") if got else TimeoutError()


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
            sock = tls = _encrypt(sock, address, ticket.thumbprint)
            known = [ticket.thumbprint, *_log_in(tls, ticket, transport, address)]
            # Without a word the same connection goes on unencrypted, or with another TLS session.
            sock = socket.socket(fileno=tls.detach())
            sock.settimeout(CONNECT_TIMEOUT)
            if transport == "nbd":
                return PlainWire(sock, timeout)
            sock = tls = _encrypt(sock, address, *known)
            return TlsWire(tls, timeout)
        except BaseException:
            sock.close()
            raise


@contextlib.contextmanager
def _errors(address: str) -> Iterator[None]:
    try:
        yield
    except socket.gaierror as error:
        hint = "Let the proxy resolve the names of all ESXi hosts: by DNS or /etc/hosts."
        message = f"The name of the ESXi host {address} cannot be resolved: {error.strerror}."
        raise NfcError("connect", message, hint=hint, repeats=2) from None
    except ssl.SSLError as error:
        raise nfc.lost("connect", f"TLS with {address} failed: {error}.") from None
    except OSError as error:
        cause = "no answer in time" if isinstance(error, (TimeoutError, socket.timeout)) else error.strerror or error
        raise nfc.lost("connect", f"The connection to {address} failed: {cause}.") from None


def _encrypt(sock: socket.socket, address: str, *thumbprints: str) -> ssl.SSLSocket:
    """TLS with a host whose certificate has one of the thumbprints, which came by a way that is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    tls = context.wrap_socket(sock)
    certificate = tls.getpeercert(binary_form=True) or b""
    seen = [nfc.thumbprint(certificate, like=wanted) for wanted in thumbprints]
    if not any(nfc.same_thumbprint(*pair) for pair in zip(seen, thumbprints)):
        tls.close()
        raise NfcError(
            "thumbprint",
            f"The certificate of {address} has the thumbprint {seen[0]}, not {thumbprints[0]} as vCenter says.",
            hint="See what answers there. If the host got a new certificate, reconnect it to vCenter.",
        )
    return tls


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
    raise NfcError("authd", f"{address} answered {what.strip()} with: {line}.", hint=hint, repeats=repeats)


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
