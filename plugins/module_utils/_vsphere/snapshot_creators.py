# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: who made a snapshot, as vCenter's history of tasks tells.

vSphere does not note it with the snapshot.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any, Iterable, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotFound, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import task_history
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

MOST_PAGES = 200  # of tasks: a request each
_TASKS = ("VirtualMachine.createSnapshot", "VirtualMachine.createSnapshotEx")
_MARGIN = timedelta(hours=1)  # by which the clocks of vCenter and a host may differ
_NEAR = timedelta(minutes=2)


def find(c: Connection, start: Any, snapshots: Mapping[str, tuple[str, datetime]]) -> tuple[dict[str, str], str | None]:
    """Who made snapshots, in two requests and one more per :data:`task_history.PAGE` tasks of that time.

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
        times = [created for _vm, created in snapshots.values()]
        pages = task_history.pages(c, start, min(times) - _MARGIN, max(times) + _MARGIN, most=MOST_PAGES)
        with contextlib.closing(pages):
            for tasks in pages:
                found.update(makers(tasks, snapshots))
                if len(found) == len(snapshots):
                    return found, None
    except (NotFound, VsphereFault) as error:
        return found, f"the history of tasks cannot be read: {error.message}"
    return found, "vCenter remembers no task that made it"


def makers(tasks: Iterable[Any], snapshots: Mapping[str, tuple[str, datetime]]) -> dict[str, str]:
    """Who made which of the snapshots, from tasks (vim.TaskInfo); pure."""
    found = {}
    for task in tasks:
        user = _user(task.reason)
        if task.descriptionId not in _TASKS or task.state != "success" or user is None:
            continue
        moid = task.result._GetMoId() if isinstance(task.result, vim.vm.Snapshot) else _by_time(task, snapshots)
        if moid is not None and moid in snapshots:
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
