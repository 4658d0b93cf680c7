# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what disks are looked at and copied through: a virtual machine, or a first class disk.

Modules ask either the same questions. What was asked first also says who it is: ``identity`` is known from then on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotFound, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    change_tracking,
    change_tracking_tasks,
    changed_areas,
    fcd_store,
    fcd_tracking,
    inventory,
    reverts,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.changed_areas import Host, Query
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk, from_devices
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_holders import holder
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.nfc_places import FcdPlace, Place
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vi_json import ViJson

_GONE = "Its virtual machine or snapshot was removed or changed meanwhile; run the backup again."

Choose = Callable[[list[Disk]], list[Disk]]
# Given who is to be warned of what is left, and what raises why to wait no longer: where each disk is now, as long as
# the block runs.
Places = Callable[
    [Callable[[str], None], Callable[[], None]], contextlib.AbstractContextManager[Callable[[Disk], Place]]
]


class Tracking(Protocol):
    """Whether changes are recorded."""

    @property
    def active(self) -> bool:
        """Whether those of every protected disk are."""

    @property
    def reason(self) -> str | None:
        """Why not."""

    def tracks(self, disk: Disk) -> bool:
        """Whether those of this disk are."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of the result."""


@dataclass(frozen=True)
class Tracked:
    """Change tracking before and after it was seen to, and all disks.

    :param reset: keys of the disks whose tracking began anew
    :param refused: why it did not, where it should
    """

    changed: bool
    before: Tracking
    after: Tracking
    disks: list[Disk]
    reset: frozenset[int] = frozenset()
    refused: str | None = None


class Owner:
    """What is asked. Seconds and bytes everywhere.

    ``kind`` is the key of ``identity`` in results, ``uuid`` the part of it that stays.
    """

    kind = ""
    identity: Mapping[str, Any]

    def __init__(self, c: Connection) -> None:
        self.c = c

    @property
    def name(self) -> str:
        name: str = self.identity["name"]
        return name

    @property
    def uuid(self) -> str:
        raise NotImplementedError

    def called(self, disk: Disk) -> str:
        """A disk of it, for people."""
        return f"{self.name} {disk.label}"

    def track(self, enable: bool, timeout: float, dry: bool) -> Tracked:
        """Report on change tracking, after seeing to it if asked; ``dry``: as it would be."""
        raise NotImplementedError

    def reset_tracking(self, choose: Choose, timeout: float, dry: bool) -> Tracked:
        """Start the change tracking of some disks anew; ``dry``: as it would be, with unknown change IDs.

        :param choose: those of all disks
        """
        raise NotImplementedError

    def in_snapshot(self, snapshot: str) -> tuple[list[Disk], Host | None]:
        """The disks as they are in a snapshot, and what the host says of itself if that matters and may be seen."""
        raise NotImplementedError

    def to_write(self) -> list[Disk]:
        """The disks as they are now.

        :raises NotSupported: they cannot be written now
        """
        raise NotImplementedError

    def reverted(self, since: datetime) -> datetime | None:
        """When the content was last taken back to that of a snapshot, as far as anybody remembers."""
        raise NotImplementedError

    def asking(self, snapshot: str, vi_json: bool) -> contextlib.AbstractContextManager[Query]:
        """The query for changed areas up to a snapshot, by VI JSON or SOAP."""
        raise NotImplementedError

    def storage_name(self, snapshot: str | None) -> dict[str, Any]:
        """How VMware's library is told what to open: parameters of the nbdkit plugin."""
        raise NotImplementedError

    def nfc_places(self, snapshot: str | None, helper: str | None) -> Places:
        """Where the disks can be reached over NFC. Nothing is done before it is entered.

        :param snapshot: to read of, None to write
        :param helper: name or managed object ID of a VM to attach to what is attached nowhere
        :raises NotSupported: they cannot be reached
        """
        raise NotImplementedError

    def check_frozen(self, disk: Disk) -> None:
        """See that a disk of a snapshot is not what a running virtual machine writes to.

        :raises NotSupported: it is; a host would refuse it without saying why
        """

    def is_layered(self, disk: Disk, snapshot: str) -> bool:
        """Whether a disk stands on an earlier snapshot in this one, as far as that is known; doubt counts as yes."""
        return disk.layered


