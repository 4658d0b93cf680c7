# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_snapshot and vm_snapshot_info through their main() against the lab, on good days and bad ones."""

from __future__ import annotations

import os
import signal
import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import sdk, stamps, tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.tests.integration.running import once, wait_for
from ansible_collections.holdfast.backup.tests.integration.snapshot_machine import (
    KEYS,
    Machine,
    machines,
    planned,
    tree,
)

POLICIES = ("fail", "warn", "crash_consistent")


@pytest.fixture
def machine(lab, run_module):
    yield from machines(lab, run_module)


@pytest.fixture
def vm(machine):
    return machine()


# present


def test_a_snapshot_with_its_disks_and_change_ids(vm):
    result = vm.run(snapshot_name="before", description="Before the update.")
    snapshot = result["snapshot"]
    (disk,) = snapshot["disks"]
    (there,) = vm.lab.snapshots(vm.moid)
    assert set(result) - {"invocation"} == KEYS
    assert (result["changed"], result["removed"], result["renamed"]) == (True, [], False)
    assert result["vm"] == {"name": vm.name, "moid": vm.moid, "instance_uuid": vm.record["instance_uuid"]}
    assert {key: snapshot[key] for key in ("moid", "id", "name", "description", "quiesced", "state")} == {
        key: there[key] for key in ("moid", "id", "name", "description", "quiesced", "state")
    }
    assert (snapshot["stamp"], snapshot["consistency"]) == (None, "crash")
    assert (snapshot["parent_id"], snapshot["child_ids"], snapshot["depth"], snapshot["current"]) == (None, [], 1, True)
    assert disk["backing_uuid"] == vm.record["disks"][0]["backing_uuid"]
    assert disk["change_id"]
    assert disk["protected"]


def test_change_ids_are_those_of_the_snapshot_and_not_of_the_running_machine(vm):
    first = vm.take("one")["disks"][0]["change_id"]
    vm.take("two")
    assert vm.run(snapshot_name="one")["snapshot"]["disks"][0]["change_id"] == first


@pytest.mark.parametrize(
    ("most", "options"),
    [
        (9, {"snapshot_name": "new"}),
        (9, {"snapshot_name": "new", "min_free_space": "1MB"}),
        (7, {"snapshot_name": "one", "state": "absent"}),
        (7, {"older_than": "0", "name_pattern": "o*", "remove_children": True, "state": "absent"}),
        (7, {"state": "remove_all"}),
        (6, {"snapshot_name": "one", "new_snapshot_name": "new"}),
        (8, {"snapshot_name": "one", "state": "revert"}),
        (5, {"snapshot_name": "new", "wait": False}),
        (4, {"state": "consolidated"}),
    ],
)
def test_requests_of_a_run_that_acts(vm, most, options):
    """One wait for a task: how often the lab tells its progress is chance."""
    vm.take("one")
    vm.lab.requests(reset=True)
    vm.run(**options)
    methods = vm.lab.requests()["methods"]
    waits = methods.get("WaitForUpdatesEx", 0)
    assert sum(methods.values()) - max(0, waits - 1) <= most, methods


@pytest.mark.parametrize("by", ["moid", "name", "uuid"])
@pytest.mark.parametrize("action", [{"snapshot_name": "one"}, {"snapshot_name": "gone", "state": "absent"}])
def test_requests_of_a_run_with_nothing_to_do(vm, by, action):
    vm.take("one")
    vm.lab.requests(reset=True)
    selection = {
        "moid": {},
        "name": {"moid": None, "name": vm.name},
        "uuid": {"moid": None, "uuid": vm.record["instance_uuid"], "use_instance_uuid": True},
    }[by]
    assert not vm.run(**selection, **action)["changed"]
    there = 5 if "state" not in action else 4
    assert vm.requests() <= there + {"moid": 0, "name": 2, "uuid": 1}[by]


def test_one_of_that_name_is_enough(vm):
    made = vm.take("one", description="first")
    again = vm.run(snapshot_name="one")
    assert not again["changed"]
    assert again["snapshot"] == made
    assert vm.names() == ["one"]


def test_check_mode_plans_and_changes_nothing(vm):
    plan = vm.run(snapshot_name="one", description="d", stamp={"job": "j", "run": "r"}, check=True, diff=True)
    assert vm.names() == []
    assert plan["changed"]
    same = {"power_state": "poweredOn", "consolidation_needed": False}
    assert plan["diff"] == {
        "before": {"snapshots": [], "current_snapshot": None, **same},
        "after": {"snapshots": [{"name": "one", "description": "d"}], "current_snapshot": "one", **same},
    }
    done = vm.run(snapshot_name="one", description="d", stamp={"job": "j", "run": "r"}, diff=True)
    assert plan["diff"] == done["diff"]
    assert set(plan) == set(done)
    assert set(plan["snapshot"]) == set(done["snapshot"])
    known = ("name", "description", "stamp", "current")
    assert {key: plan["snapshot"][key] for key in known} == {key: done["snapshot"][key] for key in known}


