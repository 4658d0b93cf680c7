# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disk records from pyVmomi's own device objects."""

from __future__ import annotations

import json

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import disks
from pyVmomi import vim

DEVICE = vim.vm.device
BACKINGS = DEVICE.VirtualDisk
UUID = "6000C295-ab9c-4d2f-9a50-3f5a1c0e7d11"


def controller(kind=DEVICE.ParaVirtualSCSIController, key=1000, bus=0, **fields):
    if issubclass(kind, DEVICE.VirtualSCSIController):
        fields.setdefault("sharedBus", "noSharing")
    return kind(key=key, busNumber=bus, **fields)


def flat(**fields):
    known = {
        "fileName": "[ds] vm/vm.vmdk",
        "diskMode": "persistent",
        "uuid": UUID,
        "thinProvisioned": True,
        "sharing": "sharingNone",
        "changeId": "52 de/3",
    }
    return BACKINGS.FlatVer2BackingInfo(**{**known, **fields})


def rdm(mode, **fields):
    return BACKINGS.RawDiskMappingVer1BackingInfo(
        fileName="[ds] vm/rdm.vmdk", compatibilityMode=mode, diskMode="persistent", uuid=UUID, **fields
    )


def device(backing, key=2000, unit=0, controller_key=1000, label="Hard disk 1", **fields):
    known = {
        "capacityInBytes": 1 << 30,
        "capacityInKB": 1 << 20,
        "deviceInfo": vim.Description(label=label, summary=""),
    }
    return BACKINGS(key=key, unitNumber=unit, controllerKey=controller_key, backing=backing, **{**known, **fields})


def only(backing, *others, **fields):
    (disk,) = disks.from_devices([*(others or [controller()]), device(backing, **fields)])
    return disk


def test_a_disk_that_is_a_first_class_disk():
    assert only(flat(), vDiskId=vim.vslm.ID(id="1ec1b4a8")).fcd_id == "1ec1b4a8"
    assert only(flat(), vDiskId=vim.vslm.ID(id="")).fcd_id is None


def test_an_ordinary_disk():
    record = only(flat(), unit=1).as_dict()
    assert record == {
        "key": 2000,
        "label": "Hard disk 1",
        "backing_uuid": UUID,
        "capacity": 1 << 30,
        "path": "[ds] vm/vm.vmdk",
        "change_id": "52 de/3",
        "controller": "scsi0:1",
        "mode": "persistent",
        "backing": "flat_v2",
        "thin": True,
        "sharing": "sharingNone",
        "protected": True,
        "reason": None,
        "fcd_id": None,
    }
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("backing", "others", "kind", "words"),
    [
        (flat(diskMode="independent_persistent"), (), "flat_v2", "independent"),
        (flat(diskMode="independent_nonpersistent"), (), "flat_v2", "independent"),
        (flat(diskMode="nonpersistent"), (), "flat_v2", "mode nonpersistent"),
        (rdm("physicalMode"), (), "rdm_physical", "physical compatibility"),
        (flat(sharing="sharingMultiWriter"), (), "flat_v2", "sharingMultiWriter"),
        (flat(), (controller(sharedBus="physicalSharing"),), "flat_v2", "physicalSharing"),
        (flat(), (controller(sharedBus="virtualSharing"),), "flat_v2", "virtualSharing"),
        (BACKINGS.LocalPMemBackingInfo(fileName="", diskMode="persistent"), (), "pmem", "pmem"),
        (BACKINGS.RawDiskVer2BackingInfo(deviceName="d", descriptorFileName="f"), (), "raw_disk", "raw_disk"),
        (
            BACKINGS.PartitionedRawDiskVer2BackingInfo(deviceName="d", descriptorFileName="f"),
            (),
            "raw_partition",
            "raw_partition",
        ),
        (DEVICE.VirtualDevice.RemoteDeviceBackingInfo(deviceName="new"), (), "unknown", "RemoteDeviceBackingInfo"),
    ],
)
def test_disks_that_no_snapshot_holds(backing, others, kind, words):
    disk = only(backing, *others)
    assert (disk.backing, disk.protected) == (kind, False)
    assert words in disk.reason


