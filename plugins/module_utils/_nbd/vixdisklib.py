# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: a disk behind VMware's libvixDiskLib as an nbdkit plugin.

The file runs in two ways, under the system's Python and with its standard library alone:

* ``nbdkit python vixdisklib.py parameters=<where>`` serves one disk;
* ``python3 vixdisklib.py prepare|end|cleanup parameters=<where>`` makes one call about a whole VM.
  Storage vMotion is forbidden per VM, so with one nbdkit per disk the first process to finish would
  allow it again under the others: the caller prepares before the snapshot and ends after the last disk.

``<where>`` is ``-<descriptor>`` or a file, which is deleted once read; it holds the JSON document that
:class:`Parameters` describes. Start the process with ``<library_dir>/lib64`` in LD_LIBRARY_PATH. What
happened is appended to ``status_file`` as JSON lines.

Facts about the interface (structures, threads, limits, errors) come from VMware's VDDK programming guide
and release notes, and from the public sources of nbdkit's vddk plugin.

Nothing imported here may load OpenSSL (hashlib, ssl, tempfile): VDDK brings its own copy, and
two in one process have been seen to end in a panic.
"""

from __future__ import annotations

import bisect
import collections
import concurrent.futures
import contextlib
import ctypes
import errno
import io
import itertools
import json
import os
import re
import sys
import threading
import time
import zlib
from dataclasses import dataclass, field, fields
from typing import Any, Callable, Iterator, Sequence

try:
    import nbdkit
except ImportError:  # outside nbdkit: the one-shot calls and the unit tests
    nbdkit = None

API_VERSION = 2

SECTOR = 512
CHUNK = 64 << 10  # the finest question about allocated blocks
WINDOW = 524288 * CHUNK  # the largest one
LARGEST = 2 << 20  # vCenter's hosts run out of memory with larger requests
LONGEST_DELAY = 30.0
KEEP_ALIVE = 30.0  # seconds; half the read timeout of the configuration below
IDENTITY = b"holdfast.backup"

READ_ONLY = 4
CREDENTIALS_UID = 1
OUT_OF_MEMORY = 2
ASYNC = 25000

DEFAULT_CONFIG = {
    "vixDiskLib.nfc.AcceptTimeoutMs": 180000,
    "vixDiskLib.nfc.RequestTimeoutMs": 180000,
    "vixDiskLib.nfc.ReadTimeoutMs": 60000,
    "vixDiskLib.nfc.WriteTimeoutMs": 600000,
    "vixDiskLib.nfcFssrvr.TimeoutMs": 0,
    "vixDiskLib.nfcFssrvrWrite.TimeoutMs": 0,
    "vixDiskLib.nfcAio.Session.BufSizeIn64KB": 16,
    "vixDiskLib.nfcAio.Session.BufCount": 4,
    "vixDiskLib.phoneHome.EnablePhoneHome": 0,
}


# --- Errors -----------------------------------------------------------------------------------------

_NETWORK = "Open TCP port 902 from the proxy to every ESXi host, and let it resolve their names."
_RIGHTS = "Check the user's password and its privileges on the VM and its datastores."
_VCENTER = "Check that the proxy reaches the server on port 443."
_BUSY = "Another reader holds the disk; wait for it, or end a left-over job."
_GONE = "The VM, its snapshot or the disk's file has gone; run the backup again."
_HOST = "The ESXi host is in or on its way to maintenance mode; run again when another host can serve the disk."

# code: (name, how often the same request is worth repeating on a new connection, next step)
ERRORS: dict[int, tuple[str, int, str]] = {
    1: (
        "VIX_E_FAIL",
        0,
        "Compare the thumbprint with the server's certificate; a running VM's disk can be read by a snapshot only; "
        "check the user's privileges.",
    ),
    2: ("VIX_E_OUT_OF_MEMORY", 8, "Let fewer disks of this host be copied at the same time, or use smaller requests."),
    3: ("VIX_E_INVALID_ARG", 0, "Please report this: a request was not what the library allows."),
    4: ("VIX_E_FILE_NOT_FOUND", 0, _GONE),
    5: ("VIX_E_OBJECT_IS_BUSY", 8, _BUSY),
    6: ("VIX_E_NOT_SUPPORTED", 0, "This server or this library cannot do it."),
    7: ("VIX_E_FILE_ERROR", 1, "Look into the events of the datastore."),
    8: ("VIX_E_DISK_FULL", 0, "Free space on the datastore."),
    9: ("VIX_E_INCORRECT_FILE_TYPE", 0, ""),
    10: ("VIX_E_CANCELLED", 0, ""),
    11: ("VIX_E_FILE_READ_ONLY", 0, "The disk was opened for reading only."),
    12: ("VIX_E_FILE_ALREADY_EXISTS", 0, ""),
    13: ("VIX_E_FILE_ACCESS_ERROR", 1, f"{_NETWORK} {_RIGHTS} For hotadd the proxy needs a free SCSI slot."),
    15: ("VIX_E_FILE_ALREADY_LOCKED", 8, _BUSY),
    26: ("VIX_E_HOST_NOT_CONNECTED", 8, _VCENTER),
    29: ("VIX_E_UNFINISHED_JOB", 8, ""),
    31: ("VIX_E_OPERATION_ALREADY_IN_PROGRESS", 8, ""),
    32: ("VIX_E_LICENSE", 0, "The ESXi host's licence does not allow backups."),
    34: ("VIX_E_VM_HOST_DISCONNECTED", 8, _NETWORK),
    35: ("VIX_E_AUTHENTICATION_FAIL", 0, _RIGHTS),
    36: ("VIX_E_HOST_CONNECTION_LOST", 8, _NETWORK),
    3014: ("VIX_E_HOST_USER_PERMISSIONS", 0, _RIGHTS),
    4000: ("VIX_E_VM_NOT_FOUND", 0, _GONE),
    13003: ("VIX_E_SNAPSHOT_NOTFOUND", 0, _GONE),
    14006: ("VIX_E_NBD_HANDSHAKE", 8, _NETWORK),
    14007: ("VIX_E_NBD_SOCKET", 8, _NETWORK),
    14008: ("VIX_E_NBD_SERVER_NOT_FOUND", 2, _NETWORK),
    14009: ("VIX_E_NBD_CONN_REFUSED", 2, _NETWORK),
    14010: ("VIX_E_NBD_TCP_ERROR", 8, _NETWORK),
    14011: ("VIX_E_NBD_TCP_CONN_LOST", 8, _NETWORK),
    14014: ("VIX_E_HOST_SERVER_SHUTDOWN", 8, _HOST),
    14015: ("VIX_E_HOST_SERVER_NOT_AVAILABLE", 8, _HOST),
    16007: ("VIX_E_DISK_OUTOFRANGE", 0, "Please report this: a request went past the end of the disk."),
    16027: ("VIX_E_DISK_TOOMANYOPENFILES", 8, ""),
    16053: ("VIX_E_DISK_SUBSYSTEM_INIT_FAIL", 0, "Unpack VDDK again: parts of it are missing."),
    16064: ("VIX_E_DISK_NOLICENSE", 0, "The ESXi host's licence does not allow backups."),
    18000: ("VIX_E_CANNOT_CONNECT_TO_HOST", 8, _VCENTER),
    20005: ("VIX_E_OPERATION_DISABLED", 0, "Storage vMotion of the VM is already forbidden, perhaps by a left-over job."),
    26000: ("VIX_E_ASYNC_MIXEDMODE_UNSUPPORTED", 0, "Please report this."),
    30006: ("VIX_E_HTTP_COULDNT_RESOLVE_HOST", 8, _VCENTER),
    30007: ("VIX_E_HTTP_COULDNT_CONNECT", 8, _VCENTER),
    30028: ("VIX_E_HTTP_TIMEOUT", 8, _VCENTER),
}
ERRNO = {OUT_OF_MEMORY: errno.ENOMEM, 8: errno.ENOSPC, 11: errno.EROFS}


class VddkError(Exception):
    """A call failed, or cannot be made.

    :param stage: load, init, connect, open, capacity, read, write, flush ...
    :param message: the object and the cause
    :param code: the library's error code without its upper bits; None for errors that we found
    :param hint: the next step; that of the code when empty
    """

    def __init__(self, stage: str, message: str, code: int | None = None, hint: str = "") -> None:
        name, self.repeats, known_hint = ERRORS.get(code or 0, ("", 0, ""))
        super().__init__(message)
        self.stage = stage
        self.code = code
        self.name = name
        self.message = message
        self.hint = hint or known_hint

    def as_dict(self) -> dict[str, Any]:
        """What the status file says about the error."""
        return {"stage": self.stage, "code": self.code, "name": self.name, "message": self.message, "hint": self.hint}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


# --- Parameters and configuration -------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """The JSON document; sizes in bytes, times in seconds."""

    library_dir: str
    server: str
    username: str
    password: str = field(repr=False)
    thumbprint: str
    vm: str  # managed object ID
    path: str = ""  # "[datastore] folder/disk.vmdk"; not needed by the one-shot calls
    port: int = 443
    snapshot: str | None = None  # managed object ID
    read_only: bool = True
    transports: str = "nbdssl:nbd"
    capacity: int | None = None  # a disk of another size is refused
    status_file: str | None = None
    config: dict[str, Any] = field(default_factory=dict)  # over DEFAULT_CONFIG; None takes a default out
    extents: bool = True
    depth: int = 32  # requests in flight
    retries: int = 6
    retry_delay: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Parameters:
        """Read the document; names what is missing or unknown."""
        try:
            values = json.loads(text)
            known = {each.name for each in fields(cls)}
            unknown = sorted(set(values) - known)
            if unknown:
                raise ValueError(f"unknown: {', '.join(unknown)}")
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise VddkError("parameters", f"The plugin's parameters are wrong: {error}.") from None


def read_parameters(where: str) -> Parameters:
    """Read the document from ``-<descriptor>``, or from a file that is deleted then."""
    if re.fullmatch(r"-\d+", where):
        with os.fdopen(int(where[1:]), encoding="utf-8") as stream:
            return Parameters.parse(stream.read())
    with io.open(where, encoding="utf-8") as stream:
        text = stream.read()
    os.unlink(where)
    return Parameters.parse(text)


def config_text(config: dict[str, Any], tmp_directory: str) -> str:
    """The library's configuration file: our defaults under what the user wants."""
    merged = {"tmpDirectory": tmp_directory, **DEFAULT_CONFIG, **config}
    lines = []
    for key, value in merged.items():
        if value is None:
            continue
        shown = str(int(value)) if isinstance(value, (bool, int)) else f'"{value}"'
        if re.search(r"[\r\n=]", key) or re.search(r"[\r\n]", shown):
            raise VddkError("parameters", f"The VDDK setting {key!r} contains a line break or an equals sign.")
        lines.append(f"{key}={shown}\n")
    return "".join(lines)


