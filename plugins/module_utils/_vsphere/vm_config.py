# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the configuration of a VM as a JSON document, and the way back.

The document holds what a new VM is made from, plus what a reader wants to know. It is read and
written without I/O: :func:`capture` turns vSphere's objects into it, :func:`parse` trusts nothing
in it, :func:`config_spec` turns it into what CreateVM_Task takes.
"""

from __future__ import annotations

import json
import re
from typing import Any, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    device_specs,
    extra_config,
    inventory,
    vm_devices,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fields import (
    SHARES,
    Field,
    read_fields,
    same,
    shapes,
    write_fields,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.shapes import (
    NEXT_STEP,
    flag,
    items,
    nullable,
    number,
    one_of,
    record,
    table,
    text,
)

FORMAT = "holdfast.vm_config"
VERSION = 1
NVRAM_FILE = "vm.nvram"
NVRAM_LIMIT = 64 << 20  # bytes; real ones have 8 KiB to some hundred KiB

_INT32 = 2**31 - 1
_INT64 = 2**63 - 1
_WORD = text(64)
_NAME = text(255, empty=False)
_TAG = text(1024, empty=False, lines=True)


def _allocation(path: str) -> dict[str, Field]:
    return {
        "reservation": same(f"{path}.reservation", number(0, _INT64)),
        "limit": same(f"{path}.limit", number(-1, _INT64)),
        "shares": same(f"{path}.shares", SHARES),
        "expandable": same(f"{path}.expandableReservation", flag),
    }


SETTINGS: dict[str, dict[str, Field]] = {
    "hardware": {
        "version": same("version", text(16)),
        "guest_id": same("guestId", _WORD),
        "alternate_guest_name": same("alternateGuestName", text(255)),
        "cpus": Field("hardware.numCPU", "numCPUs", number(1, 4096)),
        # 0: vSphere chooses
        "cores_per_socket": Field("hardware.numCoresPerSocket", "numCoresPerSocket", number(0, 4096)),
        "threads_per_core": Field("hardware.simultaneousThreads", "simultaneousThreads", number(1, 64)),
        "cores_per_numa_node": Field("numaInfo.coresPerNumaNode", "virtualNuma.coresPerNumaNode", number(0, 4096)),
        "memory_mb": Field("hardware.memoryMB", "memoryMB", number(4, 2**31 - 1)),
        "motherboard": Field("hardware.motherboardLayout", "motherboardLayout", _WORD),
        "cpu_hot_add": same("cpuHotAddEnabled", flag),
        "cpu_hot_remove": same("cpuHotRemoveEnabled", flag),
        "memory_hot_add": same("memoryHotAddEnabled", flag),
        "memory_locked": same("memoryReservationLockedToMax", flag),
        "latency_sensitivity": same("latencySensitivity.level", _WORD),
        "nested_virtualization": same("nestedHVEnabled", flag),
        "performance_counters": same("vPMCEnabled", flag),
        "swap_placement": same("swapPlacement", _WORD),
        "sev": same("sevEnabled", flag),
    },
    "cpu": _allocation("cpuAllocation"),
    "memory": _allocation("memoryAllocation"),
    "firmware": {
        "type": same("firmware", _WORD),
        "secure_boot": same("bootOptions.efiSecureBootEnabled", flag),
        "boot_delay_ms": same("bootOptions.bootDelay", number(0, _INT64)),
        "enter_setup": same("bootOptions.enterBIOSSetup", flag),
        "boot_retry": same("bootOptions.bootRetryEnabled", flag),
        "boot_retry_delay_ms": same("bootOptions.bootRetryDelay", number(0, _INT64)),
        "network_boot_protocol": same("bootOptions.networkBootProtocol", _WORD),
    },
    "flags": {
        "logging": same("flags.enableLogging", flag),
        "disable_acceleration": same("flags.disableAcceleration", flag),
        "disk_uuid": same("flags.diskUuidEnabled", flag),
        "mmu": same("flags.virtualMmuUsage", _WORD),
        "execution": same("flags.virtualExecUsage", _WORD),
        "read_cache": same("flags.cbrcCacheEnabled", flag),
        "iommu": same("flags.vvtdEnabled", flag),
        "vbs": same("flags.vbsEnabled", flag),
        "snapshot_power_off": same("flags.snapshotPowerOffBehavior", _WORD),
    },
    "power": {
        "off": Field("defaultPowerOps.powerOffType", "powerOpInfo.powerOffType", _WORD),
        "suspend": Field("defaultPowerOps.suspendType", "powerOpInfo.suspendType", _WORD),
        "reset": Field("defaultPowerOps.resetType", "powerOpInfo.resetType", _WORD),
        "standby": Field("defaultPowerOps.standbyAction", "powerOpInfo.standbyAction", _WORD),
    },
    "tools": {
        "after_power_on": same("tools.afterPowerOn", flag),
        "after_resume": same("tools.afterResume", flag),
        "before_standby": same("tools.beforeGuestStandby", flag),
        "before_shutdown": same("tools.beforeGuestShutdown", flag),
        "before_reboot": same("tools.beforeGuestReboot", flag),
        "upgrade_policy": same("tools.toolsUpgradePolicy", _WORD),
        "sync_time": same("tools.syncTimeWithHost", flag),
        "sync_time_allowed": same("tools.syncTimeWithHostAllowed", flag),
    },
    "other": {
        "annotation": same("annotation", text(65536, lines=True)),
        "max_consoles": same("maxMksConnections", number(-1, _INT32)),
        "lock_guest": same("guestAutoLockEnabled", flag),
        "migrate_encryption": same("migrateEncryption", _WORD),
        "ft_encryption": same("ftEncryptionMode", _WORD),
        "reboot_power_off": same("rebootPowerOff", flag),
    },
}
_CHOSEN_BY_VSPHERE = (
    ("cores_per_socket", "hardware", "autoCoresPerSocket"),
    ("cores_per_numa_node", "numaInfo", "autoCoresPerNumaNode"),
)

_BOOT = {
    "disk": "BootableDiskDevice",
    "ethernet": "BootableEthernetDevice",
    "cdrom": "BootableCdromDevice",
    "floppy": "BootableFloppyDevice",
}
_PLACES = ("datacenter", "folder", "resource_pool", "host", "datastore")

_DOCUMENT = record(
    {
        "format": one_of(FORMAT),
        "version": number(1, VERSION),
        "vm": record(
            {"name": _NAME, "moid": text(64), "instance_uuid": nullable(text(64)), "bios_uuid": nullable(text(64))},
            {"template": flag},
        ),
        "settings": record({}, {group: record({}, shapes(fields)) for group, fields in SETTINGS.items()}),
        **vm_devices.SHAPES,
        "boot_order": items(record({"type": one_of(*_BOOT)}, {"key": number(0, _INT32)}), limit=64),
        "extra_config": table(text(1 << 20, lines=True)),
        "placement": record({}, {place: text(2048) for place in _PLACES}),
    },
    {
        "captured_at": text(32),
        "source": record({}, {"vcenter": text(64), "version": text(64), "snapshot": nullable(text(64))}),
        "nvram": nullable(record({"file": one_of(NVRAM_FILE), "size": number(0, NVRAM_LIMIT), "sha256": text(64)})),
        "encryption": nullable(record({"key_id": text(255), "provider": nullable(text(255))})),
        "extra_config_left_out": items(text(255)),
        "custom_attributes": table(text(65536, lines=True)),
        "tags": items(record({"category": _TAG, "name": _TAG}, {"id": text(255)})),
        "storage_policy": vm_devices.POLICY,
        "notes": items(text(1024)),
    },
)


def capture(config: Any, networks: Mapping[str, str]) -> dict[str, Any]:
    """The part of the document that a ConfigInfo (of a VM or a snapshot) holds.

    :param networks: names of distributed port groups and opaque networks by their keys
    """
    options = list(config.extraConfig or ())
    kept, left_out = extra_config.split(options)
    return {
        "format": FORMAT,
        "version": VERSION,
        "vm": {
            "name": str(config.name),
            "moid": "",
            "instance_uuid": config.instanceUuid and str(config.instanceUuid),
            "bios_uuid": config.uuid and str(config.uuid),
            "template": bool(config.template),
        },
        "settings": _settings(config),
        **vm_devices.read(config.hardware.device, networks),
        "boot_order": _boot_devices(config),
        "extra_config": kept,
        "extra_config_left_out": left_out,
        "encryption": vm_devices.encryption(config.keyId) if config.keyId else None,
        "notes": _notes(config),
    }


def parse(source: Any) -> dict[str, Any]:
    """Check a document (a mapping, or the text of one) and return it.

    :raises InvalidInput: it is not one, it is of a newer version, or something in it cannot be
    """
    if isinstance(source, (str, bytes)):
        try:
            source = json.loads(source)
        except ValueError as error:
            raise InvalidInput(f"The VM configuration is not JSON: {error}.", NEXT_STEP) from error
    if not isinstance(source, dict) or source.get("format") != FORMAT:
        raise InvalidInput(f"This is no VM configuration (a JSON object with format {FORMAT}).", NEXT_STEP)
    version = source.get("version")
    if isinstance(version, int) and version > VERSION:
        raise InvalidInput(
            f"The VM configuration has version {version}; this release reads up to {VERSION}.",
            "Use a newer release of holdfast.backup.",
        )
    _DOCUMENT(source, "config")
    _check_references(source)
    return source


def config_spec(document: Mapping[str, Any], marks: Mapping[str, str]) -> Any:
    """What CreateVM_Task takes for a VM like ``document``: powered off, its disks new and empty.

    Change tracking stays off: it would misreport what a restore writes below it (VDDK programming
    guide, restore). Without a BIOS and instance UUID in the document vSphere makes new ones.

    :param marks: extra settings of ours
    """
    identity = document["vm"]
    spec = vim.vm.ConfigSpec(
        name=inventory.escape(identity["name"]),
        uuid=identity["bios_uuid"],
        instanceUuid=identity["instance_uuid"],
        files=vim.vm.FileInfo(vmPathName=f"[{document['placement']['datastore']}]"),
        vmProfile=device_specs.profile(document),
        changeTrackingEnabled=False,
        deviceChange=device_specs.specs(document, keep_uuids=identity["instance_uuid"] is not None),
        extraConfig=options({**document["extra_config"], **marks}),
    )
    for group, values in document["settings"].items():
        write_fields(spec, SETTINGS[group], values)
    return spec


def options(values: Mapping[str, str]) -> list[Any]:
    """Settings as vSphere takes them; an empty value removes one."""
    return [vim.option.OptionValue(key=key, value=value) for key, value in values.items()]


def boot_order(document: Mapping[str, Any], keys: Mapping[int, int]) -> list[Any]:
    """The boot order as vSphere takes it, with the device keys of the new VM.

    :param keys: new keys by old ones; devices that the new VM does not have are left out
    """
    order = []
    for item in document["boot_order"]:
        kind = getattr(vim.vm.BootOptions, _BOOT[item["type"]])
        if "key" not in item:
            order.append(kind())
        elif item["key"] in keys:
            order.append(kind(deviceKey=keys[item["key"]]))
    return order


def warnings(document: Mapping[str, Any]) -> list[str]:
    """What a restore from this document will not bring back beside unprotected disks, one line each."""
    lines = [f"{item['device']}: {item['reason']}." for item in document["left_out"]]
    if document.get("encryption") or any("encryption" in disk for disk in document["disks"]):
        lines.append(
            "The VM is encrypted: a restored one is not, and its NVRAM is of use only with the same key provider."
        )
    return lines + list(document.get("notes", ()))


def unprotected(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The disks whose content no restore point holds, with ``reason``."""
    return [disk for disk in document["disks"] if not disk["protected"]]


