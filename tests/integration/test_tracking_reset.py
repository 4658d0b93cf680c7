# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""disk_changed_areas with tracking: reset, through its main() against the lab; and the vCenter that it tells of."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.copies import MIB, Copies
from ansible_collections.holdfast.backup.tests.lab.client import Lab

JOB = {"job": "change_tracking"}


@pytest.fixture
def copies(lab, tmp_path) -> Copies:
    """Three disks, of which the last is in no snapshot."""
    made = Copies(lab, tmp_path, MIB, MIB)
    lab.add_disk(made.moid, MIB, mode="independent_persistent")
    return made


def reset(copies: Copies, **options: Any) -> dict[str, Any]:
    return copies.run("disk_changed_areas", **{"tracking": "reset", **options})


def trackings(lab: Lab, moid: str) -> list[str | None]:
    """The UUID part of each disk's change ID."""
    return [(disk["change_id"] or "").partition("/")[0] or None for disk in lab.vm(moid)["disks"]]


def test_all_disks(copies: Copies):
    """Two stuns later each has a tracking of its own, and what was counted before counts no more."""
    before = trackings(copies.lab, copies.moid)
    copies.look()
    copies.copy()
    copies.run("vm_snapshot", state="absent", remove_all=True)
    result = reset(copies, diff=True)
    after = trackings(copies.lab, copies.moid)
    assert result["changed"]
    assert result["tracking"] == {"enabled": True, "active": True, "reason": None}
    assert [(disk["reset"], disk["tracked"]) for disk in result["disks"]] == [
        (True, True),
        (True, True),
        (False, False),
    ]
    assert [(disk["change_id"] or "").partition("/")[0] or None for disk in result["disks"]] == after
    assert before[2] is after[2] is None
    assert not {*before[:2]} & {*after[:2]}
    assert result["diff"]["after"]["reset"] == ["Hard disk 1", "Hard disk 2"]
    assert copies.lab.snapshots(copies.moid) == []
    for disk in copies.look():
        assert disk["kind"] == "full"
        assert "restarted change tracking" in disk["reason"]


def test_one_disk(copies: Copies):
    before = trackings(copies.lab, copies.moid)
    [disk] = reset(copies, disks=["Hard disk 2"])["disks"]
    assert (disk["label"], disk["reset"], disk["tracked"]) == ("Hard disk 2", True, True)
    after = trackings(copies.lab, copies.moid)
    assert after[0] == before[0]
    assert after[1] not in (None, before[1])
    found = copies.run("disk_changed_areas")
    assert found["tracking"] == {"enabled": True, "active": True, "reason": None}
    assert [disk["reset"] for disk in found["disks"]] == [False] * 3


def test_it_counts_right_again(copies: Copies):
    """A tracking that missed a change, and the nights after its reset."""
    copies.night()
    copies.write_unnoticed(0, b"missed")
    assert copies.night(audit=100)[0]["kind"] == "full"
    copies.run("vm_snapshot", state="absent", remove_all=True)
    reset(copies, disks=[copies.keys[0]])
    assert [disk["kind"] for disk in copies.night()] == ["full", "incremental"]
    copies.write(0, b"noticed")
    copied = copies.night(audit=100)
    assert [disk["kind"] for disk in copied] == ["incremental", "incremental"]
    assert [disk["audit"]["mismatches"] for disk in copied] == [0, 0]
    assert copied[0]["bytes_read"] == 65536


def test_a_vm_that_was_not_tracked(copies: Copies):
    """It is in the end."""
    other = copies.lab.create_vm(f"untracked-{uuid.uuid4().hex[:8]}", disks=[MIB], power="poweredOn")["moid"]
    result = reset(copies, moid=other)
    assert (result["tracking"]["active"], result["disks"][0]["reset"]) == (True, True)
    assert trackings(copies.lab, other) != [None]


def test_not_above_snapshots_of_others(copies: Copies):
    before = trackings(copies.lab, copies.moid)
    copies.run("vm_snapshot", snapshot_name="somebody's")
    for check in (True, False):
        result = reset(copies, check=check)
        assert not result["changed"]
        assert "somebody's" in result["tracking"]["reason"]
        assert [disk["reset"] for disk in result["disks"]] == [False] * 3
        assert "did not begin anew" in str(result["warnings"])
    assert trackings(copies.lab, copies.moid) == before


def test_our_own_leftovers_go(copies: Copies):
    """The snapshot of a run that was killed while it stunned the VM is no obstacle."""
    before = trackings(copies.lab, copies.moid)
    copies.run("vm_snapshot", snapshot_name="left", stamp=JOB)
    assert reset(copies)["tracking"]["active"]
    assert copies.lab.snapshots(copies.moid) == []
    assert not {*before[:2]} & {*trackings(copies.lab, copies.moid)[:2]}


def test_check_mode(copies: Copies):
    before = trackings(copies.lab, copies.moid)
    copies.lab.requests(reset=True)
    told = reset(copies, check=True, disks=["Hard disk 1"], diff=True)
    assert not [name for name in copies.lab.requests()["methods"] if name.endswith("_Task")]
    assert trackings(copies.lab, copies.moid) == before
    assert (told["changed"], told["disks"][0]["reset"], told["disks"][0]["change_id"]) == (True, True, None)
    done = reset(copies, disks=["Hard disk 1"], diff=True)
    assert told["diff"] == done["diff"]
    assert {**told["disks"][0], "change_id": done["disks"][0]["change_id"]} == done["disks"][0]


