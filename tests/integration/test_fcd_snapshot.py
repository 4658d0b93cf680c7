# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""fcd_snapshot through its main() against the lab, by both APIs, on disks that others have snapshots of too."""

from __future__ import annotations

import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd_store, stamps
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.tests.integration.running import wait_for

MIB = 1 << 20
KEYS = {"changed", "fcd", "snapshot", "removed", "tracking", "diff"}
JOB = {"job": "nightly"}


class Volume:
    """A first class disk of the lab, and fcd_snapshot run on it."""

    def __init__(self, lab, run_module, api, **spec):
        self.lab, self.api, self._run_module = lab, api, run_module
        self.record = lab.create_fcd(f"pvc-{time.monotonic_ns()}", 2 * MIB, **spec)
        self.id = self.record["id"]
        lab.requests(reset=True)

    def run(self, check=False, diff=False, fail=False, **args):
        given = {**self.lab.module_args(), "id": self.id, "api": self.api, **args}
        return self._run_module("fcd_snapshot", given, check=check, diff=diff, fail=fail)

    def ids(self):
        return [snapshot["id"] for snapshot in self.lab.fcd_snapshots(self.id)]

    def requests(self):
        return self.lab.requests(reset=True)["total"]


@pytest.fixture(params=["auto", "vim", "vslm"])
def api(request):
    return request.param


@pytest.fixture
def volume(lab, run_module, api):
    made = []

    def make(**spec):
        made.append(Volume(lab, run_module, api, **spec))
        return made[-1]

    yield make
    lab.clear_faults()
    for one in made:
        lab.destroy_fcd(one.id)
    assert lab.sessions() == []


# present


def test_a_snapshot_by_the_id_that_the_task_tells(volume):
    disk = volume(tracking=True, metadata={"owner": "x"})
    before = disk.lab.fcd_snapshot(disk.id, "velero")
    disk.lab.requests(reset=True)
    result = disk.run(description="Before the update.", stamp={"job": "nightly", "run": "r1", "expires_in": "1h"})
    assert set(result) - {"invocation"} == KEYS
    assert result["fcd"] == {key: disk.record[key] for key in ("id", "name", "datastore", "datastore_moid")}
    snapshot, there = result["snapshot"], disk.lab.fcd_snapshots(disk.id)[1]
    assert [before, snapshot["id"]] == disk.ids()
    assert (snapshot["path"], snapshot["change_id"]) == (there["path"], there["change_id"])
    assert snapshot["change_id"] is not None
    assert snapshot["own"] is True
    assert snapshot["stamp"]["run"] == "r1"
    assert snapshot["description"] == "Before the update."
    assert snapshot["metadata"] == ({"owner": "x"} if disk.api == "vslm" else None)
    assert stamps.split(there["description"])[1].job == "nightly"
    assert result["tracking"] == {"enabled": True, "active": True, "reason": None}


def test_what_a_snapshot_costs(volume):
    disk = volume()
    disk.run(stamp=JOB)
    # Log-in 3, service 1 and disk 2 (datastores 3 by vim alone), list 1, create 1, task, list 1, details 1.
    assert disk.requests() <= {"auto": 14, "vim": 15, "vslm": 14}[disk.api]


def test_the_same_run_makes_one_snapshot(volume):
    disk = volume()
    first = disk.run(stamp={"job": "nightly", "run": "r1"})
    again = disk.run(stamp={"job": "nightly", "run": "r1"})
    assert again["changed"] is False
    assert again["snapshot"] == first["snapshot"]
    assert disk.run(stamp={"job": "nightly", "run": "r2"})["changed"] is True
    assert disk.run(stamp=JOB)["changed"] is True
    assert disk.run(stamp=JOB)["changed"] is True
    assert len(disk.ids()) == 4


def test_a_description_is_enough(volume):
    disk = volume()
    assert disk.run(description="by hand")["snapshot"]["own"] is False
    assert disk.run(description="by hand")["changed"] is False
    assert disk.run(description="by Hand")["changed"] is True


