# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: making and removing snapshots.

Nothing is started twice by accident: after a lost reply the server is asked what became of the call.
A removal is only over when the disks need no consolidation any more.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Callable, Iterable, Mapping, Sequence, TypeVar

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    ConnectionFailed,
    NotFound,
    NotSupported,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    disks,
    inventory,
    snapshots,
    stamps,
    tasks,
    turns,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, fault_text
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_plans import Removal, Step

T = TypeVar("T")
STATE_PROPERTIES = ("snapshot", "runtime.consolidationNeeded", "runtime.powerState")
_TASK_PROPERTIES = ("info.state", "info.completeTime", "info.entityName")
_DEVICES = "config.hardware.device"
_QUIESCE_FAULTS = ("ApplicationQuiesceFault", "FilesystemQuiesceFault", "ToolsUnavailable")


@dataclass(frozen=True)
class Patience:
    """How long to wait for one vSphere task (seconds), and what to do to it then (``leave`` or ``cancel``).

    A consolidation that fails is tried again ``retries`` times, ``retry_delay`` seconds later each.
    """

    timeout: float = 3600
    on_timeout: str = "leave"
    retries: int = 0
    retry_delay: float = 30

    def wait(self, c: Connection, task: Any) -> Any:
        """The result of a task that has ended."""
        return tasks.wait(c, task, timeout=self.timeout, on_timeout=self.on_timeout)

    def finish(
        self, c: Connection, vm: Any, task: Any, snapshot: snapshots.Snapshot | None = None
    ) -> tuple[State, list[disks.Disk]]:
        """The VM's snapshots when a task has ended, and the disks of one of them, in no further request."""
        beside: dict[Any, Sequence[str]] = {vm: STATE_PROPERTIES}
        managed = None if snapshot is None else _managed(c, snapshot)
        if managed is not None:
            beside[managed] = [_DEVICES]
        _result, told = tasks.wait(c, task, timeout=self.timeout, on_timeout=self.on_timeout, beside=beside)
        state = state_of(told[vm], task_record(task, told[task]))
        return state, disks.from_devices(told.get(managed, {}).get(_DEVICES, ()))


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


@dataclass(frozen=True)
class TaskRecord:
    """A task of vSphere: its managed object ID, its state, when it ended, and the name of the VM."""

    id: str
    state: str
    completed: datetime | None = None
    entity_name: str | None = None

    def as_result(self) -> dict[str, Any]:
        """The form of vmware.vmware. A task that failed is an error of ours."""
        return {
            "completion_time": stamps.precise(self.completed) if self.completed else None,
            "entity_name": self.entity_name,
            "error": None,
            "state": self.state,
        }


@dataclass(frozen=True)
class State:
    """A VM's snapshots after an action, which was the task ``task`` (None where no task was needed)."""

    snapshots: list[snapshots.Snapshot]
    consolidation_needed: bool
    power_state: str | None = None
    task: TaskRecord | None = None


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
        task = begin_creation(c, vm, properties, wish, quiesce)
        made = patience.wait(c, task)
    except VsphereFault as error:
        if not (quiesce and _is_quiesce_fault(error)):
            raise
        warnings = _without_quiescing(wish, f"vSphere says: {fault_text(error.__cause__)}")
        quiesce = False
        task = begin_creation(c, vm, properties, wish, quiesce)
        made = patience.wait(c, task)
    state, devices = look(c, vm, [made], task)
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
    if wish.memory:  # it holds the guest as it is, which needs no quiescing to go on
        told = f"The guest is not quiesced for the snapshot {wish.name}, which holds the memory."
        return False, [] if wish.quiesce_policy == "crash_consistent" else [told]
    tools = properties.get("guest.toolsRunningStatus")
    if tools is not None and tools != "guestToolsRunning":
        return False, _without_quiescing(wish, f"VMware Tools are not running in the guest ({tools})")
    return True, []


def state_of(properties: Mapping[str, Any], task: TaskRecord | None = None) -> State:
    """The state that was read with a VM's properties."""
    return State(
        snapshots.flatten(properties.get("snapshot")),
        bool(properties.get("runtime.consolidationNeeded", False)),
        properties.get("runtime.powerState"),
        task,
    )


def look(
    c: Connection, vm: Any, made: Iterable[Any] = (), task: Any = None
) -> tuple[State, dict[str, list[disks.Disk]]]:
    """The VM's snapshots now, and the disks in the configuration of those in ``made``, in one request.

    :param made: snapshot objects
    :param task: the task that has ended, to be told of too
    :returns: the state, and {snapshot moid: disks}
    """
    made = list(made)
    wanted = {vim.VirtualMachine: STATE_PROPERTIES, vim.vm.Snapshot: [_DEVICES], vim.Task: _TASK_PROPERTIES}
    read = c.retrieve([vm, *made, *([] if task is None else [task])], wanted)
    record = None if task is None else task_record(task, read.get(task, {}))
    return (
        state_of(read[vm], record),
        {one._GetMoId(): disks.from_devices(read.get(one, {}).get(_DEVICES, ())) for one in made},
    )


