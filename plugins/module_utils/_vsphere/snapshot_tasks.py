# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: making and removing snapshots.

Nothing is started twice by accident: after a lost reply the server is asked what became of the call.
A removal is only over when the disks need no consolidation any more.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any, Iterable, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    ConnectionFailed,
    InvalidInput,
    NotFound,
    NotSupported,
    TaskFailed,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import disks, snapshots, stamps, tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, fault_text
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl

STATE_PROPERTIES = ("snapshot", "runtime.consolidationNeeded")
_DEVICES = "config.hardware.device"
_QUIESCE_FAULTS = ("ApplicationQuiesceFault", "FilesystemQuiesceFault", "ToolsUnavailable")
_CREATED_BY = ("VirtualMachine.createSnapshot", "VirtualMachine.createSnapshotEx")


@dataclass(frozen=True)
class Patience:
    """How long to wait for one vSphere task (seconds), and what to do to it then (``leave`` or ``cancel``)."""

    timeout: float = 3600
    on_timeout: str = "leave"

    def wait(self, c: Connection, task: Any) -> Any:
        return tasks.wait(c, task, timeout=self.timeout, on_timeout=self.on_timeout)


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

    def as_planned(self) -> dict[str, Any]:
        """The record of the snapshot as far as it is known before it is made."""
        return {
            **dict.fromkeys(("id", "moid", "creation_time", "state", "quiesced", "parent_id", "depth", "consistency")),
            "name": self.name,
            "description": self.description,
            "stamp": self.stamp.as_dict() if self.stamp else None,
            "child_ids": [],
            "current": True,
            "disks": [],
        }


@dataclass(frozen=True)
class State:
    """A VM's snapshots after an action."""

    snapshots: list[snapshots.Snapshot]
    consolidation_needed: bool


def create(
    c: Connection, vm: Any, properties: Mapping[str, Any], wish: Wish, patience: Patience
) -> tuple[State, dict[str, Any], list[str]]:
    """Make a snapshot.

    :param properties: what ``find_vm`` read of ``snapshots.PROPERTIES``
    :returns: the state after it, its record (with ``consistency`` and ``disks``), and warnings
    :raises NotSupported: the guest cannot be quiesced and the policy is ``fail``
    """
    quiesce, warnings = plan_quiesce(properties, wish)
    known = set(properties.get("recentTask", ()))
    try:
        made = _take(c, vm, wish, quiesce, known, patience)
    except VsphereFault as error:
        if not (quiesce and _is_quiesce_fault(error)):
            raise
        warnings = _without_quiescing(wish, f"vSphere says: {fault_text(error.__cause__)}")
        quiesce = False
        made = _take(c, vm, wish, quiesce, known, patience)
    state, devices = look(c, vm, [made])
    snapshot = next(one for one in state.snapshots if one.moid == made._GetMoId())
    if quiesce and not snapshot.quiesced:
        try:
            warnings = _without_quiescing(wish, "vSphere took the snapshot without quiescing the guest")
        except NotSupported:
            remove(c, vm, [snapshot], children=False, patience=patience)
            raise
    return state, describe(snapshot, devices[snapshot.moid], applications=wish.vss is not None), warnings


def plan_quiesce(properties: Mapping[str, Any], wish: Wish) -> tuple[bool, list[str]]:
    """Whether to ask for quiescing, with warnings; follows the policy when it is wished but impossible."""
    if not wish.quiesce or properties.get("runtime.powerState") == "poweredOff":
        return False, []
    if wish.memory:
        if wish.quiesce_policy == "fail":
            raise InvalidInput(
                "A snapshot holds the memory or is quiesced, not both.", "Set one of memory_dump and quiesce to false."
            )
        return False, _without_quiescing(wish, "a snapshot with memory cannot be quiesced")
    tools = properties.get("guest.toolsRunningStatus")
    if tools is not None and tools != "guestToolsRunning":
        return False, _without_quiescing(wish, f"VMware Tools are not running in the guest ({tools})")
    return True, []


def state_of(properties: Mapping[str, Any]) -> State:
    """The state that was read with a VM's properties."""
    return State(
        snapshots.flatten(properties.get("snapshot")), bool(properties.get("runtime.consolidationNeeded", False))
    )


def look(c: Connection, vm: Any, made: Iterable[Any] = ()) -> tuple[State, dict[str, list[disks.Disk]]]:
    """The VM's snapshots now, and the disks in the configuration of those in ``made``, in one request.

    :param made: snapshot objects
    :returns: the state, and {snapshot moid: disks}
    """
    made = list(made)
    wanted = {vim.VirtualMachine: STATE_PROPERTIES, vim.vm.Snapshot: [_DEVICES]}
    read = c.retrieve([vm, *made], wanted)
    return state_of(read[vm]), {one._GetMoId(): disks.from_devices(read.get(one, {}).get(_DEVICES, ())) for one in made}


def look_at(c: Connection, vm: Any, snapshot: snapshots.Snapshot) -> tuple[State, dict[str, Any]]:
    """The VM's snapshots now, and the record of one of them with its disks, in one request."""
    state, frozen = look(c, vm, [_managed(c, snapshot)])
    return state, describe(snapshot, frozen[snapshot.moid])


def describe(snapshot: snapshots.Snapshot, frozen: Iterable[disks.Disk], applications: bool = False) -> dict[str, Any]:
    """The record of a snapshot with the consistency that is certain, and its disks with their change IDs."""
    quiesced = "application" if applications else "filesystem"
    return {
        **snapshot.as_dict(),
        "consistency": quiesced if snapshot.quiesced else "crash",
        "disks": [disk.as_dict() for disk in frozen],
    }