def _settings(config: Any) -> dict[str, dict[str, Any]]:
    settings = {group: read_fields(config, fields) for group, fields in SETTINGS.items()}
    for key, path, automatic in _CHOSEN_BY_VSPHERE:
        if getattr(getattr(config, path, None), automatic, None):
            settings["hardware"][key] = 0
    return {group: values for group, values in settings.items() if values}


def _boot_devices(config: Any) -> list[dict[str, Any]]:
    kinds = {name: kind for kind, name in _BOOT.items()}
    found = []
    for device in (config.bootOptions and config.bootOptions.bootOrder) or ():
        kind = kinds.get(vm_devices.type_name(device))
        key = getattr(device, "deviceKey", None)
        if kind:
            found.append({"type": kind} if key is None else {"type": kind, "key": int(key)})
    return found


def _notes(config: Any) -> list[str]:
    notes = []
    if config.managedBy and config.managedBy.extensionKey:
        notes.append(f"The VM is managed by the extension {config.managedBy.extensionKey}; a restored one is not.")
    if config.vAppConfig:
        notes.append("The VM has vApp (OVF) options; they are not restored.")
    if config.npivPortWorldWideName or config.npivNodeWorldWideName:
        notes.append("The VM has NPIV world wide names; they are not restored.")
    if config.cpuAffinity and config.cpuAffinity.affinitySet:
        notes.append("The VM is bound to processors of its host; that is not restored.")
    return notes


