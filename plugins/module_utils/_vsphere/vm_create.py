# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: make a VM again from the document of its configuration.

The new VM is marked as an unfinished restore (``vm_unfinished``) from its first moment on.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any, Mapping, cast

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    NotSupported,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    datastore_files,
    device_specs,
    inventory,
    tasks,
    vm_associations,
    vm_config,
    vm_devices,
    vm_placement,
    vm_retarget,
    vm_unfinished,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fields import write_fields
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_unfinished import CREATED, PREPARED, Mark

_MADE = ("config.instanceUuid", "config.files.vmPathName", "config.hardware.device")
_TASK_TIMEOUT = 600  # seconds to reconfigure


@dataclass(frozen=True)
class Plan:
    """What is to be made. ``vm`` is set when an earlier run of the same restore made it already,
    ``leftover`` when one began to and was killed.
    """

    target: dict[str, Any]
    warnings: list[str]
    site: vm_placement.Site | None = None
    vm: Any = None
    leftover: Any = None


def plan(
    c: Connection,
    document: Mapping[str, Any],
    wishes: vm_placement.Wishes,
    changes: vm_retarget.Changes,
    restore_id: str,
) -> Plan:
    """Find out what has to be made; changes nothing.

    :raises NotSupported: there is another VM of that name in the folder, or one of that identity anywhere
    """
    path = f"{wishes.folder.strip('/')}/{inventory.escape(changes.name)}"
    there = c.read(c.content.searchIndex.FindByInventoryPath, path)
    if there is not None and _own_mark(c, there, f"/{path}", restore_id).stage == PREPARED:
        return Plan(dict(document), [], vm=there)
    site = vm_placement.find(c, wishes, document["placement"])
    target, warnings = vm_retarget.retarget(document, changes, site)
    target["placement"].update(folder=wishes.folder, datacenter=site.datacenter, resource_pool=site.pool_path)
    warnings += vm_config.warnings(document) + _original(c, document, changes, there)
    warnings += vm_associations.find(c, target, changes.tags, changes.storage_policies, changes.storage_policy_map)
    return Plan(target, warnings, site, leftover=there)


def create(c: Connection, made: Plan, nvram: bytes | None, restore_id: str, timeout: float) -> tuple[Any, list[str]]:
    """Make the VM of a plan, switched off, with empty disks.

    Whatever goes wrong on the way, the VM does not stay.

    :param timeout: seconds for making the VM with its disks
    :returns: the VM, and warnings
    """
    if made.leftover is not None:
        vm_unfinished.remove(c, made.leftover)
    mark = Mark(restore_id, CREATED, made.target["vm"].get("template", False))
    spec = vm_config.config_spec(made.target, mark.setting())
    site = cast(vm_placement.Site, made.site)  # which only a plan with a vm lacks
    try:
        task = c.call(site.folder.CreateVM_Task, config=spec, pool=site.pool, host=site.host)
        vm = tasks.wait(c, task, timeout=timeout, on_timeout="cancel")
    except VsphereFault as error:
        if any(vm_associations.policies_of(made.target)):
            error.next_step += " If a storage policy does not suit, give storage_policy_map or storage_policies=ignore."
        raise
    try:
        return vm, _prepare(c, vm, made.target, nvram, replace(mark, stage=PREPARED))
    except BaseException:
        # The cause is what matters; a VM that cannot be deleted now still has its mark.
        with contextlib.suppress(BackupError):
            vm_unfinished.remove(c, vm)
        raise


