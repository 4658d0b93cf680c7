# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: tickets for the NFC service of ESXi hosts.

A ticket opens one connection to port 902 of one host, once. The managed object that gives them is not in VMware's
public description of the API; what is known of it comes from the protocol notes of cloudbase/OpenVixDiskLib.
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import threading
from collections.abc import Iterator
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    NotFound,
    NotSupported,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import VmomiSupport, vim

MOREF_VCENTER, MOREF_ESXI = "nfcService", "ha-nfc-service"
KEEP_ALIVE = 300.0  # seconds; vCenter ends sessions that were idle for half an hour
_SINCE = "vim.version.version1"
_READ, _READ_DISK, _WRITE_DISK = "NfcGetVmFiles", "NfcRandomAccessOpenReadonly", "NfcRandomAccessOpenDisk"


def _register() -> Any:
    """The type of the managed object; pyVmomi lacks it."""
    needed, optional = 0, VmomiSupport.F_OPTIONAL
    ticket = (0, "vim.HostServiceTicket", "vim.HostServiceTicket")
    vm = ("vm", "vim.VirtualMachine", _SINCE, needed, None)
    disk = ("diskDeviceKey", "int", _SINCE, needed, None)
    host = ("hostForAccess", "vim.HostSystem", _SINCE, optional, None)

    def method(name: str, arguments: tuple[Any, ...], result: Any) -> tuple[Any, ...]:
        return (name[0].lower() + name[1:], name, _SINCE, arguments, result, None, None)

    VmomiSupport.CreateManagedType(
        "vim.NfcService",
        "NfcService",
        "vmodl.ManagedObject",
        _SINCE,
        None,
        [
            method(_READ, (vm,), ticket),
            method(_READ_DISK, (vm, disk, host), ticket),
            method(_WRITE_DISK, (vm, disk, host), ticket),
        ],
    )
    return VmomiSupport.GetVmodlType("vim.NfcService")


class NfcTickets:
    """The service, asked in the session of ``c`` by any thread.

    ``one`` is held by who uses the session: two that find it ended would both renew it.
    """

    def __init__(self, c: Connection) -> None:
        self.one = threading.RLock()
        self._c = c
        self._service = _register()(MOREF_VCENTER if c.is_vcenter else MOREF_ESXI, c.stub)

    def get(self, vm: str, key: int | None = None) -> dict[str, Any]:
        """A new ticket, as the JSON form of ``nfc_interface.Ticket``.

        :param vm: managed object ID of the virtual machine
        :param key: device key of the disk to write; None to read any disk file of the virtual machine
        """
        machine = vim.VirtualMachine(vm, self._c.stub)
        with self.one:
            if key is None:
                ticket = self._ask(machine, self._service.NfcGetVmFiles, machine)
            else:
                ticket = self._ask(machine, self._service.NfcRandomAccessOpenDisk, machine, key, self._host_of(machine))
            return self._as_dict(ticket)

    @contextlib.contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Use the session now and then while the block runs, so that it does not end in the middle of a long copy."""
        ended = threading.Event()

        def use() -> None:
            manager = self._c.content.sessionManager
            while not ended.wait(KEEP_ALIVE):
                # A session that ended all the same is renewed by this; what else fails, fails again with a ticket.
                with contextlib.suppress(BackupError), self.one:
                    if not ended.is_set():
                        self._c.retrieve([manager], {type(manager): ["currentSession"]})

        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self.one:  # the connection is not used by two at a time
                ended.set()

    def _host_of(self, machine: Any) -> Any:
        """The host that has the virtual machine registered; it may be another one than the last time."""
        found = self._c.retrieve([machine], {vim.VirtualMachine: ["runtime.host"]})
        return found.get(machine, {}).get("runtime.host")

    def _name_of_host(self, machine: Any) -> str:
        """The same for people, if it can be seen."""
        with contextlib.suppress(BackupError):
            host = self._host_of(machine)
            if host is not None:
                return f"The host {self._c.retrieve([host], {vim.HostSystem: ['name']})[host]['name']}"
        return "The host"

    def _ask(self, machine: Any, method: Any, *arguments: Any) -> Any:
        try:
            return self._c.call(method, *arguments)
        except (NotFound, VsphereFault) as error:
            is_missing = error.details.get("moid") == self._service._GetMoId()
            if is_missing or error.details.get("fault") in ("MethodNotFound", "InvalidRequest", "InvalidType"):
                raise NotSupported(
                    f"{self._c.endpoint.address} has no NFC service: {error.message}",
                    "Use VDDK for this server (access: vddk).",
                ) from error
            if error.details.get("fault") == "InvalidHostState":
                raise VsphereFault(
                    f"{self._name_of_host(machine)} gives no access to disks now: {error.message}",
                    "It is in maintenance mode or not connected: wait, or migrate the virtual machine to another host.",
                    **error.details,
                ) from error
            raise

    def _as_dict(self, ticket: Any) -> dict[str, Any]:
        on_its_own = not self._c.is_vcenter
        values = {
            "host": ticket.host or (self._c.endpoint.hostname if on_its_own else ""),
            "port": ticket.port or None,
            "service": ticket.service or None,
            "session": ticket.sessionId,
            "thumbprint": ticket.sslThumbprint or _thumbprint(ticket) or (self._c.thumbprint() if on_its_own else ""),
        }
        return {name: value for name, value in values.items() if value is not None}


def _thumbprint(ticket: Any) -> str | None:
    """SHA-256 of the certificate that newer servers may give instead of its thumbprint."""
    text = getattr(ticket, "sslCertificate", None)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text.strip())).hexdigest() if text else None
