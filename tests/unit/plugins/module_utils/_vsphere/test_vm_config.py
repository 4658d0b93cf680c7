# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The document of a VM's configuration: checked when read, and turned into what vSphere takes."""

from __future__ import annotations

import json

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import extra_config
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import vm_config as subject
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.unit.plugins.module_utils._vsphere.vm_documents import hardware, sample
from hypothesis import given
from pyVmomi.SoapAdapter import SerializeToStr


def config_info(**values):
    """A ConfigInfo with the little that capture needs, and ``values``."""
    hardware_info = vim.vm.VirtualHardware(numCPU=2, memoryMB=1024, device=[])
    return vim.vm.ConfigInfo(name="web01", uuid="b", instanceUuid="i", template=False, hardware=hardware_info, **values)


def test_sample_is_right_and_survives_json():
    assert subject.parse(json.dumps(sample())) == sample()


@given(hardware())
def test_whatever_is_captured_can_be_read(captured):
    subject.parse(json.dumps(sample(**captured, boot_order=[])))


def test_spec_has_the_values_where_vsphere_wants_them():
    spec = subject.config_spec(sample(), {"our.mark": "x"})
    assert (spec.name, spec.instanceUuid, spec.files.vmPathName) == ("web01", sample()["vm"]["instance_uuid"], "[ds1]")
    assert (spec.numCPUs, spec.numCoresPerSocket, spec.memoryMB, spec.cpuHotAddEnabled) == (4, 2, 2048, True)
    assert (spec.firmware, spec.bootOptions.efiSecureBootEnabled, spec.bootOptions.bootDelay) == ("efi", True, 1000)
    assert (spec.cpuAllocation.reservation, spec.cpuAllocation.shares.shares) == (500, 1234)
    assert (spec.latencySensitivity.level, spec.powerOpInfo.powerOffType) == ("high", "soft")
    assert (spec.flags.vbsEnabled, spec.flags.vvtdEnabled, spec.tools.syncTimeWithHost) == (True, True, True)
    assert {option.key: option.value for option in spec.extraConfig} == {"disk.EnableUUID": "TRUE", "our.mark": "x"}
    assert spec.changeTrackingEnabled is False
    SerializeToStr(spec)


def test_spec_asks_for_the_storage_policies():
    document = sample(storage_policy={"name": "gold", "id": "1"}, tags=[{"category": "a", "name": "b", "id": "c"}])
    document["disks"][1]["storage_policy"] = {"name": "silver", "id": "2"}
    document["disks"][2]["storage_policy"] = None
    spec = subject.config_spec(subject.parse(json.dumps(document)), {})
    assert [one.profileId for one in spec.vmProfile] == ["1"]
    disks = [change for change in spec.deviceChange if isinstance(change.device, vim.vm.device.VirtualDisk)]
    assert [[one.profileId for one in change.profile] for change in disks] == [[], ["2"], []]
    assert [change.profile for change in spec.deviceChange if change not in disks] == [[]] * 6
    SerializeToStr(spec)


def test_capture_reads_them_from_where_vsphere_has_them():
    info = config_info(
        firmware="efi",
        bootOptions=vim.vm.BootOptions(
            efiSecureBootEnabled=True, bootOrder=[vim.vm.BootOptions.BootableDiskDevice(deviceKey=2000)]
        ),
        cpuAllocation=vim.ResourceAllocationInfo(reservation=7, shares=vim.SharesInfo(level="custom", shares=9)),
        defaultPowerOps=vim.vm.DefaultPowerOpInfo(powerOffType="soft"),
        flags=vim.vm.FlagInfo(vbsEnabled=True),
        numaInfo=vim.vm.VirtualNumaInfo(autoCoresPerNumaNode=True, coresPerNumaNode=4),
    )
    found = subject.capture(info, {})
    assert found["settings"]["firmware"] == {"type": "efi", "secure_boot": True}
    assert found["settings"]["cpu"] == {"reservation": 7, "shares": 9}
    assert found["settings"]["power"] == {"off": "soft"}
    assert found["settings"]["hardware"]["cores_per_numa_node"] == 0  # chosen by vSphere
    assert found["boot_order"] == [{"type": "disk", "key": 2000}]


@pytest.mark.parametrize("direction", ["info", "spec"])
def test_every_field_names_a_property_that_exists(direction):
    start = {"info": vim.vm.ConfigInfo, "spec": vim.vm.ConfigSpec}[direction]
    for fields in subject.SETTINGS.values():
        for field in fields.values():
            kind = start
            for name in getattr(field, direction).split("."):
                kind = kind._GetPropertyInfo(name).type


def test_names_are_sent_as_vsphere_stores_them():
    document = sample()
    document["vm"]["name"] = "a/b 50%2f"
    assert subject.config_spec(document, {}).name == "a%2fb 50%252f"


