# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: VMware's libvixDiskLib by ctypes.

Facts about the interface come from VMware's VDDK programming guide and release notes, and from the
public sources of nbdkit's vddk plugin. All numbers are for Linux on x86_64, the only one there is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, Iterator

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_interface import (
    ERRORS,
    Parameters,
    VddkError,
    write_config,
)

OPEN_READ_ONLY = 4
CREDENTIALS_UID = 1
SPEC_VSTORAGE_OBJECT = 1  # how a first class disk is named; 0 is a VM
ASYNC = 25000


def find_library(directory: str) -> tuple[str, tuple[int, ...]]:
    """The newest libvixDiskLib below the kit's root, and its version as far as its name tells."""
    found = _libraries(os.path.join(directory, "lib64"))
    if found:
        version, path = max(found)
        return path, version
    if not os.path.isdir(directory):
        message, hint = f"The VDDK directory {directory} does not exist.", "Unpack VDDK on the proxy and name its root."
    elif _libraries(directory):
        message, hint = (
            f"{directory} is not the root of VDDK.",
            f"Name the directory above it: {os.path.dirname(directory)}.",
        )
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
        ("fcd_id", ctypes.c_char_p),
        ("fcd_datastore", ctypes.c_char_p),
        ("fcd_snapshot", ctypes.c_char_p),
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
    """libvixDiskLib, loaded but not started. Its functions are attributes: ``library.Open(...)``.

    :param directory: the kit's root, the parent of lib64
    :param log: takes (text, is_warning) for each line that the library logs, from any thread
    """

    def __init__(self, directory: str, log: Callable[[str, bool], None]) -> None:
        self.directory = directory
        self.path, self.version = find_library(directory)
        try:
            self._library = ctypes.CDLL(self.path)
            for name, types in PROTOTYPES.items():
                self._bind(name, *types)
        except (OSError, AttributeError) as error:
            raise VddkError(
                "load",
                f"{self.path} cannot be loaded: {error}.",
                hint=f"Unpack VDDK again if files are missing, and start with {directory}/lib64 in LD_LIBRARY_PATH.",
            ) from None
        for name, types in OPTIONAL.items():
            with contextlib.suppress(AttributeError):
                self._bind(name, *types)
        # The library keeps these pointers until Exit.
        self._log = [self._logger(log, is_warning) for is_warning in (False, True, True)]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # of PROTOTYPES and OPTIONAL

    def _bind(self, name: str, result: Any, arguments: list[Any]) -> None:
        function = self._library[f"VixDiskLib_{name}"]
        function.restype, function.argtypes = result, arguments
        setattr(self, name, function)

    @staticmethod
    def _logger(log: Callable[[str, bool], None], is_warning: bool) -> Any:
        formatter = ctypes.CDLL(None).vsnprintf
        formatter.argtypes = [_P, ctypes.c_size_t, _S, _P]

        def write(template: bytes, arguments: int) -> None:
            text = ctypes.create_string_buffer(1024)
            formatter(text, len(text), template, arguments)  # on x86_64 a va_list is passed as a pointer
            log(text.value.decode(errors="replace").rstrip(), is_warning)

        return LOG(write)

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

    def check_able(self, parameters: Parameters) -> None:
        """See that the library can reach such a disk: only since VDDK 6.7 the parameters have room for an FCD's name,
        and only the library itself can make those."""
        if parameters.fcd_id and not hasattr(self, "AllocateConnectParams"):
            raise VddkError(
                "load", f"{self.path} cannot open first class disks.", hint="Use VDDK 6.7 or later on the proxy."
            )

    @contextlib.contextmanager
    def connect_params(self, parameters: Parameters, with_owner: bool = True) -> Iterator[Any]:
        """Pointer to the connection's parameters while the block runs."""
        allocated = self.AllocateConnectParams() if hasattr(self, "AllocateConnectParams") else None
        pointer = allocated or ctypes.pointer(ConnectParams())
        params = pointer.contents
        if with_owner and parameters.fcd_id:
            params.spec_type = SPEC_VSTORAGE_OBJECT
            params.fcd_id = parameters.fcd_id.encode()
            params.fcd_datastore = _bytes(parameters.datastore)
            params.fcd_snapshot = _bytes(parameters.snapshot)
        elif with_owner:
            params.vmx_spec = f"moref={parameters.vm}".encode()
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


def _bytes(text: str | None) -> bytes | None:
    return text.encode() if text else None
