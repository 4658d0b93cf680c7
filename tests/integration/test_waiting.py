# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waiting for tasks of the lab."""

from __future__ import annotations

import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import TaskFailed, TimedOut
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.integration.running import once
from ansible_collections.holdfast.backup.tests.integration.vsphere import begin_snapshot, methods


def test_a_task_is_waited_for_and_gives_its_result(lab, c, vm):
    task = begin_snapshot(c, vm)
    lab.requests(reset=True)
    assert isinstance(tasks.wait(c, task, timeout=10), vim.vm.Snapshot)
    assert lab.requests()["total"] <= 3


def test_waits_one_after_another(lab, c, vm):
    machine = vim.VirtualMachine(vm["moid"], c.stub)
    for number in range(3):
        task = begin_snapshot(c, vm, f"number{number}")
        lab.requests(reset=True)
        made, told = tasks.wait(c, task, timeout=10, beside={machine: ["snapshot", "runtime.powerState"]})
        assert lab.requests()["total"] <= 4
        assert told[machine]["snapshot"].currentSnapshot == made
        assert set(told) == {machine, task}


def test_what_is_told_beside_is_of_the_end_of_the_task(lab, c, vm):
    machine = vim.VirtualMachine(vm["moid"], c.stub)
    made = tasks.wait(c, begin_snapshot(c, vm), timeout=10)
    lab.fault(task="*removeSnapshot*", delay_ms=500)
    task = c.call(made.RemoveSnapshot_Task, False)
    result, told = tasks.wait(c, task, timeout=10, beside={machine: ["snapshot", "runtime.consolidationNeeded"]})
    assert result is None
    assert told[machine] == {"runtime.consolidationNeeded": False}


def test_the_end_is_noticed_at_once(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=1500)
    begun = time.monotonic()
    task = begin_snapshot(c, vm)
    lab.requests(reset=True)
    tasks.wait(c, task, timeout=20)
    assert 1.4 < time.monotonic() - begun < tasks.SLICE / 2  # and not when the server answers again
    assert lab.requests()["total"] <= 5


def test_a_failed_task(lab, c, vm):
    lab.fault(task="*createSnapshot*", fault="FileLocked", fields={"file": "[ds] a.vmdk"})
    task = begin_snapshot(c, vm)
    with pytest.raises(TaskFailed, match=rf"createSnapshot of {vm['name']} .*FileLocked") as caught:
        tasks.wait(c, task, timeout=10)
    assert caught.value.details == {"fault": "FileLocked", "task": task._GetMoId()}
    assert caught.value.__cause__.file == "[ds] a.vmdk"


def test_a_task_that_takes_too_long_is_left(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=2500)
    task = begin_snapshot(c, vm)
    with pytest.raises(TimedOut, match="goes on in vSphere") as caught:
        tasks.wait(c, task, timeout=1)
    assert caught.value.details == {"task": task._GetMoId(), "task_state": "running"}
    assert tasks.wait(c, task, timeout=10)


def test_a_task_that_takes_too_long_is_cancelled(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=2500)
    task = begin_snapshot(c, vm)
    with pytest.raises(TimedOut, match="was cancelled") as caught:
        tasks.wait(c, task, timeout=0.5, on_timeout="cancel")
    assert caught.value.details == {"task": task._GetMoId(), "task_state": "cancelled"}


def test_a_late_task_that_cannot_be_cancelled_may_still_end(lab, c, vm):
    lab.fault(method="CancelTask", fault="NotSupported", count=0)
    lab.fault(task="*createSnapshot*", delay_ms=1500)
    assert tasks.wait(c, begin_snapshot(c, vm), timeout=0.5, on_timeout="cancel")
    lab.fault(task="*createSnapshot*", delay_ms=1500, fault="FileLocked", fields={"file": "x"})
    with pytest.raises(TaskFailed, match="FileLocked"):
        tasks.wait(c, begin_snapshot(c, vm), timeout=0.5, on_timeout="cancel")


def test_a_session_that_expires_in_mid_wait(lab, c, vm, monkeypatch):
    monkeypatch.setattr(tasks, "SLICE", 1)
    lab.fault(task="*createSnapshot*", delay_ms=3000)
    task = begin_snapshot(c, vm)
    with once(lambda: "CreateFilter" in methods(lab), lab.expire_sessions):
        assert tasks.wait(c, task, timeout=20)
    assert lab.requests()["logins"] == 2


def test_a_connection_that_drops_in_mid_wait(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=3000)
    task = begin_snapshot(c, vm)
    with once(lambda: "CreateFilter" in methods(lab), lab.drop_connections):
        assert tasks.wait(c, task, timeout=20)


def test_a_large_update_comes_in_parts(lab, c, vm, monkeypatch):
    """The end of the task may be told before what is to be told with it."""
    collector = tasks.vmodl.query.PropertyCollector
    options, spec = collector.WaitOptions, collector.FilterSpec
    monkeypatch.setattr(collector, "WaitOptions", lambda **given: options(**given, maxObjectUpdates=1))
    monkeypatch.setattr(
        collector, "FilterSpec", lambda objectSet, propSet: spec(objectSet=objectSet[::-1], propSet=propSet)
    )
    machine = vim.VirtualMachine(vm["moid"], c.stub)
    made, told = tasks.wait(c, begin_snapshot(c, vm), timeout=10, beside={machine: ["snapshot"]})
    assert told[machine]["snapshot"].currentSnapshot == made


def test_progress_is_told(lab, c, vm):
    lab.fault(task="*createSnapshot*", delay_ms=800)
    told = []
    tasks.wait(c, begin_snapshot(c, vm), timeout=20, on_progress=told.append)
    assert told == sorted(set(told), key=told.index)
