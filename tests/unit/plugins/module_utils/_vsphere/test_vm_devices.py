# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Devices to records and back: what is captured is what is made."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import device_specs as specs
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import vm_devices as subject
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.unit.plugins.module_utils._vsphere.vm_documents import hardware, sample
from hypothesis import given
from pyVmomi.SoapAdapter import SerializeToStr

dev = vim.vm.device
Ethernet = dev.VirtualEthernetCard


def ide(bus):
    return dev.VirtualIDEController(key=200 + bus, busNumber=bus)


def made(changes):
    """The devices that vSphere would make: those of the specs with their old keys, and the default ones."""
    devices = [change.device for change in changes]
    for device in devices:
        device.key = -1 - device.key if device.key < 0 else device.key
        if device.controllerKey is not None and device.controllerKey < 0:
            device.controllerKey = -1 - device.controllerKey
    defaults = [ide(0), ide(1), dev.VirtualPCIController(key=100, busNumber=0), dev.VirtualKeyboard(key=600)]
    return [*defaults, *devices]


def without_reasons(found):
    for disk in found["disks"]:
        disk.pop("reason")
    return found


@given(hardware())
def test_what_is_made_is_what_was_captured(captured):
    again = subject.read(made(specs.specs(captured, keep_uuids=True)), {})
    assert without_reasons(again) == captured


@given(hardware())
def test_every_spec_can_be_sent(captured):
    for change in specs.specs(captured):
        SerializeToStr(change)  # raises where a required property is missing


@given(hardware())
def test_keys_in_one_call_are_unique_and_resolve(captured):
    devices = [change.device for change in specs.specs(captured)]
    keys = [device.key for device in devices]
    assert len(set(keys)) == len(keys)
    for device in devices:
        assert device.controllerKey is None or device.controllerKey in {*keys, 200, 201, 400}


def test_disks_are_new_empty_and_have_their_size_in_bytes():
    change = next(one for one in specs.specs(sample()) if isinstance(one.device, dev.VirtualDisk))
    assert (change.operation, change.fileOperation) == ("add", "create")
    assert change.device.capacityInBytes == 1 << 30
    assert (change.device.backing.fileName, change.device.backing.uuid) == ("[ds1]", None)


def test_adapters_are_made_in_the_order_of_their_keys():
    document = sample()
    document["nics"].reverse()
    nics = [one.device for one in specs.specs(document) if isinstance(one.device, Ethernet)]
    assert [type(nic).__name__.rpartition(".")[2] for nic in nics] == ["VirtualVmxnet3", "VirtualE1000e"]
    assert isinstance(nics[1].backing, Ethernet.DistributedVirtualPortBackingInfo)


def test_a_port_group_gets_its_name():
    port = vim.dvs.PortConnection(portgroupKey="dvportgroup-7", switchUuid="50 1a", portKey="12", connectionCookie=3)
    nic = dev.VirtualVmxnet3(key=4000, backing=Ethernet.DistributedVirtualPortBackingInfo(port=port))
    found = subject.read([nic], {"dvportgroup-7": "front"})["nics"][0]["network"]
    assert found == {"name": "front", "kind": "distributed", "portgroup_key": "dvportgroup-7", "switch_uuid": "50 1a"}


def test_provisioning_is_that_of_the_first_file_of_a_chain():
    base = dev.VirtualDisk.FlatVer2BackingInfo(fileName="[ds] a.vmdk", diskMode="persistent", eagerlyScrub=True)
    delta = dev.VirtualDisk.FlatVer2BackingInfo(
        fileName="[ds] a-000001.vmdk", diskMode="persistent", thinProvisioned=True, parent=base
    )
    disk = dev.VirtualDisk(key=2000, controllerKey=200, unitNumber=0, capacityInKB=4, backing=delta)
    assert subject.read([ide(0), disk], {})["disks"][0]["provisioning"] == "eager_zeroed"


def test_a_raw_device_and_an_encrypted_disk_are_recorded():
    rdm = dev.VirtualDisk(
        key=2000, controllerKey=200, unitNumber=0, capacityInKB=4,
        backing=dev.VirtualDisk.RawDiskMappingVer1BackingInfo(fileName="", compatibilityMode="physicalMode"),
    )  # fmt: skip
    key = vim.encryption.CryptoKeyId(keyId="k1", providerId=vim.encryption.KeyProviderId(id="kms"))
    flat = dev.VirtualDisk(
        key=2001, controllerKey=200, unitNumber=1, capacityInKB=4,
        backing=dev.VirtualDisk.FlatVer2BackingInfo(fileName="[ds] a.vmdk", diskMode="persistent", keyId=key),
    )  # fmt: skip
    raw, encrypted = subject.read([ide(0), rdm, flat], {})["disks"]
    assert (raw["protected"], raw["reason"][:10], "datastore" in raw) == (False, "raw device", False)
    assert encrypted["encryption"] == {"key_id": "k1", "provider": "kms"}


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (dev.VirtualTPM(key=11000), "recovery keys"),
        (dev.VirtualSerialPort(key=9000), "one host"),
        (dev.VirtualPCIPassthrough(key=13000), "device of one host"),
        (dev.VirtualUSB(key=9500, connected=True), "plugged into"),
        (dev.VirtualSriovEthernetCard(key=4000), "device of one host"),
        (dev.VirtualEnsoniq1371(key=9600), "VirtualEnsoniq1371"),
    ],
)
def test_host_bound_devices_are_left_out_with_a_reason(device, reason):
    device.deviceInfo = vim.Description(label="The device", summary="")
    left_out = subject.read([device], {})["left_out"]
    assert [item["device"] for item in left_out] == ["The device"]
    assert reason in left_out[0]["reason"]


def test_a_drive_with_a_medium_is_made_again_without_it():
    cdrom = dev.VirtualCdrom(key=3000, controllerKey=200, unitNumber=0)
    cdrom.backing = dev.VirtualCdrom.IsoBackingInfo(fileName="[ds] iso/install.iso")
    found = subject.read([ide(0), cdrom], {})
    assert [item["type"] for item in found["drives"]] == ["VirtualCdrom"]
    assert "[ds] iso/install.iso" in found["left_out"][0]["reason"]
    again = next(one.device for one in specs.specs({**found, "left_out": []}) if one.device.unitNumber == 0)
    assert isinstance(again.backing, dev.VirtualCdrom.RemotePassthroughBackingInfo)
    assert not again.connectable.startConnected


def test_slots_find_a_disk_by_its_place():
    found = specs.slots(sample())
    assert found["VirtualLsiLogicController", 1, 3]["backing_uuid"] == "6000C29b"


def test_default_network_resources_are_not_asked_for():
    allocation = Ethernet.ResourceAllocation(reservation=0, limit=-1, share=vim.SharesInfo(level="normal", shares=50))
    backing = Ethernet.NetworkBackingInfo(deviceName="front")
    nic = dev.VirtualVmxnet3(key=4000, backing=backing, resourceAllocation=allocation)
    assert "shares" not in subject.read([nic], {})["nics"][0]
    nic.resourceAllocation.reservation = 7
    assert subject.read([nic], {})["nics"][0]["reservation"] == 7