def check_space(c: Connection, vm: Any, floor: int) -> None:
    """Raise NotSupported when a datastore of the VM has less than ``floor`` bytes free; one request."""
    spec = vmodl.query.PropertyCollector.ObjectSpec(
        obj=vm,
        selectSet=[vmodl.query.PropertyCollector.TraversalSpec(type=vim.VirtualMachine, path="datastore")],
    )
    read = c.collect([spec], {vim.Datastore: ["name", "summary.freeSpace"]})
    # A datastore that cannot be reached tells no free space.
    space = {props.get("name", "a datastore"): props.get("summary.freeSpace", 0) for props in read.values()}
    short = sorted(name for name, free in space.items() if free < floor)
    if short:
        listed = ", ".join(f"{name} has {space[name]} bytes" for name in short)
        raise NotSupported(
            f"Too little free space for a snapshot: {listed}, and {floor} are asked for.",
            "Free some space, or lower min_free_space.",
        )


def rename(c: Connection, wanted: snapshots.Snapshot) -> None:
    """Give a snapshot the name and the description (with its stamp) that ``wanted`` has."""
    # Doing it twice is as good as once.
    c.read(_managed(c, wanted).RenameSnapshot, wanted.name, stamps.join(wanted.description, wanted.stamp))


def remove(
    c: Connection, vm: Any, chosen: Iterable[snapshots.Snapshot], *, children: bool, patience: Patience
) -> tuple[State, list[str]]:
    """Remove snapshots, one after the other, and see to it that the disks are consolidated.

    :param children: whether all snapshots below go too
    :returns: the state after it, and warnings
    """
    for snapshot in chosen:
        _remove_one(c, vm, snapshot, children, patience)
    return settle(c, vm, patience)


def settle(c: Connection, vm: Any, patience: Patience) -> tuple[State, list[str]]:
    """Consolidate the VM's disks once if they need it; a failure is a warning, for what was asked has been done."""
    state, _unused = look(c, vm)
    if not state.consolidation_needed:
        return state, []
    warnings = []
    try:
        patience.wait(c, c.call(vm.ConsolidateVMDisks_Task))
    except VsphereFault as error:
        warnings.append(error.message)
    state, _unused = look(c, vm)
    return state, warnings


def _take(c: Connection, vm: Any, wish: Wish, quiesce: bool, known: set[Any], patience: Patience) -> Any:
    text = stamps.join(wish.description, wish.stamp)
    spec = _guest_spec(wish) if quiesce else None
    try:
        if spec is None:
            task = c.call(vm.CreateSnapshot_Task, wish.name, text, wish.memory, quiesce)
        else:
            task = c.call(vm.CreateSnapshotEx_Task, wish.name, text, wish.memory, spec)
    except ConnectionFailed:
        task = _task_since(c, vm, known)
        if task is None:
            raise
    return patience.wait(c, task)


def _guest_spec(wish: Wish) -> Any:
    """The quiesce specification of CreateSnapshotEx, or None where the plain call does."""
    if wish.vss is not None:
        return vim.vm.WindowsQuiesceSpec(timeout=wish.quiesce_timeout, **wish.vss)
    if wish.quiesce_timeout is not None:
        return vim.vm.GuestQuiesceSpec(timeout=wish.quiesce_timeout)
    return None


def _task_since(c: Connection, vm: Any, known: set[Any]) -> Any:
    """The one task that makes a snapshot of the VM and was not ``known``; None if there is none or no telling."""
    recent = c.retrieve([vm], {vim.VirtualMachine: ["recentTask"]})[vm].get("recentTask", ())
    fresh = [task for task in recent if task not in known]
    kinds = c.retrieve(fresh, {vim.Task: ["info.descriptionId"]})
    found = [task for task, info in kinds.items() if info.get("info.descriptionId") in _CREATED_BY]
    return found[0] if len(found) == 1 else None


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


def _remove_one(c: Connection, vm: Any, snapshot: snapshots.Snapshot, children: bool, patience: Patience) -> None:
    deadline = time.monotonic() + patience.timeout
    managed = _managed(c, snapshot)
    while True:
        try:
            patience.wait(c, _start_removal(c, vm, managed, children))
            return
        except NotFound:
            return  # somebody else was faster
        except VsphereFault as error:
            if error.details.get("fault") == "ManagedObjectNotFound":
                return
            other = getattr(error.__cause__, "task", None)
            if error.details.get("fault") != "TaskInProgress" or other is None or time.monotonic() > deadline:
                raise
        _let_end(c, other, deadline)


def _start_removal(c: Connection, vm: Any, managed: Any, children: bool) -> Any:
    try:
        return c.call(managed.RemoveSnapshot_Task, children, True)
    except ConnectionFailed:
        # Removing is safe to ask for again: it is about this one object, and never about another.
        return c.call(managed.RemoveSnapshot_Task, children, True)


def _let_end(c: Connection, task: Any, deadline: float) -> None:
    """Wait for somebody else's task, whatever becomes of it."""
    with contextlib.suppress(TaskFailed, NotFound):
        tasks.wait(c, task, timeout=max(1.0, deadline - time.monotonic()))


def _managed(c: Connection, snapshot: snapshots.Snapshot) -> Any:
    return vim.vm.Snapshot(snapshot.moid, c.stub)
