# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests of vm_config share: VMs made and seen without the module."""

from __future__ import annotations

import copy
import itertools
import json
from contextlib import contextmanager
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_unfinished import Mark

MIB = 1 << 20
NVRAM = bytes(range(256)) * 300
MARK = "holdfast.backup.restoring"
dev = vim.vm.device
Ethernet = dev.VirtualEthernetCard


def add(device, **values):
    return dev.VirtualDeviceSpec(operation="add", device=device, **values)


def disk(key, controller, unit, size, **backing):
    values = {"fileName": "[LocalDS_0]", "diskMode": "persistent", **backing}
    return add(
        dev.VirtualDisk(
            key=key, controllerKey=controller, unitNumber=unit, capacityInKB=size // 1024, capacityInBytes=size,
            backing=dev.VirtualDisk.FlatVer2BackingInfo(**values),
        ),
        fileOperation="create",
    )  # fmt: skip


class Vcenter:
    """What the tests do and see by a session of their own."""

    def __init__(self, c, root):
        self.c, self.root = c, root
        self.datacenter = c.content.rootFolder.childEntity[0]
        self.pool = self.datacenter.hostFolder.childEntity[-1].resourcePool
        groups = [one for one in self.datacenter.network if isinstance(one, vim.dvs.DistributedVirtualPortgroup)]
        self.group = next(one for one in groups if "Uplinks" not in one.name)

    def wait(self, task):
        return tasks.wait(self.c, task, timeout=300)

    def make(self, name, *devices, **values):
        files = vim.vm.FileInfo(vmPathName="[LocalDS_0]")
        spec = vim.vm.ConfigSpec(
            name=name, guestId="otherLinux64Guest", version="vmx-19", numCPUs=4, numCoresPerSocket=2, memoryMB=512,
            files=files, deviceChange=list(devices), **values,
        )  # fmt: skip
        return self.wait(self.datacenter.vmFolder.CreateVM_Task(spec, self.pool))

    def find(self, name, folder="DC0/vm"):
        return self.c.content.searchIndex.FindByInventoryPath(f"{folder}/{name}")

    def reconfigure(self, vm, **values):
        self.wait(vm.ReconfigVM_Task(vim.vm.ConfigSpec(**values)))

    def mark(self, vm, mark):
        options = [vim.option.OptionValue(key=key, value=value) for key, value in mark.setting().items()]
        self.reconfigure(vm, extraConfig=options)

    def marked(self, vm):
        return Mark.of({"config.extraConfig": vm.config.extraConfig, "config.instanceUuid": vm.config.instanceUuid})

    def setting(self, vm, key):
        return next((option.value for option in vm.config.extraConfig if option.key == key), None)

    def inventory(self):
        """Everything that a module could have changed: VMs with their settings, and the files they have."""
        found = {}
        for vm in self.datacenter.vmFolder.childEntity:
            if isinstance(vm, vim.VirtualMachine):
                config: Any = vm.config
                found[vm._GetMoId()] = (vm.name, vm.runtime.powerState, config.changeVersion, config.extraConfig)
        return repr(found), sorted(str(path) for path in self.root.rglob("*"))


def nvram(lab, name):
    """The VM's NVRAM file on the lab's datastore."""
    return next(lab.root.rglob(f"{name}.nvram"))


def warned(result):
    return json.dumps(result.get("warnings"))


def positions(items, order):
    keys = [item["key"] for item in items]
    return [keys.index(item["key"]) for item in order if item.get("key") in keys]


def comparable(document):
    """What must be the same in the VM that was made again; keys, UUIDs and paths may differ."""
    document = copy.deepcopy(document)
    controllers = {item["key"]: (item["type"], item["bus"]) for item in document["controllers"]}
    document["boot_order"] = [
        [item["type"] for item in document["boot_order"]],
        positions(document["disks"], document["boot_order"]),
        positions(document["nics"], document["boot_order"]),
    ]
    for item in (*document["disks"], *document["drives"]):
        item["controller"] = controllers[item.pop("controller_key")]
    for item in itertools.chain(*(document[group] for group in ("controllers", "disks", "nics", "drives"))):
        for key in ("key", "label", "backing_uuid", "path", "used"):
            item.pop(key, None)
    for key in ("captured_at", "source", "vm", "extra_config_left_out", "video", "left_out"):
        document.pop(key, None)
    document["placement"].pop("host")
    return document


@contextmanager
def unchanged(vcenter):
    before = vcenter.inventory()
    yield
    assert vcenter.inventory() == before
