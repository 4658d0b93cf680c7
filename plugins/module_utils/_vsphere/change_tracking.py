# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: whether a VM's changes are tracked, and how that is brought about.

Two things must come together (API reference of ``VirtualMachineConfigSpec.changeTrackingEnabled``): the
setting, and a moment in which the VM is stunned, for which a snapshot is made and removed. Until then a disk has
no change ID, neither in a snapshot nor in the VM (``changeId`` of its backing). A disk that was added later waits
for its own stun. Tracking that is switched on while snapshots exist gives wrong answers (VMware KB 320557), so that
is never done.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    NotSupported,
    TaskFailed,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import inventory, snapshot_tasks, snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk, from_devices
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience, Wish
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.stamps import Stamp

PROPERTIES = (
    *snapshots.PROPERTIES,
    "capability.changeTrackingSupported",
    "config.changeTrackingEnabled",
    "config.extraConfig",
    "config.version",
)
JOB = "disk_changed_areas"  # in the stamp of the snapshot that stuns the VM
REMOVALS = 3  # attempts to remove such a snapshot
CREATIONS = ("VirtualMachine.createSnapshot", "VirtualMachine.createSnapshotEx")
FIRST_HARDWARE = 7  # the hardware version that brought change tracking


@dataclass(frozen=True)
class Tracking:
    """What a VM's configuration says; pure data.

    :param enabled: the VM's own setting
    :param untracked: the protected disks whose changes are not recorded
    :param switched_off: slots (``scsi0:1``) of the disks that a setting of their own leaves out
    :param obstacle: why tracking cannot be started, if so
    :param leftovers: our own stunning snapshots that a killed run left
    """

    enabled: bool
    untracked: tuple[Disk, ...]
    switched_off: tuple[str, ...]
    obstacle: str | None
    leftovers: tuple[snapshots.Snapshot, ...]

    @property
    def active(self) -> bool:
        """Whether the changes of every protected disk are recorded."""
        return self.enabled and not self.untracked

    @property
    def reason(self) -> str | None:
        """Why it is not active."""
        if self.active:
            return None
        waiting = ", ".join(disk.label for disk in self.untracked)
        return self.obstacle or (f"not tracked yet: {waiting}" if self.enabled else "change tracking is switched off")

    def tracks(self, disk: Disk) -> bool:
        return disk.protected and disk not in self.untracked

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of the result."""
        return {"enabled": self.enabled, "active": self.active, "reason": self.reason}


@dataclass(frozen=True)
class Plan:
    """What has to be done to make tracking active, in this order."""

    before: Tracking
    clear: bool
    switch_on: bool
    stun: bool

    @property
    def changes(self) -> bool:
        return self.clear or self.stun

    @property
    def outcome(self) -> Tracking:
        """What it should lead to."""
        if self.stun:
            return Tracking(enabled=True, untracked=(), switched_off=(), obstacle=None, leftovers=())
        return replace(self.before, leftovers=())


def inspect(vm: str, properties: Mapping[str, Any]) -> Tracking:
    """Judge the values of :data:`PROPERTIES`.

    :param vm: the VM's name, for reasons
    """
    protected = [disk for disk in from_devices(properties.get("config.hardware.device", ())) if disk.protected]
    settings = {option.key.lower(): str(option.value).lower() for option in properties.get("config.extraConfig", ())}
    enabled = bool(properties.get("config.changeTrackingEnabled"))
    off = tuple(disk.controller for disk in protected if settings.get(f"{disk.controller}.ctkenabled") == "false")
    existing = snapshots.flatten(properties.get("snapshot"))
    leftovers = tuple(snapshots.owned(existing, JOB))
    foreign = [snapshot.name for snapshot in existing if snapshot not in leftovers]
    return Tracking(
        enabled=enabled,
        untracked=tuple(disk for disk in protected if not (enabled and disk.change_id and disk.controller not in off)),
        switched_off=off,
        obstacle=_obstacle(vm, properties, foreign),
        leftovers=leftovers,
    )


def _obstacle(vm: str, properties: Mapping[str, Any], foreign: list[str]) -> str | None:
    hardware = re.fullmatch(r"vmx-(\d+)", properties.get("config.version") or "")
    if hardware and int(hardware[1]) < FIRST_HARDWARE:
        return f"hardware version {int(hardware[1])} has no change tracking, {FIRST_HARDWARE} and later have"
    if properties.get("capability.changeTrackingSupported") is False:
        return "this virtual machine does not support change tracking"
    if foreign:
        return f"change tracking can only be started without snapshots, and there are: {', '.join(foreign)}"
    try:
        snapshots.check_possible(vm, properties)
    except NotSupported as error:
        return f"change tracking cannot be started without a snapshot: {error.message}"
    return None


def plan(before: Tracking) -> Plan:
    """What :func:`carry_out` would do; nothing but tidying up while there is an obstacle."""
    start = not before.active and before.obstacle is None
    return Plan(
        before=before,
        clear=bool(before.leftovers),
        switch_on=start and (not before.enabled or bool(before.switched_off)),
        stun=start,
    )


def carry_out(
    c: Connection, vm: Any, properties: Mapping[str, Any], steps: Plan, timeout: float
) -> tuple[dict[str, Any], Tracking]:
    """Make tracking active. What vSphere refuses becomes the obstacle in the answer: full copies need no tracking.

    :param properties: values of :data:`PROPERTIES` as they were
    :param timeout: seconds, for each task
    :returns: the values of :data:`PROPERTIES` after it, and their judgement
    :raises VsphereFault: our own snapshot could not be removed
    """
    patience = Patience(timeout)
    if steps.clear:
        clear(c, vm, patience)
    refused = _switch_on(c, vm, steps.before.switched_off, patience) if steps.switch_on else None
    if steps.stun and refused is None:
        refused = stun(c, vm, properties, patience)
    # Read anew: vSphere does not announce extraConfig after a snapshot changed it.
    after = c.retrieve([vm], {vim.VirtualMachine: [*inventory.IDENTITY, *PROPERTIES]})[vm]
    tracking = inspect(inventory.unescape(after["name"]), after)
    return after, replace(tracking, obstacle=refused) if refused else tracking


def _switch_on(c: Connection, vm: Any, slots: tuple[str, ...], patience: Patience) -> str | None:
    """Set the VM's flag and those of the disks in these slots; returns why vSphere refuses."""
    options = [vim.option.OptionValue(key=f"{slot}.ctkEnabled", value="TRUE") for slot in slots]
    try:
        patience.wait(c, c.call(vm.ReconfigVM_Task, vim.vm.ConfigSpec(changeTrackingEnabled=True, extraConfig=options)))
    except VsphereFault as error:
        return f"change tracking cannot be switched on: {error.message}"
    return None


