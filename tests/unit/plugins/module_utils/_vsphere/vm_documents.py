# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""VM configurations for the tests: one sample, and a strategy that makes any."""

from __future__ import annotations

import copy
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import vm_devices
from hypothesis import strategies as st

UUID = "5012fc1f-3b5e-4a2a-8a0d-3d6a9a4f0f11"

SAMPLE: dict[str, Any] = {
    "format": "holdfast.vm_config",
    "version": 1,
    "vm": {"name": "web01", "moid": "vm-42", "instance_uuid": UUID, "bios_uuid": UUID[::-1], "template": False},
    "settings": {
        "hardware": {"version": "vmx-19", "guest_id": "otherLinux64Guest", "cpus": 4, "cores_per_socket": 2,
                     "memory_mb": 2048, "cpu_hot_add": True, "latency_sensitivity": "high"},
        "cpu": {"reservation": 500, "limit": -1, "shares": 1234},
        "firmware": {"type": "efi", "secure_boot": True, "boot_delay_ms": 1000},
        "flags": {"vbs": True, "iommu": True},
        "power": {"off": "soft"},
        "tools": {"sync_time": True},
        "other": {"annotation": "two\nlines"},
    },
    "controllers": [
        {"key": 200, "type": "VirtualIDEController", "bus": 0},
        {"key": 1000, "type": "ParaVirtualSCSIController", "bus": 0, "sharing": "noSharing", "pci_slot": 160},
        {"key": 1001, "type": "VirtualLsiLogicController", "bus": 1, "sharing": "noSharing"},
    ],
    "disks": [
        {"key": 2000, "label": "Hard disk 1", "backing_uuid": "6000C29a", "capacity": 1 << 30, "controller_key": 1000,
         "unit": 0, "protected": True, "reason": None, "path": "[ds1] web01/web01.vmdk", "datastore": "ds1",
         "provisioning": "thin", "mode": "persistent", "sharing": "sharingNone", "used": 1 << 20},
        {"key": 2016, "label": "Hard disk 2", "backing_uuid": "6000C29b", "capacity": 512 << 20, "controller_key": 1001,
         "unit": 3, "protected": True, "reason": None, "path": "[ds2] web01/data.vmdk", "datastore": "ds2",
         "provisioning": "eager_zeroed", "mode": "persistent", "sharing": "sharingNone"},
        {"key": 2017, "label": "Hard disk 3", "backing_uuid": "6000C29c", "capacity": 512 << 20, "controller_key": 1001,
         "unit": 4, "protected": False, "reason": "independent disk", "path": "[ds2] web01/scratch.vmdk",
         "datastore": "ds2", "provisioning": "thin", "mode": "independent_persistent", "sharing": "sharingNone"},
    ],
    "nics": [
        {"key": 4000, "label": "Network adapter 1", "type": "VirtualVmxnet3", "mac": "00:50:56:99:00:01",
         "mac_type": "assigned", "network": {"name": "front", "kind": "standard"}, "start_connected": True},
        {"key": 4001, "label": "Network adapter 2", "type": "VirtualE1000e", "mac": "00:50:56:00:00:02",
         "mac_type": "manual", "network": {"name": "back", "kind": "distributed", "portgroup_key": "dvportgroup-7",
                                           "switch_uuid": "50 1a"}},
    ],
    "drives": [{"key": 3000, "label": "CD/DVD drive 1", "type": "VirtualCdrom", "controller_key": 200, "unit": 0}],
    "video": {"memory_kb": 8192, "displays": 1},
    "left_out": [{"device": "Serial port 1", "reason": "it is bound to one host"}],
    "boot_order": [{"type": "disk", "key": 2016}, {"type": "ethernet", "key": 4001}, {"type": "cdrom"}],
    "extra_config": {"disk.EnableUUID": "TRUE"},
    "placement": {"datacenter": "/DC0", "folder": "/DC0/vm/prod", "resource_pool": "/DC0/host/C0/Resources",
                  "host": "/DC0/host/C0/H0", "datastore": "ds1"},
}  # fmt: skip


def sample(**changes: Any) -> dict[str, Any]:
    """A copy of SAMPLE; ``changes`` replace its top-level keys."""
    return {**copy.deepcopy(SAMPLE), **copy.deepcopy(changes)}


