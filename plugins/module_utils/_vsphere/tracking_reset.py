# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: change tracking that gave wrong answers is started anew.

VMware's way (KB 2139574): switch it off, stun the VM by a snapshot, switch it on, stun it again. All change IDs from
before are void then. As ever, it is not begun while there are snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import change_tracking, inventory
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.change_tracking import Tracking
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.changed_areas import parse_change_id
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk, from_devices
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience

Step = Callable[[], None]  # raises VsphereFault when vSphere refuses


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    :param properties: values of ``change_tracking.PROPERTIES`` after it
    :param after: their judgement
    :param refused: why tracking was not started anew, if so
    """

    properties: Mapping[str, Any]
    after: Tracking
    refused: str | None


def expected(before: Tracking) -> Tracking:
    """What it should lead to."""
    return before if before.obstacle else replace(before, enabled=True, untracked=(), switched_off=(), leftovers=())


def of_vm(
    c: Connection,
    vm: Any,
    name: str,
    properties: Mapping[str, Any],
    disks: Sequence[Disk],
    timeout: float,
    off_too: Step = lambda: None,
    on_too: Step = lambda: None,
    own_settings: bool = True,
) -> Outcome:
    """Start the tracking of some of a VM's disks anew. What vSphere refuses is told in the outcome.

    :param properties: values of ``change_tracking.PROPERTIES`` as they were
    :param timeout: seconds, for each task
    :param off_too: is done where tracking is switched off, ``on_too`` where it is switched on
    :param own_settings: whether the VM's settings are switched, or it is only stunned
    """
    before = change_tracking.inspect(name, properties)
    if before.obstacle:
        return Outcome(properties, before, before.obstacle)
    patience = Patience(timeout)
    if before.leftovers:
        change_tracking.clear(c, vm, patience)

    def switch(value: bool, too: Step) -> str | None:
        def act() -> None:
            too()
            if own_settings:
                patience.wait(c, c.call(vm.ReconfigVM_Task, _settings(properties, before, disks, value)))

        return attempt(act) or change_tracking.stun(c, vm, properties, patience)

    # What vSphere refuses at first does not keep tracking from being on in the end. With a snapshot that cannot be
    # removed it would begin above that, so then it stays off, and the next run switches it on.
    first, second = switch(False, off_too), switch(True, on_too)
    read = c.retrieve([vm], {vim.VirtualMachine: [*inventory.IDENTITY, *change_tracking.PROPERTIES]})[vm]
    return Outcome(read, change_tracking.inspect(name, read), first or second or _kept(disks, read))


def attempt(step: Step) -> str | None:
    """Do it; returns why vSphere refuses."""
    try:
        step()
    except VsphereFault as error:
        return f"change tracking cannot be switched: {error.message}"
    return None


def _settings(properties: Mapping[str, Any], before: Tracking, disks: Sequence[Disk], value: bool) -> vim.vm.ConfigSpec:
    """Switches the VM's own flag where all its disks are meant, as VMware describes it, else those of the disks."""
    protected = {disk.key for disk in from_devices(properties["config.hardware.device"]) if disk.protected}
    if protected <= {disk.key for disk in disks}:
        flag, slots = value, list(before.switched_off) if value else []
    else:
        flag, slots = True, [disk.controller for disk in disks]
    words = "TRUE" if value else "FALSE"
    options = [vim.option.OptionValue(key=f"{slot}.ctkEnabled", value=words) for slot in slots]
    return vim.vm.ConfigSpec(changeTrackingEnabled=flag, extraConfig=options)


def _kept(disks: Sequence[Disk], read: Mapping[str, Any]) -> str | None:
    """Why the change IDs say that tracking went on, or None."""
    now = {disk.key: disk.change_id for disk in from_devices(read["config.hardware.device"])}
    for disk in disks:
        new = now.get(disk.key)
        if disk.change_id and new and _tracking(disk.change_id) == _tracking(new):
            hint = f": reset the first class disk {disk.fcd_id} itself" if disk.fcd_id else ""
            return f"{disk.label} goes on with the change ID {new}{hint}"
    return None


def _tracking(change_id: str) -> str:
    try:
        return parse_change_id(change_id).tracking
    except InvalidInput:
        return change_id