def write_config(config: dict[str, Any]) -> str:
    """Write the configuration file and return its path. The directory outlives the process: the library
    keeps in it what its clean-up after a crash needs."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = os.path.join(cache, "holdfast.backup", "vddk")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    text = config_text(config, directory)
    # Processes with the same settings share one file; the rename keeps it whole for each of them.
    path = os.path.join(directory, f"{zlib.crc32(text.encode()):08x}.conf")
    draft = f"{path}.{os.getpid()}"
    with io.open(draft, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(draft, path)
    return path


# --- The library ------------------------------------------------------------------------------------


def find_library(directory: str) -> tuple[str, tuple[int, ...]]:
    """The newest libvixDiskLib below the kit's root, and its version as far as its name tells."""
    found = _libraries(os.path.join(directory, "lib64"))
    if found:
        version, path = max(found)
        return path, version
    if not os.path.isdir(directory):
        message, hint = f"The VDDK directory {directory} does not exist.", "Unpack VDDK on the proxy and name its root."
    elif _libraries(directory):
        message, hint = f"{directory} is not the root of VDDK.", f"Name the directory above it: {os.path.dirname(directory)}."
    else:
        message, hint = f"{directory} holds no lib64/libvixDiskLib.so.", "Name the directory that VDDK was unpacked to."
    raise VddkError("load", message, hint=hint)