def open_owner(
    c: Connection, vm: Mapping[str, Any], fcd: Mapping[str, Any], fcd_api: str = "auto"
) -> VmOwner | FcdOwner:
    """The first class disk if one is chosen, else the VM. Nothing is asked yet.

    :param vm: arguments of ``inventory.find_vm``
    :param fcd: arguments of ``Store.find``
    :param fcd_api: as in ``fcd_store.open_store``
    """
    return FcdOwner(c, fcd, fcd_api) if fcd["id"] or fcd["name"] else VmOwner(c, vm)


def _foretold(
    before: Tracking, after: Tracking, disks: list[Disk], keys: frozenset[int], obstacle: str | None
) -> Tracked:
    """What starting the tracking of the disks with these keys anew comes to, unless there is an obstacle."""
    if obstacle or not keys:
        return Tracked(False, before, before, disks, refused=obstacle)
    there = [replace(disk, change_id=None) if disk.key in keys else disk for disk in disks]
    return Tracked(True, before, after, there, keys)


class VmOwner(Owner):
    """The disks of a virtual machine."""

    kind = "vm"

    def __init__(self, c: Connection, selection: Mapping[str, Any]) -> None:
        super().__init__(c)
        self._selection = selection
        self._vm: Any = None
        self._live: set[str] | None = None  # files that a running VM writes to

    @property
    def uuid(self) -> str:
        uuid: str = self.identity["instance_uuid"]
        return uuid

    def track(self, enable: bool, timeout: float, dry: bool) -> Tracked:
        if not enable:
            properties = self._find(*change_tracking.PROPERTIES)
            seen = change_tracking.inspect(self.name, properties)
            return Tracked(False, seen, seen, list(seen.disks))
        done = self._bring_about("enabled", None, timeout, dry)
        # What vSphere refuses is the reason why it is not active: full copies need no tracking.
        after = replace(done.after, obstacle=done.refused.message) if done.refused else done.after
        return Tracked(done.changed, done.before, after, list(after.disks))

    def reset_tracking(self, choose: Choose, timeout: float, dry: bool) -> Tracked:
        done = self._bring_about("reset", choose, timeout, dry)
        refused = done.plan.blocked or (done.refused.message if done.refused else None)
        reset = frozenset() if refused else done.plan.meant
        return Tracked(done.changed, done.before, done.after, list(done.after.disks), reset, refused)

    def _bring_about(
        self, state: str, choose: Choose | None, timeout: float, dry: bool
    ) -> change_tracking_tasks.Outcome:
        def planned(before: change_tracking.Tracking) -> change_tracking.Plan:
            keys = [disk.key for disk in choose(list(before.disks))] if choose else None
            return change_tracking.plan(before, state, keys)

        properties = self._find(*change_tracking.PROPERTIES)
        return change_tracking_tasks.bring_about(self.c, self._vm, properties, planned, timeout, dry=dry)

    def in_snapshot(self, snapshot: str) -> tuple[list[Disk], Host | None]:
        host = self._find("runtime.host").get("runtime.host")
        frozen_vm = vim.vm.Snapshot(snapshot, self.c.stub)
        kinds = {vim.vm.Snapshot: ["vm", "config.hardware.device"], vim.HostSystem: ["summary.config.product"]}
        read = self.c.retrieve([frozen_vm, host] if host else [frozen_vm], kinds)
        frozen = read.get(frozen_vm, {})
        if frozen.get("vm") != self._vm:
            raise InvalidInput(
                f"The snapshot {snapshot} is not one of the virtual machine {self.name}.",
                "Give the managed object ID that vm_snapshot returned.",
            )
        product = read.get(host, {}).get("summary.config.product")
        known = Host(product.version, product.build) if product else None
        return from_devices(frozen["config.hardware.device"]), known

    def to_write(self) -> list[Disk]:
        properties = self._find("config.hardware.device", "runtime.powerState", "snapshot")
        if properties["runtime.powerState"] != "poweredOff":
            raise NotSupported(f"{self.name} is not powered off.", "Power it off, or restore to a new VM.")
        if "snapshot" in properties:
            raise NotSupported(f"{self.name} has snapshots.", "Remove them, or restore to a new VM.")
        return from_devices(properties["config.hardware.device"])

    def reverted(self, since: datetime) -> datetime | None:
        return reverts.newest(self.c, self._vm, since)

    @contextlib.contextmanager
    def asking(self, snapshot: str, vi_json: bool) -> Iterator[Query]:
        if vi_json:
            with ViJson(self.c.endpoint) as session:
                yield changed_areas.vi_json_query(session, self._vm._GetMoId(), snapshot)
        else:
            yield changed_areas.soap_query(self.c, self._vm, vim.vm.Snapshot(snapshot, self.c.stub))

    def storage_name(self, snapshot: str | None) -> dict[str, Any]:
        return {"vm": self.identity["moid"], "snapshot": snapshot}

    def nfc_places(self, snapshot: str | None, helper: str | None) -> Places:
        there = vim.vm.Snapshot(snapshot, self.c.stub) if snapshot else self._vm

        def place(disk: Disk) -> Place:
            try:
                read = self.c.retrieve([there], {type(there): ["config.hardware.device"]}).get(there, {})
            except NotFound as error:
                raise NotFound(f"{self.called(disk)} cannot be opened: {error.message}", _GONE) from error
            found = from_devices(read.get("config.hardware.device", ()))
            now = next((one for one in found if (one.key, one.backing_uuid) == (disk.key, disk.backing_uuid)), None)
            if now is None:
                raise NotFound(f"{self.called(disk)} is not there any more.", _GONE)
            return Place(self.identity["moid"], now.key, now.path)

        return lambda warn, check: contextlib.nullcontext(place)

    def check_frozen(self, disk: Disk) -> None:
        if self._live is None:
            read = self.c.retrieve([self._vm], {vim.VirtualMachine: ["config.hardware.device", "runtime.powerState"]})
            found = read.get(self._vm, {})
            off = found.get("runtime.powerState") == "poweredOff"
            self._live = set() if off else {each.path for each in from_devices(found["config.hardware.device"])}
        if disk.path in self._live:
            raise NotSupported(
                f"{self.called(disk)} is written to by the running virtual machine.",
                "Take a snapshot that holds this disk, and copy it from there.",
            )

    def _find(self, *properties: str) -> dict[str, Any]:
        self._vm, found = inventory.find_vm(self.c, **self._selection, properties=properties)
        self.identity = inventory.vm_dict(self._vm, found)
        return found


