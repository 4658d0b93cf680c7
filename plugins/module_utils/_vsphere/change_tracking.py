# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: whether the changes of a VM's disks are tracked, and what it takes to have it otherwise.

Two things must come together (API reference of ``VirtualMachineConfigSpec.changeTrackingEnabled``): the settings,
of the VM and of each disk (``scsi0:1.ctkEnabled``), and a moment in which the VM is stunned. Until then a disk has,
or keeps, its change ID (``changeId`` of its backing). A disk that was added later waits for its own stun. Tracking
that is switched on while snapshots exist gives wrong answers (VMware KB 320557). To start it anew is to switch it off
and on, with a stun for each (KB 2139574); all change IDs from before are void then.

Pure functions: they work on what one property read returned. What changes a VM is in ``change_tracking_tasks``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshot_guards, snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.changed_areas import parse_change_id
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk, from_devices

PROPERTIES = (
    *snapshots.PROPERTIES,
    "capability.changeTrackingSupported",
    "config.changeTrackingEnabled",
    "config.extraConfig",
    "config.version",
)
JOB = "change_tracking"  # in the stamp of the snapshots that stun a VM
FIRST_HARDWARE = 7  # the hardware version that brought change tracking


@dataclass(frozen=True)
class Tracking:
    """What a VM's configuration says.

    :param enabled: the VM's own setting
    :param disks: all its disks
    :param left_out: slots (``scsi0:1``) of the disks that a setting of their own leaves out
    :param recorded: keys of the disks whose changes vSphere records, as their change IDs tell
    :param foreign: names of the snapshots that are not of :data:`JOB`
    :param obstacle: why changes cannot be tracked at all, or the VM cannot be stunned by a snapshot, if so
    :param leftovers: our own stunning snapshots that a killed run left
    :param kept: keys of the attached first class disks that a control flag of their own tracks, whatever the VM says
    """

    enabled: bool
    disks: tuple[Disk, ...]
    left_out: frozenset[str]
    recorded: frozenset[int]
    foreign: tuple[str, ...]
    obstacle: str | None
    leftovers: tuple[snapshots.Snapshot, ...]
    kept: frozenset[int] = frozenset()

    @property
    def protected(self) -> list[Disk]:
        """The disks that can be tracked: those that a snapshot holds."""
        return [disk for disk in self.disks if disk.protected]

    @property
    def active(self) -> bool:
        """Whether the changes of every protected disk are recorded."""
        return self.enabled and all(self.tracks(disk) for disk in self.protected)

    @property
    def reason(self) -> str | None:
        """Why it is not active."""
        if self.active:
            return None
        waiting = ", ".join(disk.label for disk in self.protected if not self.tracks(disk))
        return self.blocked or (f"not tracked yet: {waiting}" if self.enabled else "change tracking is switched off")

    @property
    def blocked(self) -> str | None:
        """Why tracking cannot be started, if so."""
        if self.obstacle or not self.foreign:
            return self.obstacle
        there = ", ".join(self.foreign)
        return f"change tracking can only be started or ended without snapshots, and there are: {there}"

    def wants(self, disk: Disk) -> bool:
        """Whether the VM's settings say that a disk is tracked."""
        return self.enabled and disk.protected and disk.controller not in self.left_out

    def tracks(self, disk: Disk) -> bool:
        """Whether a disk is tracked and will be."""
        return disk.key in self.recorded and (self.wants(disk) or disk.key in self.kept)

    def why_not(self, disk: Disk) -> str | None:
        """Why a disk is not tracked, or what to know of one that is."""
        if not disk.protected:
            return disk.reason
        if disk.key in self.kept and not self.wants(disk):
            return "the control flag of the first class disk tracks it, whatever the virtual machine says"
        if self.tracks(disk):
            return None
        if not self.enabled:
            return "change tracking is switched off"
        if disk.controller in self.left_out:
            return f"the setting {disk.controller}.ctkEnabled leaves it out"
        return "it waits for a moment in which the virtual machine is stunned"

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of the result."""
        return {"enabled": self.enabled, "active": self.active, "reason": self.reason}


@dataclass(frozen=True)
class Step:
    """A change of settings, and a stun after it.

    :param on: which of the two it is about
    :param enabled: the VM's setting after it
    :param slots: settings of disks to write: slot -> whether it is tracked
    :param settings: whether there is anything to set
    """

    on: bool
    enabled: bool
    slots: Mapping[str, bool]
    settings: bool
    stun: bool

    def after(self, now: Tracking) -> Tracking:
        """What it makes of ``now``. Change IDs that are not known yet are None."""
        left_out = now.left_out.union(slot for slot, on in self.slots.items() if not on)
        set_so = replace(
            now, enabled=self.enabled, left_out=left_out.difference(slot for slot, on in self.slots.items() if on)
        )
        if not self.stun:
            return set_so
        recorded = frozenset(disk.key for disk in now.protected if set_so.wants(disk)) | now.kept
        going_on = recorded & now.recorded
        disks = tuple(disk if disk.key in going_on else replace(disk, change_id=None) for disk in now.disks)
        return replace(set_so, recorded=recorded, disks=disks)


@dataclass(frozen=True)
class Plan:
    """What it takes to have the changes of some disks tracked, or not, or anew.

    :param state: ``enabled``, ``disabled`` or ``reset``
    :param meant: keys of the disks that are to be in that state
    :param steps: what has to be done
    :param blocked: why that is not possible, if so; then only leftovers go
    """

    before: Tracking
    state: str
    meant: frozenset[int]
    steps: tuple[Step, ...]
    blocked: str | None

    @property
    def todo(self) -> tuple[Step, ...]:
        return () if self.blocked else self.steps

    @property
    def changes(self) -> bool:
        return bool(self.before.leftovers or self.todo)

    @property
    def stuns(self) -> bool:
        return any(step.stun for step in self.todo)

    @property
    def lost(self) -> frozenset[int]:
        """Keys of the disks whose change IDs from before are void after it."""
        ends = any(step.stun and not step.on for step in self.todo)
        return self.meant & self.before.recorded - self.before.kept if ends else frozenset()

    @property
    def outcome(self) -> Tracking:
        """What it should lead to."""
        now = replace(self.before, leftovers=())
        for step in self.todo:
            now = step.after(now)
        return now

    def missed(self, after: Tracking) -> str | None:
        """Why the disks are not in the wanted state although all was done, if so."""
        for disk in after.disks:
            if disk.key in self.meant - self.before.kept:
                missed = self._missed(disk, after)
                if missed:
                    return missed
        return None

    def _missed(self, disk: Disk, after: Tracking) -> str | None:
        if self.state == "disabled":
            return f"{disk.label} is still tracked" if disk.key in after.recorded else None
        # A first class disk may be tracked by its own control flag, which the virtual machine does not show.
        if not after.tracks(disk) and not (self.state == "reset" and disk.fcd_id):
            return f"{disk.label} has no change ID after the virtual machine was stunned"
        old = next((each.change_id for each in self.before.disks if each.key == disk.key), None)
        if self.state == "reset" and old and disk.change_id and _tracking(old) == _tracking(disk.change_id):
            hint = f": reset the first class disk {disk.fcd_id} itself" if disk.fcd_id else ""
            return f"{disk.label} goes on with the change ID {disk.change_id}{hint}"
        return None


def inspect(vm: str, properties: Mapping[str, Any]) -> Tracking:
    """Judge the values of :data:`PROPERTIES`.

    :param vm: the VM's name, for reasons
    """
    disks = tuple(from_devices(properties.get("config.hardware.device", ())))
    settings = {option.key.lower(): str(option.value).lower() for option in properties.get("config.extraConfig", ())}
    existing = snapshots.flatten(properties.get("snapshot"))
    leftovers = tuple(snapshots.owned(existing, JOB))
    slots = {disk.controller for disk in disks}
    return Tracking(
        enabled=bool(properties.get("config.changeTrackingEnabled")),
        disks=disks,
        left_out=frozenset(slot for slot in slots if slot and settings.get(f"{slot}.ctkenabled") == "false"),
        recorded=frozenset(disk.key for disk in disks if disk.change_id),
        foreign=tuple(snapshot.name for snapshot in existing if snapshot not in leftovers),
        obstacle=_obstacle(vm, properties),
        leftovers=leftovers,
    )


def _obstacle(vm: str, properties: Mapping[str, Any]) -> str | None:
    hardware = re.fullmatch(r"vmx-(\d+)", properties.get("config.version") or "")
    if hardware and int(hardware[1]) < FIRST_HARDWARE:
        return f"hardware version {int(hardware[1])} has no change tracking, {FIRST_HARDWARE} and later have"
    if properties.get("capability.changeTrackingSupported") is False:
        return "this virtual machine does not support change tracking"
    try:
        snapshot_guards.check_possible(vm, properties)
    except NotSupported as error:
        return f"change tracking cannot be switched without a snapshot: {error.message}"
    return None


def plan(before: Tracking, state: str, keys: Iterable[int] | None = None, above: bool = False) -> Plan:
    """What brings some disks into a state (``enabled``, ``disabled``, ``reset``); others stay as they are.

    :param keys: those of the disks meant; None: all that can be tracked, and those that the VM will get
    :param above: do so also above snapshots of others
    """
    protected = frozenset(disk.key for disk in before.protected)
    meant = protected if keys is None else protected.intersection(keys)
    if state == "reset" and meant - before.kept:
        off = _step(before, meant, on=False)
        ends = (off,) if off.stun else ()
        # On in any case, with a stun: what was not tracked is in the end.
        begins = replace(_step(off.after(before) if ends else before, meant, on=True), stun=True)
        steps: tuple[Step, ...] = (*ends, begins)
    elif state == "reset":
        steps = ()
    else:
        steps = (_step(before, meant, on=state == "enabled"),)
    return Plan(
        before=before,
        state=state,
        meant=meant,
        steps=tuple(step for step in steps if step.settings or step.stun),
        blocked=before.obstacle if above else before.blocked,
    )


def _step(now: Tracking, meant: frozenset[int], on: bool) -> Step:
    """Switches the VM's own setting where all its disks are meant, as VMware describes it, else those of the disks."""
    protected = now.protected
    wanted = {disk.key: on if disk.key in meant else now.wants(disk) for disk in protected}
    enabled = on if meant >= wanted.keys() else any(wanted.values())
    slots = {
        disk.controller: wanted[disk.key]
        for disk in protected
        if enabled and disk.controller and wanted[disk.key] == (disk.controller in now.left_out)
    }
    settings = enabled != now.enabled or bool(slots)
    ends, begins = meant & now.recorded - now.kept, meant - now.recorded
    stun = bool(begins or (meant and settings)) if on else bool(ends)
    return Step(on=on, enabled=enabled, slots=slots, settings=settings, stun=stun)


def _tracking(change_id: str) -> str:
    try:
        return parse_change_id(change_id).tracking
    except InvalidInput:
        return change_id
