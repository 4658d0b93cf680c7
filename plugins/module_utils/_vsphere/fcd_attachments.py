# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: where first class disks are attached, and where one could be.

A disk names its consumers by the ID of a VM. Which of a VM's IDs that is, the API reference leaves open;
so its instance UUID, its BIOS UUID and its managed object ID are all understood.
"""

from __future__ import annotations

import re
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import disks, inventory
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

DEVICES = "config.hardware.device"
# Units of a controller by kind, in the order in which a free one is looked for. Disks cannot be added to IDE at will.
UNITS = {"scsi": 16, "nvme": 15, "sata": 30}
_RESERVED = {"scsi": 7}  # the controller's own


class Slot(NamedTuple):
    """A place for a disk on a VM: the controller's key, the unit, and both in words like ``scsi0:1``."""

    controller: int
    unit: int
    name: str


def consumers(
    c: Connection, attached: Iterable[Fcd], properties: Sequence[str] = ()
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Disk ID -> the VM that it is attached to, and its properties; only of VMs that the user may see.

    One request for each VM (two if it is known by its BIOS UUID), and one for all of them.

    :param properties: property paths to read beside ``inventory.IDENTITY``
    """
    wanted = {disk.id: disk.consumers[0] for disk in attached if disk.consumers}
    found = {consumer: _vm(c, consumer) for consumer in dict.fromkeys(wanted.values())}
    known = [vm for vm in found.values() if vm is not None]
    read = c.retrieve(known, {vim.VirtualMachine: [*dict.fromkeys((*inventory.IDENTITY, *properties))]})
    return {
        disk: (found[consumer], read[found[consumer]]) for disk, consumer in wanted.items() if found[consumer] in read
    }


def attachments(c: Connection, attached: Iterable[Fcd]) -> dict[str, dict[str, Any]]:
    """Disk ID -> ``{"vm", "key", "controller"}`` of the disks that are attached; costs what :func:`consumers` does.

    Of a VM that does not show the disk (any more), key and controller are None.
    """
    found = consumers(c, attached, [DEVICES])
    return {disk: attachment(vm, properties, disk) for disk, (vm, properties) in found.items()}


def attachment(vm: Any, properties: Mapping[str, Any], disk: str) -> dict[str, Any]:
    """Where the disk with this ID is on a VM; ``properties``: the VM's identity and :data:`DEVICES`."""
    devices = properties.get(DEVICES, ())
    keys = [device.key for device in devices if _fcd_id(device) == disk]
    there = [one for one in disks.from_devices(devices) if one.key in keys]
    return {
        "vm": inventory.vm_dict(vm, dict(properties)),
        "key": there[0].key if there else None,
        "controller": there[0].controller if there else None,
    }


def device_key(devices: Sequence[Any], disk: str) -> int | None:
    """The key of the device that is the disk with this ID, or None."""
    return next((device.key for device in devices if _fcd_id(device) == disk), None)


def choose_slot(devices: Sequence[Any], wish: str | None) -> Slot:
    """A place that is free.

    :param wish: ``scsi0:1``, ``scsi0`` (any unit of it) or None (any controller, SCSI first)
    :raises InvalidInput: there is no such controller, or the unit is taken
    :raises NotSupported: nothing is free
    """
    controllers = {name: device for device in devices if (name := _name(device)) is not None}
    if wish is None:
        order = list(UNITS)
        for name in sorted(controllers, key=lambda name: (order.index(_kind(name)), name)):
            unit = _free_unit(devices, name, controllers[name])
            if unit is not None and _unshared(controllers[name]):
                return Slot(controllers[name].key, unit, f"{name}:{unit}")
        raise NotSupported(
            "The virtual machine has no free place for another disk.", "Add a SCSI, NVMe or SATA controller to it."
        )
    name, _colon, number = wish.partition(":")
    if name not in controllers or (number and not number.isdigit()):
        raise InvalidInput(
            f"The virtual machine has no controller {name}.",
            f"Write for example scsi0 or scsi0:1. It has {', '.join(sorted(controllers)) or 'none that takes disks'}.",
        )
    controller = controllers[name]
    unit = int(number) if number else _free_unit(devices, name, controller)
    if unit is None or unit in _taken(devices, name, controller):
        what = f"The place {wish}" if number else f"Every place on {name}"
        raise InvalidInput(f"{what} of the virtual machine is taken.", "Give another controller or unit, or none.")
    return Slot(controller.key, unit, f"{name}:{unit}")


def _vm(c: Connection, consumer: str) -> Any:
    if re.fullmatch(r"vm-\d+|\d+", consumer):
        return vim.VirtualMachine(consumer, c.stub)
    search = c.content.searchIndex.FindByUuid
    return c.read(search, None, consumer, True, True) or c.read(search, None, consumer, True, False)


def _fcd_id(device: Any) -> str | None:
    identity = getattr(device, "vDiskId", None)
    return identity.id if identity else None


def _name(device: Any) -> str | None:
    """``scsi0`` for a controller that takes disks, else None."""
    kinds = {
        "scsi": vim.vm.device.VirtualSCSIController,
        "nvme": vim.vm.device.VirtualNVMEController,
        "sata": vim.vm.device.VirtualSATAController,
    }
    kind = next((kind for kind, cls in kinds.items() if isinstance(device, cls)), None)
    return f"{kind}{device.busNumber}" if kind else None


def _kind(name: str) -> str:
    return name.rstrip("0123456789")


def _unshared(controller: Any) -> bool:
    return getattr(controller, "sharedBus", None) in (None, "noSharing")


def _taken(devices: Sequence[Any], name: str, controller: Any) -> set[int]:
    reserved = _RESERVED.get(_kind(name))
    own = {reserved} if reserved is not None else set()
    return own | {device.unitNumber for device in devices if device.controllerKey == controller.key}


def _free_unit(devices: Sequence[Any], name: str, controller: Any) -> int | None:
    taken = _taken(devices, name, controller)
    return next((unit for unit in range(UNITS[_kind(name)]) if unit not in taken), None)