def _libraries(directory: str) -> list[tuple[tuple[int, ...], str]]:
    found = []
    names = os.listdir(directory) if os.path.isdir(directory) else []
    for name in names:
        if re.fullmatch(r"libvixDiskLib\.so[.\d]*", name):
            path = os.path.join(directory, name)
            real = os.path.basename(os.path.realpath(path)).partition(".so")[2]
            found.append((tuple(int(part) for part in re.findall(r"\d+", real)), path))
    return found


def asked_version(version: Sequence[int]) -> tuple[int, int]:
    """The interface to ask for: libraries accept versions older than themselves."""
    if not version or version[0] >= 7:
        return 7, 0
    return (6, 7) if tuple(version[:2]) >= (6, 7) else (6, 5)


class ConnectParams(ctypes.Structure):
    """The 128 bytes since VDDK 6.7; older libraries read the first 80."""

    _fields_ = [
        ("vmx_spec", ctypes.c_char_p),
        ("server", ctypes.c_char_p),
        ("thumbprint", ctypes.c_char_p),
        ("private_use", ctypes.c_long),
        ("credential_type", ctypes.c_int),
        ("username", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("_other_credentials", ctypes.c_void_p),
        ("port", ctypes.c_uint32),
        ("nfc_port", ctypes.c_uint32),
        ("api_version", ctypes.c_char_p),
        ("_reserved", ctypes.c_char * 8),
        ("_state", ctypes.c_void_p),
        ("_spec", ctypes.c_void_p * 3),
        ("spec_type", ctypes.c_int),
    ]


class Info(ctypes.Structure):
    """The part that every version has."""

    _fields_ = [
        ("bios_geometry", ctypes.c_uint32 * 3),
        ("physical_geometry", ctypes.c_uint32 * 3),
        ("capacity", ctypes.c_uint64),
        ("adapter_type", ctypes.c_int),
        ("links", ctypes.c_int),
        ("parent_hint", ctypes.c_char_p),
        ("uuid", ctypes.c_char_p),
    ]


class Block(ctypes.Structure):
    """Allocated sectors."""

    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class BlockList(ctypes.Structure):
    """Followed in memory by ``count`` blocks."""

    _fields_ = [("count", ctypes.c_uint32), ("blocks", Block * 0)]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p)
