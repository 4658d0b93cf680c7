# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_config, state present: what was captured is made again."""

from __future__ import annotations

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_unfinished import CREATED, Mark
from ansible_collections.holdfast.backup.tests.integration.vm_config.support import (
    MIB,
    NVRAM,
    Ethernet,
    add,
    comparable,
    dev,
    nvram,
    unchanged,
    warned,
)


def test_what_was_destroyed_is_made_again(config, original, name, vcenter, lab, tmp_path):
    before = config("captured", name=name)["config"]
    vcenter.wait(original.Destroy_Task())
    made = config("present", name=name, disks=[{"disk": str(disk["key"]), "create": True} for disk in before["disks"]])
    vm = vcenter.find(name)
    assert made["changed"]
    assert (made["vm"]["moid"], vm.runtime.powerState) == (vm._GetMoId(), "poweredOff")
    assert vcenter.marked(vm).restore_id == "point 1"
    assert not vm.config.changeTrackingEnabled
    after = config("captured", name=name)["config"]
    assert comparable(after) == comparable(before)
    assert nvram(lab, name).read_bytes() == NVRAM
    assert vcenter.setting(vm, "nvram") == f"{name}.nvram"
    assert vcenter.setting(vm, "guestinfo.userdata") is None
    assert [one["source_key"] for one in made["disks"]] == [one["key"] for one in before["disks"]]
    assert {one["backing_uuid"] for one in made["disks"]}.isdisjoint(one["backing_uuid"] for one in before["disks"])
    now = {one.key: (one.capacityInBytes, one.backing.uuid) for one in vm.config.hardware.device
           if isinstance(one, dev.VirtualDisk)}  # fmt: skip
    assert {one["key"]: (one["capacity"], one["backing_uuid"]) for one in made["disks"]} == now


def test_unprotected_disks_are_left_out(config, original, name):
    config("captured", name=name)
    made = config("present", name=f"{name}-copy")
    assert len(made["disks"]) == 3
    assert "not made again" in warned(made)


def test_networks_are_mapped_in_order(config, original, name, vcenter):
    config("captured", name=name)
    swapped = {"VM Network": vcenter.group._GetMoId(), vcenter.group.name: "VM Network"}
    config("present", name=f"{name}-copy", networks=swapped, mac_policy="generate")
    nics = [one for one in vcenter.find(f"{name}-copy").config.hardware.device if isinstance(one, Ethernet)]
    first, second = sorted(nics, key=lambda nic: nic.key)
    assert isinstance(first, dev.VirtualVmxnet3)
    assert first.backing.port.portgroupKey == vcenter.group.key
    assert second.backing.deviceName == "VM Network"
    assert first.macAddress not in ("", None, "00:50:56:01:02:03")


def test_kept_macs_are_warned_of_while_the_original_exists(config, original, name, vcenter):
    config("captured", name=name)
    made = config("present", name=f"{name}-copy")
    assert "MAC addresses" in warned(made)
    nics = [one for one in vcenter.find(f"{name}-copy").config.hardware.device if isinstance(one, Ethernet)]
    assert sorted(nic.macAddress for nic in nics) == ["00:50:56:01:02:03", "00:50:56:01:02:04"]


def test_another_datastore_and_provisioning(config, original, name, vcenter):
    disks = config("captured", name=name)["config"]["disks"]
    exception = [{"disk": disks[0]["backing_uuid"], "datastore": "LocalDS_0"}]
    made = config("present", name=f"{name}-copy", datastore="LocalDS_1", provisioning="thin", disks=exception)
    assert [one["path"].partition("]")[0] for one in made["disks"]] == ["[LocalDS_0", "[LocalDS_1", "[LocalDS_1"]
    disks = [one for one in vcenter.find(f"{name}-copy").config.hardware.device if isinstance(one, dev.VirtualDisk)]
    assert all(one.backing.thinProvisioned for one in disks)


def test_identity(config, original, name, vcenter):
    before = config("captured", name=name)["config"]
    copied = config("present", name=f"{name}-copy")
    assert copied["vm"]["instance_uuid"] != before["vm"]["instance_uuid"]
    refused = config("present", name=f"{name}-twin", identity="keep", fail=True)
    assert original._GetMoId() in refused["msg"]
    vcenter.wait(original.Destroy_Task())
    kept = config("present", name=f"{name}-twin", identity="keep")
    assert kept["vm"]["instance_uuid"] == before["vm"]["instance_uuid"]
    assert {one["backing_uuid"] for one in kept["disks"]} == {one["source_backing_uuid"] for one in kept["disks"]}


def test_custom_attributes(config, original, name, vcenter):
    fields = vcenter.c.content.customFieldsManager
    fields.AddCustomFieldDef(f"{name}-owner", vim.VirtualMachine)
    original.setCustomValue(f"{name}-owner", "ops")
    document = config("captured", name=name)["config"]
    assert document["custom_attributes"] == {f"{name}-owner": "ops"}
    document["custom_attributes"]["unknown"] = "x"
    made = config("present", name=f"{name}-copy", config=document)
    assert [value.value for value in vcenter.find(f"{name}-copy").customValue] == ["ops"]
    assert "unknown" in warned(made)


def test_check_mode_plans_and_changes_nothing(config, original, name, vcenter):
    config("captured", name=name)
    with unchanged(vcenter):
        planned = config("present", name=f"{name}-copy", check=True)
    assert planned["changed"]
    assert (planned["plan"]["folder"], planned["plan"]["datastore"]) == ("/DC0/vm", "LocalDS_0")
    assert [nic["network"] for nic in planned["plan"]["nics"]] == ["VM Network", vcenter.group.name]
    assert planned["vm"] == {"name": f"{name}-copy", "moid": None, "instance_uuid": None}