def task_record(task: Any, info: Mapping[str, Any]) -> TaskRecord:
    """The record of a task from what was read of it."""
    return TaskRecord(
        task._GetMoId(),
        str(info.get("info.state", "running")),
        info.get("info.completeTime"),
        info.get("info.entityName"),
    )


def look_at(c: Connection, vm: Any, snapshot: snapshots.Snapshot) -> tuple[State, dict[str, Any]]:
    """The VM's snapshots now, and the record of one of them with its disks, in one request."""
    state, frozen = look(c, vm, [_managed(c, snapshot)])
    return state, record_in(state, snapshot, frozen[snapshot.moid])


def known_record(c: Connection, properties: Mapping[str, Any], snapshot: snapshots.Snapshot) -> dict[str, Any] | None:
    """The record of a snapshot with its disks, if they were read with the VM, along ``rootSnapshot``; else None."""
    read = properties.get("rootSnapshot", {}).get(_managed(c, snapshot))
    return None if read is None else describe(snapshot, disks.from_devices(read.get(_DEVICES, ())))


def record_in(state: State, snapshot: snapshots.Snapshot, frozen: Iterable[disks.Disk]) -> dict[str, Any]:
    """The record of a snapshot as it is in a later state, with its disks."""
    return describe(next((one for one in state.snapshots if one.moid == snapshot.moid), snapshot), frozen)


def describe(snapshot: snapshots.Snapshot, frozen: Iterable[disks.Disk], applications: bool = False) -> dict[str, Any]:
    """The record of a snapshot with the consistency that is certain, and its disks with their change IDs."""
    quiesced = "application" if applications else "filesystem"
    return {
        **snapshot.as_dict(),
        "consistency": quiesced if snapshot.quiesced else "crash",
        "disks": [disk.as_dict() for disk in frozen],
    }


def rename(c: Connection, before: snapshots.Snapshot, wanted: snapshots.Snapshot) -> None:
    """Give a snapshot the name and the description (with its stamp) that ``wanted`` has."""
    text = stamps.join(wanted.description, wanted.stamp)
    # What stays is not sent, so that nobody else's change of it is undone. Doing it twice is as good as once.
    c.read(
        _managed(c, wanted).RenameSnapshot,
        None if wanted.name == before.name else wanted.name,
        None if wanted.description == before.description else text,
    )


def remove(
    c: Connection, vm: Any, chosen: Iterable[snapshots.Snapshot], *, children: bool, patience: Patience
) -> tuple[State, list[str]]:
    """Remove snapshots, one after the other, and see to it that the disks are consolidated.

    :param children: whether all snapshots below go too
    :returns: the state after it, and warnings
    """
    doomed = tuple(chosen)
    return carry_out(c, vm, Removal(doomed, tuple(Step(one, children) for one in doomed)), patience)


def carry_out(c: Connection, vm: Any, removal: Removal, patience: Patience) -> tuple[State, list[str]]:
    """Remove snapshots as planned, and see to it that the disks are consolidated.

    :returns: the state after it, and warnings
    :raises BackupError: with ``removed`` and ``not_removed`` in its details where there were several
    """
    state, calls = None, _removals(c, vm, removal)
    try:
        for start in calls[:-1]:
            _finish(c, start, patience.wait, patience)
        for start in calls[-1:]:
            state = _finish(c, start, lambda c, task: patience.finish(c, vm, task)[0], patience)
    except BackupError as error:
        if len(removal.doomed) > 1:
            raise _halfway(c, vm, removal, error) from error
        raise
    return settle(c, vm, patience, state)


def begin_removal(c: Connection, vm: Any, removal: Removal, patience: Patience) -> Any:
    """Remove snapshots as planned, but do not wait for the last; returns its task (None if that one was gone)."""
    *first, last = _removals(c, vm, removal)
    for start in first:
        _finish(c, start, patience.wait, patience)
    try:
        return last()
    except NotFound:
        return None


def _removals(c: Connection, vm: Any, removal: Removal) -> list[Callable[[], Any]]:
    """The calls that start the tasks of a removal, in order."""
    if removal.everything:
        calls = [functools.partial(vm.RemoveAllSnapshots_Task, True)]
    else:
        calls = [
            functools.partial(_managed(c, step.snapshot).RemoveSnapshot_Task, step.children, True)
            for step in removal.steps
        ]
    return [functools.partial(_ask_twice, c, call) for call in calls]