COMPLETION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)

_P, _S, _U32, _U64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint64
_PARAMS = ctypes.POINTER(ConnectParams)
PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "InitEx": (_U64, [_U32, _U32, LOG, LOG, LOG, _S, _S]),
    "Exit": (None, []),
    "GetErrorText": (_P, [_U64, _S]),
    "FreeErrorText": (None, [_P]),
    "ConnectEx": (_U64, [_PARAMS, ctypes.c_char, _S, _S, ctypes.POINTER(_P)]),
    "Disconnect": (_U64, [_P]),
    "Open": (_U64, [_P, _S, _U32, ctypes.POINTER(_P)]),
    "Close": (_U64, [_P]),
    "GetInfo": (_U64, [_P, ctypes.POINTER(ctypes.POINTER(Info))]),
    "FreeInfo": (None, [ctypes.POINTER(Info)]),
    "GetTransportMode": (_S, [_P]),
    "ReadAsync": (_U64, [_P, _U64, _U64, _P, COMPLETION, _P]),
    "WriteAsync": (_U64, [_P, _U64, _U64, _P, COMPLETION, _P]),
    "Wait": (_U64, [_P]),
    "Flush": (_U64, [_P]),
    "PrepareForAccess": (_U64, [_PARAMS, _S]),
    "EndAccess": (_U64, [_PARAMS, _S]),
    "Cleanup": (_U64, [_PARAMS, ctypes.POINTER(_U32), ctypes.POINTER(_U32)]),
}
# Since VDDK 6.7.
OPTIONAL: dict[str, tuple[Any, list[Any]]] = {
    "AllocateConnectParams": (_PARAMS, []),
    "FreeConnectParams": (None, [_PARAMS]),
    "QueryAllocatedBlocks": (_U64, [_P, _U64, _U64, _U64, ctypes.POINTER(ctypes.POINTER(BlockList))]),
    "FreeBlockList": (_U64, [ctypes.POINTER(BlockList)]),
}


