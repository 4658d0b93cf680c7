# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""First class disks as records: from both APIs' objects, and which fit."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd, stamps
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.datastores import Datastore
from pyVmomi import vim, vslm

PLACE = Datastore("datastore-1", "ds1", "ds:///vmfs/volumes/1/")
MADE = datetime(2026, 11, 20, 2, 0, 4, tzinfo=timezone.utc)
STAMP = stamps.Stamp("nightly", "r1")


def disk(name="d", id="i", place=PLACE, **values):
    return fcd.Fcd(id=id, name=name, datastore=place, capacity=1 << 20, **values)


def test_a_disk_from_a_storage_object():
    config = vim.vslm.VStorageObject.ConfigInfo(
        id=vim.vslm.ID(id="i"),
        name="pvc-1",
        createTime=MADE,
        keepAfterDeleteVm=True,
        changedBlockTrackingEnabled=True,
        capacityInMB=64,
        consumerId=[vim.vslm.ID(id="5012fc1f")],
        metadata=[vim.KeyValue(key="owner", value="accounting")],
        backing=vim.vslm.BaseConfigInfo.DiskFileBackingInfo(
            datastore=vim.Datastore("datastore-1"),
            filePath="[ds1] fcd/i.vmdk",
            backingObjectId="",
            provisioningType="thin",
        ),
    )
    found = fcd.from_object(vim.vslm.VStorageObject(config=config), PLACE)
    assert found.tracked
    assert found.identity() == {"id": "i", "name": "pvc-1", "datastore": "ds1", "datastore_moid": "datastore-1"}
    assert found.as_dict() == {
        **found.identity(),
        "capacity": 64 << 20,
        "path": "[ds1] fcd/i.vmdk",
        "backing_object_id": None,
        "provisioning": "thin",
        "create_time": "2026-11-20T02:00:04Z",
        "consumers": ["5012fc1f"],
        "attached_to": None,
        "control_flags": {
            "keep_after_delete_vm": True,
            "disable_relocation": False,
            "enable_changed_block_tracking": True,
        },
        "metadata": {"owner": "accounting"},
        "tags": None,
        "storage_policy": None,
    }


def test_a_raw_device_has_no_provisioning():
    config = vim.vslm.VStorageObject.ConfigInfo(
        id=vim.vslm.ID(id="i"),
        name="r",
        createTime=MADE,
        capacityInMB=1,
        backing=vim.vslm.BaseConfigInfo.RawDiskMappingBackingInfo(
            datastore=vim.Datastore("datastore-1"), filePath="[ds1] r.vmdk", lunUuid="", compatibilityMode=""
        ),
    )
    found = fcd.from_object(vim.vslm.VStorageObject(config=config), PLACE)
    assert (found.path, found.provisioning, found.consumers) == ("[ds1] r.vmdk", None, ())


def test_a_disk_from_a_list_does_not_claim_what_it_does_not_know():
    found = fcd.from_result(
        vslm.vso.VStorageObjectResult(id=vim.vslm.ID(id="i"), name="n", capacityInMB=3, createTime=MADE), PLACE
    )
    assert (found.capacity, found.datastore, found.path) == (3 << 20, PLACE, None)
    record = found.as_dict()
    assert [key for key in ("provisioning", "consumers", "control_flags", "tags") if record[key] is not None] == []
    assert not found.tracked


@pytest.mark.parametrize(
    ("description", "text", "stamp"),
    [("", "", None), ("cns", "cns", None), (stamps.join("mine", STAMP), "mine", STAMP)],
)
def test_a_snapshot_is_ours_by_its_stamp_only(description, text, stamp):
    item = vim.vslm.VStorageObjectSnapshotInfo.VStorageObjectSnapshot(
        id=vim.vslm.ID(id="s"), createTime=MADE, description=description, backingObjectId=""
    )
    found = fcd.from_snapshot(item)
    assert (found.description, found.stamp, found.backing_object_id) == (text, stamp, None)
    assert found.as_dict()["own"] is (stamp is not None)


@pytest.mark.parametrize(
    ("name", "metadata", "wanted"),
    [
        (None, {}, True),
        ("d", {"a": "1"}, True),
        ("D", {}, False),
        (None, {"a": None}, True),
        (None, {"a": "2"}, False),
        (None, {"b": None}, False),
        (None, {"a": "1", "b": "1"}, False),
    ],
)
def test_what_fits(name, metadata, wanted):
    assert fcd.fits(disk(metadata={"a": "1"}), name, metadata) is wanted


def test_two_disks_of_one_name_are_never_chosen_between():
    assert fcd.only([], "named d") is None
    assert fcd.only([disk()], "named d") == disk()
    other = disk(id="j", place=Datastore("datastore-2", "ds0"))
    with pytest.raises(Ambiguous, match="named d") as raised:
        fcd.only([disk(), other], "named d")
    assert [one["datastore"] for one in raised.value.details["candidates"]] == ["ds0", "ds1"]