def test_check_mode_plans_a_snapshot(volume):
    disk = volume()
    result = disk.run(stamp={"job": "nightly", "run": "r1"}, tracking="enabled", check=True, diff=True)
    assert result["changed"] is True
    assert result["snapshot"]["id"] is None
    assert result["snapshot"]["stamp"]["job"] == "nightly"
    assert result["tracking"]["enabled"] is True
    assert result["diff"]["before"] == {"snapshots": [], "enable_changed_block_tracking": False}
    assert len(result["diff"]["after"]["snapshots"]) == 1
    assert disk.ids() == []
    assert disk.lab.fcd(disk.id)["control_flags"]["enable_changed_block_tracking"] is False


# tracking


def test_tracking_is_switched_on_for_the_snapshot(volume):
    disk = volume()
    assert disk.run(description="untracked")["snapshot"]["change_id"] is None
    disk.run(state="absent", description="untracked")
    result = disk.run(description="tracked", tracking="enabled")
    assert result["tracking"]["enabled"] is True
    assert result["snapshot"]["change_id"] is not None
    assert disk.run(description="tracked", tracking="enabled")["changed"] is False


def test_tracking_is_never_begun_above_snapshots(volume):
    disk = volume()
    disk.lab.fcd_snapshot(disk.id, "velero")
    result = disk.run(stamp=JOB, tracking="enabled")
    assert "velero" in str(result["warnings"])
    assert result["tracking"]["enabled"] is False
    assert disk.lab.fcd(disk.id)["control_flags"]["enable_changed_block_tracking"] is False


# absent


def test_a_stamp_removes_own_snapshots_only(volume):
    disk = volume()
    foreign = [disk.lab.fcd_snapshot(disk.id, text) for text in ("", "velero", 'holdfast.backup {"job": "nightly"}')]
    first = disk.run(stamp={"job": "nightly", "run": "r1"})["snapshot"]["id"]
    other = disk.run(stamp={"job": "hourly", "run": "r1"})["snapshot"]["id"]
    second = disk.run(stamp={"job": "nightly", "run": "r2"})["snapshot"]["id"]
    planned = disk.run(state="absent", stamp=JOB, check=True)
    assert [one["id"] for one in planned["removed"]] == [first, second]
    assert len(disk.ids()) == 6
    one = disk.run(state="absent", stamp={"job": "nightly", "run": "r1"})
    assert [gone["id"] for gone in one["removed"]] == [first]
    assert disk.run(state="absent", stamp={"job": "nightly", "expired_only": True})["changed"] is False
    assert disk.run(state="absent", stamp=JOB)["changed"] is True
    assert disk.ids() == [*foreign, other]
    assert disk.run(state="absent", stamp=JOB)["changed"] is False


def test_by_id_and_by_description(volume):
    disk = volume()
    twins = [disk.lab.fcd_snapshot(disk.id, "twin") for _twin in range(2)]
    result = disk.run(state="absent", description="twin", fail=True)
    assert result["error_type"] == "Ambiguous"
    assert [one["id"] for one in result["candidates"]] == twins
    assert disk.run(state="absent", snapshot_id=twins[0])["changed"] is True
    assert disk.run(state="absent", snapshot_id=twins[0])["changed"] is False
    assert disk.run(state="absent", description="twin")["removed"][0]["id"] == twins[1]
    assert disk.ids() == []


@pytest.mark.parametrize("args", [{"description": ""}, {"snapshot_id": ""}, {"snapshot_id": "", "description": ""}])
def test_an_empty_selector_selects_nothing(volume, args):
    disk = volume()
    disk.lab.fcd_snapshot(disk.id, "")
    assert disk.run(state="absent", fail=True, **args)["error_type"] == "InvalidInput"
    assert disk.run(state="revert", fail=True, **args)["error_type"] == "NotFound"
    assert len(disk.ids()) == 1


# revert


def test_a_disk_goes_back(volume):
    disk = volume()
    disk.lab.fcd_write(disk.id, 0, b"old")
    kept = disk.run(stamp=JOB)["snapshot"]["id"]
    disk.lab.fcd_write(disk.id, 0, b"new")
    assert disk.run(state="revert", snapshot_id=kept, check=True)["changed"] is True
    assert disk.lab.fcd_read(disk.id, 0, 3) == b"new"
    assert disk.run(state="revert", stamp=JOB)["snapshot"]["id"] == kept
    assert disk.lab.fcd_read(disk.id, 0, 3) == b"old"


