# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the tests of vm_config."""

from __future__ import annotations

import itertools

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.integration.vm_config.support import (
    MIB,
    NVRAM,
    Ethernet,
    Vcenter,
    add,
    dev,
    disk,
    nvram,
)

_names = (f"vmcfg{number}" for number in itertools.count())


@pytest.fixture
def vcenter(lab):
    options = lab.module_args()
    with Connection(Endpoint(**options)) as c:
        yield Vcenter(c, lab.root)
    lab.clear_faults()


@pytest.fixture
def name():
    return next(_names)


@pytest.fixture
def original(vcenter, lab, name):
    """An EFI VM with all that is worth keeping: NVRAM, four kinds of controllers, two kinds of networks."""
    port = vim.dvs.PortConnection(
        portgroupKey=vcenter.group.key, switchUuid=vcenter.group.config.distributedVirtualSwitch.uuid
    )
    client = dev.VirtualCdrom.RemotePassthroughBackingInfo(deviceName="", exclusive=False)
    vm = vcenter.make(
        name,
        add(dev.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")),
        add(dev.VirtualLsiLogicController(key=-2, busNumber=1, sharedBus="noSharing")),
        add(dev.VirtualAHCIController(key=-3, busNumber=0)),
        add(dev.VirtualNVMEController(key=-4, busNumber=0)),
        disk(-10, -1, 0, 64 * MIB, thinProvisioned=True),
        disk(-11, -2, 5, 32 * MIB, eagerlyScrub=True, thinProvisioned=False),
        disk(-12, -4, 0, 16 * MIB + 512 * 2, thinProvisioned=False),
        disk(-13, -1, 1, 8 * MIB, diskMode="independent_persistent"),
        add(dev.VirtualVmxnet3(key=-20, addressType="manual", macAddress="00:50:56:01:02:03", wakeOnLanEnabled=True,
                               backing=Ethernet.NetworkBackingInfo(deviceName="VM Network"))),
        add(dev.VirtualE1000e(key=-21, addressType="manual", macAddress="00:50:56:01:02:04",
                              backing=Ethernet.DistributedVirtualPortBackingInfo(port=port))),
        add(dev.VirtualCdrom(key=-30, controllerKey=-3, unitNumber=0, backing=client)),
        firmware="efi",
        annotation="line 1\nline 2",
        bootOptions=vim.vm.BootOptions(efiSecureBootEnabled=True, bootDelay=1500),
        cpuAllocation=vim.ResourceAllocationInfo(
            reservation=100, limit=-1, expandableReservation=False, shares=vim.SharesInfo(level="custom", shares=777)
        ),
        extraConfig=[vim.option.OptionValue(key="disk.EnableUUID", value="TRUE"),
                     vim.option.OptionValue(key="guestinfo.userdata", value="password: x")],
    )  # fmt: skip
    keys = {type(device): device.key for device in vm.config.hardware.device}
    options = vm.config.bootOptions
    options.bootOrder = [
        vim.vm.BootOptions.BootableEthernetDevice(deviceKey=keys[dev.VirtualE1000e]),
        vim.vm.BootOptions.BootableDiskDevice(deviceKey=keys[dev.VirtualDisk]),
    ]
    vcenter.reconfigure(vm, bootOptions=options)
    nvram(lab, name).write_bytes(NVRAM)
    return vm


@pytest.fixture
def config(run_module, lab, vcenter, tmp_path):
    """Runs vm_config with the lab's options; ``config(state=..., ...)``."""

    def run(state, check=False, fail=False, **options):
        if state == "captured":
            options.setdefault("path", str(tmp_path))
        if state == "present":
            options = {"config": str(tmp_path / "config.json"), "restore_id": "point 1", **options}
        return run_module("vm_config", {**lab.module_args(), "state": state, **options}, check=check, fail=fail)

    return run