@pytest.mark.parametrize(
    ("backing", "kind"),
    [
        (BACKINGS.SeSparseBackingInfo(fileName="f", diskMode="persistent", uuid=UUID, changeId="52/1"), "sesparse"),
        (BACKINGS.SparseVer2BackingInfo(fileName="f", diskMode="persistent"), "sparse_v2"),
        (rdm("virtualMode", sharing="sharingNone", changeId="52/1"), "rdm_virtual"),
    ],
)
def test_other_disks_that_snapshots_hold(backing, kind):
    disk = only(backing)
    assert (disk.backing, disk.protected) == (kind, True)


def test_a_virtual_raw_device_is_protected_and_says_what_it_becomes():
    assert "ordinary disk" in only(rdm("virtualMode")).reason


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (DEVICE.VirtualLsiLogicSASController, "scsi2:5"),
        (DEVICE.VirtualAHCIController, "sata2:5"),
        (DEVICE.VirtualNVMEController, "nvme2:5"),
        (DEVICE.VirtualIDEController, "ide2:5"),
    ],
)
def test_the_place_of_a_disk(kind, place):
    assert only(flat(), controller(kind, bus=2), unit=5).controller == place


def test_fields_that_old_servers_leave_unset():
    disk = only(flat(uuid=None, changeId="", sharing=None), capacityInBytes=None, deviceInfo=None)
    assert (disk.backing_uuid, disk.change_id, disk.sharing, disk.capacity) == (None, None, None, 1 << 30)
    assert disk.label == "disk 2000"


def test_a_disk_without_its_controller_is_listed_all_the_same():
    assert [disk.controller for disk in disks.from_devices([device(flat(), unit=3)])] == ["unknown:3"]


def test_only_disks_are_taken_in_the_order_of_their_keys():
    others = [DEVICE.VirtualCdrom(key=3000), DEVICE.VirtualVmxnet3(key=4000), controller()]
    found = disks.from_devices([device(flat(), key=2001), *others, device(flat(), key=2000)])
    assert [disk.key for disk in found] == [2000, 2001]


def test_what_keeps_a_machine_from_having_snapshots():
    shared = device(flat(sharing="sharingMultiWriter"), label="shared")
    assert disks.snapshot_obstacles([controller(), shared]) == [
        "shared: shared between virtual machines (sharingMultiWriter), which forbids snapshots"
    ]
    on_bus = [controller(sharedBus="physicalSharing"), device(flat(diskMode="independent_persistent"), label="quorum")]
    assert len(disks.snapshot_obstacles(on_bus)) == 1
    left_out = device(flat(sharing="sharingMultiWriter", diskMode="independent_persistent"))
    assert disks.snapshot_obstacles([controller(), left_out, device(rdm("physicalMode"), key=2001)]) == []


TWO = [
    *disks.from_devices([controller(), device(flat(uuid="aa-1"), key=2000, label="Hard disk 1")]),
    *disks.from_devices([controller(), device(flat(uuid="bb-2"), key=2001, label="Hard disk 2")]),
]


@pytest.mark.parametrize("selector", [2001, "2001", "Hard disk 2", "hard disk 2", "bb-2", "BB-2"])
def test_pick(selector):
    assert disks.pick(TWO, selector).key == 2001


def test_pick_says_what_there_is():
    with pytest.raises(NotFound, match=r"There is no disk 2002\..*Hard disk 1 \(key 2000, aa-1\)"):
        disks.pick(TWO, 2002)
    with pytest.raises(NotFound):
        disks.pick(TWO, "")


def test_pick_refuses_to_guess():
    twins = disks.from_devices([device(flat(), key=1, label="x"), device(flat(), key=2, label="x")])
    with pytest.raises(Ambiguous) as caught:
        disks.pick(twins, "x")
    assert [candidate["key"] for candidate in caught.value.details["candidates"]] == [1, 2]
