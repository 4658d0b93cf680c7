# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_change_tracking through its main() against the lab."""

from __future__ import annotations

import os
import signal
import time
import uuid
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import change_tracking_tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.processes import Child
from ansible_collections.holdfast.backup.tests.lab.client import Lab

MIB = 1 << 20
OFF = "change tracking is switched off"
INDEPENDENT = {"size": MIB, "mode": "independent_persistent"}


class Machine:
    """A VM of the lab, and the module on it."""

    def __init__(self, lab: Lab, **spec: Any) -> None:
        given = {"disks": [MIB, MIB], "power": "poweredOn", "tracking": True, **spec}
        self.lab = lab
        self.record = lab.create_vm(f"tracked-{uuid.uuid4().hex[:8]}", **given)
        self.moid = self.record["moid"]

    def run(self, state: str = "enabled", module: str = "vm_change_tracking", **options: Any) -> dict[str, Any]:
        how = {word: options.pop(word, False) for word in ("check", "diff", "fail")}
        return modules.run(module, {**self.lab.module_args(), "moid": self.moid, "state": state, **options}, **how)

    @property
    def change_ids(self) -> list[str | None]:
        return [disk["change_id"] for disk in self.lab.vm(self.moid)["disks"]]

    @property
    def trackings(self) -> list[str | None]:
        """The UUID part of each disk's change ID."""
        return [(change_id or "").partition("/")[0] or None for change_id in self.change_ids]

    def expected(self, *disks: tuple[bool, str | None], **keys: Any) -> dict[str, Any]:
        """The whole result: per disk whether it is tracked, and the reason. Change IDs are those of the lab now."""
        vm = self.record
        told = [
            {
                "key": disk["key"],
                "label": disk["label"],
                "backing_uuid": disk["backing_uuid"],
                "tracked": tracked,
                "change_id": change_id or None,
                "reason": reason,
            }
            for disk, (tracked, reason), change_id in zip(self.lab.vm(self.moid)["disks"], disks, self.change_ids)
        ]
        return {
            "vm": {"name": vm["name"], "moid": self.moid, "instance_uuid": vm["instance_uuid"]},
            "changed": True,
            "enabled": True,
            "stunned": True,
            "disks": told,
            "warnings": [],
            **keys,
        }

    def void(self, *labels: str) -> str:
        disks = ", ".join(labels)
        return f"{self.record['name']}: the change IDs of {disks} are void: their next backups are full copies."


@pytest.fixture
def machine(lab):
    def make(**spec: Any) -> Machine:
        return Machine(lab, **spec)

    return make


def said(result: dict[str, Any]) -> list[str]:
    return [warning["event"]["msg"] for warning in result.get("warnings", ())]


def answer(result: dict[str, Any]) -> dict[str, Any]:
    """A whole result without its diff, with warnings as texts."""
    told = {key: value for key, value in result.items() if key not in ("invocation", "diff")}
    return {**told, "warnings": said(result)}


@pytest.mark.parametrize("power", ["poweredOn", "poweredOff", "suspended"])
def test_enabled(machine, power: str):
    vm = machine(tracking=False, disks=[MIB, INDEPENDENT])
    vm.lab.power(vm.moid, power)
    independent = "independent disk (mode independent_persistent): snapshots leave it out"
    done = vm.run(diff=True)
    assert answer(done) == vm.expected((True, None), (False, independent))
    assert None not in vm.trackings[:1]
    assert vm.lab.snapshots(vm.moid) == []
    assert done["diff"]["before"] == {
        "enabled": False,
        "disks": [
            {**done["disks"][0], "tracked": False, "change_id": None, "reason": OFF},
            {**done["disks"][1], "reason": independent},
        ],
    }
    assert done["diff"]["after"] == {"enabled": True, "disks": done["disks"]}
    again = vm.run()
    assert answer(again) == {**answer(done), "changed": False, "stunned": False}


def test_disabled(machine):
    """What it costs is said once."""
    vm = machine()
    done = vm.run("disabled")
    voids = [vm.void("Hard disk 1", "Hard disk 2")]
    assert answer(done) == vm.expected((False, OFF), (False, OFF), enabled=False, warnings=voids)
    assert vm.trackings == [None, None]
    assert vm.lab.snapshots(vm.moid) == []
    again = vm.run("disabled")
    assert answer(again) == vm.expected((False, OFF), (False, OFF), enabled=False, changed=False, stunned=False)