def stun(c: Connection, vm: Any, properties: Mapping[str, Any], patience: Patience) -> str | None:
    """Make a snapshot and remove it again, whatever happens between; returns why vSphere refuses to make it."""
    expires = datetime.now(timezone.utc) + timedelta(seconds=patience.timeout)
    wish = Wish(
        name="holdfast.backup change tracking",
        description="Starts change tracking and is removed at once.",
        stamp=Stamp(JOB, uuid.uuid4().hex, expires.replace(microsecond=0)),
    )
    try:
        snapshot_tasks.create(c, vm, properties, wish, patience)
    except VsphereFault as error:
        return f"the snapshot that starts change tracking cannot be made: {error.message}"
    finally:
        clear(c, vm, patience)
    return None


def clear(c: Connection, vm: Any, patience: Patience) -> None:
    """Remove our stunning snapshots, also one that an interrupted call is still making.

    Whatever comes between, be it a fault or the wish to stop, the removal is tried again first.
    """
    for attempts_left in reversed(range(REMOVALS)):
        try:
            _let_creations_end(c, vm, patience)
            state, _disks = snapshot_tasks.look(c, vm)
            snapshot_tasks.remove(c, vm, snapshots.owned(state.snapshots, JOB), children=False, patience=patience)
            return
        except BackupError:
            if not attempts_left:
                raise


def _let_creations_end(c: Connection, vm: Any, patience: Patience) -> None:
    collector = vmodl.query.PropertyCollector
    from_vm = collector.TraversalSpec(type=vim.VirtualMachine, path="recentTask")
    recent = collector.ObjectSpec(obj=vm, skip=True, selectSet=[from_vm])
    for task, info in c.collect([recent], {vim.Task: ["info.descriptionId", "info.state"]}).items():
        if info.get("info.descriptionId") in CREATIONS and info.get("info.state") in ("queued", "running"):
            with contextlib.suppress(TaskFailed):
                patience.wait(c, task)
