# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""disk_changed_areas through its main() against the lab: real blocks, real snapshots, bad days."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas as arithmetic
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    change_tracking_tasks,
    reverts,
    task_history,
    tasks,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.integration.running import once

MIB = 1 << 20
BLOCK = 64 << 10
CAPACITY = 64 * MIB
APIS = pytest.mark.parametrize("api", ["soap", "vi_json"])


class Guest:
    """A VM of the lab with what the tests do to it."""

    def __init__(self, lab, run_module, **spec):
        given = {"disks": [CAPACITY], "power": "poweredOn", "tracking": True, **spec}
        self.lab, self._run = lab, run_module
        self.record = lab.create_vm(f"areas-{uuid.uuid4().hex[:8]}", **given)
        self.moid = self.record["moid"]
        self.disk = self.record["disks"][0]

    def run(self, name="disk_changed_areas", check=False, diff=False, fail=False, **args):
        return self._run(name, {**self.lab.module_args(), "moid": self.moid, **args}, check=check, diff=diff, fail=fail)

    def snapshot(self, keep=False):
        """The moid of a new snapshot, the only one unless ``keep``."""
        if not keep:
            self.clear()
        name = uuid.uuid4().hex
        return self.run("vm_snapshot", state="present", snapshot_name=name)["snapshot"]["moid"]

    def clear(self):
        self.run("vm_snapshot", state="absent", remove_all=True)

    def query(self, snapshot, since=None, **args):
        return self.run(snapshot=snapshot, since=since, **args)

    def remember(self, snapshot):
        """What a repository would say of the disks in a snapshot."""
        disks = self.query(snapshot)["disks"]
        wanted = ("key", "backing_uuid", "capacity", "change_id")
        return [{**{k: d[k] for k in wanted}, "parent": f"/repo/{d['key']}", "parent_id": "p"} for d in disks]

    def scribble(self, places, seed):
        """Write blocks at random places; returns their areas."""
        numbers = random.Random(seed).sample(range(CAPACITY // BLOCK), places)
        for number in numbers:
            self.lab.write(self.moid, self.disk["key"], number * BLOCK, os.urandom(BLOCK))
        return arithmetic.normalise([(number * BLOCK, BLOCK) for number in numbers], CAPACITY)


@pytest.fixture
def guest(lab, run_module):
    made = []

    def make(**spec):
        made.append(Guest(lab, run_module, **spec))
        return made[-1]

    yield make
    for one in made:
        lab.destroy_vm(one.moid)


# what changed


@APIS
def test_the_written_blocks_and_nothing_else(guest, tmp_path, api):
    vm = guest()
    since = vm.remember(vm.snapshot())
    vm.lab.tracking(page=3)
    written = vm.scribble(20, seed=1)
    result = vm.query(vm.snapshot(), since, api=api, areas_dir=str(tmp_path / "new"), return_areas=True)
    (disk,) = result["disks"]
    assert (disk["kind"], disk["reason"], disk["since"]) == ("incremental", None, since[0]["change_id"])
    assert (disk["parent"], disk["parent_id"]) == (f"/repo/{disk['key']}", "p")
    assert disk["changed_areas"] == [list(area) for area in written]
    assert (disk["areas"], disk["changed_bytes"]) == (len(written), 20 * BLOCK)
    assert arithmetic.read_file(disk["areas_file"]) == (CAPACITY, written)
    assert result["requests"] == -(-len(written) // 3)
    assert result["changed"]


@APIS
def test_several_incrementals_add_up(guest, api):
    vm = guest()
    since, first = vm.remember(vm.snapshot()), None
    written, told = [], []
    for seed in range(3):
        first = first or since
        written += vm.scribble(5, seed)
        snapshot = vm.snapshot()
        told += vm.query(snapshot, since, api=api, return_areas=True)["disks"][0]["changed_areas"]
        since = vm.remember(snapshot)
    assert arithmetic.normalise(told, CAPACITY) == arithmetic.normalise(written, CAPACITY)
    at_once = vm.query(snapshot, first, api=api, return_areas=True)["disks"][0]["changed_areas"]
    assert arithmetic.normalise(at_once, CAPACITY) == arithmetic.normalise(written, CAPACITY)


@pytest.mark.parametrize(
    "knobs", [{"untidy": True}, {"inflate": MIB}, {"untidy": True, "inflate": 3 * BLOCK, "page": 2}]
)
def test_more_than_changed_loses_nothing(guest, knobs):
    vm = guest()
    since = vm.remember(vm.snapshot())
    written = vm.scribble(12, seed=2)
    vm.lab.tracking(**knobs)
    disk = vm.query(vm.snapshot(), since, return_areas=True)["disks"][0]
    told = [tuple(area) for area in disk["changed_areas"]]
    assert disk["kind"] == "incremental"
    assert told == arithmetic.normalise(told, CAPACITY)
    assert arithmetic.subtract(written, told) == []


def test_nothing_written_is_an_empty_incremental(guest, tmp_path):
    vm = guest()
    since = vm.remember(vm.snapshot())
    disk = vm.query(vm.snapshot(), since, areas_dir=str(tmp_path))["disks"][0]
    assert (disk["kind"], disk["areas"], disk["changed_bytes"]) == ("incremental", 0, 0)
    assert arithmetic.read_file(disk["areas_file"]) == (CAPACITY, [])


def test_powered_off_is_as_good(guest):
    vm = guest(power="poweredOff")
    since = vm.remember(vm.snapshot())
    written = vm.scribble(4, seed=3)
    disk = vm.query(vm.snapshot(), since, return_areas=True)["disks"][0]
    assert disk["changed_areas"] == [list(area) for area in written]


@APIS
def test_by_hand(guest, api):
    vm = guest()
    old = vm.remember(vm.snapshot())[0]["change_id"]
    vm.scribble(3, seed=4)
    snapshot = vm.snapshot()
    for selector in (vm.disk["key"], vm.disk["label"], vm.disk["backing_uuid"]):
        disk = vm.query(snapshot, [{"disk": selector, "change_id": old}], api=api)["disks"][0]
        assert (disk["kind"], disk["areas"], disk["parent"]) == ("incremental", 3, None)
    assert "no disk 9999" in vm.query(snapshot, [{"disk": 9999, "change_id": old}], fail=True)["msg"]


@APIS
def test_the_areas_in_use(guest, tmp_path, api):
    vm = guest()
    written = vm.scribble(6, seed=5)
    result = vm.query(vm.snapshot(), [{"disk": 2000, "change_id": "*"}], api=api, areas_dir=str(tmp_path))
    (disk,) = result["disks"]
    assert (disk["kind"], disk["since"], disk["changed_bytes"]) == ("full", None, 6 * BLOCK)
    assert arithmetic.read_file(disk["areas_file"]) == (CAPACITY, written)
    assert "deprecated" in str(result["warnings"])


def test_check_mode_tells_the_same_and_writes_nothing(guest, tmp_path):
    vm = guest()
    since = vm.remember(vm.snapshot())
    vm.scribble(2, seed=6)
    snapshot, target = vm.snapshot(), str(tmp_path / "new")
    planned = vm.query(snapshot, since, areas_dir=target, check=True, diff=True)
    assert not os.path.exists(target)
    done = vm.query(snapshot, since, areas_dir=target, diff=True)
    assert planned == done
    path = done["disks"][0]["areas_file"]
    assert done["diff"] == {"before": {path: None}, "after": {path: {"areas": 2, "bytes": 2 * BLOCK}}}
    again = vm.query(snapshot, since, areas_dir=target, diff=True)
    assert not again["changed"]
    assert again["disks"] == done["disks"]


def test_long_lists_are_not_returned(guest, monkeypatch):
    vm = guest()
    since = vm.remember(vm.snapshot())
    monkeypatch.setattr("ansible_collections.holdfast.backup.plugins.modules.disk_changed_areas.MOST_RETURNED", 2)
    vm.lab.write(vm.moid, 2000, 0, b"x")
    vm.lab.write(vm.moid, 2000, 2 * BLOCK, b"x")
    vm.lab.write(vm.moid, 2000, 4 * BLOCK, b"x")
    disk = vm.query(vm.snapshot(), since, return_areas=True)["disks"][0]
    assert (disk["areas"], disk["changed_areas"]) == (3, None)


# bad days, each a full copy of one disk with a reason


def grow(vm):
    vm.clear()
    vm.lab.grow_disk(vm.moid, 2000, 2 * CAPACITY)


BAD_DAYS = {
    "another product": (lambda vm: vm.lab.reset_tracking(vm.moid, 2000), "another product or a reset restarted"),
    "lost": (lambda vm: vm.lab.reset_tracking(vm.moid, 2000, lose=True), "change tracking was not active"),
    "grown": (grow, f"the capacity changed from {CAPACITY} to {2 * CAPACITY} bytes"),
    "replaced": (lambda vm: vm.lab.replace_disk(vm.moid, 2000), "the disk was replaced: its backing UUID was"),
    "crashed": (lambda vm: vm.lab.crash_host(vm.moid), "restarted change tracking"),
    "file": (
        lambda vm: vm.lab.fault("QueryChangedDiskAreas", fault="FileFault", fields={"file": "x-ctk.vmdk"}),
        "FileFault",
    ),
    "argument": (lambda vm: vm.lab.fault("QueryChangedDiskAreas", fault="InvalidArgument"), "InvalidArgument"),
    "missing": (lambda vm: vm.lab.fault("QueryChangedDiskAreas", fault="NotFound"), "NotFound"),
    "privilege": (
        lambda vm: vm.lab.fault(
            "QueryChangedDiskAreas",
            fault="NoPermission",
            fields={
                "object": {"type": "VirtualMachine", "value": vm.moid},
                "privilegeId": "VirtualMachine.Provisioning.DiskRandomRead",
            },
        ),
        "the query for changed areas failed",
    ),
}


@APIS
@pytest.mark.parametrize("day", BAD_DAYS)
def test_a_bad_day_costs_one_full_copy(guest, api, day, tmp_path):
    happens, says = BAD_DAYS[day]
    vm = guest(disks=[CAPACITY, MIB])
    since = vm.remember(vm.snapshot())
    vm.clear()
    happens(vm)
    result = vm.query(vm.snapshot(), since, api=api, areas_dir=str(tmp_path))
    bad, good = result["disks"]
    assert bad["kind"] == "full"
    assert says in bad["reason"]
    for key in ("since", "areas", "areas_file", "changed_bytes", "parent", "parent_id"):
        assert bad[key] is None
    if day != "crashed":  # which takes the tracking of all disks
        assert (good["kind"], good["reason"]) == ("incremental", None)


def test_a_new_disk_is_full_and_the_others_are_not(guest):
    vm = guest()
    since = vm.remember(vm.snapshot())
    vm.clear()
    vm.lab.add_disk(vm.moid, MIB)
    old, new = vm.query(vm.snapshot(), since)["disks"]
    assert old["kind"] == "incremental"
    assert (new["kind"], new["reason"]) == ("full", "no earlier restore point has this disk")


def test_the_reason_of_the_repository_is_kept(guest):
    vm = guest()
    since = vm.remember(vm.snapshot())
    since[0].update(change_id=None, parent=None, reason="chain is 20 long")
    result = vm.query(vm.snapshot(), since)
    assert (result["disks"][0]["reason"], result["requests"]) == ("chain is 20 long", 0)


def test_a_fault_on_a_later_page_is_full(guest):
    vm = guest()
    since = vm.remember(vm.snapshot())
    vm.scribble(9, seed=7)
    snapshot = vm.snapshot()
    vm.lab.tracking(page=2)
    vm.lab.fault("QueryChangedDiskAreas", fault="FileFault", fields={"file": "x"}, skip=2)
    result = vm.query(snapshot, since)
    assert (result["disks"][0]["kind"], result["requests"]) == ("full", 3)


@APIS
def test_a_dropped_connection_is_made_again(guest, api):
    vm = guest()
    since = vm.remember(vm.snapshot())
    vm.scribble(2, seed=8)
    snapshot = vm.snapshot()
    vm.lab.fault("QueryChangedDiskAreas", drop=True)
    assert vm.query(snapshot, since, api=api)["disks"][0]["areas"] == 2
    vm.lab.fault("QueryChangedDiskAreas", drop=True, count=2)
    assert vm.query(snapshot, since, api=api, fail=True)["error_type"] == "ConnectionFailed"


@APIS
def test_an_expired_session_is_logged_in_again(guest, api):
    vm = guest()
    since = vm.remember(vm.snapshot())
    vm.scribble(2, seed=9)
    snapshot = vm.snapshot()
    vm.lab.fault("QueryChangedDiskAreas", delay_ms=1000)
    vm.lab.requests(reset=True)
    with once(lambda: vm.lab.requests()["methods"].get("QueryChangedDiskAreas"), vm.lab.expire_sessions):
        assert vm.query(snapshot, since, api=api)["disks"][0]["areas"] == 2
    assert vm.lab.sessions() == []


def test_a_snapshot_must_be_one_of_the_vm(guest):
    vm, other = guest(), guest()
    assert "is not one of the virtual machine" in vm.query(other.snapshot(), fail=True)["msg"]
    assert vm.query("snapshot-4711", fail=True)["error_type"] == "NotFound"


def test_disks_outside_the_snapshot(guest):
    vm = guest(disks=[CAPACITY, {"size": MIB, "mode": "independent_persistent"}])
    snapshot = vm.snapshot()
    assert [disk["key"] for disk in vm.query(snapshot)["disks"]] == [2000]
    failed = vm.query(snapshot, disks=[2001], fail=True)
    assert failed["error_type"] == "NotSupported"
    assert "independent" in failed["msg"]


def test_some_disks(guest):
    vm = guest(disks=[MIB, MIB, MIB])
    disks = vm.query(vm.snapshot(), disks=["2002", "Hard disk 1", 2000])["disks"]
    assert [disk["key"] for disk in disks] == [2002, 2000]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"since": []}, "missing parameter(s) required by 'since': snapshot"),
        ({"areas_dir": "/x"}, "missing parameter(s) required by 'areas_dir': snapshot"),
        ({"snapshot": "snapshot-1", "tracking": "enabled"}, "cannot be switched while the snapshot"),
    ],
)
def test_options_that_contradict_each_other(guest, args, says):
    assert says in guest().run(**args, fail=True)["msg"]


