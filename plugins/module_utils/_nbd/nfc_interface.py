# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the messages of NFC, the protocol in which ESXi hosts serve disks on port 902.

VMware has published nothing about it. All numbers are facts from the protocol notes of cloudbase/OpenVixDiskLib,
which saw VDDK 8.0.2 talk to vCenter and ESXi 8.0.1 and a standalone ESXi 8.0.3; no other version was looked at. The
names are ours. Sizes and offsets are bytes, and all numbers little-endian.

A connection begins with lines of text (authd), goes on with messages of a fixed size (the classic handshake), and
ends with asynchronous messages (AIO): header, payload, and extra bytes that the header does not count.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import MANY, DiskError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.reopening import SECTOR

# authd

AUTHD_PORT = 902
AUTHD_SERVICE = "vpxa-nfc"  # what a ticket of vCenter names; with "ssl" behind it the encrypted one
AUTHD_READY, AUTHD_OK, AUTHD_BAD_ARGUMENTS, AUTHD_NO_LOGIN = 220, 200, 501, 530
AUTHD_LONGEST = 4096  # our own limit on a line

# The classic handshake: type, the rest of 264 bytes is zero but for what stands here.

CLASSIC_SIZE = 264
CLASSIC_COMPLETE = 4  # at the end of all
CLASSIC_PARAMETERS, CLASSIC_PARAMETERS_REPLY = 33, 36  # the reply: 1 at 16
CLASSIC_HANDSHAKE = 43  # "PlainText" at 4, with nbdssl too
CLASSIC_VERSION = 51  # the version at 4, in both ways
CLASSIC_AIO = 52  # echoed
CLASSIC_CONNECTION = 54  # lengths of two strings at 4 and 8; the strings follow unframed
CLASSIC_FEATURES = 55  # 3 at 4
PROTOCOL_VERSION = 11
FEATURES = 3
HASH = b"PlainText"
CLIENT_NAME, OPERATION_ID = b"vddk", b"nbdmode"  # as VDDK says them: no host was seen with others

# AIO

HEADER = struct.Struct("<IIII")  # magic, type, size of the payload, number of the operation
MAGIC = 0xA100DA7A
ERROR, OPEN_SESSION, CLOSE_SESSION, OPEN_FILE, CLOSE_FILE = 1, 2, 3, 4, 5
IO, SOCKET_OPTIONS, DDB_GET, RESOURCE_POOL = 7, 9, 11, 22
LARGEST_PAYLOAD = 64 << 10  # our own limit on what is read as a payload

SESSION = struct.Struct("<IIII")  # 0, buffer size, buffers, 0
LARGEST_BUFFER = 2 << 20  # accepted by ESXi 8, which refused 16 and 32 MiB
SMALLEST_BUFFER = 64 << 10  # the default, which every host accepts
BUFFERS = 4

OPEN_REQUEST = struct.Struct("<I12xII36x")  # length of the path, kind, flags
OPEN_REPLY = struct.Struct("<8xQII4xQI20x")  # handle, kind, flags, capacity, sector size
KIND_DISK = 2
OPEN_READ_ONLY, OPEN_READ_WRITE = 0x1E, 0x1A

TRANSFER = struct.Struct("<QQQIIIII")  # handle, operation, place, total, place of the fragment, its length, extra, 0
WRITE, READ = 0, 1
COMPRESSION_SHIFT = 32  # of the operation: what is above it says how the extra bytes are packed, 0 is not at all
FASTLZ = 2  # what a read may ask for; each fragment says whether it is

# Codes in error replies. Of 11 it is certain what it means. 5 is how hosts' logs number a lack of memory, 2 is VDDK's
# number for it: what follows from them, fewer requests at a time, does no harm in other cases.
READ_ONLY = 11
_OUT_OF_MEMORY = (2, 5)

_AUTHD = "Open TCP port 902 from the proxy to every ESXi host, and let it resolve their names."
HOST = "Run it again; the host may be restarting or entering maintenance mode."

_REFUSED = "The virtual machine, its snapshot or the disk's file may have gone: run it again. See the host's hostd.log."

