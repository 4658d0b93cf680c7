# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_snapshot_set through its main() against the lab: sets of several VMs on good days and bad ones."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.integration.running import wait_for

MIB = 1 << 20
STAMP = {"job": "deployments", "run": "release 4"}
KEYS = {"changed", "members", "spread_seconds", "diff"}


class Fleet:
    """Some running VMs of the lab, each with a disk, and the module run on all of them."""

    def __init__(self, lab, run_module, specs):
        self.lab = lab
        self._run_module = run_module
        given = {"disks": [MIB], "power": "poweredOn", "tools": "running"}
        self.vms = [lab.create_vm(f"vm{number}", **{**given, **spec}) for number, spec in enumerate(specs)]
        self.moids = [vm["moid"] for vm in self.vms]
        for number in range(len(self.vms)):
            self.write(number, b"before")

    def run(self, state="present", check=False, fail=False, stamp=None, **args):
        given = {**self.lab.module_args(), "vms": self.moids, **args}
        given = {option: value for option, value in given.items() if value is not None}
        result = self._run_module(
            "vm_snapshot_set", {**given, "state": state, "stamp": stamp or STAMP}, check=check, fail=fail, diff=True
        )
        if not fail:
            assert set(result) >= KEYS
        return result

    def write(self, number, data):
        self.lab.write(self.moids[number], self.vms[number]["disks"][0]["key"], 0, data)

    def content(self):
        return [self.lab.read(vm["moid"], vm["disks"][0]["key"], 0, 6) for vm in self.vms]

    def names(self):
        return [[snapshot["name"] for snapshot in self.lab.snapshots(moid)] for moid in self.moids]

    def somebody_takes(self, number, name="somebody's"):
        args = {**self.lab.module_args(), "moid": self.moids[number], "snapshot_name": name}
        return self._run_module("vm_snapshot", args)["snapshot"]


@pytest.fixture
def fleet(lab, run_module):
    made = []

    def make(*specs):
        made.append(Fleet(lab, run_module, specs or ({}, {}, {})))
        lab.requests(reset=True)
        return made[-1]

    yield make
    lab.clear_faults()
    assert lab.sessions() == []
    for one in made:
        for moid in one.moids:
            lab.destroy_vm(moid)


def actions(result):
    return [member["action"] for member in result["members"]]


def problems(result):
    return [" ".join(member["problems"]) for member in result["members"]]


# taking


def test_a_set_is_taken_found_again_and_removed(fleet):
    vms = fleet()
    vms.somebody_takes(1)
    taken = vms.run()
    assert (taken["changed"], actions(taken)) == (True, ["taken"] * 3)
    assert [member["snapshot"]["stamp"]["run"] for member in taken["members"]] == ["release 4"] * 3
    assert 0 <= taken["spread_seconds"] < 60
    assert vms.names() == [["release 4"], ["somebody's", "release 4"], ["release 4"]]
    again = vms.run()
    assert (again["changed"], actions(again)) == (False, ["kept"] * 3)
    assert [member["snapshot"] for member in again["members"]] == [member["snapshot"] for member in taken["members"]]
    assert vms.run("verified")["changed"] is False
    removed = vms.run("absent")
    assert (removed["changed"], actions(removed)) == (True, ["removed"] * 3)
    assert vms.names() == [[], ["somebody's"], []]
    again = vms.run("absent")
    assert (again["changed"], actions(again)) == (False, ["none"] * 3)


def test_check_mode_plans_and_changes_nothing(fleet):
    vms = fleet()
    planned = vms.run(check=True)
    assert (planned["changed"], actions(planned), vms.names()) == (True, ["taken"] * 3, [[], [], []])
    assert planned["diff"]["after"] == {"vm0": ["release 4"], "vm1": ["release 4"], "vm2": ["release 4"]}
    vms.run()
    vms.write(0, b"behind")
    planned = vms.run("reverted", check=True)
    assert (planned["changed"], actions(planned), vms.content()[0]) == (True, ["reverted"] * 3, b"behind")
    planned = vms.run("absent", check=True)
    assert (planned["changed"], actions(planned)) == (True, ["removed"] * 3)
    assert vms.names() == [["release 4"]] * 3