# starting change tracking


def tracking(vm, **args):
    return vm.run(tracking="enabled", **args)


def test_tracking_is_started_and_then_left_alone(guest):
    vm = guest(tracking=False)
    before = vm.run()
    assert before["tracking"] == {"enabled": False, "active": False, "reason": "change tracking is switched off"}
    assert not before["changed"]
    planned = tracking(vm, check=True, diff=True)
    assert vm.run()["tracking"] == before["tracking"]
    done = tracking(vm, diff=True)
    assert done["tracking"] == planned["tracking"] == {"enabled": True, "active": True, "reason": None}
    assert done["diff"] == planned["diff"] == {"before": before["tracking"], "after": done["tracking"]}
    assert (planned["changed"], done["changed"]) == (True, True)
    assert [disk["tracked"] for disk in done["disks"]] == [True]
    assert vm.lab.snapshots(vm.moid) == []
    assert not tracking(vm)["changed"]
    since = vm.remember(vm.snapshot())
    written = vm.scribble(5, seed=10)
    disk = vm.query(vm.snapshot(), since, return_areas=True)["disks"][0]
    assert disk["changed_areas"] == [list(area) for area in written]


def test_tracking_of_a_powered_off_vm(guest):
    assert tracking(guest(tracking=False, power="poweredOff"))["tracking"]["active"]


