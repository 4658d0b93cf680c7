# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: making a snapshot, quiesced as far as the guest allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotSupported, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    snapshot_remove,
    snapshot_tasks,
    snapshots,
    stamps,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, fault_text
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience, State

_QUIESCE_FAULTS = ("ApplicationQuiesceFault", "FilesystemQuiesceFault", "ToolsUnavailable")


@dataclass(frozen=True)
class Wish:
    """A snapshot to make.

    ``quiesce_policy`` says what happens if the guest cannot be quiesced: ``fail``, ``warn`` (go on without)
    or ``crash_consistent`` (the same, silently). ``quiesce_timeout`` is in minutes. ``vss`` holds fields of
    vSphere's VirtualMachineWindowsQuiesceSpec and asks for application consistency.
    """

    name: str
    description: str = ""
    stamp: stamps.Stamp | None = None
    memory: bool = False
    quiesce: bool = False
    quiesce_policy: str = "fail"
    quiesce_timeout: int | None = None
    vss: Mapping[str, Any] | None = None

    def as_planned(self, parent: snapshots.Snapshot | None) -> dict[str, Any]:
        """The record of the snapshot as far as it is known before it is made.

        :param parent: the snapshot that the VM runs on
        """
        return {
            **dict.fromkeys(("id", "moid", "creation_time", "state", "quiesced", "consistency")),
            "parent_id": parent.id if parent else None,
            "depth": parent.depth + 1 if parent else 1,
            "name": self.name,
            "description": self.description,
            "stamp": self.stamp.as_dict() if self.stamp else None,
            "child_ids": [],
            "current": True,
            "disks": [],
        }


def create(
    c: Connection, vm: Any, properties: Mapping[str, Any], wish: Wish, patience: Patience
) -> tuple[State, dict[str, Any], list[str]]:
    """Make a snapshot.

    :param properties: what ``find_vm`` read of ``snapshots.PROPERTIES``
    :returns: the state after it, its record (with ``consistency`` and ``disks``), and warnings
    :raises NotSupported: the guest cannot be quiesced and the policy is ``fail``
    """
    quiesce, warnings = plan_quiesce(properties, wish)
    try:
        task = begin(c, vm, properties, wish, quiesce)
        made = patience.wait(c, task)
    except VsphereFault as error:
        if not (quiesce and _is_quiesce_fault(error)):
            raise
        warnings = _without_quiescing(wish, f"vSphere says: {fault_text(error.__cause__)}")
        quiesce = False
        task = begin(c, vm, properties, wish, quiesce)
        made = patience.wait(c, task)
    state, devices = snapshot_tasks.look(c, vm, [made], task)
    snapshot = next(one for one in state.snapshots if one.moid == made._GetMoId())
    if quiesce and not snapshot.quiesced:
        try:
            warnings = _without_quiescing(wish, "vSphere took the snapshot without quiescing the guest")
        except NotSupported:
            snapshot_remove.remove(c, vm, [snapshot], children=False, patience=patience)
            raise
    return state, snapshot_tasks.describe(snapshot, devices[snapshot.moid], applications=wish.vss is not None), warnings


def plan_quiesce(properties: Mapping[str, Any], wish: Wish) -> tuple[bool, list[str]]:
    """Whether to ask for quiescing, with warnings; follows the policy when it is wished but impossible."""
    if not wish.quiesce or properties.get("runtime.powerState") == "poweredOff":
        return False, []
    if wish.memory:  # it holds the guest as it is, which needs no quiescing to go on
        told = f"The guest is not quiesced for the snapshot {wish.name}, which holds the memory."
        return False, [] if wish.quiesce_policy == "crash_consistent" else [told]
    tools = properties.get("guest.toolsRunningStatus")
    if tools is not None and tools != "guestToolsRunning":
        return False, _without_quiescing(wish, f"VMware Tools are not running in the guest ({tools})")
    return True, []


def begin(c: Connection, vm: Any, properties: Mapping[str, Any], wish: Wish, quiesce: bool) -> Any:
    """Start to make a snapshot; returns the task.

    :param quiesce: what ``plan_quiesce`` says
    """
    call, how = vm.CreateSnapshot_Task, quiesce
    if quiesce and (spec := _guest_spec(wish)) is not None:
        call, how = vm.CreateSnapshotEx_Task, spec
    text = stamps.join(wish.description, wish.stamp)
    return snapshot_tasks.begin(c, vm, properties, "createsnapshot", call, wish.name, text, wish.memory, how)


def _guest_spec(wish: Wish) -> Any:
    """The quiesce specification of CreateSnapshotEx, or None where the plain call does."""
    if wish.vss is not None:
        return vim.vm.WindowsQuiesceSpec(timeout=wish.quiesce_timeout, **wish.vss)
    if wish.quiesce_timeout is not None:
        return vim.vm.GuestQuiesceSpec(timeout=wish.quiesce_timeout)
    return None


def _is_quiesce_fault(error: VsphereFault) -> bool:
    # Some releases report a quiescing error as a general fault and name it only in the text.
    return error.details.get("fault") in _QUIESCE_FAULTS or "quiesc" in fault_text(error.__cause__).lower()


def _without_quiescing(wish: Wish, cause: str) -> list[str]:
    if wish.quiesce_policy == "fail":
        raise NotSupported(
            f"The guest cannot be quiesced for the snapshot {wish.name}: {cause}.",
            "See to VMware Tools in the guest, or set quiesce_policy to warn or crash_consistent.",
        )
    if wish.quiesce_policy == "crash_consistent":
        return []
    return [f"The snapshot {wish.name} is only crash-consistent: {cause}."]