def test_reset(machine):
    vm = machine()
    before = vm.trackings
    done = vm.run("reset")
    voids = [vm.void("Hard disk 1", "Hard disk 2")]
    assert answer(done) == vm.expected((True, None), (True, None), warnings=voids)
    assert not {*vm.trackings} & {*before, None}
    assert vm.lab.snapshots(vm.moid) == []


def test_reset_of_what_was_not_tracked_needs_one_stun(machine):
    vm = machine(tracking=False)
    assert answer(vm.run("reset")) == vm.expected((True, None), (True, None))
    assert vm.lab.requests()["methods"]["CreateSnapshot_Task"] == 1


@pytest.mark.parametrize("selector", ["key", "label", "backing_uuid"])
def test_single_disks(machine, selector: str):
    """On, off and anew, whatever the others are."""
    vm = machine(tracking=False, disks=[MIB, MIB, MIB])
    named = {"disks": [vm.record["disks"][1][selector]]}
    assert [disk["tracked"] for disk in vm.run(**named)["disks"]] == [False, True, False]
    assert [disk["reason"] for disk in vm.run(**named)["disks"]] == [
        "the setting scsi0:0.ctkEnabled leaves it out",
        None,
        "the setting scsi0:2.ctkEnabled leaves it out",
    ]
    before = vm.trackings
    done = vm.run("reset", **named)
    assert said(done) == [vm.void("Hard disk 2")]
    assert (vm.trackings[0], vm.trackings[2]) == (None, None)
    assert vm.trackings[1] not in (None, before[1])

    assert [disk["tracked"] for disk in vm.run()["disks"]] == [True, True, True]
    before = vm.trackings
    done = vm.run("disabled", **named)
    assert (done["enabled"], said(done)) == (True, [vm.void("Hard disk 2")])
    assert vm.trackings == [before[0], None, before[2]]
    assert not vm.run("disabled", **named)["changed"]
    done = vm.run("disabled", disks=["Hard disk 1", "Hard disk 3"])
    assert (done["enabled"], vm.trackings) == (False, [None] * 3)


@pytest.mark.parametrize("state", ["enabled", "disabled", "reset"])
def test_check_mode(machine, state: str):
    """It tells the same but for change IDs that are not known yet, and does nothing."""
    vm = machine(tracking=state != "enabled")
    vm.lab.add_disk(vm.moid, MIB)
    before = vm.change_ids
    vm.lab.requests(reset=True)
    told = vm.run(state, check=True, diff=True)
    assert not [name for name in vm.lab.requests()["methods"] if name.endswith("_Task")]
    assert vm.change_ids == before
    done = vm.run(state, diff=True)
    new = done["diff"]["after"]["disks"] + done["disks"]
    for disk in new:
        disk["change_id"] = None
    assert told == done


def test_a_disk_that_was_added_and_one_that_is_left_out(machine):
    vm = machine(disks=[MIB], extra_config={"scsi0:0.ctkEnabled": "FALSE"})
    vm.lab.add_disk(vm.moid, MIB)
    told = vm.run(diff=True)
    assert [disk["reason"] for disk in told["diff"]["before"]["disks"]] == [
        "the setting scsi0:0.ctkEnabled leaves it out",
        "it waits for a moment in which the virtual machine is stunned",
    ]
    assert [disk["tracked"] for disk in told["disks"]] == [True, True]


def test_switched_off_by_others_without_a_stun(machine):
    """What still records changes is not off."""
    vm = machine()
    with Connection(Endpoint(**vm.lab.module_args())) as c:
        spec = vim.vm.ConfigSpec(changeTrackingEnabled=False)
        change_tracking_tasks.Patience().wait(c, vim.VirtualMachine(vm.moid, c.stub).ReconfigVM_Task(spec))
    done = vm.run("disabled")
    assert (done["changed"], done["stunned"], vm.trackings) == (True, True, [None, None])


# what stands in the way