def test_a_new_disk_gets_its_stun(guest):
    vm = guest()
    vm.lab.add_disk(vm.moid, MIB)
    before = vm.run()
    assert [disk["tracked"] for disk in before["disks"]] == [True, False]
    assert before["tracking"]["reason"] == "not tracked yet: Hard disk 2"
    done = tracking(vm)
    assert done["changed"]
    assert done["tracking"]["active"]
    assert vm.lab.snapshots(vm.moid) == []


def test_a_disk_that_is_left_out_is_taken_in(guest):
    vm = guest(tracking=False, extra_config={"scsi0:0.ctkEnabled": "FALSE"})
    assert not vm.run()["disks"][0]["tracked"]
    assert tracking(vm)["tracking"]["active"]


def test_an_unprotected_disk_does_not_count(guest):
    vm = guest(tracking=False, disks=[MIB, {"size": MIB, "mode": "independent_persistent"}])
    done = tracking(vm)
    assert done["tracking"]["active"]
    assert [disk["tracked"] for disk in done["disks"]] == [True, False]


def test_nothing_is_started_under_snapshots(guest):
    vm = guest(tracking=False)
    vm.run("vm_snapshot", state="present", snapshot_name="by the user")
    result = tracking(vm)
    assert not result["changed"]
    assert result["tracking"]["reason"].endswith("without snapshots, and there are: by the user")
    assert "will be copied in full" in str(result["warnings"])
    assert [snapshot["name"] for snapshot in vm.lab.snapshots(vm.moid)] == ["by the user"]


