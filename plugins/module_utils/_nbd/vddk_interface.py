# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what the plugin ``vixdisklib`` is told and what it tells.

Parameters come in as one JSON document, for what goes out see plugin_interface.py. Error codes and the
settings of the library are VMware's; what follows from a code is the experience of public VDDK clients.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import MANY, DiskError

OUT_OF_MEMORY = 2
DISK_FULL = 8
READ_ONLY_DISK = 11
OPERATION_DISABLED = 20005

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
    2: (
        "VIX_E_OUT_OF_MEMORY",
        MANY,
        "Let fewer disks of this host be copied at the same time, or use smaller requests.",
    ),
    3: ("VIX_E_INVALID_ARG", 0, "Please report this: a request was not what the library allows."),
    4: ("VIX_E_FILE_NOT_FOUND", 0, _GONE),
    5: ("VIX_E_OBJECT_IS_BUSY", MANY, _BUSY),
    6: ("VIX_E_NOT_SUPPORTED", 0, "This server or this library cannot do it."),
    7: ("VIX_E_FILE_ERROR", 1, "Look into the events of the datastore."),
    8: ("VIX_E_DISK_FULL", 0, "Free space on the datastore."),
    9: ("VIX_E_INCORRECT_FILE_TYPE", 0, ""),
    10: ("VIX_E_CANCELLED", 0, ""),
    11: ("VIX_E_FILE_READ_ONLY", 0, "The disk was opened for reading only."),
    12: ("VIX_E_FILE_ALREADY_EXISTS", 0, ""),
    13: ("VIX_E_FILE_ACCESS_ERROR", 1, f"{_NETWORK} {_RIGHTS} For hotadd the proxy needs a free SCSI slot."),
    15: ("VIX_E_FILE_ALREADY_LOCKED", MANY, _BUSY),
    26: ("VIX_E_HOST_NOT_CONNECTED", MANY, _VCENTER),
    29: ("VIX_E_UNFINISHED_JOB", MANY, ""),
    31: ("VIX_E_OPERATION_ALREADY_IN_PROGRESS", MANY, ""),
    32: ("VIX_E_LICENSE", 0, "The ESXi host's licence does not allow backups."),
    34: ("VIX_E_VM_HOST_DISCONNECTED", MANY, _NETWORK),
    35: ("VIX_E_AUTHENTICATION_FAIL", 0, _RIGHTS),
    36: ("VIX_E_HOST_CONNECTION_LOST", MANY, _NETWORK),
    3014: ("VIX_E_HOST_USER_PERMISSIONS", 0, _RIGHTS),
    4000: ("VIX_E_VM_NOT_FOUND", 0, _GONE),
    13003: ("VIX_E_SNAPSHOT_NOTFOUND", 0, _GONE),
    14006: ("VIX_E_NBD_HANDSHAKE", MANY, _NETWORK),
    14007: ("VIX_E_NBD_SOCKET", MANY, _NETWORK),
    14008: ("VIX_E_NBD_SERVER_NOT_FOUND", 2, _NETWORK),
    14009: ("VIX_E_NBD_CONN_REFUSED", 2, _NETWORK),
    14010: ("VIX_E_NBD_TCP_ERROR", MANY, _NETWORK),
    14011: ("VIX_E_NBD_TCP_CONN_LOST", MANY, _NETWORK),
    14014: ("VIX_E_HOST_SERVER_SHUTDOWN", MANY, _HOST),
    14015: ("VIX_E_HOST_SERVER_NOT_AVAILABLE", MANY, _HOST),
    16007: ("VIX_E_DISK_OUTOFRANGE", 0, "Please report this: a request went past the end of the disk."),
    16027: ("VIX_E_DISK_TOOMANYOPENFILES", MANY, ""),
    16053: (
        "VIX_E_DISK_SUBSYSTEM_INIT_FAIL",
        0,
        "Unpack VDDK again if parts of it are missing; its lib64 must be in LD_LIBRARY_PATH when the process starts.",
    ),
    16064: ("VIX_E_DISK_NOLICENSE", 0, "The ESXi host's licence does not allow backups."),
    18000: ("VIX_E_CANNOT_CONNECT_TO_HOST", MANY, _VCENTER),
    20005: (
        "VIX_E_OPERATION_DISABLED",
        0,
        "Storage vMotion of the VM is already forbidden, perhaps by a left-over job.",
    ),
    26000: ("VIX_E_ASYNC_MIXEDMODE_UNSUPPORTED", 0, "Please report this."),
    30006: ("VIX_E_HTTP_COULDNT_RESOLVE_HOST", MANY, _VCENTER),
    30007: ("VIX_E_HTTP_COULDNT_CONNECT", MANY, _VCENTER),
    30028: ("VIX_E_HTTP_TIMEOUT", MANY, _VCENTER),
}


class VddkError(DiskError):
    """A call failed, or cannot be made.

    :param code: the library's error code without its upper bits
    :param hint: that of the code when empty
    """

    def __init__(self, stage: str, message: str, code: int | None = None, hint: str = "") -> None:
        self.name, self.repeats, known_hint = ERRORS.get(code or 0, ("", 0, ""))
        self.out_of_memory = code == OUT_OF_MEMORY
        super().__init__(stage, message, code, hint or known_hint)


@dataclass(frozen=True)
class Parameters:
    """The JSON document; sizes in bytes, times in seconds."""

    library_dir: str
    server: str
    username: str
    password: str = field(repr=False)
    thumbprint: str
    vm: str | None = None  # managed object ID; not for a first class disk
    path: str = ""  # "[datastore] folder/disk.vmdk"; not needed by the one-shot calls, and only a name for an FCD
    fcd_id: str | None = None
    datastore: str | None = None  # managed object ID, of the FCD's
    snapshot: str | None = None  # managed object ID of the VM's, ID of the FCD's
    port: int = 443
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
            parameters = cls(**values)
            if (parameters.vm is None) == (parameters.fcd_id is None):
                raise ValueError("there must be either vm or fcd_id")
            if (parameters.fcd_id is None) != (parameters.datastore is None):
                raise ValueError("fcd_id and datastore go together")
            return parameters
        except (TypeError, ValueError) as error:
            raise VddkError("parameters", f"The plugin's parameters are wrong: {error}.") from None

    @property
    def owner(self) -> str:
        """What the snapshot is of and Storage vMotion would move, for messages."""
        return self.vm or f"the first class disk {self.fcd_id} in {self.datastore}"


def read_parameters(where: str) -> Parameters:
    """Read the document from ``-<descriptor>``, or from a file that is deleted then."""
    if re.fullmatch(r"-\d+", where):
        with os.fdopen(int(where[1:]), encoding="utf-8") as stream:
            return Parameters.parse(stream.read())
    file = Path(where)
    text = file.read_text(encoding="utf-8")
    file.unlink()
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
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast.backup" / "vddk"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = config_text(config, str(directory))
    # Processes with the same settings share one file; the rename keeps it whole for each of them.
    path = directory / f"{zlib.crc32(text.encode()):08x}.conf"
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return str(path)
