# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what must be true before a snapshot is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import disks, inventory, snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl


@dataclass(frozen=True)
class Guards:
    """Limits to making a snapshot.

    ``max_depth`` is how many snapshots may be below each other, ``min_free_space`` the bytes that must be free on
    every datastore to which the VM or a snapshot of it writes. ``unprotected_disks`` says what to do about disks whose
    content a snapshot leaves out: ``fail``, ``warn`` or ``ignore``.
    """

    max_depth: int = snapshots.MAX_DEPTH
    min_free_space: int | None = None
    unprotected_disks: str = "warn"

    def check(self, c: Connection, vm: Any, properties: Mapping[str, Any], *, memory: bool = False) -> list[str]:
        """Raise NotSupported when no snapshot may be made; returns warnings.

        :param properties: ``snapshots.PROPERTIES``, and ``datastore`` along with name and free space
        :param memory: whether the snapshot is to hold the memory, for which there must be space too
        """
        name = inventory.unescape(properties["name"])
        check_possible(name, properties, self.max_depth)
        if self.min_free_space is not None:
            running = properties.get("runtime.powerState") == "poweredOn"
            image = properties.get("config.hardware.memoryMB", 0) << 20 if memory and running else 0
            _check_space(c, vm, properties, self.min_free_space, image)
        return self._left_out(name, properties)

    def _left_out(self, name: str, properties: Mapping[str, Any]) -> list[str]:
        found = disks.from_devices(properties.get("config.hardware.device", ()))
        reasons = [f"{disk.label} ({disk.reason})" for disk in found if not disk.protected]
        if not reasons or self.unprotected_disks == "ignore":
            return []
        told = f"A snapshot of {name} does not hold all of its disks: {', '.join(reasons)}."
        if self.unprotected_disks == "fail":
            raise NotSupported(told, "Change these disks, or set unprotected_disks to warn or ignore.")
        return [told]


def check_possible(vm: str, properties: Mapping[str, Any], max_depth: int = snapshots.MAX_DEPTH) -> None:
    """Raise NotSupported when the VM cannot take one more snapshot, before vSphere is asked.

    :param vm: the VM's name, for messages
    :param properties: values of ``snapshots.PROPERTIES``
    """
    if properties.get("config.template"):
        raise NotSupported(
            f"{vm} is a template, which cannot have snapshots.", "Convert it to a virtual machine first."
        )
    if properties.get("config.ftInfo") is not None:
        raise NotSupported(
            f"{vm} has fault tolerance on, which does not allow this snapshot.", "Turn fault tolerance off first."
        )
    obstacles = disks.snapshot_obstacles(properties.get("config.hardware.device", ()))
    if obstacles:
        raise NotSupported(
            f"{vm} cannot have snapshots. {'; '.join(obstacles)}.", "Back such a machine up from inside its guest."
        )
    depth = next((snapshot.depth for snapshot in snapshots.flatten(properties.get("snapshot")) if snapshot.current), 0)
    if depth >= max_depth:
        raise NotSupported(
            f"{vm} runs on {depth} snapshots in a row; the limit is {max_depth}.",
            "Remove snapshots that are no longer needed.",
            depth=depth,
        )


def _check_space(c: Connection, vm: Any, properties: Mapping[str, Any], floor: int, image: int) -> None:
    # The state and the memory of a snapshot go to the working directory, whose datastore may hold nothing yet.
    home = _datastore_of(properties.get("config.files.snapshotDirectory"))
    found = _space(properties["datastore"])
    if home is not None and home not in found:
        found.update({name: free for name, free in _space(_of_host(c, vm)).items() if name == home})
    needed = {name: floor + (image if name == home else 0) for name in found}
    short = [
        f"{name} has {free} of {needed[name]} bytes" for name, free in sorted(found.items()) if free < needed[name]
    ]
    if short:
        raise NotSupported(
            f"Too little free space for a snapshot: {', '.join(short)}.", "Free some space, or lower min_free_space."
        )


def _space(datastores: Mapping[Any, Mapping[str, Any]]) -> dict[str, int]:
    """Free bytes by name; a datastore that cannot be reached has none."""
    return {
        inventory.unescape(values.get("name", one._GetMoId())): values.get("summary.freeSpace", 0)
        for one, values in datastores.items()
    }


def _of_host(c: Connection, vm: Any) -> dict[Any, dict[str, Any]]:
    """All datastores that the VM's host reaches, with name and free space; one request."""
    host = inventory.traverse("host", vim.VirtualMachine, "runtime.host", "datastores")
    spec = vmodl.query.PropertyCollector.ObjectSpec(
        obj=vm, skip=True, selectSet=[host, inventory.traverse("datastores", vim.HostSystem, "datastore")]
    )
    return c.collect([spec], {vim.Datastore: ["name", "summary.freeSpace"]})


def _datastore_of(path: str | None) -> str | None:
    """``ds1`` of ``[ds1] web01/``."""
    return path[1:].partition("]")[0] if path and path.startswith("[") else None