@pytest.mark.parametrize("state", ["enabled", "disabled", "reset"])
def test_snapshots_of_others(machine, state: str):
    vm = machine(tracking=state != "enabled")
    vm.run("present", module="vm_snapshot", snapshot_name="somebody's")
    before = vm.change_ids
    for check in (True, False):
        failed = vm.run(state, check=check, fail=True)
        assert (failed["error_type"], failed["foreign_snapshots"]) == ("NotSupported", ["somebody's"])
        assert "somebody's" in failed["msg"]
        assert "foreign_snapshots" in failed["next_step"]
    assert vm.change_ids == before
    done = vm.run(state, foreign_snapshots="allow")
    above = f"{vm.record['name']}: tracking begins above somebody's: "
    assert bool([text for text in said(done) if text.startswith(above)]) is (state != "disabled")
    assert [disk["tracked"] for disk in done["disks"]] == [state != "disabled"] * 2
    assert [snapshot["name"] for snapshot in vm.lab.snapshots(vm.moid)] == ["somebody's"]


def test_snapshots_of_others_do_not_matter_where_nothing_has_to_change(machine):
    vm = machine()
    vm.run("present", module="vm_snapshot", snapshot_name="somebody's")
    assert not vm.run()["changed"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"version": "vmx-04"}, "hardware version 4 has no change tracking"),
        ({"template": True, "power": "poweredOff"}, "is a template"),
        ({"disks": [MIB, {"size": MIB, "sharing": "sharingMultiWriter"}]}, "shared between virtual machines"),
    ],
    ids=["hardware", "template", "shared"],
)
def test_machines_that_cannot_be_tracked(machine, spec: dict[str, Any], says: str):
    vm = machine(tracking=False, **spec)
    for state in ("enabled", "reset"):
        failed = vm.run(state, fail=True)
        assert failed["error_type"] == "NotSupported"
        assert says in failed["msg"]
        assert vm.record["name"] in failed["msg"]
    done = vm.run("disabled")
    assert (done["changed"], [disk["tracked"] for disk in done["disks"]]) == (False, [False, False])


def test_disks_that_cannot_be_tracked_are_an_error_if_named(machine):
    vm = machine(disks=[MIB, INDEPENDENT])
    for state in ("enabled", "reset"):
        failed = vm.run(state, disks=["Hard disk 2"], fail=True)
        assert "Hard disk 2 cannot be tracked: independent disk" in failed["msg"]
    assert not vm.run("disabled", disks=["Hard disk 2"])["changed"]
    assert "There is no disk Hard disk 7" in vm.run(disks=["Hard disk 7"], fail=True)["msg"]


@pytest.mark.parametrize("state", ["disabled", "reset"])
def test_an_attached_first_class_disk_with_a_flag_of_its_own(machine, state: str):
    """It goes on being tracked; that is told, and is an error only if it is named."""
    vm = machine(disks=[MIB])
    volume = vm.lab.create_fcd(f"pvc-{uuid.uuid4().hex[:8]}", MIB, tracking=True)["id"]
    vm.lab.attach_fcd(volume, vm.moid)
    before = vm.trackings
    failed = vm.run(state, disks=["Hard disk 2"], fail=True)
    assert f"is a first class disk ({volume}) that its own control flag tracks" in failed["msg"]
    told, done = vm.run(state, check=True), vm.run(state)
    flagged = "the control flag of the first class disk tracks it, whatever the virtual machine says"
    assert [(disk["tracked"], disk["reason"]) for disk in done["disks"]] == (
        [(False, OFF), (True, flagged)] if state == "disabled" else [(True, None), (True, None)]
    )
    assert (told["disks"][1]["tracked"], told["disks"][1]["reason"]) == (True, done["disks"][1]["reason"])
    assert vm.trackings[1] == before[1]
    assert vm.trackings[0] != before[0]
    assert said(done) == [vm.void("Hard disk 1")]
    assert vm.run("disabled")["changed"] is (state == "reset")


def test_an_attached_first_class_disk_without_one(machine):
    """It is a disk like others."""
    vm = machine(disks=[MIB])
    vm.lab.attach_fcd(vm.lab.create_fcd(f"pvc-{uuid.uuid4().hex[:8]}", MIB)["id"], vm.moid)
    assert [disk["tracked"] for disk in vm.run()["disks"]] == [True, True]
    assert [disk["tracked"] for disk in vm.run("disabled")["disks"]] == [False, False]


# bad days


@pytest.mark.parametrize("state", ["enabled", "disabled", "reset"])
@pytest.mark.parametrize("task", ["reconfigVm", "createSnapshot*"])
def test_what_vsphere_refuses_is_an_error(machine, state: str, task: str):
    vm = machine(tracking=state != "enabled")
    vm.lab.fault(task=task, fault="InvalidState", object=vm.moid)
    failed = vm.run(state, fail=True)
    assert (failed["error_type"], failed["fault"]) == ("VsphereFault", "InvalidState")
    assert vm.record["name"] in failed["msg"]
    assert vm.lab.snapshots(vm.moid) == []
    done = vm.run(state)
    assert [disk["tracked"] for disk in done["disks"]] == [state != "disabled"] * 2