def test_old_hardware_is_not_tracked(guest):
    vm = guest(tracking=False, version="vmx-04")
    result = tracking(vm)
    assert (result["changed"], result["tracking"]["active"]) == (False, False)
    assert "hardware version 4" in result["tracking"]["reason"]


@pytest.mark.parametrize("task", ["VirtualMachine.reconfigVm", "*reconfig*", "*reateSnapshot*"])
def test_what_vsphere_refuses_costs_a_full_copy(guest, task):
    vm = guest(tracking=False)
    vm.lab.fault(task=task, fault="FileFault", fields={"file": "x"})
    result = tracking(vm)
    assert not result["tracking"]["active"]
    assert "FileFault" in result["tracking"]["reason"]
    assert vm.lab.snapshots(vm.moid) == []


def test_a_failed_removal_is_tried_again(guest):
    vm = guest(tracking=False)
    vm.lab.fault(task="*emoveSnapshot*", fault="FileFault", fields={"file": "x"})
    assert tracking(vm)["tracking"]["active"]
    assert vm.lab.snapshots(vm.moid) == []


def test_the_next_run_removes_what_a_killed_one_left(guest):
    vm = guest()
    vm.lab.fault(
        task="*emoveSnapshot*", fault="FileFault", fields={"file": "x"}, count=change_tracking_tasks.REMOVALS + 1
    )
    vm.lab.add_disk(vm.moid, MIB)
    assert "FileFault" in tracking(vm, fail=True)["msg"]
    assert len(vm.lab.snapshots(vm.moid)) == 1
    assert tracking(vm, check=True)["changed"]
    result = tracking(vm)
    assert result["changed"]
    assert result["tracking"]["active"]
    assert vm.lab.snapshots(vm.moid) == []