# code: next step
ERRORS = {
    2: "Let fewer disks of this host be copied at the same time.",
    5: "Let fewer disks of this host be copied at the same time.",
    11: "The host takes the ticket for one that only reads: check the privilege to write disks.",
}


class NfcError(DiskError):
    """A host refused, or the connection broke.

    :param repeats: how often a new connection is worth a try; by the code if it is not given
    """

    silent = False  # the host said nothing at all

    def __init__(
        self, stage: str, message: str, code: int | None = None, hint: str = "", repeats: int | None = None
    ) -> None:
        super().__init__(stage, message, code, hint or ("" if code is None else ERRORS.get(code, _REFUSED)))
        self.out_of_memory = code in _OUT_OF_MEMORY
        self.name = f"NFC {code}" if code is not None else ""
        if repeats is not None:
            self.repeats = repeats
        elif self.out_of_memory:
            self.repeats = MANY
        elif code is not None and code != READ_ONLY:
            self.repeats = 2

    def told(self, stage: str, message: str) -> NfcError:
        """The same error, told of another stage and in other words."""
        error = NfcError(stage, message, self.code, self.hint, self.repeats)
        error.silent = self.silent
        return error


def lost(stage: str, message: str, hint: str = "") -> NfcError:
    """The connection broke: worth a new one with a new ticket."""
    return NfcError(stage, message, hint=hint or f"{_AUTHD} {HOST}", repeats=MANY)


def broken(stage: str, message: str) -> NfcError:
    """The host said what the protocol, as far as it is known, does not allow."""
    return NfcError(stage, message, hint="Use VDDK (access: vddk) for this host, and please report this.", repeats=1)


# Messages


def classic(kind: int, *numbers: int, text: bytes = b"") -> bytes:
    """One message of the classic handshake: numbers or a text from byte 4 on."""
    body = struct.pack(f"<{1 + len(numbers)}I", kind, *numbers) + text
    return body.ljust(CLASSIC_SIZE, b"\0")


def connection_data() -> bytes:
    """Who we are."""
    return classic(CLASSIC_CONNECTION, len(CLIENT_NAME), len(OPERATION_ID)) + CLIENT_NAME + OPERATION_ID


def number_at(message: bytes | bytearray, place: int) -> int:
    """A number of a message."""
    number: int = struct.unpack_from("<I", message, place)[0]
    return number


def message(kind: int, operation: int, payload: bytes = b"") -> bytes:
    """One AIO message but for its extra bytes, which its header does not count."""
    return HEADER.pack(MAGIC, kind, len(payload), operation) + payload


def open_session(buffer_size: int) -> bytes:
    """The payload that opens a session."""
    return SESSION.pack(0, buffer_size, BUFFERS, 0)


def open_file(path: bytes, read_only: bool) -> bytes:
    """The payload that opens a disk; the path follows as extra bytes."""
    return OPEN_REQUEST.pack(len(path), KIND_DISK, OPEN_READ_ONLY if read_only else OPEN_READ_WRITE)


@dataclass(frozen=True)
class OpenFile:
    """What the host says of a disk that it opened; a capacity of 0 says nothing."""

    handle: int
    capacity: int
    sector_size: int

    @classmethod
    def parse(cls, payload: bytes) -> OpenFile:
        """Read the reply; raises NfcError if it cannot be one."""
        if len(payload) != OPEN_REPLY.size:
            raise broken("open", f"The host answered the opening of the disk with {len(payload)} bytes.")
        handle, _kind, _flags, capacity, sector_size = OPEN_REPLY.unpack(payload)
        if sector_size != SECTOR or capacity % SECTOR:
            raise broken("open", f"The host tells of a disk of {capacity} bytes in sectors of {sector_size}.")
        return cls(handle, capacity, sector_size)


def read_request(handle: int, offset: int, length: int, packing: int = 0) -> bytes:
    """The payload that asks for a range, which may come packed."""
    return TRANSFER.pack(handle, READ | packing << COMPRESSION_SHIFT, offset, length, 0, length, length, 0)


