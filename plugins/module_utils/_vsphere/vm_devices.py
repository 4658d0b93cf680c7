# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the devices of a VM as JSON records.

Pure functions over pyVmomi's data objects. :func:`read` sorts every device into one of three: made
again from its record (``device_specs``), made by vSphere for any VM (keyboard, PCI controller ...),
or left out with a reason, because it is bound to one host or to something that no restore point holds.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import disks as disk_records
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fields import (
    SHARES,
    Field,
    read_fields,
    same,
    shapes,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.shapes import (
    by_type,
    flag,
    items,
    nullable,
    number,
    one_of,
    record,
    text,
)

_INT32 = 2**31 - 1
_INT64 = 2**63 - 1
_NAME = text(255, empty=False)
_KEY = number(0, _INT32)

_SLOT = {"pci_slot": same("slotInfo.pciSlotNumber", number(-1, _INT32))}
_SCSI = {"sharing": same("sharedBus", one_of("noSharing", "virtualSharing", "physicalSharing"))}
_USB = {"auto_connect": same("autoConnectDevices", flag)}

CONTROLLERS: dict[str, dict[str, Field]] = {
    "VirtualIDEController": {},
    "ParaVirtualSCSIController": {**_SCSI, **_SLOT},
    "VirtualLsiLogicController": {**_SCSI, **_SLOT},
    "VirtualLsiLogicSASController": {**_SCSI, **_SLOT},
    "VirtualBusLogicController": {**_SCSI, **_SLOT},
    "VirtualAHCIController": _SLOT,
    "VirtualNVMEController": {"sharing": same("sharedBus", text(64)), **_SLOT},
    "VirtualUSBController": {"ehci": same("ehciEnabled", flag), **_USB, **_SLOT},
    "VirtualUSBXHCIController": {**_USB, **_SLOT},
}
SIO_KEY = 400  # the super I/O controller that every VM has; floppy drives are on it

NICS: dict[str, dict[str, Field]] = {
    name: {
        "mac": same("macAddress", text(17)),
        "mac_type": same("addressType", text(32)),
        "wake_on_lan": same("wakeOnLanEnabled", flag),
        "direct_path": same("uptCompatibilityEnabled", flag),
        "reservation": same("resourceAllocation.reservation", number(0, _INT64)),
        "limit": same("resourceAllocation.limit", number(-1, _INT64)),
        "shares": same("resourceAllocation.share", SHARES),
        **extra,
        **_SLOT,
    }
    for name, extra in {
        "VirtualVmxnet3": {},
        "VirtualVmxnet3Vrdma": {"protocol": same("deviceProtocol", text(32))},
        "VirtualVmxnet2": {},
        "VirtualVmxnet": {},
        "VirtualE1000": {},
        "VirtualE1000e": {},
        "VirtualPCNet32": {},
    }.items()
}
_UNLIMITED = {"reservation": 0, "limit": -1, "shares": "normal"}
_LINK = {
    "start_connected": same("connectable.startConnected", flag),
    "guest_control": same("connectable.allowGuestControl", flag),
}
DISK = {
    "write_through": same("backing.writeThrough", flag),
    "io_limit": same("storageIOAllocation.limit", number(-1, _INT64)),
    "io_reservation": same("storageIOAllocation.reservation", number(0, _INT32)),
    "io_shares": same("storageIOAllocation.shares", SHARES),
}
VIDEO = {
    "memory_kb": same("videoRamSizeInKB", number(0, _INT64)),
    "displays": same("numDisplays", number(0, 64)),
    "auto_detect": same("useAutoDetect", flag),
    "enable_3d": same("enable3DSupport", flag),
    "renderer_3d": same("use3dRenderer", text(32)),
    "graphics_memory_kb": same("graphicsMemorySizeInKB", number(0, _INT64)),
}
_DRIVES = ("VirtualCdrom", "VirtualFloppy")
PROVISIONING = ("thin", "lazy_zeroed", "eager_zeroed")

_IMPLIED = (
    "VirtualPS2Controller",
    "VirtualPCIController",
    "VirtualSIOController",
    "VirtualKeyboard",
    "VirtualPointingDevice",
    "VirtualVMCIDevice",
)
_REASONS = {
    "VirtualTPM": "its keys cannot be read; keep the guest's recovery keys (BitLocker ...) and add a new TPM by hand",
    "VirtualSerialPort": "it is bound to a file, a device or a service of one host",
    "VirtualParallelPort": "it is bound to a file or a device of one host",
    "VirtualPCIPassthrough": "it is a device of one host",
    "VirtualSCSIPassthrough": "it is a device of one host",
    "VirtualSriovEthernetCard": "it is a device of one host; add another network adapter by hand",
    "VirtualUSB": "it is a device plugged into one host or client",
    "VirtualNVDIMM": "persistent memory is not in a restore point",
    "VirtualNVDIMMController": "persistent memory is not in a restore point",
}

NETWORK_KEYS = {
    "standard": (),
    "distributed": ("portgroup_key", "switch_uuid"),
    "opaque": ("opaque_id", "opaque_type"),
}
_NETWORK = record(
    {"name": _NAME, "kind": one_of(*NETWORK_KEYS)},
    {key: text(255) for keys in NETWORK_KEYS.values() for key in keys},
)
_ENCRYPTION = record({"key_id": text(255), "provider": nullable(text(255))})
POLICY = nullable(record({"name": text(1024, empty=False, lines=True)}, {"id": text(255)}))
_TYPED = {"key": _KEY, "label": text(255)}

SHAPES = {
    "controllers": items(
        by_type({kind: shapes(fields) for kind, fields in CONTROLLERS.items()}, {"key": _KEY, "bus": number(0, 63)})
    ),
    "disks": items(
        record(
            {
                **_TYPED,
                "backing_uuid": nullable(text(64)),
                "capacity": number(512, 2**60, multiple=512),
                "controller_key": _KEY,
                "unit": number(0, 255),
                "protected": flag,
            },
            {
                "path": text(2048),
                "datastore": _NAME,
                "provisioning": one_of(*PROVISIONING),
                "mode": nullable(text(64)),
                "sharing": nullable(text(64)),
                "reason": nullable(text(1024)),
                "used": number(0, 2**60),
                "encryption": _ENCRYPTION,
                "storage_policy": POLICY,
                **shapes(DISK),
            },
        ),
        limit=512,
    ),
    "nics": items(
        by_type({kind: shapes({**_LINK, **fields}) for kind, fields in NICS.items()}, {**_TYPED, "network": _NETWORK}),
        limit=64,
    ),
    "drives": items(record({**_TYPED, "type": one_of(*_DRIVES), "controller_key": _KEY, "unit": number(0, 255)})),
    "video": record({}, shapes(VIDEO)),
    "left_out": items(record({"device": text(255), "reason": text(1024)})),
}


def read(devices: Iterable[Any], networks: Mapping[str, str]) -> dict[str, Any]:
    """The devices as records, under the keys of SHAPES.

    :param devices: ``config.hardware.device`` of a VM or of a snapshot
    :param networks: names of distributed port groups by their keys
    """
    devices = sorted(devices, key=lambda device: device.key)
    found: dict[str, Any] = {"controllers": [], "disks": [], "nics": [], "drives": [], "video": {}, "left_out": []}
    records = {disk.key: disk.as_dict() for disk in disk_records.from_devices(devices)}
    for device in devices:
        kind = type_name(device)
        if kind in CONTROLLERS:
            found["controllers"].append(_controller(device, kind))
        elif kind == "VirtualDisk":
            found["disks"].append(_disk(device, records[device.key]))
        elif kind in NICS and _network(device, networks):
            found["nics"].append(_nic(device, kind, networks))
        elif kind in _DRIVES:
            found["drives"].append(_identified(device, type=kind, **_place(device)))
            found["left_out"].extend(_medium(device))
        elif kind == "VirtualVideoCard":
            found["video"] = read_fields(device, VIDEO)
        elif kind not in _IMPLIED:
            found["left_out"].append(_left_out(device, _REASONS.get(kind, f"a {kind} is not made again")))
    return found


def type_name(device: Any) -> str:
    """``VirtualDisk`` for an object of pyVmomi's type ``vim.vm.device.VirtualDisk``."""
    return type(device).__name__.rpartition(".")[2]


def _label(device: Any) -> str:
    info = device.deviceInfo
    return str(info.label) if info and info.label else f"{type_name(device)} {device.key}"


def _identified(device: Any, **values: Any) -> dict[str, Any]:
    return {"key": int(device.key), "label": _label(device), **values}


def _place(device: Any) -> dict[str, int]:
    return {"controller_key": int(device.controllerKey), "unit": int(device.unitNumber or 0)}


def _left_out(device: Any, reason: str) -> dict[str, str]:
    return {"device": _label(device), "reason": reason}


def _controller(device: Any, kind: str) -> dict[str, Any]:
    return {
        "key": int(device.key),
        "type": kind,
        "bus": int(device.busNumber),
        **read_fields(device, CONTROLLERS[kind]),
    }


def _disk(device: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: known[key] for key in ("backing_uuid", "capacity", "path", "mode", "sharing", "protected", "reason")}
    key_id = getattr(device.backing, "keyId", None)
    optional = {
        "datastore": known["path"][1:].partition("]")[0],
        "provisioning": _provisioning(device.backing),
        "encryption": encryption(key_id) if key_id else None,
    }
    values.update({key: value for key, value in optional.items() if value})
    return _identified(device, **_place(device), **values, **read_fields(device, DISK))


def _provisioning(backing: Any) -> str | None:
    # A disk with snapshots is a chain of sparse files; only its first file says how it was made.
    while getattr(backing, "parent", None) is not None:
        backing = backing.parent
    if not isinstance(backing, vim.vm.device.VirtualDisk.FlatVer2BackingInfo):
        return None
    if backing.thinProvisioned:
        return "thin"
    return "eager_zeroed" if backing.eagerlyScrub else "lazy_zeroed"


def encryption(key_id: Any) -> dict[str, Any]:
    """A CryptoKeyId as a record; the key itself never leaves the key provider."""
    return {"key_id": str(key_id.keyId), "provider": str(key_id.providerId.id) if key_id.providerId else None}


def _nic(device: Any, kind: str, networks: Mapping[str, str]) -> dict[str, Any]:
    values = read_fields(device, {**_LINK, **NICS[kind]})
    if {key: values.get(key) for key in _UNLIMITED} == _UNLIMITED:
        # Said for every adapter, but only to be asked for where the network can do it.
        values = {key: value for key, value in values.items() if key not in _UNLIMITED}
    return _identified(device, type=kind, network=_network(device, networks), **values)


def _network(device: Any, networks: Mapping[str, str]) -> dict[str, Any]:
    """What the adapter is connected to; empty for kinds that a new VM cannot be given."""
    backing, card = device.backing, vim.vm.device.VirtualEthernetCard
    if isinstance(backing, card.DistributedVirtualPortBackingInfo):
        key = backing.port.portgroupKey
        return {
            "name": networks.get(key or "", key or "no port group"),
            "kind": "distributed",
            "portgroup_key": str(key or ""),
            "switch_uuid": str(backing.port.switchUuid),
        }
    if isinstance(backing, card.OpaqueNetworkBackingInfo):
        name = networks.get(backing.opaqueNetworkId, str(backing.opaqueNetworkId))
        return {
            "name": name,
            "kind": "opaque",
            "opaque_id": str(backing.opaqueNetworkId),
            "opaque_type": str(backing.opaqueNetworkType),
        }
    if isinstance(backing, card.NetworkBackingInfo):
        return {"name": str(backing.deviceName), "kind": "standard"}
    return {}


def _medium(device: Any) -> list[dict[str, str]]:
    backing = device.backing
    if isinstance(backing, vim.vm.device.VirtualDevice.FileBackingInfo):
        return [_left_out(device, f"the drive is made again without its medium {backing.fileName}")]
    if isinstance(backing, vim.vm.device.VirtualDevice.DeviceBackingInfo):
        return [_left_out(device, "the drive is made again without the host's drive behind it")]
    return []
