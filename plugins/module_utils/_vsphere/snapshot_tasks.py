# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what is common to the tasks on a VM's snapshots: the wait, and what is there after it.

The tasks themselves are in ``snapshot_create``, ``snapshot_remove`` and ``snapshot_revert``. Nothing is started twice
by accident: after a lost reply the server is asked what became of the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Callable, Iterable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import ConnectionFailed
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import disks, inventory, snapshots, stamps, tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

STATE_PROPERTIES = ("snapshot", "runtime.consolidationNeeded", "runtime.powerState")
_TASK_PROPERTIES = ("info.state", "info.completeTime", "info.entityName")
_DEVICES = "config.hardware.device"


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
        frozen = None if snapshot is None else managed(c, snapshot)
        if frozen is not None:
            beside[frozen] = [_DEVICES]
        _result, told = tasks.wait(c, task, timeout=self.timeout, on_timeout=self.on_timeout, beside=beside)
        state = state_of(told[vm], task_record(task, told[task]))
        return state, disks.from_devices(told.get(frozen, {}).get(_DEVICES, ()))


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
    state, frozen = look(c, vm, [managed(c, snapshot)])
    return state, record_in(state, snapshot, frozen[snapshot.moid])


def known_record(c: Connection, properties: Mapping[str, Any], snapshot: snapshots.Snapshot) -> dict[str, Any] | None:
    """The record of a snapshot with its disks, if they were read with the VM, along ``rootSnapshot``; else None."""
    read = properties.get("rootSnapshot", {}).get(managed(c, snapshot))
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
        managed(c, wanted).RenameSnapshot,
        None if wanted.name == before.name else wanted.name,
        None if wanted.description == before.description else text,
    )


def begin(
    c: Connection, vm: Any, properties: Mapping[str, Any], kind: str, call: Callable[..., Any], *args: Any
) -> Any:
    """Start a task that must not run twice, and return it; after a lost reply it is looked for.

    :param properties: what was read of the VM before, with ``recentTask``
    :param kind: a part of the task's description ID, in lower case
    """
    try:
        return c.call(call, *args)
    except ConnectionFailed:
        task = _task_since(c, vm, properties, kind)
        if task is None:
            raise
        return task


def _task_since(c: Connection, vm: Any, properties: Mapping[str, Any], kind: str) -> Any:
    """The one task on the VM that began after it was read; None if there is none or no telling."""
    recent = inventory.read_vm(c, vm, along={"recentTask": ("info.descriptionId",)})["recentTask"]
    found = [
        task
        for task, info in recent.items()
        if task not in properties.get("recentTask", ()) and kind in info.get("info.descriptionId", "").lower()
    ]
    return found[0] if len(found) == 1 else None


def managed(c: Connection, snapshot: snapshots.Snapshot) -> Any:
    """The managed object of a snapshot."""
    return vim.vm.Snapshot(snapshot.moid, c.stub)
