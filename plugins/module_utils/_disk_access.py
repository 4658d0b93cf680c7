# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the two ways to the disks of a virtual machine or a first class disk, for modules.

By VDDK, VMware's library, which logs in on its own; or natively, by the hosts' NFC service, with tickets that vCenter
gives in our session.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, jobs, nfc, vddk
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import changed_areas
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.changed_areas import Host
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disk_owners import Owner
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.nfc_places import Place
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.nfc_tickets import NfcTickets

NATIVE_TRANSPORTS = ("nbdssl", "nbd")


class DiskAccess(jobs.DiskAccess, Protocol):
    """One disk by either way."""

    @property
    def allocation(self) -> str:
        """Where it is known from which areas are in use: ``change_tracking``, ``library`` or ``none``."""

    @property
    def hints(self) -> jobs.Hints | None:
        """What must be looked at with distrust, if the areas in use are known from somebody's word."""


class Way(Protocol):
    """How to reach all disks of an owner."""

    name: str

    def disk(self, disk: Disk, whole: bool) -> DiskAccess:
        """The way to one disk. Nothing is opened yet.

        :param whole: all of it is read, so that it is worth knowing which areas are in use
        """

    def guarded(self, warn: Callable[[str], None], check: Callable[[], None]) -> AbstractContextManager[None]:
        """What holds while disks are open.

        :param check: called now and then while it is long in coming; raises why to wait no longer
        """


def choose(access: str, library_dir: str | None, transports: Sequence[str]) -> str:
    """``vddk`` or ``native`` for the options of a module.

    :raises InvalidInput: a transport is not one of the native way
    """
    chosen = ("vddk" if library_dir else "native") if access == "auto" else access
    others = [transport for transport in transports if transport not in NATIVE_TRANSPORTS]
    if chosen == "native" and (others or not transports):
        raise InvalidInput(
            f"The transport {', '.join(others) or '(none)'} is not one of the native access, which has nbdssl and nbd.",
            "Leave it out of transports, or give vddk_libdir.",
        )
    return chosen


class VddkWay:
    """By VMware's library.

    :param c: a session, needed only until this returns
    :param snapshot: to read of, None to write
    :param directory: private to this run
    """

    name = "vddk"

    def __init__(
        self,
        c: Connection,
        owner: Owner,
        snapshot: str | None,
        library_dir: str,
        transports: Sequence[str],
        directory: str,
    ) -> None:
        if not c.endpoint.can_log_in:
            raise InvalidInput(
                "VDDK logs in by itself, which a session is no help for.",
                "Give username and password beside the session, or use access: native.",
            )
        self._directory = directory
        self._plugin = vddk.ship(os.path.join(directory, "plugin"), library_dir)
        self._owner = owner
        # A host on its own knows no Storage vMotion, and VDDK reports that as an error.
        self._movable = c.is_vcenter
        self._parameters = {
            **owner.storage_name(snapshot),
            "library_dir": library_dir,
            "server": c.endpoint.hostname,
            "port": c.endpoint.port,
            "username": c.endpoint.username,
            "password": c.endpoint.password,
            # Of the certificate that was just checked; of another one VDDK would only say "unknown error".
            "thumbprint": c.thumbprint(),
            "read_only": snapshot is not None,
            "transports": ":".join(transports),
        }

    def disk(self, disk: Disk, whole: bool) -> DiskAccess:
        """The way to one disk."""
        parameters = {**self._parameters, "path": disk.path, "capacity": disk.capacity}
        return vddk.VddkDisk(self._plugin, parameters, os.path.join(self._directory, f"{disk.key}.status"))

    def guarded(self, warn: Callable[[str], None], check: Callable[[], None]) -> AbstractContextManager[None]:
        """Forbid Storage vMotion meanwhile."""
        if not self._movable:
            return nullcontext()
        return vddk.prepared(self._plugin, self._parameters, lambda text: warn(f"{self._owner.name}: {text}"))


class NativeWay:
    """By the NFC service of the hosts.

    :param c: a session, needed as long as disks are open
    :param snapshot: to read of, None to write
    :param host: that the virtual machine is on, if known
    :param helper: virtual machine to attach a first class disk to that is attached nowhere, if there is one
    :param fastlz: library that unpacks what hosts are to pack, if there is one
    :param directory: private to this run
    """

    name = "native"

    def __init__(
        self,
        c: Connection,
        owner: Owner,
        snapshot: str | None,
        host: Host | None,
        helper: str | None,
        fastlz: str | None,
        transports: Sequence[str],
        directory: str,
    ) -> None:
        self._owner = owner
        self._snapshot = snapshot
        self._host = host
        self._fastlz = fastlz
        # The first one only: what was meant to be encrypted never goes in plain text because of an error.
        self._transport = transports[0]
        self._directory = directory
        self._plugin = nfc.ship(os.path.join(directory, "plugin"))
        self._tickets = NfcTickets(c)
        self._places = owner.nfc_places(snapshot, helper)
        self._place: Callable[[Disk], Place]  # while guarded
        self._disks: list[Disk] = []

    def disk(self, disk: Disk, whole: bool) -> DiskAccess:
        """The way to one disk; raises NotSupported if it is in use by a running virtual machine."""
        if self._snapshot is not None:
            self._owner.check_frozen(disk)
        self._disks.append(disk)
        return nfc.NfcDisk(
            self._plugin,
            {
                "owner": self._owner.name,
                "transport": self._transport,
                "read_only": self._snapshot is not None,
                "capacity": disk.capacity,
                "fastlz": self._fastlz,
            },
            os.path.join(self._directory, f"{disk.key}.status"),
            lambda: disk.path,
            lambda: self._ticket(disk),
            partial(self._in_use, disk) if whole and self._snapshot is not None else None,
        )

    def _ticket(self, disk: Disk) -> dict[str, Any]:
        with self._tickets.one:
            # Where it is now: it may have been moved since the last time.
            place = self._place(disk)
            ticket = self._tickets.get(place.machine, place.key if self._snapshot is None else None)
        return {**ticket, "path": place.path}

    def _in_use(self, disk: Disk) -> list[areas.Area]:
        snapshot = self._snapshot or ""
        with self._tickets.one, self._owner.asking(snapshot, False) as query:
            looked_at = replace(disk, layered=self._owner.is_layered(disk, snapshot))
            return changed_areas.in_use(looked_at, query, areas.normalise, self._host)

    @contextmanager
    def guarded(self, warn: Callable[[str], None], check: Callable[[], None]) -> Iterator[None]:
        """Keep the session alive, and what was attached to reach a disk.

        :raises NotFound: the snapshot went meanwhile: what was read may be of another moment, whatever hosts said
        """
        reached = self._places(lambda text: warn(f"{self._owner.name}: {text}"), check)
        with reached as self._place, self._tickets.kept_alive():
            yield
            with self._tickets.one:
                self._place(self._disks[0])


def open_way(
    kind: str,
    c: Connection,
    owner: Owner,
    snapshot: str | None,
    host: Host | None,
    params: dict[str, Any],
    directory: str,
) -> Way:
    """The way that :func:`choose` chose, by the options of a module."""
    if kind == "native":
        helper, fastlz = params["native_helper_vm"], params["native_fastlz_library"]
        return NativeWay(c, owner, snapshot, host, helper, fastlz, params["transports"], directory)
    return VddkWay(c, owner, snapshot, params["vddk_libdir"], params["transports"], directory)
