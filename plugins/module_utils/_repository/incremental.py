# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what a new image of each disk may stand on."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import images, points, records
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry, Link

FULL = "full"


@dataclass(frozen=True)
class Since:
    """What is known of a disk from the newest restore point that has it.

    ``reason`` says why a full copy is needed; ``change_id``, ``snapshot_time``, ``parent`` (absolute path of the
    image to stand on) and ``parent_id`` are then None. ``capacity`` is the earlier record's, in bytes.
    """

    backing_uuid: str
    key: int
    label: str
    change_id: str | None
    capacity: int | None
    snapshot_time: str | None
    parent: str | None
    parent_id: str | None
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def plan(
    repository: Repository,
    entries: Sequence[Entry],
    disks: Sequence[Mapping[str, Any]],
    mode: str,
    max_chain: int,
    moved: str | None = None,
) -> list[Since]:
    """One answer for each disk.

    :param entries: the restore points of the object, oldest first
    :param disks: its disks now: ``backing_uuid``, ``key``, ``label``
    :param max_chain: the most images that a chain may have, the new one included
    :param moved: why nothing there may be stood on, or None
    """
    return [_plan_disk(repository, entries, disk, mode, max_chain, moved) for disk in disks]


def _plan_disk(
    repository: Repository,
    entries: Sequence[Entry],
    disk: Mapping[str, Any],
    mode: str,
    max_chain: int,
    moved: str | None,
) -> Since:
    def full(reason: str, capacity: int | None = None) -> Since:
        return Since(disk["backing_uuid"], disk["key"], disk["label"], None, capacity, None, None, None, reason)

    if mode == FULL:
        return full("asked for")
    if moved is not None:
        return full(moved)
    try:
        links = _newest_chain(entries, disk["backing_uuid"])
        if not links:
            return full("no earlier restore point" if not entries else "no earlier restore point of this disk")
        for link in links:
            _check(repository, link, _merging(entries, link))
        damage = records.Known(repository).damage(links)
    except RepositoryError as error:
        return full(error.message.rstrip("."))
    point, newest = links[-1]
    if damage is not None:
        return full(f"verification of {damage.record.time} found {damage.path} damaged", newest.capacity)
    if newest.change_id is None:
        return full(f"no change ID in {point.id}", newest.capacity)
    if len(links) >= max_chain:
        return full(f"chain is {len(links)} long", newest.capacity)
    return Since(
        disk["backing_uuid"], disk["key"], disk["label"], newest.change_id, newest.capacity,
        point.snapshot_time, image_path(repository, links[-1]), point.id, None,
    )  # fmt: skip


def _merging(entries: Sequence[Entry], link: Link) -> Disk | None:
    """The record of an image that a merge of a dead run has committed; the next run puts it in place."""
    merging = next((entry.merging for entry in entries if str(entry.id) == link.point.id), None)
    return next((disk for disk in (merging.disks if merging else ()) if disk.image == link.disk.image), None)


def _check(repository: Repository, link: Link, merging: Disk | None) -> None:
    path = image_path(repository, link)
    try:
        images.check(path, link.disk)
    except Damaged:
        if merging is None:
            raise
        images.check(path, merging)


def image_path(repository: Repository, link: Link) -> str:
    """The absolute path of an image of a chain."""
    return os.path.join(repository.point_directory(PointId.parse(link.point.id)), link.disk.image)


def _newest_chain(entries: Sequence[Entry], backing_uuid: str) -> list[Link]:
    """The chain of the newest point that has the disk; empty when none has.

    Where that one is damaged, nothing older is used instead: a full copy ends all doubt. An
    unreadable point may have the disk, so it ends the search too.
    """
    readable = points.readable(entries)
    for entry in reversed(entries):
        if entry.problem is not None:
            raise entry.problem
        point = readable[entry.id.time]
        found = [disk for disk in point.disks if disk.backing_uuid == backing_uuid]
        if len(found) > 1:
            raise RepositoryError(f"{entry.id} has {len(found)} disks with this backing UUID.")
        if found:
            return points.chain(readable, point, found[0])
    return []
