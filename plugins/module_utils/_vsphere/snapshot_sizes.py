# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: how many bytes each snapshot of a VM occupies.

Pure over ``layoutEx`` (vim.vm.FileLayoutEx), which lists the files of the VM, the chain of files of each of its disks,
the oldest first, and the same chains as they were in each snapshot.

A snapshot freezes the last file of each chain, and the guest goes on in a new one. So a snapshot's own files are those
above the ones that it froze, up to what the next snapshots froze or the VM writes now, and those that hold its state
and memory. No file belongs to two snapshots, and removing a snapshot frees at most its own files. (What the guest wrote
to places that had content already is freed; what it wrote to new places moves down a file.)

vCenter reads sizes from the hosts now and then; ``layoutEx.timestamp`` says when it did last. Files of change tracking
(``-ctk.vmdk``) are in no chain and counted to no snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Iterable, Iterator, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshots import Snapshot


@dataclass(frozen=True)
class Size:
    """Bytes on disk of one snapshot: ``disks`` of its disk files, ``memory``, and ``state`` of all else.

    ``datastores`` is the same sum by name of datastore. ``problem`` says why it may be more; with ``known`` false
    nothing is known.
    """

    disks: int = 0
    memory: int = 0
    state: int = 0
    datastores: dict[str, int] = field(default_factory=dict)
    problem: str | None = None
    known: bool = True

    @property
    def total(self) -> int:
        return self.disks + self.memory + self.state

    def as_dict(self) -> dict[str, Any]:
        """The keys that a snapshot's record gets."""
        return {
            "size_bytes": self.total if self.known else None,
            "memory_bytes": self.memory if self.known else None,
            "datastores": dict(sorted(self.datastores.items())),
            "size_problem": self.problem,
        }


def unknown(reason: str) -> Size:
    """The size of a snapshot of which nothing is known, with the reason."""
    return Size(problem=reason, known=False)


def measure(layout: Any, snapshots: Sequence[Snapshot]) -> dict[str, Size]:
    """The size of each snapshot, by its managed object ID.

    :param layout: the VM's ``layoutEx``, None if it cannot be read
    :param snapshots: all snapshots of the VM
    """
    if layout is None:
        return {one.moid: unknown("vSphere does not tell the files of the virtual machine") for one in snapshots}
    files = {file.key: file for file in layout.file}
    taken = {entry.key._GetMoId(): entry for entry in layout.snapshot}
    found = {}
    for one in snapshots:
        entry = taken.get(one.moid)
        if entry is None:
            found[one.moid] = unknown("vSphere has not looked at the files since it was taken")
            continue
        above = [taken[child.moid].disk for child in snapshots if child.parent_id == one.id and child.moid in taken]
        if one.current:
            above.append(layout.disk)
        keys = {key for disks in above for key in _own_files(entry.disk, disks)}
        found[one.moid] = _sum(files, keys, entry)
    return found


def _own_files(frozen: Iterable[Any], above: Iterable[Any]) -> Iterator[int]:
    """Keys of the files that stand on what a snapshot froze.

    A disk is known by the file that was frozen, not by its key, which changes with the controller. One that was
    added later stands on nothing that was frozen.
    """
    tops = {tuple(disk.chain[-1].fileKey) for disk in frozen if disk.chain}
    for disk in above:
        units = [tuple(unit.fileKey) for unit in disk.chain]
        bottom = next((place for place, unit in enumerate(units) if unit in tops), None)
        if bottom is not None:
            for unit in units[bottom + 1 :]:
                yield from unit


def _sum(files: dict[int, Any], disks: set[int], entry: Any) -> Size:
    memory = entry.memoryKey if entry.memoryKey is not None and entry.memoryKey >= 0 else None
    kinds = {**dict.fromkeys(disks, "disks"), entry.dataKey: "state"}
    if memory is not None:
        kinds[memory] = "memory"
    sums = dict.fromkeys(("disks", "memory", "state"), 0)
    stores: dict[str, int] = {}
    lost = []
    for key, kind in kinds.items():
        file = files.get(key)
        if file is None:
            lost.append(f"a file of its {kind}")
            continue
        if file.accessible is False:
            lost.append(file.name)
        sums[kind] += file.size
        store = file.name.partition("]")[0].lstrip("[")
        stores[store] = stores.get(store, 0) + file.size
    problem = f"vSphere cannot reach {', '.join(sorted(lost))}" if lost else None
    return Size(sums["disks"], sums["memory"], sums["state"], stores, problem)