def test_check_mode_of_a_removal(vm):
    vm.take("one")
    plan = vm.run(snapshot_name="one", state="absent", check=True)
    assert vm.names() == ["one"]
    done = vm.run(snapshot_name="one", state="absent")
    assert planned(plan) == planned(done)
    assert not vm.run(snapshot_name="one", state="absent", check=True)["changed"]


@pytest.mark.parametrize("escapes", [False, True])
@pytest.mark.parametrize("name", ["VM Snapshot 05/11/2024, 10:00:00", "100% \\ ünï 漢字", "50%20off"])
def test_odd_names(vm, name, escapes):
    """Whether the server stores them escaped or as they are."""
    vm.lab.tracking(escape_names=escapes)
    assert vm.take(name)["name"] == name
    assert not vm.run(snapshot_name=name)["changed"]
    assert vm.run(snapshot_name=name, state="revert")["snapshot"]["name"] == name
    assert vm.run(snapshot_name=name, new_snapshot_name=f"{name}/2")["snapshot"]["name"] == f"{name}/2"
    assert not vm.run(snapshot_name=name, new_snapshot_name=f"{name}/2")["changed"]
    assert vm.run(snapshot_name=f"{name}/2", state="absent")["changed"]
    assert vm.names() == []


def test_a_name_that_the_client_had_escaped_before_vcenter_did(vm):
    vm.lab.take_snapshot(vm.moid, "VM Snapshot 05%252f11%252f2024")
    assert not vm.run(snapshot_name="VM Snapshot 05/11/2024")["changed"]
    assert vm.run(snapshot_name="VM Snapshot 05/11/2024", state="absent")["changed"]


def test_rename_and_describe(vm):
    made = vm.take("one", description="first", stamp={"job": "j", "run": "r"})
    renamed = vm.run(snapshot_id=made["id"], new_snapshot_name="two")
    assert renamed["renamed"]
    assert renamed["snapshot"] == {**made, "name": "two"}
    assert not vm.run(snapshot_name="one", new_snapshot_name="two")["changed"]
    described = vm.run(snapshot_name="two", description="")
    assert described["snapshot"] == {**made, "name": "two", "description": ""}
    assert vm.lab.snapshots(vm.moid)[0]["description"] == stamps.join("", stamps.Stamp("j", "r"))
    assert vm.run(snapshot_name="two")["snapshot"]["moid"] == made["moid"]


@pytest.mark.parametrize("option", ["description", "new_description"])
def test_a_description_is_cleared(vm, option):
    vm.take("one", description="first")
    assert vm.run(snapshot_name="one", **{option: ""})["renamed"]
    assert vm.lab.snapshots(vm.moid)[0]["description"] == ""
    assert not vm.run(snapshot_name="one", **{option: ""})["changed"]


def test_a_new_description_is_only_for_one_that_exists(vm):
    assert vm.run(snapshot_name="one", new_description="x", fail=True)["error_type"] == "NotFound"
    vm.take("one", description="first")
    assert vm.run(snapshot_name="one", description="x", new_description="y")["snapshot"]["description"] == "y"


def test_an_empty_new_description_beside_a_description_says_nothing(vm):
    """As from a variable without a value; community.vmware does not look at it then."""
    options = {"snapshot_name": "one", "description": "x", "new_snapshot_name": "", "new_description": ""}
    assert vm.run(**options)["snapshot"]["description"] == "x"
    assert not vm.run(**options)["changed"]


def test_rename_in_check_mode(vm):
    made = vm.take("one", description="first")
    plan = vm.run(snapshot_moid=made["moid"], new_snapshot_name="two", check=True, diff=True)
    assert plan["snapshot"]["name"] == "two"
    assert plan["diff"]["after"]["snapshots"] == [{"name": "two", "description": "first"}]
    assert vm.names() == ["one"]


@pytest.mark.parametrize(
    "which", [{"snapshot_id": 99}, {"snapshot_moid": "snapshot-0"}, {"snapshot_name": "x", "new_snapshot_name": "y"}]
)
def test_nothing_to_rename_is_an_error(vm, which):
    vm.take("one")
    assert "one (ID " in vm.run(**which, fail=True)["msg"]


# quiescing


def test_a_quiesced_snapshot(vm):
    snapshot = vm.take("one", quiesce=True)
    assert (snapshot["quiesced"], snapshot["consistency"]) == (True, "filesystem")


def test_application_consistency_is_only_told_when_it_was_asked_for(vm):
    snapshot = vm.take("one", quiesce=True, quiesce_timeout=10, vss={"backup_type": "copy"})
    assert snapshot["consistency"] == "application"
    assert vm.lab.requests()["methods"]["CreateSnapshotEx_Task"] == 1
    assert vm.run(snapshot_name="one")["snapshot"]["consistency"] == "filesystem"


def _guest_faults(lab):
    lab.fault(task="createSnapshot*", fault="ApplicationQuiesceFault")


