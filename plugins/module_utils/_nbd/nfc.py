# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: disks that our nbdkit plugin serves through ESXi hosts' NFC service."""

from __future__ import annotations

import contextlib
import json
import os
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
    NotSupported,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import plugins
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
}


def ship(directory: str) -> Plugin:
    """Make the plugin ready in an own, empty directory."""
    return Plugin(plugins.ship_nfc(directory), plugins.environment(directory))


@dataclass(frozen=True)
class NfcDisk:
    """One disk behind the NFC service.

    :param parameters: the plugin's parameters (see ``nfc_interface.Parameters``) but ``status_file``
    :param status_file: of this disk and run only
    :param ticket: gets a new ticket for this disk, as the JSON form of ``nfc_interface.Ticket``; called in any thread
    """

    plugin: Plugin
    parameters: Mapping[str, Any]
    status_file: str
    ticket: Callable[[], Mapping[str, Any]]
    _refusals: list[BackupError] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[Disk]:
        """The disk for one start of nbdkit. Tickets are got for it as long as the block runs."""
        ours, theirs = socket.socketpair()
        descriptor = inheritable(theirs.detach())
        try:
            with ours:
                parameters = {**self.parameters, "status_file": self.status_file}
                ours.sendall(json.dumps(parameters).encode() + b"\n")
                server = threading.Thread(target=self._serve, args=(ours,), daemon=True)
                server.start()
                try:
                    yield Disk(("python", self.plugin.script), descriptor, self.plugin.environment)
                finally:
                    ours.shutdown(socket.SHUT_RDWR)
                    server.join(_PATIENCE)
        finally:
            os.close(descriptor)

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
    def allocation(self) -> str:
        """Where it is known from which areas are in use."""
        return "change_tracking" if self.parameters.get("allocated_file") else "none"

    @property
    def warnings(self) -> list[str]:
        """What went wrong and was got over."""
        return list(dict.fromkeys(event["message"] for event in self._events() if event["event"] == "warning"))

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