@pytest.fixture
def cancel(lab):
    """Sends this process the signal of a cancelled job, as soon as it waits for its task of this number."""
    handler, threads = signal.getsignal(signal.SIGTERM), []

    def at(number):
        def watch():
            while lab.requests()["methods"].get("CreateFilter", 0) < number:
                time.sleep(0.02)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGTERM)

        threads.append(threading.Thread(target=watch, daemon=True))
        threads[-1].start()

    yield at
    for thread in threads:
        thread.join(60)
    signal.signal(signal.SIGTERM, handler)


def test_a_run_cancelled_while_the_snapshot_is_made_leaves_none(guest, cancel):
    vm = guest(tracking=False)
    vm.lab.fault(task="*reateSnapshot*", delay_ms=1500)
    vm.lab.requests(reset=True)
    cancel(2)
    assert "asked to stop" in tracking(vm, fail=True)["msg"]
    # The server may still be answering the wait that was interrupted, so the next one is by another collector.
    assert vm.lab.requests()["methods"]["CreatePropertyCollector"] >= 1
    time.sleep(1)  # until it would have been made, had the module not waited for it
    assert vm.lab.snapshots(vm.moid) == []


def test_a_run_cancelled_while_the_snapshot_is_removed_ends_that_first(guest, cancel):
    vm = guest(tracking=False)
    vm.lab.fault(task="*emoveSnapshot*", delay_ms=1500)
    vm.lab.requests(reset=True)
    cancel(3)
    assert tracking(vm)["tracking"]["active"]
    assert vm.lab.snapshots(vm.moid) == []