def _general_fault(lab):
    lab.fault(
        task="createSnapshot*",
        fault="GenericVmConfigFault",
        fields={"reason": "x"},
        message="An error occurred while quiescing the virtual machine.",
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("trouble", [_guest_faults, _general_fault])
def test_a_guest_that_cannot_be_quiesced(vm, policy, trouble):
    trouble(vm.lab)
    result = vm.run(snapshot_name="one", quiesce=True, quiesce_policy=policy, fail=policy == "fail")
    if policy == "fail":
        assert "cannot be quiesced" in result["msg"]
        assert "quiesce_policy" in result["next_step"]
        assert vm.names() == []
        return
    assert (result["snapshot"]["quiesced"], result["snapshot"]["consistency"]) == (False, "crash")
    assert len(result.get("warnings", ())) == (policy == "warn")
    assert vm.names() == ["one"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_guest_without_tools(machine, policy):
    vm = machine(tools="notRunning")
    result = vm.run(snapshot_name="one", quiesce=True, quiesce_policy=policy, fail=policy == "fail")
    assert "CreateSnapshot_Task" not in vm.lab.requests()["methods"] or policy != "fail"
    assert vm.names() == ([] if policy == "fail" else ["one"])
    text = result["msg"] if policy == "fail" else str(result.get("warnings", ""))
    assert ("VMware Tools are not running" in text) == (policy != "crash_consistent")
    plan = vm.run(snapshot_name="two", quiesce=True, quiesce_policy=policy, check=True, fail=policy == "fail")
    assert ("VMware Tools are not running" in str(plan)) == (policy != "crash_consistent")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_server_that_skips_quiescing_in_silence(machine, policy, monkeypatch):
    # Tools stop between our look and the task, and this server makes the snapshot all the same.
    vm = machine(tools="notRunning")
    vm.lab.tracking(quiesce_without_tools="ignored")
    _pretend_tools_run(monkeypatch)
    result = vm.run(snapshot_name="one", quiesce=True, quiesce_policy=policy, fail=policy == "fail")
    if policy == "fail":
        assert "without quiescing" in result["msg"]
        assert vm.names() == []
    else:
        assert result["snapshot"]["consistency"] == "crash"
        assert len(result.get("warnings", ())) == (policy == "warn")


def _pretend_tools_run(monkeypatch):
    real = Connection.collect

    def collect(self, object_specs, properties):
        read = real(self, object_specs, properties)
        for values in read.values():
            if "guest.toolsRunningStatus" in values:
                values["guest.toolsRunningStatus"] = "guestToolsRunning"
        return read

    monkeypatch.setattr(Connection, "collect", collect)


def test_another_fault_is_never_taken_for_a_quiesce_fault(vm):
    vm.lab.fault(task="createSnapshot*", fault="InsufficientStorageSpace")
    result = vm.run(snapshot_name="one", quiesce=True, quiesce_policy="warn", fail=True)
    assert result["fault"] == "InsufficientStorageSpace"
    assert vm.names() == []


def test_a_machine_that_is_off_needs_no_quiescing(machine):
    vm = machine(power="poweredOff", tools="notRunning")
    snapshot = vm.take("one", quiesce=True)
    assert (snapshot["quiesced"], snapshot["consistency"]) == (False, "crash")


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_takes_the_place_of_quiescing(vm, policy):
    """Both peers ask for the two of them in an example."""
    result = vm.run(snapshot_name="one", quiesce=True, memory_dump=True, quiesce_policy=policy)
    assert (result["snapshot"]["state"], result["snapshot"]["quiesced"]) == ("poweredOn", False)
    assert ("holds the memory" in str(result.get("warnings"))) == (policy != "crash_consistent")


# guards


def test_the_limit_of_the_chain(vm):
    for number in range(3):
        vm.take(f"s{number}")
    result = vm.run(snapshot_name="s3", max_depth=3, fail=True)
    assert "3 snapshots in a row; the limit is 3" in result["msg"]
    assert result["error_type"] == "NotSupported"
    assert not vm.run(snapshot_name="s0", max_depth=3)["changed"]
    assert vm.names() == ["s0", "s1", "s2"]


def test_shared_disks_forbid_snapshots(machine):
    vm = machine(disks=[{"size": 1 << 20, "sharing": "sharingMultiWriter"}], tracking=False)
    result = vm.run(snapshot_name="one", fail=True)
    assert "sharingMultiWriter" in result["msg"]
    assert "createSnapshot" not in str(vm.lab.requests()["methods"])


def test_disks_that_are_left_out_are_reported(machine):
    vm = machine(disks=[1 << 20, {"size": 1 << 20, "mode": "independent_persistent"}])
    kept, left_out = vm.take("one")["disks"]
    assert (kept["protected"], left_out["protected"]) == (True, False)
    assert "independent" in left_out["reason"]


def test_memory_with_an_independent_disk(machine):
    """Of a running machine vSphere refuses it; without memory there is no obstacle."""
    vm = machine(disks=[1 << 20, {"size": 1 << 20, "mode": "independent_persistent"}])
    result = vm.run(snapshot_name="one", memory_dump=True, fail=True)
    assert "MemorySnapshotOnIndependentDisk" in result["msg"]
    assert "memory_dump" in result["msg"]
    assert vm.names() == []
    assert vm.run(snapshot_name="one")["changed"]


def test_a_template_has_no_snapshots(machine):
    vm = machine(disks=[1 << 20], template=True, power="poweredOff", tracking=False)
    result = vm.run(snapshot_name="one", fail=True)
    assert "is a template" in result["msg"]
    assert "Convert it" in result["msg"]
    assert "createSnapshot" not in str(vm.lab.requests()["methods"])


def test_free_space(vm):
    result = vm.run(snapshot_name="one", min_free_space="900PB", fail=True)
    assert "Too little free space" in result["msg"]
    assert vm.names() == []
    assert vm.run(snapshot_name="one", min_free_space="1MB")["changed"]
    assert "is no size" in vm.run(snapshot_name="two", min_free_space="much", fail=True)["msg"]


@pytest.mark.parametrize("memory", [False, True])
def test_free_space_for_the_memory(machine, memory):
    """Its image goes to the working directory, beside what each datastore must keep free."""
    vm = machine(memory_mb=64, datastore="LocalDS_0", disks=[1 << 20, {"size": 1 << 20, "datastore": "LocalDS_1"}])
    capacity = 1 << 40
    for number, free in enumerate([(1 << 30) + (64 << 20) - 1, 1 << 30]):
        vm.lab.datastore(f"LocalDS_{number}", free=free, capacity=capacity)
    try:
        result = vm.run(snapshot_name="one", memory_dump=memory, min_free_space="1GB", fail=memory)
        assert not memory or f"LocalDS_0 has {(1 << 30) + (64 << 20) - 1} of" in result["msg"]
        vm.lab.datastore("LocalDS_1", free=(1 << 30) - 1, capacity=capacity)
        result = vm.run(snapshot_name="two", min_free_space="1GB", fail=True, check=True)
        assert "LocalDS_1 has" in result["msg"]
    finally:
        for number in (0, 1):
            vm.lab.datastore(f"LocalDS_{number}", free=capacity, capacity=capacity)


def test_free_space_of_a_working_directory_elsewhere(vm):
    with vm.session() as c:
        files = sdk.vim.vm.FileInfo(snapshotDirectory="[LocalDS_1] elsewhere/")
        spec = sdk.vim.vm.ConfigSpec(files=files)
        tasks.wait(c, vm.managed(c).ReconfigVM_Task(spec), timeout=10)
    vm.lab.datastore("LocalDS_1", free=1, capacity=1 << 40)
    try:
        result = vm.run(snapshot_name="one", min_free_space="1KB", fail=True)
        assert "LocalDS_1 has 1 of" in result["msg"]
    finally:
        vm.lab.datastore("LocalDS_1", free=1 << 40, capacity=1 << 40)


@pytest.mark.parametrize("policy", ["fail", "warn", "ignore"])
@pytest.mark.parametrize("check", [False, True])
def test_disks_that_a_snapshot_leaves_out(machine, policy, check):
    vm = machine(disks=[1 << 20, {"size": 1 << 20, "mode": "independent_persistent"}])
    result = vm.run(snapshot_name="one", unprotected_disks=policy, fail=policy == "fail", check=check)
    told = result["msg"] if policy == "fail" else str(result.get("warnings", ""))
    assert ("Hard disk 2 (independent disk" in told) == (policy != "ignore")
    assert vm.names() == ([] if check or policy == "fail" else ["one"])


def test_fault_tolerance_forbids_snapshots(machine):
    vm = machine(fault_tolerance=True)
    assert "fault tolerance" in vm.run(snapshot_name="one", fail=True)["msg"]
    assert "createSnapshot" not in str(vm.lab.requests()["methods"])


# absent


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        (lambda a, b, c: {"snapshot_name": "b"}, ["a", "c"]),
        (lambda a, b, c: {"snapshot_id": b["id"]}, ["a", "c"]),
        (lambda a, b, c: {"snapshot_moid": b["moid"]}, ["a", "c"]),
        (lambda a, b, c: {"snapshot_name": "b", "remove_children": True}, ["a"]),
        (lambda a, b, c: {"remove_all": True}, []),
        (lambda a, b, c: {"stamp": {"job": "nightly"}}, ["a"]),
        (lambda a, b, c: {"stamp": {"job": "nightly", "run": "r1"}}, ["a", "c"]),
        (lambda a, b, c: {"stamp": {"job": "nightly", "expired_only": True}}, ["a", "b"]),
        (lambda a, b, c: {"stamp": {"job": "nightly"}, "snapshot_name": "a"}, ["a", "b", "c"]),
        (lambda a, b, c: {"stamp": {"job": "night"}}, ["a", "b", "c"]),
        (lambda a, b, c: {"snapshot_name": "d"}, ["a", "b", "c"]),
    ],
)
def test_removal(vm, choice, left):
    made = tree(vm)
    result = vm.run(state="absent", **choice(*made))
    gone = sorted(set("abc") - set(left))
    assert vm.names() == left
    assert sorted(one["name"] for one in result["removed"]) == gone
    assert result["changed"] == bool(gone)
    assert result["snapshot"] is None
    assert set(result) - {"invocation"} == KEYS
    assert bool(result["msg"]) == (not gone)
    again = vm.run(state="absent", **choice(*made))
    assert not again["changed"]