def test_looking_costs_the_same_for_any_number(fleet):
    vms = fleet({}, {}, {}, {}, {})
    costs = []
    for moids in (vms.moids[:1], vms.moids):
        vms.lab.requests(reset=True)
        vms.run(check=True, vms=moids)
        costs.append(vms.lab.requests()["total"])
    assert costs[0] == costs[1] <= 9


def test_all_that_speaks_against_it_is_said_before_the_first_snapshot(fleet):
    vms = fleet({}, {"disks": [{"size": MIB, "sharing": "sharingMultiWriter"}]}, {"tools": "notRunning"})
    refused = vms.run(fail=True, quiesce=True, min_free_space="900PB")
    assert refused["error_type"] == "SetFailed"
    assert "vm0, vm2: Too little free space" in refused["msg"]
    assert "shared" in problems(refused)[1]
    assert "VMware Tools are not running" in problems(refused)[2]
    assert (actions(refused), vms.names()) == (["none"] * 3, [[], [], []])


def test_depth_is_checked_for_all(fleet):
    vms = fleet({}, {})
    vms.somebody_takes(1, "one")
    vms.somebody_takes(1, "two")
    refused = vms.run(fail=True, max_depth=2)
    assert "2 snapshots in a row" in problems(refused)[1]
    assert problems(refused)[0] == ""
    assert vms.names() == [[], ["one", "two"]]


def test_one_that_cannot_be_taken_undoes_the_others(fleet):
    vms = fleet()
    vms.somebody_takes(0)
    vms.lab.fault(task="createSnapshot*", fault="FileLocked", count=0, object=vms.moids[1])
    failed = vms.run(fail=True)
    assert failed["msg"].startswith("The set release 4 of the job deployments was not taken")
    assert "vm1: " in failed["msg"]
    assert "FileLocked" in failed["msg"]
    assert actions(failed) == ["undone", "failed", "undone"]
    assert vms.names() == [["somebody's"], [], []]


def test_what_cannot_be_undone_is_named(fleet):
    vms = fleet()
    vms.lab.fault(task="createSnapshot*", fault="FileLocked", count=0, object=vms.moids[1])
    vms.lab.fault(task="removeSnapshot*", fault="FileLocked", count=0, object=vms.moids[2])
    failed = vms.run(fail=True)
    assert actions(failed) == ["undone", "failed", "failed"]
    assert "could not be removed again" in problems(failed)[2]
    assert failed["members"][2]["snapshot"]["name"] == "release 4"
    assert vms.names() == [[], [], ["release 4"]]


def test_an_answer_that_is_lost_leaves_no_snapshot_behind(fleet):
    vms = fleet()
    vms.lab.fault(method="CreateSnapshot*_Task", drop=True, object=vms.moids[0])
    vms.lab.fault(task="createSnapshot*", fault="FileLocked", count=0, object=vms.moids[1])
    vms.run(fail=True)
    assert vms.names() == [[], [], []]


def test_asked_to_stop_it_undoes_what_it_began(fleet):
    vms = fleet()
    vms.lab.fault(task="createSnapshot*", delay_ms=1500, count=0)

    def stop():
        wait_for(lambda: vms.lab.requests()["methods"].get("CreateSnapshot_Task", 0) >= 3)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=stop)
    killer.start()
    stopped = vms.run(fail=True)
    killer.join()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert "asked to stop" in stopped["msg"]
    assert vms.names() == [[], [], []]


def test_another_task_on_a_machine_is_let_end(fleet):
    vms = fleet({}, {})
    earlier = vms.somebody_takes(0)
    vms.lab.fault(task="removeSnapshot*", delay_ms=700, object=vms.moids[0])
    with Connection(Endpoint(**vms.lab.module_args())) as c:
        c.call(vim.vm.Snapshot(earlier["moid"], c.stub).RemoveSnapshot_Task, False)
        assert actions(vms.run()) == ["taken", "taken"]
    assert vms.names() == [["release 4"], ["release 4"]]


def test_half_a_set_is_no_set(fleet):
    vms = fleet()
    vms.run(vms=vms.moids[:1])
    refused = vms.run(fail=True)
    assert "snapshots of vm0 only" in refused["msg"]
    assert vms.names() == [["release 4"], [], []]


def test_an_old_set_does_not_pass_for_a_new_one(fleet):
    vms = fleet()
    vms.run()
    assert "exists since" in vms.run(existing="fail", fail=True)["msg"]