def disk_map(c: Connection, vm: Any, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where each disk of ``document`` is in the VM that was made from it.

    :returns: {source_backing_uuid, source_key, key, label, backing_uuid, capacity, path} per disk of the new VM
    :raises NotSupported: the VM does not have the disks that the document says
    """
    devices = c.retrieve([vm], {vim.VirtualMachine: ["config.hardware.device"]})[vm]["config.hardware.device"]
    before, now = device_specs.slots(document), device_specs.slots(vm_devices.read(devices, {}))
    found = []
    for place, disk in now.items():
        source = before.get(place)
        if source is None or source["capacity"] != disk["capacity"]:
            raise NotSupported(
                f"{disk['label']} of the unfinished VM is not as the configuration says.",
                "Remove the VM by state=absent and restore again.",
            )
        same = {key: disk[key] for key in ("key", "label", "backing_uuid", "capacity", "path")}
        found.append({"source_backing_uuid": source["backing_uuid"], "source_key": source["key"], **same})
    return sorted(found, key=lambda disk: disk["source_key"])


def _own_mark(c: Connection, there: Any, path: str, restore_id: str) -> Mark:
    """The mark of the VM that is there already, if it is of this restore and its disks may be written."""
    props = c.retrieve([there], {vim.VirtualMachine: vm_unfinished.STATE}).get(there, {})
    mark = Mark.of(props)
    if mark is None:
        raise NotSupported(f"{path} exists already.", "Give another name or folder; nothing is overwritten.")
    if mark.restore_id != restore_id:
        raise NotSupported(
            f"{path} exists: it is the unfinished restore {mark.restore_id}.",
            "Remove it by state=absent, or give another name or folder.",
        )
    if props.get("runtime.powerState") != "poweredOff":
        raise NotSupported(f"{path} is an unfinished restore, but it is switched on.", "Switch it off.")
    return mark


def _original(c: Connection, document: Mapping[str, Any], changes: vm_retarget.Changes, leftover: Any) -> list[str]:
    uuid = document["vm"]["instance_uuid"]
    found = c.read(c.content.searchIndex.FindAllByUuid, None, uuid, True, True) if uuid else []
    found = [vm for vm in found if vm != leftover]
    if not found:
        return []
    moid = found[0]._GetMoId()
    if changes.identity == "keep":
        raise NotSupported(
            f"The VM {moid} has the instance UUID {uuid} already.",
            "Give identity=new, or remove that VM first.",
            moid=moid,
        )
    if changes.mac_policy == "keep" and document["nics"]:
        return [
            f"The original VM ({moid}) exists: the restored one has its MAC addresses. "
            "Do not connect both to one network, or give mac_policy=generate."
        ]
    return []


def _prepare(c: Connection, vm: Any, document: Mapping[str, Any], nvram: bytes | None, mark: Mark) -> list[str]:
    props = c.retrieve([vm], {vim.VirtualMachine: _MADE})[vm]
    spec = vim.vm.ConfigSpec()
    settings = replace(mark, instance_uuid=props.get("config.instanceUuid")).setting()
    if nvram is not None and not document.get("encryption"):
        settings["nvram"] = _upload_nvram(c, props["config.files.vmPathName"], document, nvram)
    devices = props["config.hardware.device"]
    order = vm_config.boot_order(document, _new_keys(document, devices))
    if order:
        # Keys of devices exist only now, and a boot order without the rest of the options might reset them.
        write_fields(spec, vm_config.SETTINGS["firmware"], document["settings"].get("firmware", {}))
        spec.bootOptions = spec.bootOptions or vim.vm.BootOptions()
        spec.bootOptions.bootOrder = order
    warnings = _overruled_macs(document, devices) + _set_custom_attributes(c, vm, document)
    warnings += vm_associations.attach(c, vm, document.get("tags", ()))
    spec.extraConfig = vm_config.options(settings)
    tasks.wait(c, c.call(vm.ReconfigVM_Task, spec), timeout=_TASK_TIMEOUT)  # last: the mark says that all is done
    return warnings


def _upload_nvram(c: Connection, vmx: str, document: Mapping[str, Any], nvram: bytes) -> str:
    name = vmx.rpartition("/")[2]
    name = (name[: -len(".vmx")] if name.endswith(".vmx") else name) + ".nvram"
    datacenter = document["placement"]["datacenter"]
    datastore_files.upload(c, datacenter, datastore_files.sibling(vmx, name), nvram)
    return name


def _new_keys(document: Mapping[str, Any], devices: Any) -> dict[int, int]:
    hardware = vm_devices.read(devices, {})
    before, now = device_specs.slots(document), device_specs.slots(hardware)
    keys = {before[place]["key"]: now[place]["key"] for place in before if place in now}
    pairs = zip(sorted(nic["key"] for nic in document["nics"]), sorted(nic["key"] for nic in hardware["nics"]))
    return {**keys, **dict(pairs)}


def _overruled_macs(document: Mapping[str, Any], devices: Any) -> list[str]:
    now = sorted(vm_devices.read(devices, {})["nics"], key=lambda nic: nic["key"])
    return [
        f"{nic['label']}: vSphere gave the MAC address {new.get('mac')} instead of {nic['mac']}."
        for nic, new in zip(sorted(document["nics"], key=lambda nic: nic["key"]), now)
        if nic.get("mac") and nic["mac"].lower() != str(new.get("mac")).lower()
    ]


def _set_custom_attributes(c: Connection, vm: Any, document: Mapping[str, Any]) -> list[str]:
    warnings = []
    for name, value in document.get("custom_attributes", {}).items():
        try:
            c.call(vm.setCustomValue, name, value)
        except VsphereFault as error:
            warnings.append(f"The custom attribute {name} was not set: {error.message}")
    return warnings
