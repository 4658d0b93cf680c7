# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_snapshot while others work on the same machine: before it plans, between its plan and its act, and after it."""

from __future__ import annotations

import time

import pytest
from ansible_collections.holdfast.backup.tests.integration.snapshot_machine import machines, tree


@pytest.fixture
def machine(lab, run_module):
    yield from machines(lab, run_module)


@pytest.fixture
def vm(machine):
    return machine()


def first(vm, method, verb, **params):
    """Before the method is called for the first time, somebody does something else."""
    vm.lab.before(method, verb, vm=vm.moid, **params)


def theirs(vm, name, seconds):
    """Somebody takes a snapshot, and is still at it."""
    vm.lab.call("take_snapshot", vm=vm.moid, name=name, user="somebody", seconds=seconds, background=True)


# what was chosen changes


@pytest.mark.parametrize(("verb", "changes"), [("remove_snapshot", {}), ("rename_snapshot", {"name": "mine now"})])
def test_a_snapshot_that_is_removed_or_renamed_before_its_removal(vm, verb, changes):
    one, _two = vm.take("one"), vm.take("two")
    first(vm, "RemoveSnapshot_Task", verb, snapshot=one["moid"], **changes)
    result = vm.run(snapshot_name="one", state="absent")
    assert [snapshot["moid"] for snapshot in result["removed"]] == [one["moid"]]
    assert vm.names() == [snapshot["name"] for snapshot in result["snapshots"]] == ["two"]


def test_a_snapshot_that_goes_before_the_machine_is_reverted_to_it(vm):
    one, _two = vm.take("one"), vm.take("two")
    first(vm, "RevertToSnapshot_Task", "remove_snapshot", snapshot=one["moid"])
    result = vm.run(snapshot_name="one", state="revert", fail=True)
    assert result["error_type"] == "NotFound"
    assert f"one (ID {one['id']}) went before" in result["msg"]
    assert vm.current() == "two"


def test_a_description_that_somebody_changes_meanwhile_stays(vm):
    one = vm.take("one", description="first")
    first(vm, "RenameSnapshot", "rename_snapshot", snapshot=one["moid"], description="theirs")
    assert vm.run(snapshot_name="one", new_snapshot_name="two")["snapshot"]["name"] == "two"
    (there,) = vm.lab.snapshots(vm.moid)
    assert (there["name"], there["description"]) == ("two", "theirs")


def test_a_machine_that_is_renamed_meanwhile(vm):
    first(vm, "CreateSnapshot_Task", "rename_vm", name=f"{vm.name}-moved")
    assert vm.run(moid=None, name=vm.name, snapshot_name="one")["changed"]
    assert vm.names() == ["one"]


def test_a_machine_that_is_deleted_meanwhile(machine):
    vm = machine()
    vm.take("one")
    first(vm, "RemoveSnapshot_Task", "destroy_vm")
    assert vm.run(snapshot_name="one", state="absent", fail=True)["error_type"] == "NotFound"
    vm.gone = True


# somebody takes one of the same name


def test_a_snapshot_of_the_same_name_that_is_being_made_will_do(vm):
    theirs(vm, "one", 0.5)
    result = vm.run(snapshot_name="one")
    assert not result["changed"]
    assert vm.names() == ["one"]


def test_a_snapshot_of_the_same_name_that_is_begun_before_ours_will_do(vm):
    first(vm, "CreateSnapshot_Task", "take_snapshot", name="one", user="somebody", seconds=0.7, background=True)
    result = vm.run(snapshot_name="one")
    assert not result["changed"]
    assert result["snapshot"]["name"] == "one"
    assert vm.names() == ["one"]


def test_two_of_the_same_name_are_told(vm):
    first(vm, "CreateSnapshot_Task", "take_snapshot", name="one")
    result = vm.run(snapshot_name="one")
    assert vm.names() == ["one", "one"]
    assert "made at the same time" in str(result["warnings"])


# another task is in the way