class Library:
    """libvixDiskLib, loaded but not started.

    :param directory: the kit's root, the parent of lib64
    :param log: takes (text, is_warning) for each line that the library logs, from any thread
    """

    def __init__(self, directory: str, log: Callable[[str, bool], None]) -> None:
        self.directory = directory
        self.path, self.version = find_library(directory)
        try:
            self._library = ctypes.CDLL(self.path)
            self._functions = {name: self._bind(name, *types) for name, types in PROTOTYPES.items()}
        except (OSError, AttributeError) as error:
            raise VddkError(
                "load",
                f"{self.path} cannot be loaded: {error}.",
                hint=f"Unpack VDDK again if files are missing, and start with {directory}/lib64 in LD_LIBRARY_PATH.",
            ) from None
        for name, types in OPTIONAL.items():
            with contextlib.suppress(AttributeError):
                self._functions[name] = self._bind(name, *types)
        # The library keeps these pointers until Exit.
        self._log = [self._logger(log, is_warning) for is_warning in (False, True, True)]

    def _bind(self, name: str, result: Any, arguments: list[Any]) -> Any:
        function = self._library[f"VixDiskLib_{name}"]
        function.restype, function.argtypes = result, arguments
        return function

    @staticmethod
    def _logger(log: Callable[[str, bool], None], is_warning: bool) -> Any:
        formatter = ctypes.CDLL(None).vsnprintf
        formatter.argtypes = [_P, ctypes.c_size_t, _S, _P]

        def write(template: bytes, arguments: int) -> None:
            text = ctypes.create_string_buffer(1024)
            formatter(text, len(text), template, arguments)  # on x86_64 a va_list is passed as a pointer
            log(text.value.decode(errors="replace").rstrip(), is_warning)

        return LOG(write)

    def __contains__(self, name: str) -> bool:
        return name in self._functions

    def __getattr__(self, name: str) -> Any:
        return self._functions[name]

    def check(self, stage: str, what: str, result: int) -> None:
        """Raise what a call returned unless it is success."""
        if result:
            raise self.error(stage, what, result)

    def error(self, stage: str, what: str, result: int) -> VddkError:
        """The error of a call with the library's own words for it."""
        text = self.GetErrorText(result, None)
        words = ctypes.string_at(text).decode(errors="replace") if text else "unknown error"
        self.FreeErrorText(text)
        code = result & 0xFFFF
        name = ERRORS.get(code, ("",))[0]
        return VddkError(stage, f"{what} failed: {words} ({name + ', ' if name else ''}code {code}).", code)

    def start(self, config: dict[str, Any]) -> None:
        """InitEx: once per process, in the main thread, after any fork."""
        major, minor = asked_version(self.version)
        path = write_config(config)
        result = self.InitEx(major, minor, *self._log, os.fsencode(self.directory), os.fsencode(path))
        self.check("init", f"Starting {self.path}", result)

    @contextlib.contextmanager
    def connect_params(self, parameters: Parameters, with_vm: bool = True) -> Iterator[Any]:
        """Pointer to the connection's parameters while the block runs."""
        allocated = self.AllocateConnectParams() if "AllocateConnectParams" in self else None
        pointer = allocated or ctypes.pointer(ConnectParams())
        params = pointer.contents
        params.vmx_spec = f"moref={parameters.vm}".encode() if with_vm else None
        params.server = parameters.server.encode()
        params.thumbprint = parameters.thumbprint.encode()
        params.credential_type = CREDENTIALS_UID
        params.username = parameters.username.encode()
        params.password = parameters.password.encode()
        params.port = parameters.port
        try:
            yield pointer
        finally:
            if allocated:
                self.FreeConnectParams(allocated)


# --- What happened ----------------------------------------------------------------------------------


class Status:
    """Appends JSON lines to the status file, each with its time, and keeps secrets out."""

    def __init__(self, path: str | None, secret: str = "") -> None:
        self._path = path
        self._secret = secret
        self._lock = threading.Lock()
        self._errors: set[Any] = set()
        self._log: collections.deque[str] = collections.deque(maxlen=5)

    def log(self, text: str, is_warning: bool) -> None:
        """Take a line of the library's log: for nbdkit's verbose output, and as the background of an error."""
        text = self._clean(text)
        if is_warning:
            self._log.append(text)
        if nbdkit is not None:
            nbdkit.debug(text)

    def event(self, event: str, **facts: Any) -> None:
        """Write one line."""
        if self._path is None:
            return
        line = self._clean(json.dumps({"event": event, "time": time.time(), **facts}))
        with self._lock, io.open(self._path, "a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")

    def error(self, error: VddkError) -> None:
        """Write an error that ends the copy, once: many requests may fail for the same cause."""
        if (error.stage, error.code) not in self._errors:
            self._errors.add((error.stage, error.code))
            self.event("error", **error.as_dict(), log=list(self._log))

    def _clean(self, text: str) -> str:
        return text.replace(self._secret, "********") if self._secret else text


# --- The disk ---------------------------------------------------------------------------------------