def test_a_repeated_run_finds_its_vm(config, original, name, lab, vcenter):
    config("captured", name=name)
    made = config("present", name=f"{name}-copy")
    lab.requests(reset=True)
    with unchanged(vcenter):
        lab.requests(reset=True)
        again = config("present", name=f"{name}-copy")
        assert lab.requests()["total"] <= 8
    assert not again["changed"]
    assert (again["vm"], again["disks"]) == (made["vm"], made["disks"])


def test_what_a_killed_run_left_half_made_is_made_anew(config, original, name, vcenter):
    config("captured", name=name)
    config("present", name=f"{name}-copy")
    half = vcenter.find(f"{name}-copy")
    vcenter.mark(half, Mark("point 1", CREATED))
    again = config("present", name=f"{name}-copy")
    assert again["changed"]
    assert again["vm"]["moid"] != half._GetMoId()


def test_a_half_made_replacement_does_not_stand_in_its_own_way(config, original, name, vcenter):
    config("captured", name=name)
    vcenter.wait(original.Destroy_Task())
    config("present", name=name, identity="keep")
    vcenter.mark(vcenter.find(name), Mark("point 1", CREATED))
    assert config("present", name=name, identity="keep")["changed"]


def test_a_running_tracked_vm(config, lab, name, vcenter):
    made = lab.create_vm(
        name, disks=[8 * MIB, {"size": 4 * MIB, "datastore": "LocalDS_1"}], power="poweredOn", tracking=True
    )
    document = config("captured", moid=made["moid"])["config"]
    assert [disk["datastore"] for disk in document["disks"]] == ["LocalDS_0", "LocalDS_1"]
    again = config("present", name=f"{name}-copy")
    vm = vcenter.find(f"{name}-copy")
    assert (vm.runtime.powerState, vm.config.changeTrackingEnabled) == ("poweredOff", False)
    assert [one["source_backing_uuid"] for one in again["disks"]] == [one["backing_uuid"] for one in made["disks"]]
    assert [one["path"].partition("]")[0] for one in again["disks"]] == ["[LocalDS_0", "[LocalDS_1"]
    for one in again["disks"]:
        assert not lab.read(again["vm"]["moid"], one["key"]).strip(b"\0")


def test_what_cannot_be_made_again_is_warned_of(config, vcenter, name):
    uri = dev.VirtualSerialPort.URIBackingInfo(serviceURI="telnet://:9000", direction="server")
    vcenter.make(name, add(dev.VirtualSerialPort(key=-1, backing=uri, yieldOnPoll=True)))
    assert "bound to a file" in warned(config("captured", name=name))
    made = config("present", name=f"{name}-copy")
    assert "bound to a file" in warned(made)
    devices = vcenter.find(f"{name}-copy").config.hardware.device
    assert not [one for one in devices if isinstance(one, dev.VirtualSerialPort)]


def test_a_name_with_a_slash_is_captured_as_it_is_shown(config, vcenter, name):
    vcenter.make(f"{name}/a%b")
    document = config("captured", name=f"{name}/a%b")["config"]
    assert document["vm"]["name"] == f"{name}/a%b"
    assert document["placement"]["folder"] == "/DC0/vm"


def test_place_by_pool_cluster_and_host(config, original, name, vcenter):
    config("captured", name=name)
    cluster = vcenter.pool.parent
    host = cluster.host[-1]
    pool = vcenter.pool.CreateResourcePool(f"{name}-pool", vcenter.pool.config)
    config("present", name=f"{name}-copy", esxi_hostname=host.name, resource_pool=f"{name}-pool")
    vm = vcenter.find(f"{name}-copy")
    assert (vm.resourcePool, vm.runtime.host) == (pool, host)
    folder = vcenter.datacenter.vmFolder.CreateFolder(f"{name}-folder")
    config("present", name=name, folder=f"{name}-folder", cluster=f"/DC0/host/{cluster.name}")
    assert vcenter.find(name, f"DC0/vm/{name}-folder").parent == folder
    assert f"{name}-folder" in config("present", name=name, folder=f"/DC0/vm/{name}-no", fail=True)["msg"]


def test_a_host_in_maintenance_is_refused_and_passed_over(config, original, name, vcenter):
    config("captured", name=name)
    first = sorted(vcenter.pool.parent.host, key=lambda host: host.name)[0]
    vcenter.wait(first.EnterMaintenanceMode_Task(0))
    try:
        refused = config("present", name=f"{name}-copy", esxi_hostname=first.name, fail=True)
        assert "maintenance" in refused["msg"]
        config("present", name=f"{name}-copy")
        assert vcenter.find(f"{name}-copy").runtime.host != first
    finally:
        vcenter.wait(first.ExitMaintenanceMode_Task(0))


def test_a_creation_that_takes_too_long_can_be_repeated(config, vcenter, name, lab):
    vcenter.make(name)
    config("captured", name=name)
    lab.fault(task="*createVm*", delay_ms=2500)
    assert "1 seconds" in config("present", name=f"{name}-copy", timeout=1, fail=True)["msg"]
    lab.clear_faults()
    config("present", name=f"{name}-copy")
    assert vcenter.marked(vcenter.find(f"{name}-copy")).stage == "prepared"