def test_a_host_that_tracks_no_more_disks(machine):
    """What vSphere does not show is not taken for done."""
    vm = machine(tracking=False)
    vm.lab.tracking(live_change_id="none")
    assert "Hard disk 1 has no change ID after the virtual machine was stunned" in vm.run(fail=True)["msg"]


@pytest.mark.parametrize("count", [1, change_tracking_tasks.REMOVALS + 1])
def test_a_removal_that_fails(machine, count: int):
    """It is tried again; where that does not help, the next run removes the snapshot."""
    vm = machine(tracking=False)
    vm.lab.fault(task="removeSnapshot", fault="FileFault", fields={"file": "x"}, count=count, object=vm.moid)
    result = vm.run(fail=count > 1)
    assert len(vm.lab.snapshots(vm.moid)) == (count > 1)
    if count > 1:
        assert result["fault"] == "FileFault"
        assert vm.run(check=True)["changed"]
        result = vm.run()
    assert result["changed"]
    assert not vm.run()["changed"]
    assert vm.lab.snapshots(vm.moid) == []


def test_files_that_the_snapshot_leaves(machine):
    """Disks that need consolidation, which fails: that is told."""
    vm = machine(tracking=False)
    vm.lab.tracking(fail_consolidation=1)
    vm.lab.fault(task="consolidate*", fault="FileLocked", fields={"file": "[ds] x"}, object=vm.moid)
    done = vm.run()
    assert [disk["tracked"] for disk in done["disks"]] == [True, True]
    assert "FileLocked" in said(done)[0]


@pytest.mark.parametrize("moment", ["CreateSnapshot_Task", "RemoveSnapshot_Task"])
def test_killed(machine, moment: str):
    """The next run waits for what still goes on, and removes the snapshot."""
    vm = machine(tracking=False)
    vm.lab.fault(task="*Snapshot", delay_ms=300, object=vm.moid)
    if moment == "RemoveSnapshot_Task":
        vm.lab.fault(task="*Snapshot", delay_ms=300, object=vm.moid)
    child = Child(vm.run)
    while moment not in vm.lab.requests()["methods"]:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.end() == "killed"
    assert [disk["tracked"] for disk in vm.run()["disks"]] == [True, True]
    assert not vm.run()["changed"]
    assert vm.lab.snapshots(vm.moid) == []


def test_tasks_of_others_are_let_end(machine):
    """Also one that makes other things necessary."""
    vm = machine()
    vm.lab.fault(task="reconfigVm", delay_ms=400, object=vm.moid)
    with Connection(Endpoint(**vm.lab.module_args())) as c:
        spec = vim.vm.ConfigSpec(changeTrackingEnabled=False)
        task = vim.VirtualMachine(vm.moid, c.stub).ReconfigVM_Task(spec)
        done = vm.run("disabled")
        assert c.retrieve([task], {vim.Task: ["info.state"]})[task]["info.state"] == "success"
    assert (done["stunned"], vm.trackings) == (True, [None, None])
    assert vm.lab.requests()["methods"]["ReconfigVM_Task"] == 1


def test_a_server_that_always_refuses(machine):
    """It names a task that has ended, and is not asked again and again."""
    vm = machine(tracking=False)
    vm.lab.call("task", vm=vm.moid, name="relocate", user="somebody", seconds=0)
    busy = {"task": {"type": "Task", "value": vm.lab.tasks(vm.moid)[-1]["moid"]}}
    vm.lab.fault(method="ReconfigVM_Task", fault="TaskInProgress", fields=busy, count=0)
    assert "TaskInProgress" in vm.run(fail=True)["msg"]
    assert vm.lab.requests()["methods"]["ReconfigVM_Task"] == 2


def test_requests(machine):
    vm = machine()

    def cost(state: str) -> int:
        vm.lab.requests(reset=True)
        vm.run(state)
        asked = vm.lab.requests()
        return asked["total"] - asked["methods"].get("WaitForUpdatesEx", 0)

    assert cost("enabled") == 4
    assert cost("disabled") <= 13
    assert cost("disabled") == 4
    assert cost("reset") <= 13
    assert cost("reset") <= 20
