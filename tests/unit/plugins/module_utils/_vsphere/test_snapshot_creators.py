# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who made a snapshot, from vCenter's tasks."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_creators import makers

NOON = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
MADE = {"snapshot-1": ("vm-1", NOON), "snapshot-2": ("vm-1", NOON + timedelta(hours=1)), "snapshot-3": ("vm-2", NOON)}


def task(**values):
    given = {
        "descriptionId": "VirtualMachine.createSnapshot",
        "reason": vim.TaskReasonUser(userName="VSPHERE.LOCAL\\anna"),
        "entity": vim.VirtualMachine("vm-1"),
        "startTime": NOON,
        "state": "success",
        "completeTime": NOON + timedelta(seconds=20),
        "result": vim.vm.Snapshot("snapshot-1"),
    }
    return vim.TaskInfo(**{**given, **values})


@pytest.mark.parametrize("kind", ["createSnapshot", "createSnapshotEx"])
def test_the_task_says_which_snapshot_it_made(kind):
    assert makers([task(descriptionId=f"VirtualMachine.{kind}")], MADE) == {"snapshot-1": "VSPHERE.LOCAL\\anna"}


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (
            vim.TaskReasonSchedule(name="weekly", scheduledTask=vim.scheduler.ScheduledTask("s-1")),
            "scheduled task weekly",
        ),
        (
            vim.TaskReasonAlarm(
                alarmName="full", alarm=vim.alarm.Alarm("a"), entityName="x", entity=vim.VirtualMachine("vm-1")
            ),
            "alarm full",
        ),
    ],
)
def test_what_is_no_person_is_named_too(reason, name):
    assert makers([task(reason=reason)], MADE) == {"snapshot-1": name}


def test_without_a_result_the_time_tells_if_it_tells_one():
    assert makers([task(result=None)], MADE) == {"snapshot-1": "VSPHERE.LOCAL\\anna"}
    both = {**MADE, "snapshot-4": ("vm-1", NOON + timedelta(seconds=30))}
    assert makers([task(result=None)], both) == {}


@pytest.mark.parametrize(
    "other",
    [
        {"descriptionId": "VirtualMachine.removeSnapshot"},
        {"state": "error", "result": None},
        {"result": vim.vm.Snapshot("snapshot-9")},
        {"reason": vim.TaskReasonSystem()},
        {"result": None, "entity": vim.VirtualMachine("vm-9")},
        {"result": None, "entity": None},
        {"result": None, "completeTime": None},
    ],
)
def test_other_tasks_tell_nothing(other):
    assert makers([task(**other)], MADE) == {}