def test_every_branch_is_searched(vm):
    _a, b, _c = tree(vm)
    with vm.session() as c:
        tasks.wait(c, sdk.vim.vm.Snapshot(b["moid"], c.stub).RevertToSnapshot_Task(), timeout=10)
    vm.take("branch")
    vm.take("leaf")
    assert not vm.run(snapshot_name="leaf")["changed"]
    assert not vm.run(snapshot_name="c")["changed"]
    vm.run(snapshot_name="branch", state="absent", remove_children=True)
    assert vm.names() == ["a", "b", "c"]


def test_a_name_is_needed(vm):
    assert "needs a name" in vm.run(stamp={"job": "j"}, snapshot_id=1, fail=True)["msg"]


def test_a_choice_is_needed(vm):
    assert "No snapshot was chosen" in vm.run(state="absent", fail=True)["msg"]
    assert "remove_all" in vm.run(state="absent", remove_all=True, snapshot_name="x", fail=True)["msg"]


def test_an_empty_name_is_no_choice(vm):
    """It must neither be overheard nor, left out, widen what is removed."""
    vm.take("one")
    for options in ({"state": "absent", "older_than": "0"}, {"state": "revert"}, {"state": "present"}):
        assert "name of the snapshot is empty" in vm.run(snapshot_name="", **options, fail=True)["msg"]
    assert vm.names() == ["one"]
    vm.run(snapshot_name="", state="absent", remove_all=True)
    assert vm.names() == []