def test_shares_of_a_level_are_not_a_number():
    spec = subject.config_spec(sample(settings={"cpu": {"shares": "high"}}), {})
    assert spec.cpuAllocation.shares.level == "high"


def test_boot_order_gets_the_new_keys_and_drops_what_is_gone():
    order = subject.boot_order(sample(), {2016: 3001})
    assert [type(item).__name__.rpartition(".")[2] for item in order] == ["BootableDiskDevice", "BootableCdromDevice"]
    assert order[0].deviceKey == 3001


def test_what_is_not_restored_is_noted():
    info = config_info(
        managedBy=vim.ext.ManagedByInfo(extensionKey="com.example", type="x"),
        keyId=vim.encryption.CryptoKeyId(keyId="k1"),
    )
    found = subject.capture(info, {})
    assert found["encryption"] == {"key_id": "k1", "provider": None}
    lines = " ".join(subject.warnings({**found, "left_out": [{"device": "TPM", "reason": "no keys"}]}))
    assert "com.example" in lines
    assert "encrypted" in lines
    assert "TPM: no keys." in lines


def changed(path, value):
    document = sample()
    *parents, last = path
    inner = document
    for step in parents:
        inner = inner[step]
    inner[last] = value
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ([], "no VM configuration"),
        ({"format": "holdfast.vm_config"}, "lacks version"),
        (changed(["format"], "other"), "no VM configuration"),
        (changed(["version"], 2), "version 2"),
        (changed(["version"], True), "version"),
        (changed(["surprise"], 1), "surprise"),
        (changed(["settings", "hardware", "cpu"], 1), "cpu"),
        (changed(["settings", "hardware", "cpus"], "4"), "config.settings.hardware.cpus must be a whole number"),
        (changed(["settings", "hardware", "cpus"], 0), "from 1"),
        (changed(["vm", "name"], ""), "config.vm.name"),
        (changed(["vm", "name"], "a\x00b"), "control characters"),
        (changed(["disks", 0, "capacity"], -512), "config.disks[0].capacity"),
        (changed(["disks", 0, "capacity"], 1000), "steps of 512"),
        (changed(["disks", 0, "controller_key"], 7), "controller 7"),
        (changed(["disks", 1, "key"], 2000), "keys [2000]"),
        (changed(["disks", 2, "unit"], 3), "unit 3"),
        (changed(["controllers", 1, "type"], "VirtualPCIController"), "config.controllers[1].type"),
        (changed(["controllers", 1, "type"], ["x"]), "config.controllers[1].type"),
        (changed(["controllers", 0, "ehci"], True), "ehci"),
        (changed(["nics", 0, "mac"], "00:50:56:99:00"), "MAC"),
        (changed(["nics", 1, "network"], {"name": "x", "kind": "distributed"}), "portgroup_key"),
        (changed(["nvram"], {"file": "../../etc/passwd", "size": 1, "sha256": ""}), "config.nvram.file"),
        (changed(["extra_config", "guestinfo.userdata"], "x"), "never restored"),
        (changed(["extra_config", "holdfast.backup.restoring"], "x"), "never restored"),
        (changed(["boot_order", 0, "type"], "usb"), "config.boot_order[0].type"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(document, message):
    with pytest.raises(InvalidInput) as caught:
        subject.parse(document)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "key",
    ["scsi0:0.ctkEnabled", "ctkEnabled", "nvram", "vc.uuid", "guestinfo.metadata", "ethernet0.pciSlotNumber",
     "sched.swap.derivedName", "numa.autosize.cookie", "RemoteDisplay.vnc.password", "migrate.hostlog",
     "holdfast.backup.restoring", "vmci0.id", "monitor.phys_bits_used", "my.api.token"],
)  # fmt: skip
def test_settings_of_the_old_vm_are_left_out(key):
    assert not extra_config.is_kept(key)


@pytest.mark.parametrize(
    "key",
    ["disk.EnableUUID", "svga.present", "pciBridge0.present", "isolation.tools.copy.disable", "hpet0.present",
     "tools.guest.desktop.autolock", "sched.mem.pin", "monitor_control.pseudo_perfctr", "snapshot.maxSnapshots"],
)  # fmt: skip
def test_other_settings_are_kept(key):
    assert extra_config.is_kept(key)


def test_names_but_no_values_of_settings_left_out_are_kept():
    options = [
        vim.option.OptionValue(key=key, value=value)
        for key, value in {"guestinfo.userdata": "password: x", "svga.present": "TRUE", "gone": ""}.items()
    ]
    assert extra_config.split(options) == ({"svga.present": "TRUE"}, ["guestinfo.userdata"])
