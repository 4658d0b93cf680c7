# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's storage policies of VMs: what its SPBM tells of them, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import pbm, vim, vmodl

VSAN, VVOL = "vSAN Default Storage Policy", "VVol No Requirements Policy"
Device = vim.vm.device


class Service:
    """The policy service, and a VM whose home has a policy, whose first disk has another, and whose second has none."""

    def __init__(self, lab: Any, c: Connection) -> None:
        self.lab, self.c = lab, c
        stub = c.beside("/pbm", "pbm")
        self.profiles = pbm.ServiceInstance("ServiceInstance", stub).RetrieveContent().profileManager
        kind = pbm.profile.ResourceType(resourceType="STORAGE")
        known = self.profiles.RetrieveContent(self.profiles.QueryProfile(kind, "REQUIREMENT"))
        self.ids = {one.name: one.profileId.uniqueId for one in known}
        made = lab.create_vm("governed", disks=[{"size": 1 << 20, "policy": VVOL}, 1 << 20], policy=VSAN)
        self.moid, self.keys = made["moid"], [disk["key"] for disk in made["disks"]]
        self.vm = vim.VirtualMachine(self.moid, c.stub)

    def ask(self, *objects: tuple[str, str]) -> list[Any]:
        return self.profiles.QueryAssociatedProfiles([pbm.ServerObjectRef(objectType=o, key=k) for o, k in objects])

    def told(self) -> list[str | None]:
        """The IDs of the policies of the home and the disks."""
        disks = [("virtualDiskId", f"{self.moid}:{key}") for key in self.keys]
        answers = self.ask(("virtualMachine", self.moid), *disks)
        return [one.profileId[0].uniqueId if one.profileId else None for one in answers]

    def reconfigure(self, **values: Any) -> None:
        tasks.wait(self.c, self.vm.ReconfigVM_Task(vim.vm.ConfigSpec(**values)), timeout=30)

    def device(self, kind: Any) -> Any:
        return next(one for one in self.vm.config.hardware.device if isinstance(one, kind))


@pytest.fixture
def service(lab):
    with Connection(Endpoint(**lab.module_args())) as c:
        yield Service(lab, c)
    lab.call("destroy_vm", vm=lab.call("vms")[-1]["moid"])


def profile(policy: str) -> list[Any]:
    return [vim.vm.DefinedProfileSpec(profileId=policy)]


def test_home_and_disks_have_policies_that_change(service: Service):
    vsan, vvol = service.ids[VSAN], service.ids[VVOL]
    assert service.told() == [vsan, vvol, None]
    disk = service.device(Device.VirtualDisk)
    edit = Device.VirtualDeviceSpec(operation="edit", device=disk, profile=[vim.vm.DefaultProfileSpec()])
    service.reconfigure(vmProfile=profile(vvol), deviceChange=[edit])
    assert service.told() == [vvol, None, None]
    service.reconfigure(deviceChange=[Device.VirtualDeviceSpec(operation="edit", device=disk)], annotation="kept")
    assert service.told() == [vvol, None, None]


def test_what_is_not_known_is_refused(service: Service):
    nic = service.device(Device.VirtualEthernetCard)
    before = service.told()
    for values in (
        {"vmProfile": profile("none")},
        {"vmProfile": profile(VSAN)},  # a name is no ID
        {"vmProfile": profile(service.ids[VSAN]) * 2},
        {"deviceChange": [Device.VirtualDeviceSpec(operation="edit", device=nic, profile=profile(service.ids[VSAN]))]},
    ):
        with pytest.raises(tasks.TaskFailed):
            service.reconfigure(**values)
    assert service.told() == before


@pytest.mark.parametrize(
    ("kind", "key"),
    [("virtualMachine", "vm-0"), ("virtualDiskId", "vm-0:2000"), ("virtualDiskId", "{moid}:9"), ("datastore", "ds")],
)
def test_who_asks_for_what_is_not_there_is_told(service: Service, kind: str, key: str):
    [answer] = service.ask((kind, key.format(moid=service.moid)))
    assert isinstance(answer.fault, vmodl.fault.InvalidArgument)
    with pytest.raises(vmodl.fault.InvalidArgument):
        service.profiles.QueryAssociatedProfile(pbm.ServerObjectRef(objectType=kind, key=key.format(moid=service.moid)))


def test_an_attached_first_class_disk_has_one_policy_by_both_names(service: Service):
    fcd = service.lab.create_fcd("governed", 1 << 20, policy=VSAN)["id"]
    attached = service.lab.call("attach_fcd", fcd=fcd, vm=service.moid, controller=1000, unit=5)
    answers = service.ask(("virtualDiskUUID", fcd), ("virtualDiskId", f"{service.moid}:{attached['key']}"))
    assert [one.profileId[0].uniqueId for one in answers] == [service.ids[VSAN]] * 2
    service.lab.call("detach_fcd", fcd=fcd)
    service.lab.call("destroy_fcd", fcd=fcd)