def test_two_snapshots_of_one_name(vm):
    first = vm.take("twin", stamp={"job": "a"})
    second = vm.take("twin", stamp={"job": "b"})
    for which in ({"state": "absent"}, {"description": "x"}, {"new_snapshot_name": "other"}):
        result = vm.run(snapshot_name="twin", **which, fail=True)
        assert [one["id"] for one in result["candidates"]] == [first["id"], second["id"]]
    there = vm.run(snapshot_name="twin", description="")
    assert (there["changed"], there["snapshot"]["id"]) == (False, second["id"])
    assert vm.run(snapshot_name="twin", duplicates="oldest")["snapshot"]["id"] == first["id"]
    assert vm.run(snapshot_name="twin", duplicates="newest")["snapshot"]["id"] == second["id"]
    assert "state=absent" in vm.run(snapshot_name="twin", duplicates="all", fail=True)["msg"]
    assert len(vm.run(snapshot_name="twin", duplicates="all", state="absent")["removed"]) == 2


def test_consolidation_that_is_needed_is_done(vm):
    vm.take("one")
    vm.lab.tracking(fail_consolidation=1)
    result = vm.run(snapshot_name="one", state="absent")
    assert not result["consolidation_needed"]
    assert vm.lab.requests()["methods"]["ConsolidateVMDisks_Task"] == 1


def test_consolidation_that_fails_is_a_warning(vm):
    vm.take("one")
    vm.lab.tracking(fail_consolidation=1)
    vm.lab.fault(task="consolidate*", fault="FileLocked", fields={"file": "[ds] x"})
    result = vm.run(snapshot_name="one", state="absent")
    assert result["consolidation_needed"]
    assert "FileLocked" in str(result["warnings"][0])
    assert "need consolidation" in str(result["warnings"][1])
    later = vm.run(snapshot_name="one", state="absent")
    assert "need consolidation" in str(later["warnings"])


def test_disks_that_need_no_consolidation(vm):
    result = vm.run(state="consolidated")
    assert (result["changed"], result["task"], result["consolidation_needed"]) == (False, None, False)


def needs_consolidation(vm):
    vm.lab.tracking(fail_consolidation=1)
    vm.lab.call("remove_snapshot", vm=vm.moid, snapshot=vm.take("one")["moid"])


def test_disks_that_need_it_are_consolidated(vm):
    needs_consolidation(vm)
    plan = vm.run(state="consolidated", check=True)
    assert vm.run("vm_snapshot_info")["consolidation_needed"]
    done = vm.run(state="consolidated")
    assert planned(plan) == planned(done)
    assert done["diff"]["before"] == {**done["diff"]["after"], "consolidation_needed": True}
    assert (done["changed"], done["task"]["state"]) == (True, "success")
    assert not vm.run(state="consolidated")["changed"]