@pytest.mark.parametrize("fault", [{"task": "reconfigVm"}, {"task": "createSnapshot*"}], ids=["setting", "snapshot"])
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("disks", [None, [2000]], ids=["all", "one"])
def test_what_vsphere_refuses(copies: Copies, fault: dict[str, str], skip: int, disks: list[int] | None):
    """The result says it; it is not taken for done, and the next run has tracking active again."""
    copies.lab.fault(**fault, fault="InvalidState", object=copies.moid, skip=skip)
    result = reset(copies, disks=disks)
    assert "InvalidState" in result["tracking"]["reason"]
    assert "did not begin anew" in str(result["warnings"])
    assert not any(disk["reset"] for disk in result["disks"])
    assert copies.lab.snapshots(copies.moid) == []
    copies.lab.clear_faults()
    assert copies.run("disk_changed_areas", tracking="enabled")["tracking"]["active"]
    before = trackings(copies.lab, copies.moid)
    assert all(disk["reset"] for disk in reset(copies, disks=[2000])["disks"])
    assert trackings(copies.lab, copies.moid)[0] != before[0]


def test_refused(copies: Copies):
    copies.look()
    failed = reset(copies, snapshot=copies.snapshots[-1], fail=True)
    assert "cannot be switched while the snapshot exists" in failed["msg"]
    failed = reset(copies, disks=["Hard disk 3"], fail=True)
    assert failed["error_type"] == "NotSupported"
    assert "independent" in failed["msg"]


# first class disks


class Volume:
    """A first class disk with tracking."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.id = lab.create_fcd(f"pvc-{uuid.uuid4().hex[:8]}", MIB, tracking=True)["id"]

    def tracking(self) -> str:
        return self.lab.fcd(self.id)["change_id"].partition("/")[0]

    def reset(self, **options: Any) -> dict[str, Any]:
        given = {**self.lab.module_args(), "fcd_id": self.id, "tracking": "reset"}
        return modules.run("disk_changed_areas", given, **options)


@pytest.fixture
def volume(lab) -> Volume:
    return Volume(lab)


def test_of_a_detached_disk(volume: Volume):
    before = volume.tracking()
    told = volume.reset(check=True)
    assert volume.tracking() == before
    done = volume.reset()
    assert told == done
    assert (done["changed"], done["disks"][0]["reset"], done["disks"][0]["tracked"]) == (True, True, True)
    assert volume.tracking() != before
    assert volume.lab.fcd(volume.id)["control_flags"]["enable_changed_block_tracking"]


@pytest.mark.parametrize("tracking", [True, False], ids=["tracked", "untracked"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "beside"])
def test_of_an_attached_disk(volume: Volume, tracking: bool, alone: bool):
    """It takes stuns of its VM, whose other disks and settings stay as they are."""
    lab = volume.lab
    other = {"size": MIB, "mode": "independent_persistent"} if alone else MIB
    vm = lab.create_vm(f"vm-{uuid.uuid4().hex[:8]}", disks=[other], tracking=tracking, power="poweredOn")
    lab.attach_fcd(volume.id, vm["moid"])
    before, others = volume.tracking(), trackings(lab, vm["moid"])[:-1]
    assert volume.reset()["disks"][0]["reset"]
    assert volume.tracking() != before
    assert trackings(lab, vm["moid"])[:-1] == others
    assert lab.snapshots(vm["moid"]) == []
    assert lab.fcd(volume.id)["control_flags"]["enable_changed_block_tracking"]
    found = modules.run("disk_changed_areas", {**lab.module_args(), "moid": vm["moid"]})
    assert found["tracking"]["enabled"] is tracking


def test_the_vm_does_not_reset_what_a_flag_keeps_on(volume: Volume):
    """That is told, and how it is done."""
    lab = volume.lab
    vm = lab.create_vm(f"vm-{uuid.uuid4().hex[:8]}", disks=[MIB], tracking=True, power="poweredOn")["moid"]
    lab.attach_fcd(volume.id, vm)
    before = volume.tracking()
    result = modules.run("disk_changed_areas", {**lab.module_args(), "moid": vm, "tracking": "reset"})
    assert volume.tracking() == before
    assert f"reset the first class disk {volume.id} itself" in result["tracking"]["reason"]


@pytest.mark.parametrize("whose", ["disk", "vm"])
def test_not_above_snapshots(volume: Volume, whose: str):
    lab, before = volume.lab, volume.tracking()
    if whose == "disk":
        lab.fcd_snapshot(volume.id, "cns")
    else:
        vm = lab.create_vm(f"vm-{uuid.uuid4().hex[:8]}", disks=[MIB], power="poweredOn")["moid"]
        lab.attach_fcd(volume.id, vm)
        modules.run("vm_snapshot", {**lab.module_args(), "moid": vm, "snapshot_name": "somebody's"})
        before = volume.tracking()
    result = volume.reset()
    assert (result["changed"], result["disks"][0]["reset"]) == (False, False)
    assert "without snapshots" in result["tracking"]["reason"]
    assert volume.tracking() == before


def test_a_flag_that_the_server_refuses(volume: Volume):
    volume.lab.fault("*ControlFlags", fault="InvalidState", count=0)
    result = volume.reset()
    assert not result["disks"][0]["reset"]
    assert "cannot be switched" in result["tracking"]["reason"]


# the vCenter


def test_the_vcenter_is_told(copies: Copies):
    """The same UUID with and without a snapshot, whatever is asked."""
    copies.look()
    told = {
        copies.run("disk_changed_areas")["vcenter"],
        copies.run("disk_changed_areas", snapshot=copies.snapshots[-1])["vcenter"],
    }
    [vcenter] = told
    assert str(uuid.UUID(vcenter)) == vcenter
