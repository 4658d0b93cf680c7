# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_config through its main() against the lab: capture, destroy, make again, compare."""

from __future__ import annotations

import copy
import itertools
import json
import os
import stat
from contextlib import contextmanager

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import datastore_files, tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_unfinished import CREATED, Mark

MIB = 1 << 20
NVRAM = bytes(range(256)) * 300
MARK = "holdfast.backup.restoring"
dev = vim.vm.device
Ethernet = dev.VirtualEthernetCard
_names = (f"vmcfg{number}" for number in itertools.count())


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

    def __init__(self, c):
        self.c = c
        self.datacenter = c.content.rootFolder.childEntity[0]
        self.pool = self.datacenter.hostFolder.childEntity[-1].resourcePool
        groups = [one for one in self.datacenter.network if isinstance(one, vim.dvs.DistributedVirtualPortgroup)]
        self.group = next(one for one in groups if "Uplinks" not in one.name)

    def wait(self, task):
        return tasks.wait(self.c, task, timeout=30)

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
                found[vm._GetMoId()] = (vm.name, vm.runtime.powerState, vm.config.changeVersion, vm.config.extraConfig)
        return repr(found)


@pytest.fixture
def vcenter(lab):
    options = lab.module_args()
    with Connection(Endpoint(**options)) as c:
        yield Vcenter(c)
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


# capture


def test_captured_writes_private_files_once(config, original, name, tmp_path):
    assert config("captured", name=name, check=True)["changed"]
    assert not list(tmp_path.iterdir())
    result = config("captured", name=name)
    assert result["changed"]
    assert result["files"] == [str(tmp_path / "config.json"), str(tmp_path / "vm.nvram")]
    for path in result["files"]:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert json.loads((tmp_path / "config.json").read_text()) == result["config"]
    assert (tmp_path / "vm.nvram").read_bytes() == NVRAM
    assert result["vm"]["moid"] == original._GetMoId()
    assert [disk["mode"] for disk in result["unprotected"]] == ["independent_persistent"]
    assert "not protected" in warned(result)
    assert not config("captured", name=name)["changed"]


def test_no_secret_is_written(config, original, name, tmp_path, lab):
    config("captured", name=name)
    text = (tmp_path / "config.json").read_text()
    assert "guestinfo.userdata" in text
    assert "password: x" not in text
    assert lab.password not in text


def test_a_change_is_captured_and_a_stale_nvram_removed(config, original, name, vcenter, lab, tmp_path):
    config("captured", name=name)
    vcenter.reconfigure(original, annotation="other")
    nvram(lab, name).unlink()
    result = config("captured", name=name)
    assert result["config"]["settings"]["other"]["annotation"] == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_nvram_is_the_file_that_the_vm_names(config, original, name, vcenter, lab):
    other = nvram(lab, name).with_name("firmware.nvram")
    other.write_bytes(b"the right one")
    vcenter.reconfigure(original, extraConfig=[vim.option.OptionValue(key="nvram", value="firmware.nvram")])
    assert config("captured", name=name)["config"]["nvram"]["size"] == len(b"the right one")


def test_captured_costs_few_requests(config, original, name, lab):
    lab.requests(reset=True)
    config("captured", moid=original._GetMoId())
    assert lab.requests()["total"] <= 8


def test_a_snapshots_frozen_configuration_is_captured(config, vcenter, name):
    vm = vcenter.make(name, add(dev.VirtualAHCIController(key=-3, busNumber=0)), disk(-10, -3, 0, 8 * MIB))
    snapshot = vcenter.wait(vm.CreateSnapshot_Task("s", "", False, False))
    vcenter.reconfigure(vm, numCPUs=8)
    frozen = config("captured", name=name, snapshot=snapshot._GetMoId())
    assert frozen["config"]["settings"]["hardware"]["cpus"] == 4
    assert frozen["config"]["source"]["snapshot"] == snapshot._GetMoId()
    assert config("captured", name=name)["config"]["settings"]["hardware"]["cpus"] == 8


def test_a_snapshot_of_another_vm_is_refused(config, vcenter, original, name):
    other = vcenter.make(f"{name}-other")
    snapshot = vcenter.wait(other.CreateSnapshot_Task("s", "", False, False))
    assert "is not one of" in config("captured", name=name, snapshot=snapshot._GetMoId(), fail=True)["msg"]


def test_a_directory_that_is_not_there_is_named(config, original, name):
    assert "/nowhere/at/all" in config("captured", name=name, path="/nowhere/at/all", fail=True)["msg"]


# make again


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


# refuse


def test_an_existing_vm_is_never_overwritten(config, original, name, vcenter):
    config("captured", name=name)
    with unchanged(vcenter):
        assert f"/DC0/vm/{name} exists already" in config("present", name=name, fail=True)["msg"]
    config("present", name=f"{name}-copy")
    with unchanged(vcenter):
        other = config("present", name=f"{name}-copy", restore_id="point 2", fail=True)
    assert "unfinished restore point 1" in other["msg"]


