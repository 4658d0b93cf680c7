# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: going back to a snapshot, and the power state after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    InvalidInput,
    NotFound,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshot_tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience, State
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshots import Snapshot

ON, OFF = "poweredOn", "poweredOff"
SUSPENDED = "suspended"  # what vSphere makes of a snapshot with memory whose VM it must not start


@dataclass(frozen=True)
class Power:
    """What the VM's power state shall be after it, and where the VM shall run.

    ``policy``: ``as_snapshot``, ``keep`` (running only if it ran before), ``on`` or ``off``. ``suppress`` keeps a VM
    off that the snapshot would have running. ``host`` is a HostSystem.
    """

    policy: str = "as_snapshot"
    suppress: bool = False
    host: Any = None

    def __post_init__(self) -> None:
        if self.suppress and self.policy == "on":
            raise InvalidInput("power=on and suppress_power_on=true contradict each other.", "Leave one of them out.")

    def wanted(self, before: str | None) -> str | None:
        """``poweredOn``, ``poweredOff``, or None where it stays as vSphere makes it."""
        if self.policy == "keep":
            return ON if before == ON and not self.suppress else OFF
        return {"on": ON, "off": OFF}.get(self.policy)

    def suppresses(self, before: str | None) -> bool:
        """Whether vSphere is told not to start the VM."""
        return self.suppress or self.wanted(before) == OFF

    def outcome(self, target: Snapshot, before: str | None) -> str:
        """The power state that it should lead to."""
        held = SUSPENDED if self.suppresses(before) and target.state == ON else target.state
        return self.wanted(before) or held


def begin(c: Connection, vm: Any, properties: Mapping[str, Any], target: Snapshot, power: Power) -> Any:
    """Start to go back to a snapshot; returns the task.

    :param properties: what was read of the VM
    :raises NotFound: the snapshot is gone
    """
    managed = vim.vm.Snapshot(target.moid, c.stub)
    try:
        # Twice, it would also undo what the VM did since.
        return snapshot_tasks.begin(
            c,
            vm,
            properties,
            "revert",
            managed.RevertToSnapshot_Task,
            power.host,
            power.suppresses(properties.get("runtime.powerState")),
        )
    except NotFound as error:
        raise _vanished(target) from error


def revert(
    c: Connection, vm: Any, properties: Mapping[str, Any], target: Snapshot, power: Power, patience: Patience
) -> tuple[State, dict[str, Any]]:
    """Go back to a snapshot and bring about the power state.

    :returns: the state after it, and the snapshot's record with its disks
    :raises NotFound: the snapshot is gone
    """
    task = begin(c, vm, properties, target, power)
    try:
        state, frozen = patience.finish(c, vm, task, target)
    except BackupError as error:
        if error.details.get("fault") == "ManagedObjectNotFound":
            raise _vanished(target) from error
        raise
    wanted = power.wanted(properties.get("runtime.powerState"))
    if wanted not in (None, state.power_state):
        call = [vm.PowerOnVM_Task, power.host] if wanted == ON else [vm.PowerOffVM_Task]
        try:
            later, _disks = patience.finish(c, vm, c.call(*call))
        except VsphereFault as error:
            raise VsphereFault(
                f"The virtual machine was reverted to {target.name} (ID {target.id}) and is {state.power_state}. "
                f"{error.message}",
                error.next_step,
                **error.details,
                reverted=True,
            ) from error
        state = replace(later, task=state.task)
    return state, snapshot_tasks.record_in(state, target, frozen)


def _vanished(target: Snapshot) -> NotFound:
    return NotFound(
        f"The snapshot {target.name} (ID {target.id}) went before the virtual machine was reverted to it.",
        "Choose another; vm_snapshot_info lists them.",
    )
