# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the restore points of a repository, readable or not, and their chains."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from typing import Iterable, Mapping, NamedTuple

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    Ambiguous,
    BackupError,
    Damaged,
    NotFound,
    RepositoryError,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository import documents, files, layout, manifest
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, Parent, Point, PointId


class Link(NamedTuple):
    """One image of a chain: the disk's record and the point that it belongs to."""

    point: Point
    disk: Disk


@dataclass(frozen=True)
class Entry:
    """A directory that should be a restore point: its manifest, or what is wrong with it."""

    id: PointId
    path: str
    point: Point | None
    problem: BackupError | None

    @property
    def moment(self) -> datetime:
        """The moment that the point shows, as far as known."""
        return self.id.moment if self.point is None else self.point.moment


def read_entries(repository: Repository, instance_uuid: str) -> list[Entry]:
    """Every complete restore point of a VM, oldest first. A damaged one is listed, it does not raise."""
    times = layout.complete_times(repository.vm_directory(instance_uuid))
    entries = (_read_entry(repository, PointId(instance_uuid, time)) for time in times)
    return [entry for entry in entries if entry is not None]


def readable(entries: Iterable[Entry]) -> dict[str, Point]:
    """The points whose manifests could be read, by their times."""
    return {entry.id.time: entry.point for entry in entries if entry.point is not None}


def chain(points: Mapping[str, Point], point: Point, disk: Disk) -> list[Link]:
    """The images that hold a disk, from the full one to the disk's own.

    :param points: the readable points of the VM by their times
    :raises Damaged: a part of the chain is missing or does not fit
    """
    links = [Link(point, disk)]
    while (parent := links[-1].disk.parent) is not None:
        links.append(_parent_link(points, links[-1], parent))
    return links[::-1]


def is_whole(points: Mapping[str, Point], point: Point) -> bool:
    """Whether every image of the point has all manifests of its chain."""
    try:
        for disk in point.disks:
            chain(points, point, disk)
    except Damaged:
        return False
    return True


def dependents(points: Iterable[Point], time: str) -> list[Point]:
    """The points with an image that stands directly on one of the point of this time."""
    return [point for point in points if any(disk.parent and disk.parent.time == time for disk in point.disks)]


def of_vm(
    repository: Repository, *, name: str | None = None, moid: str | None = None, instance_uuid: str | None = None
) -> dict[str, list[Entry]]:
    """The entries of the VMs asked for, by instance UUID; of all VMs when nothing is given.

    A name or moid is looked up in the newest point of each VM, then, when none has it, in all points.

    :raises NotFound: the repository has no point of such a VM
    :raises Ambiguous: several VMs fit
    """
    if instance_uuid is not None:
        return {instance_uuid: _known(read_entries(repository, instance_uuid), instance_uuid)}
    found = {uuid: read_entries(repository, uuid) for uuid in repository.instance_uuids()}
    found = {uuid: entries for uuid, entries in found.items() if entries}
    if name is None and moid is None:
        return found
    newest = {uuid: list(readable(entries).values())[-1:] for uuid, entries in found.items()}
    everything = {uuid: list(readable(entries).values()) for uuid, entries in found.items()}
    wanted = name if name is not None else moid
    fitting = _fitting(newest, name, moid) or _fitting(everything, name, moid)
    if len(fitting) > 1:
        raise Ambiguous(
            f"The repository holds restore points of {len(fitting)} VMs called {wanted}.",
            "Choose one by its instance_uuid.",
            candidates=[newest[uuid][0].as_dict()["vm"] for uuid in fitting],
        )
    return {uuid: _known(found[uuid], wanted) for uuid in fitting} if fitting else {"": _known([], wanted)}


def _read_entry(repository: Repository, point_id: PointId) -> Entry | None:
    path = repository.point_directory(point_id)
    try:
        if not files.is_directory(path):
            raise Damaged(f"{path} is not a directory.", "A repository holds only plain directories; remove it.")
        with files.reporting(f"read restore point {point_id}"):
            data = files.read(os.path.join(path, manifest.FILE), documents.MAX_BYTES)
        return Entry(point_id, path, manifest.parse(data, point_id), None)
    except RepositoryError as error:
        # Deleted since the directory was listed: never mind.
        return Entry(point_id, path, None, error) if os.path.lexists(path) else None


def _parent_link(points: Mapping[str, Point], link: Link, parent: Parent) -> Link:
    disk = link.disk
    step = "Back the VM up again: the next run makes a full copy of this disk."
    point = points.get(parent.time)
    if point is None:
        raise Damaged(
            f"{disk.label} of {link.point.id} stands on restore point {parent.id}, which is missing or unreadable.",
            step,
        )
    for found in point.disks:
        if found.image == parent.file:
            if (found.backing_uuid, found.capacity) != (disk.backing_uuid, disk.capacity):
                break
            return Link(point, found)
    raise Damaged(
        f"{disk.label} of {link.point.id} stands on {parent.image}, which is no image of the same disk.", step
    )


def _fitting(points: Mapping[str, list[Point]], name: str | None, moid: str | None) -> list[str]:
    return [
        uuid
        for uuid, some in points.items()
        if any(name in (None, point.vm.name) and moid in (None, point.vm.moid) for point in some)
    ]


def _known(entries: list[Entry], wanted: str | None) -> list[Entry]:
    if not entries:
        raise NotFound(
            f"The repository holds no restore point of the VM {wanted}.",
            "List all with restore_point_info without naming a VM.",
        )
    return entries
