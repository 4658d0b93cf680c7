# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: disks that our nbdkit plugin serves through ESXi hosts' NFC service."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    AuthenticationFailed,
    BackupError,
    CertificateRejected,
    ConnectionFailed,
    CopyFailed,
    InvalidInput,
    NotSupported,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, plugins
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.copy import inheritable
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugin_interface import MANY
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugins import Plugin
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.servers import Disk

_PATIENCE = 10.0  # seconds for a ticket that nobody waits for any more
_KINDS: dict[str, type[BackupError]] = {
    "connect": ConnectionFailed,
    "thumbprint": CertificateRejected,
    "authd": NotSupported,
    "handshake": NotSupported,
    "options": NotSupported,
    "fastlz": InvalidInput,
}


def ship(directory: str) -> Plugin:
    """Make the plugin ready in an own, empty directory."""
    environment = plugins.environment(directory)
    # nbdkit's Python takes its modules from where the first python3 in PATH is, and OpenSSL's is bound to one release.
    home = os.path.dirname(shutil.which("nbdkit") or "/usr/bin/nbdkit")
    environment["PATH"] = os.pathsep.join(filter(None, [home, os.environ.get("PATH")]))
    return Plugin(plugins.ship_nfc(directory), environment)


@dataclass(frozen=True)
class NfcDisk:
    """One disk behind the NFC service.

    :param parameters: the plugin's parameters (see ``nfc_interface.Parameters``) but ``path`` and the files
    :param path: tells the disk's file, when it is opened
    :param status_file: of this disk and run only
    :param ticket: gets a new ticket for this disk, as the JSON form of ``nfc_interface.Ticket``
    :param in_use: gets the areas outside which the disk was never written, or raises why that is not known; None if
        nobody needs them. This and ``ticket`` are called in any thread.
    """

    plugin: Plugin
    parameters: Mapping[str, Any]
    status_file: str
    path: Callable[[], str]
    ticket: Callable[[], Mapping[str, Any]]
    in_use: Callable[[], list[areas.Area]] | None = None
    _refusals: list[BackupError] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[Disk]:
        """The disk for one start of nbdkit. Tickets are got for it as long as the block runs."""
        allocated_file = self._write_areas()
        ours, theirs = socket.socketpair()
        descriptor = inheritable(theirs.detach())
        try:
            with ours:
                files = {"status_file": self.status_file, "allocated_file": allocated_file}
                parameters = {**self.parameters, **files, "path": self.path()}
                ours.sendall(json.dumps(parameters).encode() + b"\n")
                server = threading.Thread(target=self._serve, args=(ours,), daemon=True)
                server.start()
                try:
                    served = ("python", self.plugin.script)
                    yield Disk(served, descriptor, self.plugin.environment, hints=allocated_file is not None)
                finally:
                    ours.shutdown(socket.SHUT_RDWR)
                    server.join(_PATIENCE)
        finally:
            os.close(descriptor)

    def _write_areas(self) -> str | None:
        """Ask for the areas in use, once; the file of them for the plugin, or None."""
        path = self._areas_file
        if self.in_use is not None and not os.path.exists(path) and not self._notes:
            try:
                found = self.in_use()
            except BackupError as error:
                self._notes.append(f"All of the disk was read: {error.message}.")
                return None
            with open(f"{path}.new", "w", encoding="ascii") as stream:
                stream.writelines(f"{start} {length}\n" for start, length in found)
            os.rename(f"{path}.new", path)
        return path if os.path.exists(path) else None

    @property
    def _areas_file(self) -> str:
        return f"{self.status_file}.areas"

    def _serve(self, ours: socket.socket) -> None:
        """Answer each line of the plugin with a ticket, or with why there is none."""
        with contextlib.suppress(OSError), ours.makefile("rw", encoding="utf-8") as stream:
            for _line in stream:
                stream.write(json.dumps(self._answer()) + "\n")
                stream.flush()

    def _answer(self) -> dict[str, Any]:
        try:
            return {"ticket": dict(self.ticket())}
        except BackupError as error:
            refusal = error
        except Exception as error:  # noqa: BLE001 - the plugin must not wait for ever
            refusal = BackupError(f"Getting a ticket failed: {error!r}.", "Please report this.")
        self._refusals.append(refusal)
        repeats = 0
        if isinstance(refusal, ConnectionFailed):
            repeats = MANY
        elif isinstance(refusal, VsphereFault) and "privilege" not in refusal.details:
            repeats = 2
        return {"error": {"message": refusal.message, "hint": refusal.next_step, "repeats": repeats}}

    @property
    def transport(self) -> str | None:
        """The transport, if the disk was opened."""
        return next((event["transport"] for event in reversed(self._events()) if event["event"] == "opened"), None)

    @property
    def hints(self) -> NfcDisk | None:
        """What may be known of the areas in use."""
        return self if self.in_use is not None else None

    def known(self) -> list[areas.Area] | None:
        """The areas in use, None if they are not known."""
        path = self._write_areas()
        if path is None:
            return None
        with open(path, encoding="ascii") as stream:
            return [(int(start), int(length)) for start, length in map(str.split, stream)]

    def distrust(self, reason: str) -> None:
        """Read all of the disk from now on."""
        self._notes.append(f"All of the disk was read: {reason}.")
        os.unlink(self._areas_file)

    @property
    def allocation(self) -> str:
        """Where it is known from which areas are in use."""
        return "change_tracking" if os.path.exists(self._areas_file) else "none"

    @property
    def warnings(self) -> list[str]:
        """What went wrong and was got over."""
        warnings = [event["message"] for event in self._events() if event["event"] == "warning"]
        return [*self._notes, *dict.fromkeys(warnings)]

    @property
    def error(self) -> BackupError | None:
        """What the plugin gave up for, if it did."""
        event = next((event for event in self._events() if event["event"] == "error"), None)
        if event is None:
            return None
        if event["stage"] == "ticket" and self._refusals:
            return self._refusals[-1]
        stage, code = event["stage"], event.get("code")
        kind = _KINDS.get(stage, CopyFailed)
        if stage == "authd" and " with: 530" in event["message"]:
            kind = AuthenticationFailed
        return kind(event["message"], event["hint"], stage=stage, code=code)

    def _events(self) -> list[dict[str, Any]]:
        return plugins.events(self.status_file)
