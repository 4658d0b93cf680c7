# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the virtual disks of a VM or of a snapshot's configuration.

Pure over pyVmomi's device objects. The backing UUID is the identity of a disk: it survives a move to
another controller (which changes the key) and to another datastore (which changes the path).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Iterable

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

_INDEPENDENT = ("independent_persistent", "independent_nonpersistent")


@dataclass(frozen=True)
class Disk:
    """One virtual disk.

    ``capacity`` is in bytes; ``controller`` is like ``scsi0:1``. ``reason`` says why the disk is not
    ``protected`` (a snapshot does not hold its content), or what to know about a protected one.
    ``fcd_id`` is the ID of a first class disk. The file of a ``layered`` disk stands on that of an earlier snapshot, or
    of a disk that it was cloned from.
    """

    key: int
    label: str
    backing_uuid: str | None
    capacity: int
    path: str
    change_id: str | None
    controller: str | None
    mode: str | None
    backing: str
    thin: bool | None
    sharing: str | None
    protected: bool
    reason: str | None
    fcd_id: str | None = None
    layered: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape that all results use."""
        known = asdict(self)
        del known["layered"]
        return known


def from_devices(devices: Iterable[Any]) -> list[Disk]:
    """The disks among a VM's or a snapshot's ``config.hardware.device``, in the order of their keys."""
    return sorted((_disk(device, controller) for device, controller in _attached(devices)), key=lambda disk: disk.key)


def snapshot_obstacles(devices: Iterable[Any]) -> list[str]:
    """Per disk that keeps the whole VM from having snapshots: which it is and why, in words."""
    return [
        f"{_label(device)}: {shared}"
        for device, controller in _attached(devices)
        if (shared := _shared(device.backing, controller)) is not None
    ]


def pick(disks: Iterable[Disk], selector: int | str) -> Disk:
    """The disk with this key, label or backing UUID.

    :raises NotFound: none fits; the message lists what there is
    :raises Ambiguous: a label fits several
    """
    disks = list(disks)
    wanted = str(selector).lower()
    found = [disk for disk in disks if wanted in (str(disk.key), disk.label.lower(), (disk.backing_uuid or "").lower())]
    if not found:
        there = ", ".join(f"{disk.label} (key {disk.key}, {disk.backing_uuid})" for disk in disks) or "none"
        raise NotFound(f"There is no disk {selector}.", f"The disks are: {there}.")
    if len(found) > 1:
        raise Ambiguous(
            f"{len(found)} disks fit {selector}.",
            "Say which by key or backing UUID.",
            candidates=[{"key": disk.key, "label": disk.label, "backing_uuid": disk.backing_uuid} for disk in found],
        )
    return found[0]


def _attached(devices: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Each disk with its controller (None if that is not among the devices)."""
    by_key = {device.key: device for device in devices}
    disks = [device for device in by_key.values() if isinstance(device, vim.vm.device.VirtualDisk)]
    return [(disk, by_key.get(disk.controllerKey)) for disk in disks]


def _label(device: Any) -> str:
    return device.deviceInfo.label if device.deviceInfo else f"disk {device.key}"


def _disk(device: Any, controller: Any) -> Disk:
    backing = device.backing
    kind = _backing_kind(backing)
    obstacle = _left_out(backing, kind) or _shared(backing, controller)
    return Disk(
        key=device.key,
        label=_label(device),
        backing_uuid=getattr(backing, "uuid", None) or None,
        capacity=device.capacityInBytes or device.capacityInKB * 1024,
        path=getattr(backing, "fileName", None) or "",
        change_id=getattr(backing, "changeId", None) or None,
        controller=_slot(device, controller),
        mode=getattr(backing, "diskMode", None) or None,
        backing=kind,
        thin=getattr(backing, "thinProvisioned", None),
        sharing=getattr(backing, "sharing", None) or None,
        protected=obstacle is None,
        reason=obstacle or _remark(kind),
        fcd_id=_fcd_id(device),
        layered=getattr(backing, "parent", None) is not None,
    )


def _fcd_id(device: Any) -> str | None:
    identity = getattr(device, "vDiskId", None)
    return (identity.id or None) if identity else None


def _backing_kind(backing: Any) -> str:
    disk = vim.vm.device.VirtualDisk
    if isinstance(backing, disk.RawDiskMappingVer1BackingInfo):
        return "rdm_physical" if backing.compatibilityMode == "physicalMode" else "rdm_virtual"
    kinds = {
        disk.FlatVer2BackingInfo: "flat_v2",
        disk.SeSparseBackingInfo: "sesparse",
        disk.SparseVer2BackingInfo: "sparse_v2",
        disk.FlatVer1BackingInfo: "flat_v1",
        disk.SparseVer1BackingInfo: "sparse_v1",
        disk.RawDiskVer2BackingInfo: "raw_disk",
        disk.PartitionedRawDiskVer2BackingInfo: "raw_partition",
        disk.LocalPMemBackingInfo: "pmem",
    }
    # The most derived class counts: a partitioned raw disk is a raw disk too.
    return next((kinds[cls] for cls in type(backing).__mro__ if cls in kinds), "unknown")


def _left_out(backing: Any, kind: str) -> str | None:
    """Why snapshots leave this disk's content out, or None."""
    if kind == "rdm_physical":
        return "raw device in physical compatibility mode: snapshots leave it out"
    if kind in ("raw_disk", "raw_partition", "pmem"):
        return f"backing of kind {kind}: snapshots leave it out"
    if kind == "unknown":
        return f"backing of an unknown kind ({type(backing).__name__.rsplit('.', 1)[-1]})"
    mode = getattr(backing, "diskMode", None)
    if mode in _INDEPENDENT:
        return f"independent disk (mode {mode}): snapshots leave it out"
    if mode not in (None, "", "persistent"):
        return f"mode {mode}: its changes are not kept as those of a persistent disk are"
    return None


def _shared(backing: Any, controller: Any) -> str | None:
    """How this disk is shared in a way that forbids snapshots of the VM, or None."""
    shared_bus = getattr(controller, "sharedBus", None)
    if shared_bus not in (None, "noSharing"):
        return f"on a controller with SCSI bus sharing ({shared_bus}), which forbids snapshots"
    sharing = getattr(backing, "sharing", None)
    # An independent disk is in no snapshot, so that its sharing forbids none.
    if sharing not in (None, "", "sharingNone") and getattr(backing, "diskMode", None) not in _INDEPENDENT:
        return f"shared between virtual machines ({sharing}), which forbids snapshots"
    return None


def _remark(kind: str) -> str | None:
    if kind == "rdm_virtual":
        return "raw device in virtual compatibility mode: it is restored as an ordinary disk"
    return None


def _slot(device: Any, controller: Any) -> str:
    if controller is None:
        return f"unknown:{device.unitNumber}"
    kinds = {
        vim.vm.device.VirtualSCSIController: "scsi",
        vim.vm.device.VirtualSATAController: "sata",
        vim.vm.device.VirtualNVMEController: "nvme",
        vim.vm.device.VirtualIDEController: "ide",
    }
    kind = next((name for cls, name in kinds.items() if isinstance(controller, cls)), "unknown")
    return f"{kind}{controller.busNumber}:{device.unitNumber}"