class FcdOwner(Owner):
    """A first class disk, which is its own only disk.

    Its snapshots are its own too. Those that belong to others are nothing to fear for what is read or written: by
    their IDs, only the one that was asked for is read, and what is written goes above all of them.
    """

    kind = "fcd"

    def __init__(self, c: Connection, selection: Mapping[str, Any], api: str) -> None:
        super().__init__(c)
        self._selection = selection
        self._api = api
        self._store: fcd_store.Store
        self._fcd: Fcd
        self._frozen: str | None = None  # file of the snapshot

    @property
    def uuid(self) -> str:
        return self._fcd.id

    def called(self, disk: Disk) -> str:
        return self.name

    def track(self, enable: bool, timeout: float, dry: bool) -> Tracked:
        self._find()
        before = after = fcd_tracking.inspect(self.c, self._store, self._fcd)
        changed = enable and before.can_start
        if changed:
            after = fcd_tracking.STARTED if dry else fcd_tracking.start(self._store, self._fcd)
        return Tracked(changed and after.active, before, after, [self._disk()])

    def reset_tracking(self, choose: Choose, timeout: float, dry: bool) -> Tracked:
        self._find()
        before = fcd_tracking.inspect(self.c, self._store, self._fcd)
        disks = [self._disk()]
        keys = frozenset(disk.key for disk in choose(disks))
        obstacle = fcd_tracking.obstacle(self.c, self._store, self._fcd)
        if dry or not keys or obstacle:
            return _foretold(before, before if obstacle else fcd_tracking.STARTED, disks, keys, obstacle)
        refused = fcd_tracking.restart(self.c, self._store, self._fcd, timeout)
        self._fcd = self._store.refreshed(self._fcd)
        after = fcd_tracking.inspect(self.c, self._store, self._fcd)
        return Tracked(True, before, after, disks, frozenset() if refused else keys, refused)

    def in_snapshot(self, snapshot: str) -> tuple[list[Disk], Host | None]:
        self._find()
        details = self._store.snapshot_details(self._fcd, snapshot)
        self._frozen = details.path
        return [self._disk(details.path, details.change_id)], None

    def to_write(self) -> list[Disk]:
        self._find()
        who = holder(self.c, self._fcd)
        if who and not who.powered_off:
            raise NotSupported(
                f"{self.name} ({self.uuid}) is attached to {who.name}, which is not powered off.",
                "Detach it or power the virtual machine off, or restore to a new disk.",
            )
        if who and who.has_snapshots:
            raise NotSupported(
                f"{self.name} ({self.uuid}) is attached to {who.name}, which has snapshots.",
                "Remove them, or restore to a new disk.",
            )
        return [self._disk()]

    def reverted(self, since: datetime) -> datetime | None:
        # The hosts whose change IDs kept silent about a revert are older than first class disks.
        return None

    @contextlib.contextmanager
    def asking(self, snapshot: str, vi_json: bool) -> Iterator[Query]:
        store, disk = self._store, self._fcd
        if not vi_json:
            yield lambda key, offset, change_id: store.changed_areas(disk, snapshot, offset, change_id)
            return
        if store.api != "vim":
            raise NotSupported(
                "VI JSON asks the virtual storage object manager, not the storage lifecycle service.",
                "Use fcd_api auto or vim, or api soap.",
            )
        manager = self.c.content.vStorageObjectManager._GetMoId()
        with ViJson(self.c.endpoint) as session:
            yield changed_areas.vi_json_fcd_query(session, manager, disk.id, disk.datastore.moid, snapshot)

    def storage_name(self, snapshot: str | None) -> dict[str, Any]:
        return {"fcd_id": self._fcd.id, "datastore": self._fcd.datastore.moid, "snapshot": snapshot}

    def nfc_places(self, snapshot: str | None, helper: str | None) -> Places:
        there = FcdPlace(self._store, self._fcd, snapshot, self._frozen if snapshot else None, helper)

        @contextlib.contextmanager
        def reached(warn: Callable[[str], None], check: Callable[[], None]) -> Iterator[Callable[[Disk], Place]]:
            with there.reached(warn, check) as place:
                yield lambda disk: place()

        return reached

    def is_layered(self, disk: Disk, snapshot: str) -> bool:
        who = holder(self.c, self._fcd)
        if who and (who.has_snapshots or not who.is_seen):
            return True
        return any(one.id != snapshot for one in self._store.snapshots(self._fcd)[:1])

    def _find(self) -> None:
        self._store = fcd_store.open_store(self.c, self._api)
        self._fcd = self._store.find(**self._selection)
        self.identity = self._fcd.identity()

    def _disk(self, path: str | None = None, change_id: str | None = None) -> Disk:
        """The record; ``path`` and ``change_id`` are those of a snapshot."""
        fcd = self._fcd
        return Disk(
            key=0,
            label=fcd.name,
            backing_uuid=fcd.id,
            capacity=fcd.capacity,
            path=path or fcd.path or "",
            change_id=change_id,
            controller=None,
            mode="persistent",
            backing="fcd",
            thin=None if fcd.provisioning is None else fcd.provisioning == "thin",
            sharing=None,
            protected=True,
            reason=None,
            fcd_id=fcd.id,
        )