_WORDS = st.text("abcXYZ 0-9_", min_size=1, max_size=12)
_UUIDS = st.uuids().map(str)
_SHARES = st.sampled_from(["low", "normal", "high"]) | st.integers(0, 10_000)
_SIZES = st.integers(0, 1 << 40)
_VALUES = {
    "sharing": st.sampled_from(["noSharing", "virtualSharing", "physicalSharing"]),
    "shares": _SHARES,
    "io_shares": _SHARES,
    "pci_slot": st.integers(-1, 2000),
    "displays": st.integers(1, 10),
    "mac": st.just("00:50:56:01:02:03"),
    "io_reservation": st.integers(0, 1 << 20),
    **dict.fromkeys(("reservation", "limit", "io_limit", "memory_kb", "graphics_memory_kb"), _SIZES),
    **dict.fromkeys(("mac_type", "protocol", "renderer_3d"), _WORDS),
}


def _values(fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the keys of a table of fields; what is not named above is true or false."""
    return st.fixed_dictionaries({}, optional={name: _VALUES.get(name, st.booleans()) for name in fields})


def _label(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "label": f"{item['type']} {item['key']}"}


_NETWORKS = st.one_of(
    st.fixed_dictionaries({"name": _WORDS, "kind": st.just("standard")}),
    st.fixed_dictionaries({"kind": st.just("distributed"), "portgroup_key": _WORDS, "switch_uuid": _WORDS}).map(
        lambda network: {"name": network["portgroup_key"], **network}
    ),
    st.fixed_dictionaries({"kind": st.just("opaque"), "opaque_id": _WORDS, "opaque_type": _WORDS}).map(
        lambda network: {"name": network["opaque_id"], **network}
    ),
)


@st.composite
def hardware(draw: Any) -> dict[str, Any]:
    """Devices as vm_devices.read would return them for a VM with no device that is left out."""
    controllers: list[dict[str, Any]] = [
        {"key": 200 + bus, "type": "VirtualIDEController", "bus": bus} for bus in range(2)
    ]
    kinds = draw(st.lists(st.sampled_from([kind for kind in vm_devices.CONTROLLERS if "IDE" not in kind]), max_size=4))
    for key, kind in enumerate(kinds, 1000):
        bus = sum(kind == other for other in kinds[: key - 1000])
        required = {"sharing": "noSharing"} if "SCSI" in kind or "Logic" in kind else {}
        values = draw(_values(vm_devices.CONTROLLERS[kind]))
        controllers.append({"key": key, "type": kind, "bus": bus, **required, **values})
    slots = draw(
        st.lists(st.tuples(st.sampled_from([one["key"] for one in controllers]), st.integers(0, 15)), unique=True)
    )
    sharing = {one["key"]: one.get("sharing", "noSharing") for one in controllers}
    disks, drives = [], []
    for key, (controller, unit) in enumerate(slots, 2000):
        if draw(st.integers(0, 4)) == 0:
            drives.append(_label({"key": key, "type": "VirtualCdrom", "controller_key": controller, "unit": unit}))
            continue
        item = {
            "key": key, "label": f"VirtualDisk {key}", "controller_key": controller, "unit": unit,
            "backing_uuid": draw(_UUIDS), "capacity": draw(st.integers(1, 1 << 40)) * 512, "path": "[ds]",
            "datastore": "ds", "provisioning": draw(st.sampled_from(vm_devices.PROVISIONING)), "mode": "persistent",
            "sharing": "sharingNone", "protected": sharing[controller] == "noSharing",
            **draw(_values(vm_devices.DISK)),
        }  # fmt: skip
        disks.append(item)
    if draw(st.booleans()):
        drives.append(_label({"key": 8000, "type": "VirtualFloppy", "controller_key": 400, "unit": 0}))
    nics = []
    for key in range(4000, 4000 + draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(list(vm_devices.NICS)))
        nic = {"key": key, "type": kind, "network": draw(_NETWORKS), **draw(_values(vm_devices.NICS[kind]))}
        nic.update(start_connected=draw(st.booleans()), guest_control=draw(st.booleans()))
        nics.append(_label(nic))
    video = draw(_values(vm_devices.VIDEO))
    return {"controllers": controllers, "disks": disks, "nics": nics, "drives": drives, "video": video, "left_out": []}
