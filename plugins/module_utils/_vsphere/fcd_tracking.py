# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: whether the changes of a first class disk are tracked, and how that is brought about.

A control flag switches tracking on. As with virtual machines, tracking that begins above snapshots gives wrong
answers (VMware KB 320557), so that is never done. Whether a snapshot can be counted from, its own change ID says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    change_tracking,
    fcd,
    fcd_attachments,
    inventory,
    tracking_reset,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk, from_devices
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_holders import holder
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_store import Store


@dataclass(frozen=True)
class Tracking:
    """Whether the control flag is set, and why it cannot be, if so."""

    enabled: bool
    obstacle: str | None = None

    @property
    def active(self) -> bool:
        return self.enabled

    @property
    def reason(self) -> str | None:
        return None if self.enabled else self.obstacle or "change tracking is switched off"

    @property
    def can_start(self) -> bool:
        return not self.enabled and self.obstacle is None

    def tracks(self, disk: Disk) -> bool:
        return self.enabled and disk.protected

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of the result."""
        return {"enabled": self.enabled, "active": self.active, "reason": self.reason}


STARTED = Tracking(enabled=True)


def inspect(c: Connection, store: Store, disk: Fcd) -> Tracking:
    """How it stands with tracking; a disk whose changes are tracked costs no request."""
    return STARTED if disk.tracked else Tracking(enabled=False, obstacle=obstacle(c, store, disk))


def start(store: Store, disk: Fcd) -> Tracking:
    """Switch tracking on. What vSphere refuses becomes the obstacle: full copies need no tracking."""
    try:
        store.set_flags(disk, {fcd.TRACKING: True})
    except VsphereFault as error:
        return Tracking(enabled=False, obstacle=f"change tracking cannot be switched on: {error.message}")
    return STARTED


def restart(c: Connection, store: Store, disk: Fcd, timeout: float) -> str | None:
    """Have tracking end and begin anew, where no :func:`obstacle` is; returns why that failed.

    A disk that is attached takes notice when its VM is stunned, and the VM's own setting tracks it, too.

    :param timeout: seconds, for each task
    """

    def off() -> None:
        store.set_flags(disk, {fcd.TRACKING: False})

    def on() -> None:
        store.set_flags(disk, {fcd.TRACKING: True})

    if not disk.consumers:
        return tracking_reset.attempt(off) or tracking_reset.attempt(on)
    found = fcd_attachments.consumers(c, [disk], [*change_tracking.PROPERTIES])
    if disk.id not in found:
        return f"it is attached to {disk.consumers[0]}, which cannot be seen"
    vm, properties = found[disk.id]
    name = inventory.unescape(properties["name"])
    own = [each for each in from_devices(properties["config.hardware.device"]) if each.fcd_id == disk.id]
    tracked = bool(properties.get("config.changeTrackingEnabled"))
    return tracking_reset.of_vm(c, vm, name, properties, own, timeout, off, on, own_settings=tracked).refused


def obstacle(c: Connection, store: Store, disk: Fcd) -> str | None:
    """Why tracking cannot begin, if so."""
    there = [snapshot.description or snapshot.id for snapshot in store.snapshots(disk)]
    if there:
        return f"change tracking can only be started without snapshots, and there are: {', '.join(there)}"
    who = holder(c, disk)
    if who and who.has_snapshots:
        return f"change tracking can only be started without snapshots, and {who.name} has some"
    return None
