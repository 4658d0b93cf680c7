# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: all that can be told of the snapshots of one VM or of many.

Beside the VM's own ``snapshot`` property it takes one request (and one for each further :data:`fleet.PAGE` objects) for
disks, sizes and the server's clock of any number of snapshots, and three or more for their creators.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    disks,
    fleet,
    snapshot_creators,
    snapshot_sizes,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import traverse
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshots import Snapshot

_DEVICES = "config.hardware.device"
_NOT_ASKED = "not asked for"

Records = dict[Snapshot, dict[str, Any]]


@dataclass(frozen=True)
class Details:
    """What is read beside the tree of snapshots: the ``disks`` of each, ``sizes``, and ``creators`` (who made it)."""

    disks: bool = True
    sizes: bool = True
    creators: bool = False


def base(snapshot: Snapshot, now: datetime) -> dict[str, Any]:
    """What the tree and the clock of the server tell; pure."""
    return {
        **snapshot.as_dict(),
        "consistency": "filesystem" if snapshot.quiesced else "crash",
        "age_seconds": max(0, round((now - snapshot.created).total_seconds())),
        "owner": "ours" if snapshot.stamp else "foreign",
        "expired": bool(snapshot.stamp and snapshot.stamp.expired(now)),
    }


def describe(
    c: Connection,
    machines: Mapping[Any, Sequence[Snapshot]],
    details: Details,
    start: Any,
    now: datetime | None = None,
) -> dict[Any, Records]:
    """Records of all snapshots; without those of a VM that has gone meanwhile.

    :param machines: VM -> all of its snapshots
    :param start: what all of these VMs are below, or the only VM
    :param now: the server's clock, if it was read before
    """
    taken = {vm: chosen for vm, chosen in machines.items() if chosen}
    if not taken:
        return {vm: {} for vm in machines}
    read: dict[Any, dict[str, Any]] = {}
    if asked := now is None or details.disks or details.sizes:
        read = _read(c, taken, details)
        now = fleet.clock(read)
    creators: dict[str, str] = {}
    no_creator: str | None = _NOT_ASKED
    if details.creators:
        made = {one.moid: (vm._GetMoId(), one.created) for vm, chosen in taken.items() for one in chosen}
        creators, no_creator = snapshot_creators.find(c, start, made)
    found: dict[Any, Records] = {vm: {} for vm in machines if vm not in taken or vm in read or not asked}
    for vm, chosen in ((vm, chosen) for vm, chosen in taken.items() if vm in found):
        sizes = read.get(vm, {}).get("layoutEx") or snapshot_sizes.measure(None, chosen)
        for one in chosen:
            creator = creators.get(one.moid)
            found[vm][one] = {
                **base(one, now),
                **(sizes[one.moid] if details.sizes else snapshot_sizes.unknown(_NOT_ASKED)).as_dict(),
                "creator": creator,
                "creator_problem": None if creator else no_creator,
                "disks": read.get(vim.vm.Snapshot(one.moid, c.stub), {}).get(_DEVICES, []) if details.disks else None,
            }
    return found


def _read(c: Connection, taken: Mapping[Any, Sequence[Snapshot]], details: Details) -> dict[Any, dict[str, Any]]:
    kinds = {vim.ServiceInstance: ["serverClock"], vim.VirtualMachine: ["layoutEx" if details.sizes else "name"]}
    ways = []
    if details.disks:
        # By the tree and not by name: a snapshot that has gone meanwhile is no error then.
        ways = [
            traverse("roots", vim.VirtualMachine, "rootSnapshot", "children"),
            traverse("children", vim.vm.Snapshot, "childSnapshot", "children"),
        ]
        kinds[vim.vm.Snapshot] = [_DEVICES]
    specs = [vmodl.query.PropertyCollector.ObjectSpec(obj=vm, selectSet=ways) for vm in taken]

    def convert(managed: Any, path: str, value: Any) -> Any:
        if path == "layoutEx":
            return snapshot_sizes.measure(value, taken[managed])
        return [disk.as_dict() for disk in disks.from_devices(value)] if path == _DEVICES else value

    read, _refused = fleet.read_all(c, [fleet.server(c), *specs], kinds, convert)
    return read
