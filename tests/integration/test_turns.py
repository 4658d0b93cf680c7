# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Doing something to a machine on which others work: when they have ended, and not for ever."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import TimedOut, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import inventory, tasks, turns
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.integration.vsphere import begin_snapshot


@pytest.fixture
def theirs(lab, c, vm):
    """Begins a task of somebody else that takes so many seconds, and returns it."""

    def begin(seconds, name="relocate"):
        lab.call("task", vm=vm["moid"], name=name, user="somebody", seconds=seconds, background=seconds > 0)
        return their_tasks(lab, c, vm)[-1]

    return begin


@pytest.fixture
def faster(lab, vm):
    """Somebody else begins a task whenever we are about to take a snapshot, so many times."""

    def begin(times=1, seconds=0.3):
        how = {"name": "relocate", "user": "somebody", "seconds": seconds, "background": True}
        lab.before("CreateSnapshot_Task", "task", count=times, vm=vm["moid"], **how)

    return begin


@pytest.fixture
def take(c, vm):
    """Takes a snapshot in one attempt, and counts the attempts."""

    def attempt():
        attempt.made += 1
        return tasks.wait(c, begin_snapshot(c, vm), timeout=10)

    attempt.made = 0
    return attempt


def their_tasks(lab, c, vm):
    return [vim.Task(one["moid"], c.stub) for one in lab.tasks(vm["moid"]) if one["user"] == "somebody"]


def states(c, tasks):
    read = c.retrieve(tasks, {vim.Task: ["info.state"]})
    return [str(read[task]["info.state"]) for task in tasks]


def test_nobody_is_in_the_way(lab, c, take):
    lab.requests(reset=True)
    assert isinstance(turns.in_turn(c, take, 10), vim.vm.Snapshot)
    asked = lab.requests()["methods"]
    asked.pop("WaitForUpdatesEx")
    assert asked == {"CreateSnapshot_Task": 1, "CreateFilter": 1}


def test_another_task_is_let_end(lab, c, vm, take, faster):
    faster()
    assert turns.in_turn(c, take, 10)
    assert (states(c, their_tasks(lab, c, vm)), take.made) == (["success"], 2)


def test_a_task_that_fails_is_out_of_the_way_too(lab, c, vm, take, faster):
    lab.fault(task="relocate", fault="FileLocked", fields={"file": "x"})
    faster()
    assert turns.in_turn(c, take, 10)
    assert (states(c, their_tasks(lab, c, vm)), take.made) == (["error"], 2)


def test_one_that_was_known_is_let_end_before_the_first_attempt(c, take, theirs):
    other = theirs(0.3)
    assert turns.in_turn(c, take, 10, others=[other])
    assert (states(c, [other]), take.made) == (["success"], 1)


def test_one_comes_after_the_other(lab, c, vm, take, faster):
    """Each time something is to be done before the next attempt: to plan anew, for instance."""
    seen = []
    faster(times=3)
    assert turns.in_turn(c, take, 10, waited=lambda: seen.append(states(c, their_tasks(lab, c, vm))))
    assert seen == [["success"] * number for number in (1, 2, 3)]
    assert take.made == 4


def test_a_task_that_has_ended_is_named_for_ever(lab, c, take, theirs):
    busy = {"task": {"type": "Task", "value": theirs(0)._GetMoId()}}
    lab.fault(method="CreateSnapshot_Task", fault="TaskInProgress", fields=busy, count=0)
    with pytest.raises(VsphereFault) as caught:
        turns.in_turn(c, take, 10)
    assert caught.value.details["fault"] == "TaskInProgress"
    assert take.made == 2


def test_a_task_that_was_known_and_has_ended_is_named(lab, c, take, theirs):
    ended = theirs(0)
    busy = {"task": {"type": "Task", "value": ended._GetMoId()}}
    lab.fault(method="CreateSnapshot_Task", fault="TaskInProgress", fields=busy, count=0)
    with pytest.raises(VsphereFault):
        turns.in_turn(c, take, 10, others=[ended])
    assert take.made == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_task_that_goes_on_for_longer(c, take, theirs, known):
    other = theirs(60)
    with pytest.raises(TimedOut, match="Another task works on the virtual machine, and nothing was begun") as caught:
        turns.in_turn(c, take, 1, others=[other] if known else [])
    assert caught.value.details == {"task": other._GetMoId(), "task_state": "running"}
    assert (states(c, [other]), take.made) == (["running"], 0 if known else 1)


def test_others_that_never_cease(lab, c, vm, take, faster):
    """They are waited for, one after another, until the time is over."""
    faster(times=0)
    with pytest.raises((VsphereFault, TimedOut)):
        turns.in_turn(c, take, 1)
    lab.clear_faults()
    assert take.made == len(their_tasks(lab, c, vm))


def test_another_fault_is_no_reason_to_wait(lab, c, take):
    lab.fault(method="CreateSnapshot_Task", fault="FileLocked", fields={"file": "x"})
    with pytest.raises(VsphereFault, match="FileLocked"):
        turns.in_turn(c, take, 10)
    assert take.made == 1


def test_the_tasks_that_have_not_ended(c, vm, theirs):
    theirs(0, "createSnapshot")
    running = theirs(60, "createSnapshot")
    machine = vim.VirtualMachine(vm["moid"], c.stub)
    recent = inventory.read_vm(c, machine, along={"recentTask": ["info.state", "info.descriptionId"]})["recentTask"]
    assert turns.under_way(recent) == turns.under_way(recent, "CREATEsnapshot|consolidate") == [running]
    assert turns.under_way(recent, "consolidate") == []
