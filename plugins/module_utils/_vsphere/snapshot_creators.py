# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: who made a snapshot, as vCenter's history of tasks tells.

vSphere does not note it with the snapshot. vCenter keeps its tasks for some time (30 days, unless set otherwise); a
host on its own keeps no history.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any, Iterable, Iterator, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, NotFound, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

PAGE = 1000  # tasks; vCenter gives no more at once
MOST_PAGES = 200  # of tasks: a request each
_TASKS = ("VirtualMachine.createSnapshot", "VirtualMachine.createSnapshotEx")
_MARGIN = timedelta(hours=1)  # by which the clocks of vCenter and a host may differ
_NEAR = timedelta(minutes=2)


def find(c: Connection, start: Any, snapshots: Mapping[str, tuple[str, datetime]]) -> tuple[dict[str, str], str | None]:
    """Who made snapshots, in two requests and one more per :data:`PAGE` tasks of that time.

    :param start: the VM, or what they all are below
    :param snapshots: snapshot's managed object ID -> the VM's, and the time of creation
    :returns: {managed object ID: user}, and why the others are not there (None if all are)
    """
    if not snapshots:
        return {}, None
    if not c.is_vcenter:
        return {}, "a host without vCenter keeps no history of tasks"
    found: dict[str, str] = {}
    try:
        for tasks in _pages(c, start, [created for _vm, created in snapshots.values()]):
            found.update(makers(tasks, snapshots))
            if len(found) == len(snapshots):
                return found, None
    except (NotFound, VsphereFault) as error:
        return found, f"the history of tasks cannot be read: {error.message}"
    return found, "vCenter remembers no task that made it"


def makers(tasks: Iterable[Any], snapshots: Mapping[str, tuple[str, datetime]]) -> dict[str, str]:
    """Who made which of the snapshots, from tasks (vim.TaskInfo) that ended well; pure."""
    found = {}
    for task in tasks:
        user = _user(task.reason)
        if task.descriptionId not in _TASKS or user is None:
            continue
        moid = task.result._GetMoId() if isinstance(task.result, vim.vm.Snapshot) else _by_time(task, snapshots)
        if moid in snapshots:
            found[moid] = user
    return found


def _by_time(task: Any, snapshots: Mapping[str, tuple[str, datetime]]) -> str | None:
    """The VM's one snapshot that was made while the task ran, where its result was not kept."""
    if task.entity is None or task.startTime is None or task.completeTime is None:
        return None
    begin, end = task.startTime - _NEAR, task.completeTime + _NEAR
    fitting = [
        moid for moid, (vm, created) in snapshots.items() if vm == task.entity._GetMoId() and begin <= created <= end
    ]
    return fitting[0] if len(fitting) == 1 else None


def _user(reason: Any) -> str | None:
    if isinstance(reason, vim.TaskReasonUser):
        return reason.userName or None
    if isinstance(reason, vim.TaskReasonSchedule):
        return f"scheduled task {reason.name}"
    if isinstance(reason, vim.TaskReasonAlarm):
        return f"alarm {reason.alarmName}"
    return None


def _pages(c: Connection, start: Any, created: list[datetime]) -> Iterator[list[Any]]:
    kinds = vim.TaskFilterSpec
    recursion = "self" if isinstance(start, vim.VirtualMachine) else "all"
    spec = kinds(
        entity=kinds.ByEntity(entity=start, recursion=recursion),
        time=kinds.ByTime(timeType="queuedTime", beginTime=min(created) - _MARGIN, endTime=max(created) + _MARGIN),
        state=["success"],
    )
    # A new collector stands at the oldest task.
    collector = c.read(c.content.taskManager.CreateCollectorForTasks, spec)
    try:
        for _page in range(MOST_PAGES):
            tasks = c.call(collector.ReadNextTasks, PAGE)
            if not tasks:
                return
            yield tasks
            if len(tasks) < PAGE:
                return
    finally:
        with contextlib.suppress(BackupError):
            c.call(collector.DestroyCollector)