@pytest.mark.parametrize(("failures", "retries"), [(2, 2), (2, 1), (1, 0)])
def test_consolidation_is_tried_again(vm, failures, retries):
    needs_consolidation(vm)
    vm.lab.fault(task="consolidate*", fault="FileLocked", fields={"file": "[ds] x"}, count=failures)
    failed = failures > retries
    result = vm.run(state="consolidated", retries=retries, retry_delay=0, fail=failed)
    assert vm.lab.requests()["methods"]["ConsolidateVMDisks_Task"] == retries + 1
    assert result["fault"] == "FileLocked" if failed else result["changed"]


def test_a_removal_waits_for_a_task_in_progress(vm):
    vm.take("one")
    vm.lab.fault(task="createSnapshot*", delay_ms=1500)
    with vm.session() as c:
        other = vm.managed(c).CreateSnapshot_Task("theirs", "", False, False)._GetMoId()
        busy = {"task": {"type": "Task", "value": other}}
        vm.lab.fault(method="RemoveSnapshot_Task", fault="TaskInProgress", fields=busy)
        begun = time.monotonic()
        assert vm.run(snapshot_name="one", state="absent")["changed"]
        assert time.monotonic() - begun > 1
    assert vm.names() == ["theirs"]


def test_a_snapshot_that_goes_in_the_meantime(vm):
    made = vm.take("one")
    vm.lab.fault(
        method="RemoveSnapshot_Task",
        fault="ManagedObjectNotFound",
        fields={"obj": {"type": "VirtualMachineSnapshot", "value": made["moid"]}},
    )
    assert vm.run(snapshot_name="one", state="absent")["changed"]


# revert


@pytest.mark.parametrize(
    "choice",
    [
        lambda a, b, c: {"snapshot_name": "b"},
        lambda a, b, c: {"snapshot_id": b["id"]},
        lambda a, b, c: {"snapshot_moid": b["moid"]},
        lambda a, b, c: {"stamp": {"job": "nightly", "run": "r1"}},
    ],
)
def test_going_back(vm, choice):
    made = tree(vm)
    plan = vm.run(state="revert", check=True, diff=True, **choice(*made))
    assert vm.current() == "c"
    done = vm.run(state="revert", diff=True, **choice(*made))
    assert vm.current() == "b"
    assert planned(plan) == planned(done)
    assert set(done) - {"invocation"} == KEYS
    assert (done["changed"], done["reverted"], done["power_state"]) == (True, True, "poweredOff")
    assert done["snapshot"] == {**made[1], "child_ids": [made[2]["id"]]}
    assert done["task"]["state"] == done["result"]["state"] == "success"
    assert done["diff"]["after"] == {**done["diff"]["before"], "current_snapshot": "b", "power_state": "poweredOff"}


def test_going_back_to_the_snapshot_that_it_runs_on(vm):
    tree(vm)
    assert vm.run(state="revert", current=True)["snapshot"]["name"] == "c"
    assert vm.current() == "c"