def allocated(blocks: Sequence[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Cover [start, end) with (start, length, is allocated), from sorted allocated (start, length)."""
    position = start
    for index in range(max(0, bisect.bisect_right(blocks, (start, sys.maxsize)) - 1), len(blocks)):
        first, last = blocks[index][0], sum(blocks[index])
        if first >= end:
            break
        if first > position:
            yield position, first - position, False
            position = first
        if last > position:
            yield position, min(last, end) - position, True
            position = min(last, end)
    if position < end:
        yield position, end - position, False


class Disk:
    """One disk, opened when first needed and again after each lost connection.

    The library's rules: Open, Close and QueryAllocatedBlocks run in one thread; requests of one handle
    are issued one at a time and finish in any order; after an error the handle is not used again.
    """

    def __init__(self, library: Library, parameters: Parameters, status: Status) -> None:
        self.capacity = 0
        self._library = library
        self._parameters = parameters
        self._status = status
        self._opener = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._issue = threading.Lock()
        self._completion = COMPLETION(self._complete)
        self._waiting: dict[int, list[Any]] = {}  # number of a request: [lock, result]
        self._numbers = itertools.count(1)
        self._done = {"bytes_read": 0, "bytes_written": 0, "reads": 0, "writes": 0}

        self._state = threading.Condition()  # guards what follows
        self._connection: Any = None
        self._handle: Any = None
        self._lost = 0  # handles given up
        self._closing = False
        self._in_flight = 0
        self._depth = parameters.depth
        self._last_use = time.monotonic()

        self._windows: dict[int, list[tuple[int, int]]] = {}
        self.has_extents = parameters.extents and parameters.read_only and "QueryAllocatedBlocks" in library

    # Opening and closing

    def open(self) -> None:
        """Open the disk if it is not open."""
        self._persist(self._enter_and_leave)

    def close(self) -> None:
        """Close the disk; what was written is flushed."""
        with self._state:
            self._state.wait_for(lambda: self._in_flight == 0)
            if self._handle is not None:
                self._opener.submit(self._close_now).result()
        self._opener.shutdown()
        self._status.event("closed", reopened=self._lost, **self._done)

    def _what(self, verb: str) -> str:
        each = self._parameters
        return f"{verb} {each.path} of {each.vm} on {each.server}"

    def _open_now(self) -> None:
        library, parameters = self._library, self._parameters
        connection, handle = ctypes.c_void_p(), ctypes.c_void_p()
        with library.connect_params(parameters) as params:
            snapshot = parameters.snapshot.encode() if parameters.snapshot else None
            read_only = b"\1" if parameters.read_only else b"\0"
            result = library.ConnectEx(params, read_only, snapshot, parameters.transports.encode(), connection)
        library.check("connect", f"Connecting to {parameters.server}", result)
        self._connection = connection
        try:
            flags = READ_ONLY if parameters.read_only else 0
            library.check(
                "open", self._what("Opening"), library.Open(connection, parameters.path.encode(), flags, handle)
            )
            self._handle = handle
            self.capacity = self._ask_capacity(handle)
        except VddkError:
            self._close_now()
            raise
        self._status.event(
            "opened",
            transport=library.GetTransportMode(handle).decode(),
            version=".".join(map(str, library.version)),
            capacity=self.capacity,
            read_only=parameters.read_only,
            generation=self._lost + 1,
        )

    def _ask_capacity(self, handle: Any) -> int:
        info = ctypes.POINTER(Info)()
        self._library.check("open", self._what("Asking about"), self._library.GetInfo(handle, info))
        capacity: int = info.contents.capacity * SECTOR
        self._library.FreeInfo(info)
        if self._parameters.capacity not in (None, capacity):
            raise VddkError(
                "capacity",
                f"{self._what('The disk')} has {capacity} bytes instead of {self._parameters.capacity}.",
                hint="It was resized or replaced meanwhile; run again.",
            )
        return capacity

    def _close_now(self) -> None:
        handle, connection = self._handle, self._connection
        self._handle = self._connection = None
        if handle is not None:
            self._library.Wait(handle)
            if not self._parameters.read_only:
                self._library.Flush(handle)
            self._library.Close(handle)
        self._library.Disconnect(connection)

    # Requests

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from the disk."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._transfer("read", self._library.ReadAsync, address, offset, len(buffer))

    def write(self, data: bytes, offset: int) -> None:
        """Write the data to the disk."""
        address = ctypes.cast(data, ctypes.c_void_p).value or 0
        self._transfer("write", self._library.WriteAsync, address, offset, len(data))

    def _transfer(self, kind: str, function: Any, address: int, offset: int, length: int) -> None:
        for start in range(0, length, LARGEST):
            piece = min(LARGEST, length - start)
            self._persist(lambda at=start, size=piece: self._request(kind, function, address + at, offset + at, size))
        with self._state:
            self._done[f"{kind}s"] += 1
            self._done["bytes_read" if kind == "read" else "bytes_written"] += length

    def _request(self, kind: str, function: Any, address: int, offset: int, length: int) -> None:
        generation = self._enter()
        try:
            result = self._exchange(function, address, offset, length)
        finally:
            self._leave()
        if result:
            error = self._library.error(kind, f"{self._what(kind.capitalize())} at {offset}, {length} bytes,", result)
            raise _Lost(generation, error)

    def _exchange(self, function: Any, address: int, offset: int, length: int) -> int:
        """Issue one request and wait for it; the buffer belongs to the library until then."""
        number = next(self._numbers)
        lock = threading.Lock()
        lock.acquire()
        entry = self._waiting[number] = [lock, 0]
        with self._issue:
            result = function(self._handle, offset // SECTOR, length // SECTOR, address, self._completion, number)
        if result & 0xFFFF != ASYNC:
            del self._waiting[number]
            return result or 1  # success without a completion to come is no success
        lock.acquire()
        return entry[1]

    def _complete(self, number: int, result: int) -> None:
        """Called by the library, in any of its threads or inside the call that issued the request."""
        entry = self._waiting.pop(number)
        entry[1] = result
        entry[0].release()

    def flush(self) -> None:
        """Wait for all requests and make them durable. A failed flush is not repeated: what a new handle
        flushes is not what the old one had."""
        self._enter()
        try:
            with self._issue:
                result = self._library.Wait(self._handle) or self._library.Flush(self._handle)
        finally:
            self._leave()
        if result:
            error = self._library.error("flush", self._what("Flushing"), result)
            self._status.error(error)
            raise error

    def keep_alive(self) -> None:
        """Read a sector if the handle has been idle for so long that the host may drop it."""
        with self._state:
            idle = time.monotonic() - self._last_use >= KEEP_ALIVE
            if self._handle is None or self._closing or self._in_flight or not idle:
                return
            self._in_flight += 1
        try:
            # Its failure will be found, and answered, by the next request.
            self._exchange(self._library.ReadAsync, ctypes.addressof(ctypes.create_string_buffer(SECTOR)), 0, SECTOR)
        finally:
            self._leave()

    # Errors worth repeating

    def _enter(self) -> int:
        """Wait for a free place, open the disk if need be; returns the handle's generation."""
        with self._state:
            self._state.wait_for(lambda: not self._closing and self._in_flight < self._depth)
            if self._handle is None:
                try:
                    self._opener.submit(self._open_now).result()
                except VddkError as error:
                    raise _Lost(self._lost, error) from None
            self._in_flight += 1
            return self._lost

    def _leave(self) -> None:
        with self._state:
            self._in_flight -= 1
            self._last_use = time.monotonic()
            if self._closing:
                self._state.notify_all()
            else:
                self._state.notify()

    def _enter_and_leave(self) -> None:
        self._enter()
        self._leave()

    def _persist(self, action: Callable[[], None]) -> None:
        """Repeat the action on a new handle after errors that may pass, with growing pauses."""
        for failures in itertools.count(1):
            try:
                return action()
            except _Lost as lost:
                error = lost.error
                if failures > min(error.repeats, self._parameters.retries):
                    self._status.error(error)
                    raise error from None
                delay = min(LONGEST_DELAY, self._parameters.retry_delay * 2 ** (failures - 1))
                if self._give_up(lost.generation, error):
                    self._status.event("warning", **error.as_dict(), retry_in=delay)
                time.sleep(delay)

    def _give_up(self, generation: int, error: VddkError) -> bool:
        """Close the handle of that generation; False when another request has done so."""
        with self._state:
            if generation != self._lost:
                return False
            self._lost += 1
            self._closing = True
            self._state.wait_for(lambda: self._in_flight == 0)
            if self._handle is not None:
                self._opener.submit(self._close_now).result()
            if error.code == OUT_OF_MEMORY and self._depth > 1:
                self._depth //= 2
                self._status.event("depth", depth=self._depth)
            self._closing = False
            self._state.notify_all()
            return True

    # Allocated blocks

    def extents(self, offset: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Cover the range with (start, length, is allocated)."""
        end = offset + count
        while offset < end:
            index = offset // WINDOW
            until = min(end, (index + 1) * WINDOW)
            yield from allocated(self._window(index), offset, until)
            offset = until

    def _window(self, index: int) -> list[tuple[int, int]]:
        """The allocated (start, length) of one window, in bytes; only a few windows are remembered."""
        known = self._windows.get(index)
        if known is not None:
            return known
        start = index * WINDOW
        whole = min(start + WINDOW, self.capacity - self.capacity % CHUNK)
        blocks = [(start, whole - start)]
        if self.has_extents and whole > start:
            try:
                blocks = self._opener.submit(self._ask_blocks, start, whole - start).result()
            except VddkError as error:
                self.has_extents = False
                self._status.event("warning", **error.as_dict())
        if whole < min(start + WINDOW, self.capacity):
            # The last, incomplete chunk cannot be asked about.
            blocks.append((whole, self.capacity - whole))
        while len(self._windows) > 3:
            self._windows.pop(next(iter(self._windows)))
        self._windows[index] = blocks
        return blocks

    def _ask_blocks(self, start: int, length: int) -> list[tuple[int, int]]:
        answer = ctypes.POINTER(BlockList)()
        chunk = CHUNK // SECTOR
        if self._handle is None:
            raise VddkError("extents", "The connection was lost.")
        result = self._library.QueryAllocatedBlocks(self._handle, start // SECTOR, length // SECTOR, chunk, answer)
        self._library.check("extents", self._what("Asking for the allocated blocks of"), result)
        count = answer.contents.count
        place = ctypes.addressof(answer.contents) + BlockList.blocks.offset
        blocks = [(each.offset * SECTOR, each.length * SECTOR) for each in (Block * count).from_address(place)]
        self._library.FreeBlockList(answer)
        return blocks


class _Lost(Exception):
    """An error on the handle of some generation."""

    def __init__(self, generation: int, error: VddkError) -> None:
        super().__init__(str(error))
        self.generation = generation
        self.error = error


# --- nbdkit's callbacks -----------------------------------------------------------------------------


class _Plugin:
    """What the callbacks below share: nbdkit runs one disk per process."""

    parameters: Parameters
    status: Status
    library: Library
    disk: Disk
    ended = threading.Event()


@contextlib.contextmanager
def _telling(status: Status | None) -> Iterator[None]:
    """Put errors into the status file, and let nbdkit answer with their errno."""
    try:
        yield
    except VddkError as error:
        if status is not None:
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
    _Plugin.status = Status(parameters.status_file, parameters.password)
    with _telling(_Plugin.status):
        _Plugin.library = _load(parameters, _Plugin.status)


def _load(parameters: Parameters, status: Status) -> Library:
    library = Library(parameters.library_dir, status.log)
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
    with _telling(None):
        disk.read(buf, offset)


def pwrite(disk: Disk, buf: memoryview, offset: int, flags: int) -> None:
    """Write a copy of nbdkit's buffer, which is not writable and so has no address in Python."""
    _check_alignment(offset, len(buf))
    with _telling(None):
        disk.write(bytes(buf), offset)


def _check_alignment(offset: int, length: int) -> None:
    if offset % SECTOR or length % SECTOR:
        nbdkit.set_error(errno.EINVAL)
        raise VddkError("request", f"Bytes {offset} + {length} are not whole sectors.", hint="Use nbdkit's blocksize filter.")


def flush(disk: Disk, flags: int) -> None:
    """Nothing acknowledged may be lost after this."""
    with _telling(None):
        disk.flush()


def extents(disk: Disk, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """Blocks that were never written read as zeros."""
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(start, length, 0 if is_data else hole) for start, length, is_data in disk.extents(offset, count)]


# --- One-shot calls ---------------------------------------------------------------------------------


def prepare(library: Library, parameters: Parameters, status: Status) -> None:
    """Forbid Storage vMotion of the VM: before its snapshot is taken. vCenter only."""
    with library.connect_params(parameters) as params:
        result = library.PrepareForAccess(params, IDENTITY)
    library.check("prepare", f"Forbidding Storage vMotion of {parameters.vm}", result)
    status.event("prepared")


def end(library: Library, parameters: Parameters, status: Status) -> None:
    """Allow Storage vMotion again: after the snapshot was removed, and to tidy up after a crash."""
    with library.connect_params(parameters) as params:
        result = library.EndAccess(params, IDENTITY)
    library.check("end", f"Allowing Storage vMotion of {parameters.vm} again", result)
    status.event("ended")


def clean_up(library: Library, parameters: Parameters, status: Status) -> None:
    """Remove what crashed runs left, such as disks attached to this proxy by hotadd."""
    cleaned, remaining = ctypes.c_uint32(), ctypes.c_uint32()
    with library.connect_params(parameters, with_vm=False) as params:
        result = library.Cleanup(params, cleaned, remaining)
    library.check("cleanup", f"Cleaning up after earlier runs ({remaining.value} left)", result)
    status.event("cleaned", cleaned=cleaned.value, remaining=remaining.value)


CALLS = {"prepare": prepare, "end": end, "cleanup": clean_up}


def main(arguments: Sequence[str]) -> int:
    """``prepare|end|cleanup parameters=<where>``; returns the exit status."""
    call = CALLS.get(arguments[0]) if len(arguments) == 2 else None
    if call is None or not arguments[1].startswith("parameters="):
        print(f"usage: vixdisklib.py {'|'.join(CALLS)} parameters=<file or -descriptor>", file=sys.stderr)
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
    except VddkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__" and nbdkit is None:
    sys.exit(main(sys.argv[1:]))