@pytest.mark.parametrize(
    ("options", "missing", "there"),
    [
        ({"networks": {"VM Network": "nirvana"}}, "nirvana", "VM Network"),
        ({"datastore": "full"}, "full", "LocalDS_0, LocalDS_1"),
        ({"folder": "/DC0/vm/nowhere"}, "/DC0/vm/nowhere", "/DC0/vm has the folders"),
        ({"folder": "a/b"}, "/DC0/vm/a/b", "/DC0/vm/a does not exist either"),
        ({"resource_pool": "nopool"}, "nopool", "/DC0/host/"),
        ({"cluster": "nocluster"}, "nocluster", "/DC0/host/"),
        ({"esxi_hostname": "nohost"}, "nohost", "/DC0/host/"),
        ({"disks": [{"disk": "Hard disk 9"}]}, "Hard disk 9", "key"),
        ({"folder": "/DC0/host"}, "/DC0/host", "/datacenter/vm/folder"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(config, original, name, vcenter, options, missing, there):
    config("captured", name=name)
    with unchanged(vcenter):
        message = config("present", name=f"{name}-copy", fail=True, **options)["msg"]
    assert missing in message
    assert there in message


def test_a_failed_creation_leaves_nothing(config, original, name, vcenter, lab):
    config("captured", name=name)
    for fault in ({"task": "*createVm*"}, {"method": "CreateVM_Task"}, {"method": "ReconfigVM_Task"}):
        lab.fault(fault="InsufficientResourcesFault", **fault)
        with unchanged(vcenter):
            failed = config("present", name=f"{name}-copy", fail=True)
        assert failed["fault"] == "InsufficientResourcesFault", fault
        lab.clear_faults()
    assert config("present", name=f"{name}-copy")["changed"]


def test_a_nvram_that_cannot_be_written_leaves_nothing(config, original, name, vcenter, monkeypatch):
    config("captured", name=name)
    monkeypatch.setattr(datastore_files, "download", lambda *args: b"other")  # what is read back after the upload
    with unchanged(vcenter):
        assert "does not hold what was written" in config("present", name=f"{name}-copy", fail=True)["msg"]


def test_damaged_files_are_refused(config, original, name, vcenter, tmp_path):
    config("captured", name=name)
    (tmp_path / "vm.nvram").write_bytes(NVRAM[:-1])
    with unchanged(vcenter):
        assert "is not what was written" in config("present", name=f"{name}-copy", fail=True)["msg"]
        (tmp_path / "config.json").write_text("{}")
        assert "no VM configuration" in config("present", name=f"{name}-copy", fail=True)["msg"]
        (tmp_path / "config.json").unlink()
        assert "There is no file" in config("present", name=f"{name}-copy", fail=True)["msg"]


def test_content_without_a_path_has_no_nvram(config, original, name, vcenter, lab):
    document = config("captured", name=name)["config"]
    made = config("present", name=f"{name}-copy", config=document)
    assert "NVRAM is not restored" in warned(made)
    assert nvram(lab, f"{name}-copy").read_bytes() != NVRAM


# finish, or give up


def test_finished_takes_the_mark_off_for_good(config, original, name, vcenter):
    config("captured", name=name)
    config("present", name=f"{name}-copy")
    vm = vcenter.find(f"{name}-copy")
    with unchanged(vcenter):
        assert config("finished", name=f"{name}-copy", power_state="poweredOn", check=True)["changed"]
    assert config("finished", name=f"{name}-copy", power_state="poweredOn")["changed"]
    assert (vcenter.setting(vm, MARK), vm.runtime.powerState) == (None, "poweredOn")
    assert not config("finished", name=f"{name}-copy", power_state="poweredOn")["changed"]
    vcenter.wait(vm.PowerOffVM_Task())
    with unchanged(vcenter):
        refused = config("absent", name=f"{name}-copy", fail=True)
    assert "is not an unfinished restore" in refused["msg"]


def test_a_template_becomes_one_again(config, original, name, vcenter):
    original.MarkAsTemplate()
    assert config("captured", name=name)["config"]["vm"]["template"]
    pool = "/DC0/host/" + vcenter.pool.parent.name + "/Resources"
    config("present", name=f"{name}-copy", resource_pool=pool)
    vm = vcenter.find(f"{name}-copy")
    assert not vm.config.template
    assert "template" in config("finished", name=f"{name}-copy", power_state="poweredOn", fail=True)["msg"]
    assert config("finished", name=f"{name}-copy")["changed"]
    assert vm.config.template
    assert not config("finished", name=f"{name}-copy")["changed"]


def test_a_half_made_vm_cannot_be_finished(config, original, name, vcenter):
    vcenter.mark(original, Mark("point 1", CREATED))
    assert "state=present" in config("finished", name=name, fail=True)["msg"]


def test_absent_deletes_only_what_is_ours_and_off(config, original, name, vcenter):
    config("captured", name=name)
    config("present", name=f"{name}-copy")
    vm = vcenter.find(f"{name}-copy")
    with unchanged(vcenter):
        assert "unfinished restore" in config("absent", name=name, fail=True)["msg"]
        assert "point 2" in config("absent", name=f"{name}-copy", restore_id="point 2", fail=True)["msg"]
        assert config("absent", name=f"{name}-copy", check=True)["changed"]
    vcenter.wait(vm.PowerOnVM_Task())
    assert "switched on" in config("present", name=f"{name}-copy", fail=True)["msg"]
    assert "switched on" in config("absent", name=f"{name}-copy", fail=True)["msg"]
    vcenter.wait(vm.PowerOffVM_Task())
    assert config("absent", name=f"{name}-copy", restore_id="point 1")["changed"]
    assert vcenter.find(f"{name}-copy") is None
    assert not config("absent", name=f"{name}-copy")["changed"]


def test_a_clone_of_an_unfinished_restore_is_not_ours(config, original, name, vcenter):
    config("captured", name=name)
    config("present", name=f"{name}-copy")
    vcenter.mark(original, vcenter.marked(vcenter.find(f"{name}-copy")))
    assert vcenter.setting(original, MARK)
    with unchanged(vcenter):
        assert "is not an unfinished restore" in config("absent", name=name, fail=True)["msg"]