def _check_references(document: Mapping[str, Any]) -> None:
    """Keys are unique, devices hang on controllers that are there, and names do not leave their place."""
    everything = [*document["controllers"], *document["disks"], *document["nics"], *document["drives"]]
    keys = [item["key"] for item in everything]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise InvalidInput(f"config has several devices with the keys {repeated}.", NEXT_STEP)
    controllers = {item["key"] for item in document["controllers"]} | {vm_devices.SIO_KEY}
    taken = set()
    for item in (*document["disks"], *document["drives"]):
        place = (item["controller_key"], item["unit"])
        if item["controller_key"] not in controllers:
            raise InvalidInput(f"{item['label']} is on the controller {place[0]}, which config lacks.", NEXT_STEP)
        if place in taken:
            raise InvalidInput(f"Several devices are on unit {place[1]} of the controller {place[0]}.", NEXT_STEP)
        taken.add(place)
    for nic in document["nics"]:
        missing = [key for key in vm_devices.NETWORK_KEYS[nic["network"]["kind"]] if key not in nic["network"]]
        if missing:
            raise InvalidInput(f"The network of {nic['label']} lacks {', '.join(missing)}.", NEXT_STEP)
        if nic.get("mac") and not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", nic["mac"]):
            raise InvalidInput(f"{nic['label']} has {nic['mac']!r} for a MAC address.", NEXT_STEP)
    refused = sorted(key for key in document["extra_config"] if not extra_config.is_kept(key))
    if refused:
        raise InvalidInput(
            f"config.extra_config has settings that are never restored: {', '.join(refused)}.", NEXT_STEP
        )
