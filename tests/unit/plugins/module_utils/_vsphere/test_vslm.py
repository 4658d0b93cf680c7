# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tasks of the storage lifecycle service are asked for with growing pauses, and not for ever."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import TaskFailed, TimedOut
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import vslm
from pyVmomi import vim
from pyVmomi import vslm as sdk


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 0.0
        self.pauses = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


class Connection:
    """Calls without a server."""

    @staticmethod
    def read(func, *args):
        return func(*args)


class Task:
    """Runs for some seconds of a clock, then ends."""

    def __init__(self, clock, seconds, **end):
        self.clock, self.seconds, self.end = clock, seconds, {"state": "success", **end}

    def QueryInfo(self):
        info = sdk.TaskInfo(descriptionId="createSnapshot", state="running")
        if self.clock.now >= self.seconds:
            for name, value in self.end.items():
                setattr(info, name, value)
        return info

    def QueryResult(self):
        return "told apart"

    def _GetMoId(self):
        return "task-7"


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(vslm, "time", made)
    return made


def wait(task, timeout=100.0):
    return vslm.wait(Connection, task, timeout=timeout)


def test_a_task_that_is_done_costs_one_request(clock):
    assert wait(Task(clock, 0, result="s1")) == "s1"
    assert clock.pauses == []


def test_a_result_that_is_not_in_the_state_is_asked_for(clock):
    assert wait(Task(clock, 0)) == "told apart"


def test_pauses_grow_up_to_a_limit(clock):
    wait(Task(clock, 30))
    assert clock.pauses[0] == vslm.FIRST_PAUSE
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == vslm.LAST_PAUSE
    assert len(clock.pauses) < 30
    assert clock.now < 30 + vslm.LAST_PAUSE


def test_waiting_ends(clock):
    with pytest.raises(TimedOut, match=r"task-7.*did not end within 5 seconds") as raised:
        wait(Task(clock, 1000), timeout=5)
    assert clock.now == pytest.approx(5)
    assert raised.value.details == {"task": "task-7", "task_state": "running"}


def test_a_failure_names_its_fault(clock):
    error = vim.fault.InvalidState(msg="The disk is busy.")
    with pytest.raises(TaskFailed, match="The disk is busy") as raised:
        wait(Task(clock, 1, state="error", error=error))
    assert raised.value.details == {"fault": "InvalidState", "task": "task-7"}
    assert raised.value.__cause__ is error