def test_machines_are_found_by_name_and_by_place(fleet):
    vms = fleet()
    vms.run(vms=["vm0", {"name": "vm1"}])
    assert vms.names() == [["release 4"], ["release 4"], []]
    assert actions(vms.run("absent", vms=None, datacenter="DC0")) == ["removed", "removed"]
    refused = vms.run(vms=["vm0", "nobody"], fail=True)
    assert "nobody: There is no virtual machine of this name or ID where it was looked for" in refused["msg"]
    assert refused["msg"].endswith("Check the spelling, and the role of the user on it.")
    assert refused["members"][0]["power_state"] is None
    refused = vms.run(vms=["vm0", {"uuid": "no-such"}, {"folder": "nowhere"}], fail=True)
    assert "no-such: There is no such virtual machine (uuid no-such)" in refused["msg"]
    assert "(no name): There is no such virtual machine (folder nowhere)" in refused["msg"]
    assert vms.names() == [[], [], []]
    assert "not said which virtual machines" in vms.run(vms=None, fail=True)["msg"]


def test_machines_are_found_by_their_tags(fleet, run_module):
    vms = fleet()
    vms.lab.create_tag("change", "tonight")
    for moid in vms.moids[1:]:
        run_module("vm_tag", {**vms.lab.module_args(), "moid": moid, "tags": ["change:tonight"]})
    assert actions(vms.run(vms=None, tags=["change:tonight"])) == ["taken", "taken"]
    assert vms.names() == [[], ["release 4"], ["release 4"]]


def test_one_that_is_gone_does_not_stop_the_others(fleet):
    vms = fleet({}, {})
    vms.run()
    failed = vms.run("absent", vms=[*vms.moids, "nobody"], fail=True)
    assert [(one["vm"]["name"], one["action"]) for one in failed["members"]] == [
        ("vm0", "removed"),
        ("vm1", "removed"),
        ("nobody", "failed"),
    ]
    assert vms.names() == [[], []]


# going back


def test_all_are_reverted_and_keep_what_they_were(fleet):
    vms = fleet({}, {"power": "poweredOff"}, {})
    vms.somebody_takes(2)
    vms.run()
    for number in range(3):
        vms.write(number, b"behind")
    back = vms.run("reverted")
    assert (back["changed"], actions(back)) == (True, ["reverted"] * 3)
    assert vms.content() == [b"before"] * 3
    assert [member["power_state"] for member in back["members"]] == ["poweredOn", "poweredOff", "poweredOn"]
    assert vms.names() == [["release 4"], ["release 4"], ["somebody's", "release 4"]]
    vms.write(0, b"behind")
    back = vms.run("reverted", remove=True, power="off")
    assert vms.content() == [b"before"] * 3
    assert [member["power_state"] for member in back["members"]] == ["poweredOff"] * 3
    assert vms.names() == [[], [], ["somebody's"]]


def test_the_power_state_is_that_of_when_the_set_was_taken(fleet):
    vms = fleet({}, {"power": "poweredOff"})
    vms.run()
    # A revert that was killed before it started the first one again, or a change that did not get so far, leaves this.
    vms.lab.power(vms.moids[0], "poweredOff")
    vms.lab.power(vms.moids[1], "poweredOn")
    back = vms.run("reverted")
    assert [member["power_state"] for member in back["members"]] == ["poweredOn", "poweredOff"]


def test_one_that_cannot_be_reverted_does_not_stop_the_others(fleet):
    vms = fleet()
    vms.run()
    for number in range(3):
        vms.write(number, b"behind")
    vms.lab.fault(task="revertToSnapshot*", fault="FileLocked", count=0, object=vms.moids[1])
    failed = vms.run("reverted", remove=True, fail=True)
    assert actions(failed) == ["reverted", "failed", "reverted"]
    assert "vm1: " in failed["msg"]
    assert "FileLocked" in failed["msg"]
    assert vms.content() == [b"before", b"behind", b"before"]
    assert vms.names() == [[], ["release 4"], []]