@pytest.mark.parametrize(
    "choice",
    [
        {"snapshot_name": "d"},
        {"snapshot_id": 9999},
        {"snapshot_moid": "snapshot-0"},
        {"stamp": {"job": "nightly", "run": "r3"}},
        {"stamp": {"job": "nightly"}, "snapshot_name": "a"},
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_nothing_to_go_back_to_is_an_error(vm, choice, check):
    tree(vm)
    result = vm.run(state="revert", fail=True, check=check, **choice)
    assert result["error_type"] == "NotFound"
    assert "a (ID " in result["msg"]


def test_no_snapshot_to_go_back_to(vm):
    assert "It has none" in vm.run(state="revert", current=True, fail=True)["msg"]
    assert "No snapshot was chosen" in vm.run(state="revert", fail=True)["msg"]


def test_two_snapshots_to_go_back_to(vm):
    _a, b, c = tree(vm)
    result = vm.run(state="revert", stamp={"job": "nightly"}, fail=True)
    assert [one["id"] for one in result["candidates"]] == [b["id"], c["id"]]
    assert vm.run(state="revert", stamp={"job": "nightly"}, duplicates="oldest")["snapshot"]["id"] == b["id"]
    assert vm.run(state="revert", stamp={"job": "nightly"}, duplicates="newest")["snapshot"]["id"] == c["id"]


@pytest.mark.parametrize(
    ("memory", "options", "power"),
    [
        (False, {}, "poweredOff"),
        (True, {}, "poweredOn"),
        (False, {"power": "keep"}, "poweredOn"),
        (False, {"power": "on"}, "poweredOn"),
        (True, {"power": "off"}, "poweredOff"),
        (True, {"suppress_power_on": True}, "suspended"),
        (False, {"suppress_power_on": True, "power": "keep"}, "poweredOff"),
    ],
)
def test_the_power_state_after_it(vm, memory, options, power):
    vm.take("one", memory_dump=memory)
    plan = vm.run(snapshot_name="one", state="revert", check=True, **options)
    done = vm.run(snapshot_name="one", state="revert", **options)
    assert plan["power_state"] == done["power_state"] == vm.lab.vm(vm.moid)["power"] == power


@pytest.mark.parametrize("by", ["name", "moid"])
def test_the_host_on_which_it_goes_on(vm, by):
    vm.take("one", memory_dump=True)
    with vm.session() as c:
        here = vm.managed(c).runtime.host
        view = c.content.viewManager.CreateContainerView(c.content.rootFolder, [sdk.vim.HostSystem], True)
        there = next(host for host in view.view if host != here)
        names = {"name": there.name, "moid": there._GetMoId()}
        assert vm.run(snapshot_name="one", state="revert", host=names[by])["power_state"] == "poweredOn"
        assert vm.managed(c).runtime.host == there


def test_a_host_that_is_not_there(vm):
    vm.take("one")
    assert "There is no host nowhere" in vm.run(snapshot_name="one", state="revert", host="nowhere", fail=True)["msg"]


def test_a_machine_that_does_not_start_after_it(vm):
    vm.take("one")
    vm.lab.fault(task="powerOn", fault="InsufficientMemoryResourcesFault", fields={"unreserved": 0, "requested": 1})
    result = vm.run(snapshot_name="one", state="revert", power="on", fail=True)
    assert result["reverted"]
    assert "was reverted to one" in result["msg"]
    assert "is poweredOff" in result["msg"]


def test_a_revert_whose_reply_is_lost_is_not_done_twice(vm, monkeypatch):
    vm.take("one")
    LosesReply(monkeypatch, "RevertToSnapshot_Task")
    assert vm.run(snapshot_name="one", state="revert")["reverted"]
    assert vm.lab.requests()["methods"]["RevertToSnapshot_Task"] == 1


def test_a_power_state_that_contradicts_itself(vm):
    result = vm.run(snapshot_name="one", state="revert", power="on", suppress_power_on=True, fail=True)
    assert "contradict" in result["msg"]


# stamps


def test_a_stamp_is_the_identity_and_not_the_name(vm):
    theirs = vm.take("backup")
    ours = vm.take("backup", stamp={"job": "nightly", "run": "r1", "expires_in": "36h"})
    assert ours["id"] != theirs["id"]
    again = vm.run(snapshot_name="another name", stamp={"job": "nightly", "run": "r1"})
    assert not again["changed"]
    assert again["snapshot"] == ours
    assert vm.take("backup", stamp={"job": "nightly"})["stamp"]["run"] != "r1"
    vm.run(state="absent", stamp={"job": "nightly"})
    assert [one["moid"] for one in vm.lab.snapshots(vm.moid)] == [theirs["moid"]]


def test_an_expiry_is_told_in_utc(vm):
    stamp = vm.take("one", description="mine", stamp={"job": "j", "expires_in": "1h"})["stamp"]
    (there,) = vm.lab.snapshots(vm.moid)
    text, read = stamps.split(there["description"])
    assert (text, read.as_dict()) == ("mine", stamp)
    assert 3500 < (read.expires.timestamp() - time.time()) <= 3600


def test_what_is_no_duration(vm):
    assert (
        "is not a length of time"
        in vm.run(snapshot_name="one", stamp={"job": "j", "expires_in": "soon"}, fail=True)["msg"]
    )


# bad days


def test_a_wrong_password(vm):
    result = vm.run(snapshot_name="one", password="wr0ng", fail=True)
    assert result["error_type"] == "AuthenticationFailed"
    assert "wr0ng" not in str({key: value for key, value in result.items() if key != "invocation"})


def test_an_untrusted_certificate(vm):
    assert vm.run(snapshot_name="one", ca_path=None, fail=True)["error_type"] == "CertificateRejected"


def test_an_unknown_machine(vm):
    result = vm.run(snapshot_name="one", moid=None, name="nowhere", fail=True)
    assert "no virtual machine named nowhere" in result["msg"]


def test_a_missing_option_and_the_environment(vm, monkeypatch):
    args = dict.fromkeys(vm.lab.module_args())
    assert "VMWARE_HOST" in vm.run(**args, snapshot_name="one", fail=True)["msg"]
    for variable, value in vm.lab.env().items():
        monkeypatch.setenv(variable, value)
    assert vm.run(**args, snapshot_name="one")["changed"]


class LosesReply:
    """Does what it is asked, and then the connection is gone before the answer is read."""

    def __init__(self, monkeypatch, method, times=1):
        self.left = times
        real = sdk.SoapStubAdapter.InvokeMethod

        def invoke(stub, mo, info, args, **kwargs):
            answer = real(stub, mo, info, args, **kwargs)
            if info.wsdlName == method and self.left:
                self.left -= 1
                raise ConnectionResetError(104, "Connection reset by peer")
            return answer

        monkeypatch.setattr(sdk.SoapStubAdapter, "InvokeMethod", invoke)


def test_a_snapshot_whose_reply_is_lost_is_not_made_twice(vm, monkeypatch):
    LosesReply(monkeypatch, "CreateSnapshot_Task")
    assert vm.take("one")["name"] == "one"
    assert vm.names() == ["one"]
    assert vm.lab.requests()["methods"]["CreateSnapshot_Task"] == 1


def test_a_snapshot_that_was_never_begun_is_an_error(vm):
    vm.lab.fault(method="CreateSnapshot_Task", drop=True)
    result = vm.run(snapshot_name="one", fail=True)
    assert result["error_type"] == "ConnectionFailed"
    assert vm.names() == []


def test_a_removal_whose_reply_is_lost(vm, monkeypatch):
    vm.take("one")
    LosesReply(monkeypatch, "RemoveSnapshot_Task")
    assert vm.run(snapshot_name="one", state="absent")["changed"]
    assert vm.names() == []


def test_a_connection_that_drops_before_a_removal(vm):
    vm.take("one")
    vm.lab.fault(method="RemoveSnapshot_Task", drop=True)
    assert vm.run(snapshot_name="one", state="absent")["changed"]
    assert vm.names() == []


def test_a_session_that_expires_in_mid_task(vm, monkeypatch):
    monkeypatch.setattr(tasks, "SLICE", 1)
    vm.lab.fault(task="createSnapshot*", delay_ms=3000)
    with once(vm.is_waiting, vm.lab.expire_sessions):
        assert vm.take("one")["name"] == "one"
    assert vm.lab.requests()["logins"] == 2


def test_a_task_that_is_left_when_the_time_is_over(vm):
    vm.lab.fault(task="createSnapshot*", delay_ms=4000)
    result = vm.run(snapshot_name="one", stamp={"job": "j"}, timeout=1, fail=True)
    assert (result["error_type"], result["task_state"]) == ("TimedOut", "running")
    wait_for(lambda: vm.names() == ["one"])
    assert len(vm.run(state="absent", stamp={"job": "j"})["removed"]) == 1


def test_a_task_that_is_cancelled_when_the_time_is_over(vm):
    vm.lab.fault(task="createSnapshot*", fault="RequestCanceled", delay_ms=2000)
    result = vm.run(snapshot_name="one", timeout=1, on_timeout="cancel", fail=True)
    assert result["error_type"] == "TimedOut"
    assert "was cancelled" in result["msg"]
    assert vm.names() == []


def test_a_machine_that_is_deleted_in_mid_run(lab, run_module):
    vm = Machine(lab, run_module)
    lab.requests(reset=True)
    lab.fault(task="createSnapshot*", delay_ms=3000)
    with once(vm.is_waiting, lambda: lab.destroy_vm(vm.moid)):
        result = vm.run(snapshot_name="one", fail=True)
    assert result["fault"] == "ManagedObjectNotFound"


@pytest.fixture
def terminable():
    """Whatever a module makes of SIGTERM, the test process has its own way again afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("terminable")
def test_a_run_that_is_terminated_logs_out(vm):
    vm.lab.fault(task="createSnapshot*", delay_ms=30000)
    begun = time.monotonic()
    with once(vm.is_waiting, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        result = vm.run(snapshot_name="one", stamp={"job": "j"}, fail=True)
    assert time.monotonic() - begun < 25
    assert "SIGTERM" in result["msg"]
    assert vm.lab.sessions() == []


# info


def test_info_of_a_machine_without_snapshots(vm):
    result = vm.run("vm_snapshot_info")
    assert (result["snapshots"], result["snapshots_tree"], result["current_snapshot"]) == ([], [], None)
    assert not result["changed"]
    assert vm.requests() <= 4


def test_info(vm):
    _a, b, c = tree(vm)
    vm.lab.requests(reset=True)
    result = vm.run("vm_snapshot_info", moid=None, name=vm.name)
    assert vm.requests() <= 8
    assert [one["name"] for one in result["snapshots"]] == ["a", "b", "c"]
    assert result["current_snapshot"] == result["snapshots"][2]
    first = result["snapshots_tree"][0]
    assert first["children"][0]["children"][0]["id"] == c["id"]
    second = result["snapshots"][1]
    assert {key: second[key] for key in b} == {**b, "current": False, "child_ids": [c["id"]]}
    assert 0 <= second["age_seconds"] < 60


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (lambda a, b, c: {"snapshot_name": "b"}, ["b"]),
        (lambda a, b, c: {"snapshot_id": c["id"]}, ["c"]),
        (lambda a, b, c: {"snapshot_moid": a["moid"]}, ["a"]),
        (lambda a, b, c: {"snapshot_name": "c"}, ["c", "c"]),
        (lambda a, b, c: {"snapshot_name": "x"}, []),
    ],
)
def test_info_of_some(vm, choice, found):
    made = tree(vm)
    vm.take("c", stamp={"job": "another"})
    result = vm.run("vm_snapshot_info", **choice(*made))
    assert [one["name"] for one in result["snapshots"]] == found
    assert result["current_snapshot"]["depth"] == 4
