# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is concluded from a VM's configuration, with pyVmomi's own objects."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import change_tracking as subject
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import stamps
from pyVmomi import vim

CHANGE_ID = "52 aa-bb/7"


def device(unit=0, change_id=CHANGE_ID, mode="persistent"):
    return vim.vm.device.VirtualDisk(
        key=2000 + unit,
        controllerKey=1000,
        unitNumber=unit,
        capacityInKB=1024,
        capacityInBytes=1 << 20,
        deviceInfo=vim.Description(label=f"Hard disk {unit + 1}", summary=""),
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="[ds] a/b.vmdk", uuid=f"uuid-{unit}", diskMode=mode, changeId=change_id
        ),
    )


def tree(*described):
    nodes = [
        vim.vm.SnapshotTree(
            snapshot=vim.vm.Snapshot(f"snapshot-{number}"),
            vm=vim.VirtualMachine("vm-1"),
            name=name,
            description=description,
            id=number,
            createTime=datetime(2026, 11, 20, tzinfo=timezone.utc),
            state="poweredOff",
            quiesced=False,
            replaySupported=False,
        )
        for number, (name, description) in enumerate(described, 1)
    ]
    return vim.vm.SnapshotInfo(currentSnapshot=nodes[-1].snapshot, rootSnapshotList=nodes)


def inspect(*devices, options=None, **changes):
    controller = vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="noSharing")
    known = {
        "capability.changeTrackingSupported": True,
        "config.changeTrackingEnabled": True,
        "config.extraConfig": [vim.option.OptionValue(key=k, value=v) for k, v in (options or {}).items()],
        "config.hardware.device": [controller, *(devices or [device()])],
        "config.version": "vmx-21",
    }
    given = {path: value for path, value in {**known, **changes}.items() if value is not None}
    return subject.inspect("web01", given)


OWN = stamps.join("", stamps.Stamp(subject.JOB, "r"))
OTHERS = stamps.join("", stamps.Stamp("nightly", "r"))


def test_all_is_well():
    seen = inspect()
    assert seen.as_dict() == {"enabled": True, "active": True, "reason": None}
    assert subject.plan(seen) == subject.Plan(seen, clear=False, switch_on=False, stun=False)
    assert not subject.plan(seen).changes


@pytest.mark.parametrize(
    ("seen", "switch_on", "reason"),
    [
        (inspect(device(change_id=None), **{"config.changeTrackingEnabled": False}), True, "is switched off"),
        (inspect(device(change_id=None), **{"config.changeTrackingEnabled": None}), True, "is switched off"),
        (inspect(device(), **{"config.changeTrackingEnabled": False}), True, "is switched off"),
        (inspect(device(change_id=None)), False, "not tracked yet: Hard disk 1"),
        (inspect(device(), device(1, change_id=None)), False, "not tracked yet: Hard disk 2"),
        (inspect(options={"scsi0:0.ctkEnabled": "FALSE"}), True, "not tracked yet: Hard disk 1"),
        (inspect(options={"SCSI0:0.ctkEnabled": "false"}), True, "not tracked yet: Hard disk 1"),
    ],
)
def test_what_is_missing_is_done(seen, switch_on, reason):
    plan = subject.plan(seen)
    assert (plan.switch_on, plan.stun, plan.changes) == (switch_on, True, True)
    assert seen.reason.endswith(reason)
    assert plan.outcome.as_dict() == {"enabled": True, "active": True, "reason": None}


def test_the_slot_of_the_setting_is_that_of_the_disk():
    seen = inspect(device(), device(1), options={"scsi0:1.ctkEnabled": "FALSE", "scsi0:10.ctkEnabled": "FALSE"})
    assert seen.switched_off == ("scsi0:1",)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"snapshot": tree(("by the user", ""))}, "without snapshots, and there are: by the user"),
        ({"snapshot": tree(("x", OTHERS), ("y", OWN))}, "without snapshots, and there are: x"),
        ({"config.version": "vmx-04"}, "hardware version 4 has no change tracking, 7 and later have"),
        ({"capability.changeTrackingSupported": False}, "does not support change tracking"),
        ({"config.template": True}, "web01 is a template"),
    ],
)
def test_an_obstacle_is_a_reason_and_nothing_is_started(changes, reason):
    seen = inspect(device(change_id=None), **{"config.changeTrackingEnabled": False, **changes})
    plan = subject.plan(seen)
    assert (plan.switch_on, plan.stun) == (False, False)
    assert reason in seen.reason
    assert plan.outcome.reason == seen.reason


def test_an_obstacle_to_starting_does_not_matter_when_all_is_well():
    seen = inspect(snapshot=tree(("by the user", "")))
    assert (seen.active, seen.reason, subject.plan(seen).changes) == (True, None, False)


def test_our_own_leftovers_are_tidied_up_in_any_case():
    seen = inspect(snapshot=tree(("by the user", ""), ("left", OWN)))
    plan = subject.plan(seen)
    assert [snapshot.name for snapshot in seen.leftovers] == ["left"]
    assert (plan.clear, plan.stun, plan.changes) == (True, False, True)


def test_unprotected_disks_are_not_waited_for():
    seen = inspect(device(), device(1, change_id=None, mode="independent_persistent"))
    assert seen.active