# reverts


def test_a_revert_that_the_change_ids_do_not_tell_of(guest, monkeypatch):
    """The tasks of vCenter do. Without the time of the earlier snapshot there is nothing to ask them for."""
    monkeypatch.setattr(reverts, "MARGIN", timedelta(0))
    vm = guest()
    vm.lab.tracking(on_revert="silent")
    user = vm.snapshot()
    vm.scribble(9, seed=1)
    taken = vm.run("vm_snapshot", state="present", snapshot_name="backup")["snapshot"]
    since = vm.remember(taken["moid"])
    told = [{**record, "snapshot_time": taken["creation_time"]} for record in since]
    vm.run("vm_snapshot", state="absent", snapshot_id=taken["id"])
    assert vm.query(vm.snapshot(keep=True), told)["disks"][0]["kind"] == "incremental"

    with Connection(Endpoint(**vm.lab.module_args())) as c:
        tasks.wait(c, vim.vm.Snapshot(user, c.stub).RevertToSnapshot_Task(), timeout=300)
    snapshot = vm.snapshot(keep=True)
    missed = vm.query(snapshot, since)["disks"][0]
    assert (missed["kind"], missed["areas"]) == ("incremental", 0), "the lab is not silent"
    disk = vm.query(snapshot, told)["disks"][0]
    assert (disk["kind"], disk["areas"]) == ("full", None)
    assert "was reverted to a snapshot at" in disk["reason"]


def test_tasks_are_read_page_by_page(guest, monkeypatch):
    monkeypatch.setattr(task_history, "PAGE", 2)
    vm = guest()
    with Connection(Endpoint(**vm.lab.module_args())) as c:
        reverted = vim.vm.Snapshot(vm.snapshot(), c.stub).RevertToSnapshot_Task()
        tasks.wait(c, reverted, timeout=300)
        for _number in range(3):
            vm.snapshot()
        longest = datetime(2026, 1, 1, tzinfo=timezone.utc)
        found = reverts.newest(c, vim.VirtualMachine(vm.moid, c.stub), longest)
        assert found == c.retrieve([reverted], {vim.Task: ["info.queueTime"]})[reverted]["info.queueTime"]


def test_who_may_not_read_tasks_is_warned(guest):
    vm = guest()
    since = [{**record, "snapshot_time": "2026-11-19T02:15:03Z"} for record in vm.remember(vm.snapshot())]
    vm.lab.fault(method="CreateCollectorForTasks", fault="NoPermission")
    result = vm.query(vm.snapshot(), since)
    assert result["disks"][0]["kind"] == "incremental"
    assert "Only change IDs tell" in str(result["warnings"])


@pytest.mark.parametrize("text", ["yesterday", 7, ["2026-11-19T02:15:00Z"]])
def test_a_time_of_the_snapshot_that_is_none(guest, text):
    vm = guest()
    failed = vm.query(vm.snapshot(), [{"disk": 2000, "change_id": "52 aa/1", "snapshot_time": text}], fail=True)
    assert "is no time like" in failed["msg"]


# what it costs


def test_requests(guest):
    vm = guest(disks=[CAPACITY, MIB])
    since = vm.remember(vm.snapshot())
    snapshot = vm.snapshot()

    def cost(**args):
        vm.lab.requests(reset=True)
        vm.run(**args)
        return vm.lab.requests()["total"]

    assert cost(tracking="enabled") == 4
    assert cost(snapshot=snapshot) == 5
    assert cost(snapshot=snapshot, since=since) == 5 + 2
    assert cost(snapshot=snapshot, since=since, api="vi_json") == 5 + 2 + 3
    timed = [{**record, "snapshot_time": "2026-11-19T02:15:03Z"} for record in since]
    assert cost(snapshot=snapshot, since=timed) == 5 + 2 + 3
    assert vm.lab.sessions() == []


def test_a_directory_that_cannot_be_written_to(guest, tmp_path):
    vm = guest()
    since = vm.remember(vm.snapshot())
    (tmp_path / "file").write_text("")
    failed = vm.query(vm.snapshot(), since, areas_dir=str(tmp_path / "file"), fail=True)
    assert "cannot be written: " in failed["msg"]