def test_a_snapshot_that_somebody_removed_is_missed(fleet, run_module):
    vms = fleet()
    vms.run()
    vms.write(0, b"behind")
    args = {**vms.lab.module_args(), "moid": vms.moids[2], "state": "absent", "remove_all": True}
    run_module("vm_snapshot", args)
    for state in ("verified", "reverted"):
        failed = vms.run(state, fail=True)
        assert "no snapshot of the set release 4" in problems(failed)[2]
    assert vms.content()[0] == b"before"
    assert vms.run("absent")["changed"]


def test_tools_are_waited_for(fleet):
    vms = fleet({}, {"tools": "notInstalled"}, {"power": "poweredOff"})
    vms.run()

    def boot():
        wait_for(lambda: vms.lab.requests()["methods"].get("PowerOnVM_Task", 0) >= 2)
        vms.lab.tools(vms.moids[0], True)

    guest = threading.Thread(target=boot)
    guest.start()
    failed = vms.run("reverted", wait_for_tools=2, remove=True, fail=True)
    guest.join()
    assert actions(failed) == ["reverted"] * 3
    assert problems(failed)[::2] == ["", ""]
    assert "VMware Tools did not answer within 2 seconds" in problems(failed)[1]
    assert vms.names() == [[], ["release 4"], []]


def test_two_sets_on_the_same_machines(fleet):
    vms = fleet()
    other = {"job": "deployments", "run": "release 5"}
    vms.run()
    vms.write(0, b"middle")
    vms.run(stamp=other)
    vms.write(0, b"behind")
    vms.run("reverted", stamp=other)
    assert vms.content()[0] == b"middle"
    vms.run("absent")
    assert vms.names() == [["release 5"]] * 3
    vms.run("reverted", stamp=other)
    assert vms.content()[0] == b"middle"


# verifying


def test_what_speaks_against_a_set_is_said(fleet, run_module):
    vms = fleet({}, {}, {})
    earlier = vms.somebody_takes(1)
    vms.run(stamp={**STAMP, "expires_in": "0s"})
    args = {**vms.lab.module_args(), "moid": vms.moids[1], "state": "revert", "snapshot_id": earlier["id"]}
    run_module("vm_snapshot", args)
    failed = vms.run("verified", max_age="0s", min_free_space="900PB", fail=True)
    assert failed["msg"].startswith("The set release 4 of the job deployments is no way back to count on.")
    assert all("expired at" in text and "older than allowed" in text for text in problems(failed))
    assert all("Too little free space" in text for text in problems(failed))
    failed = vms.run("verified", max_depth=1, fail=True)
    assert all("1 snapshots in a row" in text for text in problems(failed))
    assert ["reverted to another" in text for text in problems(failed)] == [False, True, False]


# sweeping


def test_only_what_expired_is_swept(fleet):
    vms = fleet()
    vms.somebody_takes(0)
    vms.run(stamp={**STAMP, "expires_in": "0s"}, vms=vms.moids[:1])
    vms.run(stamp={**STAMP, "run": "release 5", "expires_in": "1d"}, snapshot_name="five")
    vms.run(stamp={"job": "others", "run": "1", "expires_in": "0s"}, vms=vms.moids[2:])
    expired = {"job": "deployments", "expired_only": True}
    planned = vms.run("absent", stamp=expired, check=True)
    swept = vms.run("absent", stamp=expired)
    assert planned["members"][0]["removed"] == swept["members"][0]["removed"]
    assert [(one["vm"]["name"], one["action"]) for one in swept["members"]] == [("vm0", "removed")]
    assert vms.names() == [["somebody's", "five"], ["five"], ["five", "1"]]
    assert vms.run("absent", stamp=expired)["changed"] is False
    swept = vms.run("absent", stamp={"expired_only": True}, vms=None)
    assert [(one["vm"]["name"], one["action"]) for one in swept["members"]] == [("vm2", "removed")]
    assert vms.names() == [["somebody's", "five"], ["five"], ["five"]]


def test_a_set_must_be_named(fleet):
    vms = fleet({})
    assert "which set" in vms.run("absent", stamp={"job": "deployments"}, fail=True)["msg"]
    assert "which set" in vms.run("reverted", stamp={"run": "release 4", "expired_only": True}, fail=True)["msg"]
    for state in ("verified", "reverted"):
        assert "No virtual machine there has a snapshot" in vms.run(state, vms=None, fail=True)["msg"]
    assert "only goes with" in vms.run("reverted", stamp={**STAMP, "expired_only": True}, fail=True)["msg"]
