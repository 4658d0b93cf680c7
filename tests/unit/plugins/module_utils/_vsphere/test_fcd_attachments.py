# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a disk is on a VM, and where there is room for one."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd_attachments
from pyVmomi import vim

DEVICE = vim.vm.device


def controller(kind, key, bus=0, **values):
    return kind(key=key, busNumber=bus, **values)


def scsi(key=1000, bus=0, shared="noSharing"):
    return controller(DEVICE.ParaVirtualSCSIController, key, bus, sharedBus=shared)


def disk(key, controller_key, unit, fcd=None):
    return DEVICE.VirtualDisk(
        key=key,
        controllerKey=controller_key,
        unitNumber=unit,
        capacityInKB=1024,
        backing=DEVICE.VirtualDisk.FlatVer2BackingInfo(fileName="[ds] a.vmdk", diskMode="persistent"),
        vDiskId=vim.vslm.ID(id=fcd) if fcd else None,
    )


def full(controller_key, units):
    return [disk(2000 + unit, controller_key, unit) for unit in units]


SATA = controller(DEVICE.VirtualAHCIController, 15000)
NVME = controller(DEVICE.VirtualNVMEController, 31000, bus=1)
IDE = controller(DEVICE.VirtualIDEController, 200)


@pytest.mark.parametrize(
    ("devices", "wish", "wanted"),
    [
        ([scsi()], None, (1000, 0, "scsi0:0")),
        ([IDE, SATA, NVME, scsi()], None, (1000, 0, "scsi0:0")),
        ([IDE, SATA, NVME], None, (31000, 0, "nvme1:0")),
        ([scsi(), *full(1000, range(7))], None, (1000, 8, "scsi0:8")),
        ([scsi(), *full(1000, range(16)), SATA], None, (15000, 0, "sata0:0")),
        ([scsi(shared="virtualSharing"), scsi(1001, 1)], None, (1001, 0, "scsi1:0")),
        ([scsi(shared="virtualSharing"), scsi(1001, 1)], "scsi0", (1000, 0, "scsi0:0")),
        ([scsi(), *full(1000, [0])], "scsi0", (1000, 1, "scsi0:1")),
        ([scsi(), NVME], "nvme1:3", (31000, 3, "nvme1:3")),
        ([scsi()], "scsi0:33", (1000, 33, "scsi0:33")),
    ],
)
def test_a_place_that_is_free(devices, wish, wanted):
    assert fcd_attachments.choose_slot(devices, wish) == wanted


@pytest.mark.parametrize("wish", ["scsi0:0", "scsi0:7", "scsi0"])
def test_a_place_that_is_taken(wish):
    with pytest.raises(InvalidInput, match=f"{wish}.*is taken"):
        fcd_attachments.choose_slot([scsi(), *full(1000, range(16))], wish)


@pytest.mark.parametrize("wish", ["scsi1:0", "ide0:0", "scsi0:x", "", "floppy"])
def test_a_place_that_does_not_exist(wish):
    with pytest.raises(InvalidInput, match="It has scsi0"):
        fcd_attachments.choose_slot([IDE, scsi()], wish)


@pytest.mark.parametrize("devices", [[], [IDE], [scsi(), *full(1000, range(16))]])
def test_no_place_at_all(devices):
    with pytest.raises(NotSupported, match="Add a SCSI"):
        fcd_attachments.choose_slot(devices, None)


def test_where_a_disk_is_attached():
    devices = [scsi(), disk(2000, 1000, 0), disk(2001, 1000, 3, fcd="i")]
    properties = {"name": "web%2f01", "config.instanceUuid": "5012", fcd_attachments.DEVICES: devices}
    vm = vim.VirtualMachine("vm-42")
    expected = {"name": "web/01", "moid": "vm-42", "instance_uuid": "5012"}
    assert fcd_attachments.attachment(vm, properties, "i") == {"vm": expected, "key": 2001, "controller": "scsi0:3"}
    assert fcd_attachments.attachment(vm, properties, "j") == {"vm": expected, "key": None, "controller": None}