def _ask_twice(c: Connection, call: Callable[[], Any]) -> Any:
    try:
        return c.call(call)
    except ConnectionFailed:
        # Removing is safe to ask for again: it is about these objects, and never about others.
        return c.call(call)


def _finish(
    c: Connection, start: Callable[[], Any], wait: Callable[[Connection, Any], T], patience: Patience
) -> T | None:
    """Start a removal, after another task if one is in the way, and ``wait`` for it; None if it had nothing to do."""
    try:
        return turns.in_turn(c, lambda: wait(c, start()), patience.timeout)
    except NotFound:
        return None  # somebody else was faster
    except VsphereFault as error:
        if error.details.get("fault") == "ManagedObjectNotFound":
            return None
        raise


def _halfway(c: Connection, vm: Any, removal: Removal, error: BackupError) -> BackupError:
    """The error of a removal that ended in the middle, with what was removed by then."""
    try:
        there = {one.moid for one in look(c, vm)[0].snapshots}
    except BackupError:  # what happened first counts
        return error
    gone = [one for one in removal.doomed if one.moid not in there]
    left = [one for one in removal.doomed if one.moid in there]
    told = "; ".join(
        f"{what}: {', '.join(f'{one.name} (ID {one.id})' for one in some) or 'none'}"
        for what, some in (("removed", gone), ("not removed", left))
    )
    details = {
        **error.details,
        "removed": [one.as_dict() for one in gone],
        "not_removed": [one.as_dict() for one in left],
    }
    return type(error)(f"{error.message} Of the snapshots, {told}.", error.next_step, **details)


def settle(c: Connection, vm: Any, patience: Patience, state: State | None = None) -> tuple[State, list[str]]:
    """Consolidate the VM's disks if they need it; a failure is a warning, for what was asked has been done.

    :param state: how the removal left the VM, if that is known
    """
    state = state or look(c, vm)[0]
    if not state.consolidation_needed:
        return state, []
    try:
        return replace(consolidate(c, vm, patience), task=state.task), []
    except VsphereFault as error:
        later, _unused = look(c, vm)
        return replace(later, task=state.task), [error.message]


def consolidate(c: Connection, vm: Any, patience: Patience) -> State:
    """Consolidate the VM's disks until vSphere says that they need it no more.

    :raises VsphereFault: they still do after the last attempt
    """
    for attempts_left in reversed(range(patience.retries + 1)):
        try:
            task = c.call(vm.ConsolidateVMDisks_Task)
            state, _unused = patience.finish(c, vm, task)
            if not state.consolidation_needed:
                return state
        except VsphereFault:
            if not attempts_left:
                raise
        if attempts_left:
            time.sleep(patience.retry_delay)  # whoever holds a file needs time to let it go, and tells nobody
    raise VsphereFault(
        "The disks still need consolidation after they were consolidated.",
        "Find out who holds their files, a backup proxy for example, and run this again.",
    )


def begin_creation(c: Connection, vm: Any, properties: Mapping[str, Any], wish: Wish, quiesce: bool) -> Any:
    """Start to make a snapshot; returns the task.

    :param quiesce: what ``plan_quiesce`` says
    """
    text = stamps.join(wish.description, wish.stamp)
    spec = _guest_spec(wish) if quiesce else None
    try:
        if spec is None:
            return c.call(vm.CreateSnapshot_Task, wish.name, text, wish.memory, quiesce)
        return c.call(vm.CreateSnapshotEx_Task, wish.name, text, wish.memory, spec)
    except ConnectionFailed:
        task = task_since(c, vm, properties, "createsnapshot")
        if task is None:
            raise
        return task


def _guest_spec(wish: Wish) -> Any:
    """The quiesce specification of CreateSnapshotEx, or None where the plain call does."""
    if wish.vss is not None:
        return vim.vm.WindowsQuiesceSpec(timeout=wish.quiesce_timeout, **wish.vss)
    if wish.quiesce_timeout is not None:
        return vim.vm.GuestQuiesceSpec(timeout=wish.quiesce_timeout)
    return None


def task_since(c: Connection, vm: Any, properties: Mapping[str, Any], kind: str) -> Any:
    """The one task on the VM that began after it was read; None if there is none or no telling.

    :param kind: a part of the task's description ID, in lower case
    """
    recent = inventory.read_vm(c, vm, along={"recentTask": ("info.descriptionId",)})["recentTask"]
    found = [
        task
        for task, info in recent.items()
        if task not in properties.get("recentTask", ()) and kind in info.get("info.descriptionId", "").lower()
    ]
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


def _managed(c: Connection, snapshot: snapshots.Snapshot) -> Any:
    return vim.vm.Snapshot(snapshot.moid, c.stub)