def write_fragment(handle: int, offset: int, total: int, start: int, length: int) -> bytes:
    """The payload before the fragment [start, start + length) of a write of ``total`` bytes at ``offset``."""
    return TRANSFER.pack(handle, WRITE, offset, total, start, length, length, 0)


class Fragment(NamedTuple):
    """What stands before a fragment of a read, or in the answer to a write."""

    operation: int
    offset: int
    total: int
    start: int
    length: int  # unpacked
    extra: int

    @property
    def packing(self) -> int:
        """How it is packed: 0 is not at all."""
        return self.operation >> COMPRESSION_SHIFT

    @classmethod
    def parse(cls, payload: bytes | bytearray) -> Fragment:
        """Read a payload; raises NfcError if it has another size."""
        if len(payload) != TRANSFER.size:
            raise broken("receive", f"The host answered a request with {len(payload)} bytes.")
        return cls._make(TRANSFER.unpack(payload)[1:7])


def error_code(payload: bytes | bytearray) -> int | None:
    """The code in an error reply. Its layout is not in the notes; the first number is taken for it."""
    return number_at(payload, 0) if len(payload) >= 4 else None


# Certificates and tickets


def thumbprint(certificate: bytes, like: str) -> str:
    """The hash of a certificate, in the form and by the method of another one (SHA-1, or SHA-256 by its length)."""
    method = "sha256" if len(like.replace(":", "")) == 64 else "sha1"
    digest = hashlib.new(method, certificate, usedforsecurity=False).hexdigest().upper()
    return ":".join(digest[place : place + 2] for place in range(0, len(digest), 2))


def same_thumbprint(one: str, other: str) -> bool:
    """Whether two thumbprints are the same, however they are written."""
    return one.replace(":", "").lower() == other.replace(":", "").lower()


@dataclass(frozen=True)
class Ticket:
    """What opens one connection to one host, once; ``path`` is the disk's file by now, if that may have changed."""

    host: str
    session: str = field(repr=False)
    thumbprint: str
    port: int = AUTHD_PORT
    service: str = AUTHD_SERVICE
    path: str | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Ticket:
        """From its JSON form; raises NfcError if something is missing or would break the lines of authd."""
        try:
            ticket = cls(**values)
        except TypeError as error:
            raise NfcError("ticket", f"The ticket cannot be used: {error}.") from None
        for text in (ticket.host, ticket.session, ticket.service, ticket.thumbprint):
            if not text or not text.isascii() or not text.isprintable() or " " in text:
                raise NfcError("ticket", "The server gave a ticket that lacks a part or holds what cannot be sent.")
        return ticket


@dataclass(frozen=True)
class Parameters:
    """The JSON document that the plugin gets; sizes in bytes, times in seconds. No secrets: tickets come later."""

    path: str  # "[datastore] folder/disk.vmdk"
    owner: str  # for messages
    transport: str = "nbdssl"
    read_only: bool = True
    capacity: int | None = None  # a disk of another size is refused
    status_file: str | None = None
    allocated_file: str | None = None  # areas in use, "offset length" per line; None: not known
    depth: int = 32  # requests in flight
    buffer_size: int = LARGEST_BUFFER
    retries: int = 6
    retry_delay: float = 1.0
    timeout: float = 60.0  # without a byte from the host while it owes an answer
    fastlz: str | None = None  # the library, if what is read may come packed

    @classmethod
    def parse(cls, text: str) -> Parameters:
        """Read the document; names what is missing or unknown."""
        try:
            values = json.loads(text)
            unknown = sorted(set(values) - {each.name for each in fields(cls)})
            if unknown:
                raise ValueError(f"unknown: {', '.join(unknown)}")
            parameters = cls(**values)
            if parameters.transport not in ("nbd", "nbdssl"):
                raise ValueError(f"the transport {parameters.transport} is not one of NFC")
            return parameters
        except (TypeError, ValueError) as error:
            raise NfcError("parameters", f"The plugin's parameters are wrong: {error}.") from None


def read_areas(text: str) -> list[tuple[int, int]]:
    """Sorted (start, length) from the lines of a file."""
    areas = [line.split() for line in text.splitlines() if line.strip()]
    return sorted((int(start), int(length)) for start, length in areas)
