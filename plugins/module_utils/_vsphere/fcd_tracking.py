# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: whether the changes of a first class disk are tracked, and how that is brought about.

A control flag switches tracking on. As with virtual machines, tracking that begins above snapshots gives wrong
answers (VMware KB 320557), so that is never done. Whether a snapshot can be counted from, its own change ID says.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotFound, NotSupported, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    change_tracking,
    change_tracking_tasks,
    fcd,
    fcd_attachments,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_holders import holder
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_store import Store, open_store


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
    refused = _refused(lambda on: store.set_flags(disk, {fcd.TRACKING: on}), True)
    return Tracking(enabled=False, obstacle=refused) if refused else STARTED


def restart(c: Connection, store: Store, disk: Fcd, timeout: float) -> str | None:
    """Have tracking end and begin anew, where no :func:`obstacle` is; returns why that failed.

    A disk that is attached takes notice when its VM is stunned, and the VM's own setting tracks it, too.

    :param timeout: seconds, for each task
    """

    def switch(on: bool) -> None:
        store.set_flags(disk, {fcd.TRACKING: on})

    def planned(before: change_tracking.Tracking) -> change_tracking.Plan:
        own = [each.key for each in before.disks if each.fcd_id == disk.id]
        plan = change_tracking.plan(before, "reset", own)
        # The settings of a VM that tracks nothing stay as they are.
        return plan if before.enabled else replace(plan, steps=(_stun(on=False), _stun(on=True)))

    if not disk.consumers:
        return _refused(switch, False) or _refused(switch, True)
    found = fcd_attachments.consumers(c, [disk], [*change_tracking.PROPERTIES])
    if disk.id not in found:
        return f"it is attached to {disk.consumers[0]}, which cannot be seen"
    vm, properties = found[disk.id]
    done = change_tracking_tasks.bring_about(c, vm, properties, planned, timeout, beside=switch)
    return done.plan.blocked or (done.refused.message if done.refused else None)


def kept_on(c: Connection, disks: Iterable[Disk]) -> frozenset[int]:
    """Keys of those of a VM's disks that are first class disks whose own control flag tracks them.

    Two requests for each that has a change ID. Of one that the user may not look up, nothing is known.
    """
    found = []
    for disk in disks:
        if disk.fcd_id and disk.change_id:
            place = re.match(r"\[(.+?)\] ", disk.path)
            with contextlib.suppress(NotFound, NotSupported, VsphereFault):
                if open_store(c).find(id=disk.fcd_id, datastore=place[1] if place else None).tracked:
                    found.append(disk.key)
    return frozenset(found)


def _stun(on: bool) -> change_tracking.Step:
    return change_tracking.Step(on=on, enabled=False, slots={}, settings=False, stun=True)


def _refused(switch: Callable[[bool], None], on: bool) -> str | None:
    """Switch the flag; returns why vSphere refuses."""
    try:
        switch(on)
    except VsphereFault as error:
        return f"change tracking cannot be switched {'on' if on else 'off'}: {error.message}"
    return None


def obstacle(c: Connection, store: Store, disk: Fcd) -> str | None:
    """Why tracking cannot begin, if so."""
    there = [snapshot.description or snapshot.id for snapshot in store.snapshots(disk)]
    if there:
        return f"change tracking can only be started without snapshots, and there are: {', '.join(there)}"
    who = holder(c, disk)
    if who and who.has_snapshots:
        return f"change tracking can only be started without snapshots, and {who.name} has some"
    return None
