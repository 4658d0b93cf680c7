# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is concluded from a VM's configuration, with pyVmomi's own objects."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import change_tracking as subject
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import stamps
from hypothesis import given
from hypothesis import strategies as st
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
        "config.hardware.device": [controller, *(devices or (device(),))],
        "config.version": "vmx-21",
    }
    given = {path: value for path, value in {**known, **changes}.items() if value is not None}
    return subject.inspect("web01", given)


OWN = stamps.join("", stamps.Stamp(subject.JOB, "r"))
OTHERS = stamps.join("", stamps.Stamp("nightly", "r"))
OFF = {"config.changeTrackingEnabled": False}


def test_all_is_well():
    seen = inspect()
    assert seen.as_dict() == {"enabled": True, "active": True, "reason": None}
    plan = subject.plan(seen, "enabled")
    assert (plan.steps, plan.changes, plan.outcome) == ((), False, seen)


@pytest.mark.parametrize(
    ("seen", "settings", "reason"),
    [
        (inspect(device(change_id=None), **OFF), True, "is switched off"),
        (inspect(device(change_id=None), **{"config.changeTrackingEnabled": None}), True, "is switched off"),
        (inspect(device(), **OFF), True, "is switched off"),
        (inspect(device(change_id=None)), False, "not tracked yet: Hard disk 1"),
        (inspect(device(), device(1, change_id=None)), False, "not tracked yet: Hard disk 2"),
        (inspect(options={"scsi0:0.ctkEnabled": "FALSE"}), True, "not tracked yet: Hard disk 1"),
        (inspect(options={"SCSI0:0.ctkEnabled": "false"}), True, "not tracked yet: Hard disk 1"),
    ],
)
def test_what_is_missing_is_done(seen, settings, reason):
    plan = subject.plan(seen, "enabled")
    [step] = plan.steps
    assert (step.on, step.settings, step.stun, plan.changes) == (True, settings, True, True)
    assert seen.reason.endswith(reason)
    assert plan.outcome.as_dict() == {"enabled": True, "active": True, "reason": None}


def test_the_slot_of_the_setting_is_that_of_the_disk():
    seen = inspect(device(), device(1), options={"scsi0:1.ctkEnabled": "FALSE", "scsi0:10.ctkEnabled": "FALSE"})
    assert seen.left_out == {"scsi0:1"}


BLOCKED = pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"snapshot": tree(("by the user", ""))}, "without snapshots, and there are: by the user"),
        ({"snapshot": tree(("x", OTHERS), ("y", OWN))}, "without snapshots, and there are: x"),
        ({"config.version": "vmx-04"}, "hardware version 4 has no change tracking, 7 and later have"),
        ({"capability.changeTrackingSupported": False}, "does not support change tracking"),
        ({"config.template": True}, "web01 is a template"),
    ],
)


@BLOCKED
@pytest.mark.parametrize("state", ["enabled", "disabled", "reset"])
def test_an_obstacle_is_a_reason_and_nothing_is_started(changes, reason, state):
    seen = inspect(device(change_id=None if state == "enabled" else CHANGE_ID), **{**OFF, **changes})
    plan = subject.plan(seen, state)
    assert reason in plan.blocked
    assert (bool(plan.steps), plan.todo, plan.stuns, plan.lost) == (True, (), False, frozenset())
    assert reason in seen.reason
    assert plan.outcome.reason == seen.reason


def test_snapshots_of_others_are_an_obstacle_unless_told():
    seen = inspect(device(change_id=None), snapshot=tree(("by the user", "")))
    assert subject.plan(seen, "enabled", above=True).outcome.active
    old = inspect(device(change_id=None), snapshot=tree(("x", "")), **{"config.version": "vmx-04"})
    assert "hardware" in subject.plan(old, "enabled", above=True).blocked


def test_an_obstacle_to_starting_does_not_matter_when_all_is_well():
    seen = inspect(snapshot=tree(("by the user", "")))
    assert (seen.active, seen.reason, subject.plan(seen, "enabled").changes) == (True, None, False)


def test_our_own_leftovers_are_tidied_up_in_any_case():
    seen = inspect(snapshot=tree(("by the user", ""), ("left", OWN)))
    plan = subject.plan(seen, "enabled")
    assert [snapshot.name for snapshot in seen.leftovers] == ["left"]
    assert (plan.steps, plan.changes, plan.outcome.leftovers) == ((), True, ())


def test_unprotected_disks_are_not_waited_for():
    seen = inspect(device(), device(1, change_id=None, mode="independent_persistent"))
    assert seen.active


def test_the_whole_machine_is_switched_by_its_own_setting():
    seen = inspect(device(), device(1))
    [off] = subject.plan(seen, "disabled").steps
    assert off == subject.Step(on=False, enabled=False, slots={}, settings=True, stun=True)
    assert subject.plan(seen, "reset").steps == (
        off,
        subject.Step(on=True, enabled=True, slots={}, settings=True, stun=True),
    )


def test_what_was_not_tracked_need_not_end():
    [step] = subject.plan(inspect(device(change_id=None)), "reset").steps
    assert step == subject.Step(on=True, enabled=True, slots={}, settings=False, stun=True)


def test_single_disks_are_switched_by_theirs():
    seen = inspect(device(), device(1))
    assert subject.plan(seen, "reset", [2001]).steps == (
        subject.Step(on=False, enabled=True, slots={"scsi0:1": False}, settings=True, stun=True),
        subject.Step(on=True, enabled=True, slots={"scsi0:1": True}, settings=True, stun=True),
    )
    seen = inspect(device(change_id=None), device(1, change_id=None), **OFF)
    [on] = subject.plan(seen, "enabled", [2001]).steps
    assert on == subject.Step(on=True, enabled=True, slots={"scsi0:0": False}, settings=True, stun=True)


machines = st.builds(
    lambda enabled, disks, kept: replace(
        inspect(
            *(device(n, CHANGE_ID if on else None, mode) for n, (on, _left_out, mode) in enumerate(disks)),
            options={f"scsi0:{n}.ctkEnabled": "FALSE" for n, (_on, left_out, _mode) in enumerate(disks) if left_out},
            **{"config.changeTrackingEnabled": enabled},
        ),
        kept=frozenset(2000 + n for n in kept if n < len(disks) and disks[n][0]),
    ),
    st.booleans(),
    st.lists(
        st.tuples(
            st.booleans(), st.booleans(), st.sampled_from(["persistent", "persistent", "independent_persistent"])
        ),
        min_size=1,
        max_size=4,
    ),
    st.sets(st.integers(0, 3), max_size=1),
)


@given(machines, st.sampled_from(["enabled", "disabled", "reset"]), st.none() | st.sets(st.integers(2000, 2003)))
def test_whatever_was_the_disks_meant_come_into_the_state_and_the_others_keep_theirs(before, state, keys):
    plan = subject.plan(before, state, keys)
    after = plan.outcome
    for disk in before.protected:
        if disk.key in before.kept:
            assert after.tracks(disk)
        elif disk.key in plan.meant:
            assert after.tracks(disk) is (state != "disabled")
            assert disk.key in after.recorded or state == "disabled"
        elif plan.stuns:
            # What the settings said all the time comes true with the stun.
            assert after.tracks(disk) is before.wants(disk)
        else:
            assert after.tracks(disk) is before.tracks(disk)
    if state != "reset":
        assert subject.plan(after, state, keys).steps == ()
    assert plan.missed(after) is None