def test_a_foreign_snapshot_is_reverted_to_by_its_id_only(volume):
    disk = volume()
    foreign = disk.lab.fcd_snapshot(disk.id, "velero")
    disk.lab.fcd_write(disk.id, 0, b"new")
    assert disk.run(state="revert", description="velero", fail=True)["error_type"] == "NotFound"
    assert disk.lab.fcd_read(disk.id, 0, 3) == b"new"
    assert disk.run(state="revert", snapshot_id=foreign)["changed"] is True
    assert disk.lab.fcd_read(disk.id, 0, 3) == bytes(3)


def test_not_beyond_younger_snapshots_of_others(volume):
    disk = volume()
    kept = disk.run(stamp=JOB)["snapshot"]["id"]
    time.sleep(0.01)
    foreign = disk.lab.fcd_snapshot(disk.id, "velero")
    disk.lab.fcd_write(disk.id, 0, b"new")
    refused = disk.run(state="revert", snapshot_id=kept, fail=True)
    assert refused["error_type"] == "NotSupported"
    assert [one["id"] for one in refused["snapshots"]] == [foreign]
    assert disk.lab.fcd_read(disk.id, 0, 3) == b"new"
    assert disk.run(state="revert", snapshot_id=kept, force=True)["changed"] is True


# bad days


@pytest.mark.parametrize("task", ["createSnapshot", "deleteSnapshot"])
def test_a_busy_disk_is_asked_again(volume, monkeypatch, task):
    monkeypatch.setattr(fcd_store, "PAUSES", (0.01, 0.01, 0.01))
    disk = volume()
    disk.lab.fault(task=task, fault="InvalidState", count=2)
    disk.run(stamp=JOB)
    assert len(disk.ids()) == 1
    disk.run(state="absent", stamp=JOB)
    assert disk.ids() == []


def test_a_disk_that_stays_busy_fails_the_task(volume, monkeypatch):
    monkeypatch.setattr(fcd_store, "PAUSES", (0.01, 0.01))
    disk = volume()
    disk.lab.fault(task="createSnapshot", fault="InvalidState", count=0)
    result = disk.run(stamp=JOB, fail=True)
    assert (result["error_type"], result["fault"]) == ("TaskFailed", "InvalidState")
    assert disk.ids() == []


@pytest.mark.parametrize("fault", ["FileFault", "InvalidDatastore"])
def test_other_faults_are_told_at_once(volume, fault):
    disk = volume()
    disk.lab.fault(task="createSnapshot", fault=fault, fields={"file": "a"} if fault == "FileFault" else {})
    result = disk.run(stamp=JOB, fail=True)
    assert (result["error_type"], result["fault"]) == ("TaskFailed", fault)


def test_a_slow_task_is_given_up_with_its_id(volume):
    disk = volume()
    disk.lab.fault(task="createSnapshot", delay_ms=6000)
    began = time.monotonic()
    result = disk.run(stamp=JOB, timeout=1, fail=True)
    assert time.monotonic() - began < 6
    assert result["error_type"] == "TimedOut"
    assert result["task"]
    wait_for(disk.ids)
    assert disk.run(state="absent", stamp=JOB)["changed"] is True  # the next run finds what came of it


def test_a_lost_answer_makes_no_second_snapshot(volume, monkeypatch):
    monkeypatch.setattr(fcd_store, "PAUSES", (0.2, 0.2, 0.2))
    disk = volume()
    method = "VslmCreateSnapshot_Task" if disk.api == "vslm" else "VStorageObjectCreateSnapshot_Task"
    disk.lab.fault(method=method, drop=True)
    result = disk.run(stamp=JOB, fail=True)
    assert result["error_type"] == "ConnectionFailed"
    assert disk.ids() == []  # the lab cuts the connection before the call


def test_an_expired_session_is_renewed_for_both_services(volume):
    disk = volume(tracking=True)
    with Connection(Endpoint(**disk.lab.module_args())) as c:
        store = fcd_store.open_store(c, disk.api)
        found = store.find(id=disk.id)
        assert disk.lab.expire_sessions() > 0
        made = store.create_snapshot(found, "after the night")
        assert [one.id for one in store.snapshots(found)] == disk.ids() == [made]
    assert disk.lab.requests()["logins"] == 2
