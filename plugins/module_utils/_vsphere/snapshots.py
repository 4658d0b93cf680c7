# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: a VM's snapshots as plain records, and the choices made among them.

Pure functions: they work on what one property read returned and see every branch of the tree.
What changes snapshots is in ``snapshot_changes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import stamps
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import unescape

# What plans and guards need to know of a VM; one read by inventory.find_vm.
PROPERTIES = (
    "snapshot",
    "config.files.snapshotDirectory",
    "config.ftInfo",
    "config.hardware.device",
    "config.hardware.memoryMB",
    "config.template",
    "guest.toolsRunningStatus",
    "recentTask",
    "runtime.consolidationNeeded",
    "runtime.powerState",
)
MAX_DEPTH = 32  # vSphere's own limit to snapshots in a row
_COMMUNITY = ("id", "name", "description", "creation_time", "state", "quiesced")  # of a snapshot in community.vmware


@dataclass(frozen=True)
class Snapshot:
    """One snapshot. ``description`` is without the stamp; ``depth`` is 1 for a root; ``created`` has a time zone."""

    id: int
    moid: str
    name: str
    description: str
    created: datetime
    state: str
    quiesced: bool
    parent_id: int | None
    child_ids: tuple[int, ...]
    depth: int
    current: bool
    stamp: stamps.Stamp | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape that all results use."""
        return {
            "id": self.id,
            "moid": self.moid,
            "name": self.name,
            "description": self.description,
            "creation_time": stamps.timestamp(self.created),
            "state": self.state,
            "quiesced": self.quiesced,
            "parent_id": self.parent_id,
            "child_ids": list(self.child_ids),
            "depth": self.depth,
            "current": self.current,
            "stamp": self.stamp.as_dict() if self.stamp else None,
        }


def flatten(info: Any) -> list[Snapshot]:
    """All snapshots of a ``vim.vm.SnapshotInfo`` (None when the VM has none), parents before children."""
    if info is None:
        return []
    current = info.currentSnapshot._GetMoId() if info.currentSnapshot else None
    found: list[Snapshot] = []
    left = [(node, None, 1) for node in reversed(info.rootSnapshotList)]
    while left:
        node, parent_id, depth = left.pop()
        text, stamp = stamps.split(node.description or "")
        found.append(
            Snapshot(
                id=node.id,
                moid=node.snapshot._GetMoId(),
                name=unescape(node.name),
                description=text,
                created=node.createTime,
                state=str(node.state),
                quiesced=node.quiesced,
                parent_id=parent_id,
                child_ids=tuple(child.id for child in node.childSnapshotList),
                depth=depth,
                current=node.snapshot._GetMoId() == current,
                stamp=stamp,
            )
        )
        left.extend((child, node.id, depth + 1) for child in reversed(node.childSnapshotList))
    return found


def community_rows(everything: Sequence[Snapshot], records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records of a VM's snapshots as in community.vmware.

    :param everything: all of them; one that is only planned is not among them, and has no time yet
    """
    created = {one.id: stamps.precise(one.created) for one in everything}
    return [
        {**{key: record[key] for key in _COMMUNITY}, "creation_time": created.get(record["id"])} for record in records
    ]


def as_community(
    everything: Sequence[Snapshot], records: Iterable[Mapping[str, Any]], current: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``{current_snapshot, snapshots}`` as in community.vmware, where a VM without snapshots has neither."""
    told = community_rows(everything, records)
    here = community_rows(everything, [current] if current else [])
    return {"current_snapshot": here[0] if here else {}, "snapshots": told} if told or here else {}


def nest(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tree again, from snapshots' records: each with its ``children``. Records without their parent are roots."""
    nodes = {record["id"]: {**record, "children": []} for record in records}
    roots: list[dict[str, Any]] = []
    for record in nodes.values():
        parent = nodes.get(record["parent_id"])
        (parent["children"] if parent else roots).append(record)
    return roots


def choose(
    snapshots: Iterable[Snapshot],
    *,
    name: str | None = None,
    snapshot_id: int | None = None,
    moid: str | None = None,
    duplicates: str = "fail",
) -> list[Snapshot]:
    """The snapshots that a user means by ID, managed object ID or name (as shown or as stored).

    :param duplicates: when several have the name: ``fail``, or take the ``newest``, the ``oldest`` or ``all``
    :raises Ambiguous: several have the name; ``details["candidates"]`` lists their records
    """
    if snapshot_id is not None:
        return [snapshot for snapshot in snapshots if snapshot.id == snapshot_id]
    if moid is not None:
        return [snapshot for snapshot in snapshots if snapshot.moid == moid]
    found = sorted(_named(list(snapshots), name), key=lambda snapshot: (snapshot.created, snapshot.id))
    if len(found) < 2 or duplicates == "all":
        return found
    if duplicates == "fail":
        raise Ambiguous(
            f"There are {len(found)} snapshots named {name}, with the IDs "
            f"{', '.join(str(snapshot.id) for snapshot in found)}.",
            "Say which by snapshot_id, or set duplicates.",
            candidates=[snapshot.as_dict() for snapshot in found],
        )
    return [found[-1] if duplicates == "newest" else found[0]]


def _named(snapshots: Sequence[Snapshot], name: str | None) -> list[Snapshot]:
    """Those of this name; if there are none, those whose name somebody had escaped before vCenter did."""
    if name is None:
        return []
    found = [snapshot for snapshot in snapshots if snapshot.name in (name, unescape(name))]
    return found or [snapshot for snapshot in snapshots if unescape(snapshot.name) == unescape(name)]


def owned(
    snapshots: Iterable[Snapshot], job: str, run: str | None = None, expired_at: datetime | None = None
) -> list[Snapshot]:
    """The snapshots with a stamp of this job; only of ``run`` and only those expired then, if given."""
    return [
        snapshot
        for snapshot in snapshots
        if snapshot.stamp is not None
        and snapshot.stamp.job == job
        and run in (None, snapshot.stamp.run)
        and (expired_at is None or snapshot.stamp.expired(expired_at))
    ]


def with_descendants(snapshots: Sequence[Snapshot], chosen: Iterable[Snapshot]) -> list[Snapshot]:
    """The chosen snapshots and all below them, parents before children."""
    wanted = {snapshot.id for snapshot in chosen}
    for snapshot in snapshots:  # parents come first, so one pass is enough
        if snapshot.parent_id in wanted:
            wanted.add(snapshot.id)
    return [snapshot for snapshot in snapshots if snapshot.id in wanted]


def topmost(chosen: Sequence[Snapshot]) -> list[Snapshot]:
    """Those of the chosen snapshots whose parent is not chosen too."""
    ids = {snapshot.id for snapshot in chosen}
    return [snapshot for snapshot in chosen if snapshot.parent_id not in ids]