@pytest.mark.parametrize("state", ["present", "absent", "revert", "remove_all"])
def test_another_task_is_let_end_before_the_plan(vm, state):
    vm.take("one")
    theirs(vm, "theirs", 0.5)
    plan = vm.run(snapshot_name="new" if state == "present" else "one", state=state, check=True)
    assert "theirs" in [one["name"] for one in plan["diff"]["before"]["snapshots"]]
    result = vm.run(snapshot_name="new" if state == "present" else "one", state=state)
    names = {"present": ["new", "one", "theirs"], "absent": ["theirs"], "revert": ["one", "theirs"], "remove_all": []}
    assert vm.names() == sorted(one["name"] for one in result["snapshots"]) == names[state]


def test_another_task_that_goes_on_for_longer(vm):
    vm.lab.call("task", vm=vm.moid, name="createSnapshot", user="somebody", seconds=30, background=True)
    begun = time.monotonic()
    result = vm.run(snapshot_name="one", timeout=1, fail=True)
    assert time.monotonic() - begun < 25
    assert result["error_type"] == "TimedOut"
    assert "Another task works on the virtual machine, and nothing was begun" in result["msg"]
    assert vm.names() == []


def test_a_server_that_always_refuses(vm):
    """The task that is in the way has ended, and still it says so."""
    vm.lab.call("task", vm=vm.moid, name="createSnapshot", user="somebody", seconds=0)
    ended = vm.lab.call("tasks", vm=vm.moid)[-1]["moid"]
    busy = {"task": {"type": "Task", "value": ended}}
    vm.lab.fault(method="CreateSnapshot_Task", fault="TaskInProgress", fields=busy, count=0)
    result = vm.run(snapshot_name="one", fail=True)
    assert result["fault"] == "TaskInProgress"


# a removal of several ends in the middle


def test_a_removal_that_ends_in_the_middle(vm):
    a, b, c = tree(vm)
    vm.lab.fault(task="removeSnapshot", fault="FileLocked", fields={"file": "[ds] x"}, skip=1)
    result = vm.run(state="absent", older_than="0", fail=True)
    assert [one["moid"] for one in result["removed"]] == [a["moid"]]
    assert [one["moid"] for one in result["not_removed"]] == [b["moid"], c["moid"]]
    assert f"removed: a (ID {a['id']}); not removed: b (ID {b['id']}), c (ID {c['id']})" in result["msg"]
    assert result["fault"] == "FileLocked"
    assert vm.names() == ["b", "c"]


@pytest.mark.parametrize("options", [{"state": "remove_all"}, {"state": "absent", "snapshot_name": "a"}])
def test_a_task_that_removes_several_ends_in_the_middle(vm, options):
    a, b, c = tree(vm)
    vm.lab.fault(task="remove*", fault="FileLocked", fields={"file": "[ds] x"}, partly=1)
    result = vm.run(remove_children=True, fail=True, **options)
    assert [one["moid"] for one in result["removed"]] == [c["moid"]]
    assert [one["moid"] for one in result["not_removed"]] == [a["moid"], b["moid"]]


# what is not waited for


def test_a_task_that_is_not_waited_for(vm):
    vm.lab.fault(task="createSnapshot*", delay_ms=600)
    result = vm.run(snapshot_name="one", wait=False)
    assert (result["task"]["state"], result["result"]["completion_time"]) == ("running", None)
    assert (result["snapshot"]["name"], result["snapshot"]["id"], result["snapshot"]["depth"]) == ("one", None, 1)
    assert vm.names() == []
    # The next one follows it.
    again = vm.run(snapshot_name="one")
    assert not again["changed"]
    assert again["snapshot"]["id"]


@pytest.mark.parametrize("state", ["absent", "remove_all", "revert"])
def test_other_tasks_that_are_not_waited_for(vm, state):
    tree(vm)
    vm.lab.fault(task="re*", delay_ms=300)
    choice = {"older_than": "0"} if state == "absent" else {"snapshot_name": "a"}
    left = vm.run(state=state, wait=False, **choice)
    assert left["task"]["state"] == "running"
    # A task of no effect only lets it end.
    then = vm.run(state="absent", snapshot_name="nothing")
    assert then["snapshots"] == left["snapshots"]
    assert not then["changed"]
