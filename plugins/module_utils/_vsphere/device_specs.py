# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: specs that make the devices of a captured VM in a new one.

Pure functions, the other direction of ``vm_devices``. A new device gets a negative key for the time
of the call; default devices keep their fixed keys, which the devices on them name (VDDK programming
guide, "Restore Objects").
"""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fields import Field, write_fields
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.vm_devices import (
    CONTROLLERS,
    DISK,
    NICS,
    SIO_KEY,
    VIDEO,
)

_FIXED_KEYS = {("VirtualIDEController", 0): 200, ("VirtualIDEController", 1): 201}
_VIDEO_KEY = 500


def specs(hardware: Mapping[str, Any], keep_uuids: bool = False) -> list[Any]:
    """The device changes that make the devices of ``hardware`` (as from ``vm_devices.read``) in a new VM.

    The disks are new and empty. The order of the network adapters is that of their old keys.

    :param keep_uuids: ask for the old backing UUIDs, which the guest sees as disk serial numbers
    """
    keys = {item["key"]: _new_key(item) for item in hardware["controllers"]}
    keys[SIO_KEY] = SIO_KEY
    devices = [_make_controller(item, keys[item["key"]]) for item in hardware["controllers"]]
    devices += [_make_drive(item, keys) for item in hardware["drives"]]
    devices += [_make_nic(item) for item in sorted(hardware["nics"], key=lambda item: item["key"])]
    devices += [_make_video(hardware["video"])]
    changes = [_addition(device) for device in devices if device is not None]
    return changes + [
        _addition(_make_disk(item, keys, keep_uuids), fileOperation="create", profile=profile(item))
        for item in hardware["disks"]
    ]


def profile(item: Mapping[str, Any]) -> list[Any]:
    """The storage policy of a disk, or of a VM's home, as vSphere takes it; none is the default of the datastore."""
    policy = item.get("storage_policy")
    return [vim.vm.DefinedProfileSpec(profileId=policy["id"])] if policy else []


def slots(hardware: Mapping[str, Any]) -> dict[tuple[str, int, int], dict[str, Any]]:
    """The disks by (controller type, bus, unit): where a disk of the old VM is found in the new one."""
    controllers = {item["key"]: (item["type"], item["bus"]) for item in hardware["controllers"]}
    return {(*controllers[disk["controller_key"]], disk["unit"]): disk for disk in hardware["disks"]}


def _new_key(controller: Mapping[str, Any]) -> int:
    return _FIXED_KEYS.get((controller["type"], controller["bus"]), -1 - controller["key"])


def _addition(device: Any, **values: Any) -> Any:
    return vim.vm.device.VirtualDeviceSpec(operation="add", device=device, **values)


def _make(kind: str, **values: Any) -> Any:
    return getattr(vim.vm.device, kind)(**values)


def _make_controller(item: Mapping[str, Any], key: int) -> Any:
    if key > 0:
        return None  # vSphere makes it
    device = _make(item["type"], key=key, busNumber=item["bus"])
    if isinstance(device, vim.vm.device.VirtualSCSIController):
        device.sharedBus = vim.vm.device.VirtualSCSIController.Sharing.noSharing
    _write(device, CONTROLLERS[item["type"]], item)
    return device


def _make_drive(item: Mapping[str, Any], keys: Mapping[int, int]) -> Any:
    device = _make(
        item["type"],
        key=-1 - item["key"],
        controllerKey=keys[item["controller_key"]],
        unitNumber=item["unit"],
        connectable=vim.vm.device.VirtualDevice.ConnectInfo(
            startConnected=False, allowGuestControl=True, connected=False
        ),
    )
    kind = type(device)
    if item["type"] == "VirtualCdrom":
        device.backing = kind.RemotePassthroughBackingInfo(deviceName="", exclusive=False)
    else:
        device.backing = kind.RemoteDeviceBackingInfo(deviceName="")
    return device


def _make_nic(item: Mapping[str, Any]) -> Any:
    device = _make(item["type"], key=-1 - item["key"], backing=_make_network(item["network"]))
    device.connectable = vim.vm.device.VirtualDevice.ConnectInfo(
        startConnected=item.get("start_connected", True),
        allowGuestControl=item.get("guest_control", True),
        connected=False,
    )
    _write(device, NICS[item["type"]], item)
    return device


def _make_network(network: Mapping[str, str]) -> Any:
    card = vim.vm.device.VirtualEthernetCard
    if network["kind"] == "distributed":
        return card.DistributedVirtualPortBackingInfo(
            port=vim.dvs.PortConnection(portgroupKey=network["portgroup_key"], switchUuid=network["switch_uuid"])
        )
    if network["kind"] == "opaque":
        return card.OpaqueNetworkBackingInfo(
            opaqueNetworkId=network["opaque_id"], opaqueNetworkType=network["opaque_type"]
        )
    return card.NetworkBackingInfo(deviceName=network["name"])


def _make_video(item: Mapping[str, Any]) -> Any:
    if not item:
        return None
    device = _make("VirtualVideoCard", key=_VIDEO_KEY)
    _write(device, VIDEO, item)
    return device


def _make_disk(item: Mapping[str, Any], keys: Mapping[int, int], keep_uuid: bool) -> Any:
    provisioning = item.get("provisioning", "thin")
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=f"[{item['datastore']}]",
        diskMode=item.get("mode") or "persistent",
        thinProvisioned=provisioning == "thin",
        eagerlyScrub=provisioning == "eager_zeroed",
        sharing=item.get("sharing"),
        uuid=item["backing_uuid"] if keep_uuid else None,
    )
    device = vim.vm.device.VirtualDisk(
        key=-1 - item["key"],
        controllerKey=keys[item["controller_key"]],
        unitNumber=item["unit"],
        capacityInKB=item["capacity"] // 1024,
        capacityInBytes=item["capacity"],
        backing=backing,
    )
    _write(device, DISK, item)
    return device


def _write(device: Any, fields: Mapping[str, Field], item: Mapping[str, Any]) -> None:
    write_fields(device, fields, {name: item[name] for name in fields if name in item})
