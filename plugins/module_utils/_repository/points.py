# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the restore points of a repository, readable or not, and their chains."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from typing import Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    Ambiguous,
    BackupError,
    Damaged,
    NotFound,
    RepositoryError,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository import documents, files, layout, manifest
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import (
    Disk,
    Fcd,
    Owner,
    Point,
    PointId,
    Vm,
)

_WORDS = {Vm: "VM", Fcd: "first class disk"}
_IDS = {Vm: "instance_uuid", Fcd: "fcd_id"}


class Link(NamedTuple):
    """One image of a chain: the disk's record and the point that it belongs to."""

    point: Point
    disk: Disk


@dataclass(frozen=True)
class Entry:
    """A directory that should be a restore point: its manifest, or what is wrong with it.

    ``merging`` is the manifest that a merge has committed but not put in place yet: each of the point's images fits
    either ``point`` or this.
    """

    id: PointId
    path: str
    point: Point | None
    problem: BackupError | None
    merging: Point | None = None

    @property
    def moment(self) -> datetime:
        """The moment that the point shows, as far as known."""
        return self.id.moment if self.point is None else self.point.moment


def read_entries(repository: Repository, object_id: str) -> list[Entry]:
    """Every complete restore point of an object, oldest first. A damaged one is listed, it does not raise."""
    times = layout.complete_times(repository.object_directory(object_id))
    entries = (read_entry(repository, PointId(object_id, time)) for time in times)
    return [entry for entry in entries if entry is not None]


def read_entry(repository: Repository, point_id: PointId) -> Entry | None:
    """A complete restore point as it is now, or None when there is none."""
    path = repository.point_directory(point_id)
    try:
        if not files.is_directory(path):
            raise Damaged(f"{path} is not a directory.", "A repository holds only plain directories; remove it.")
        with files.reporting(f"read restore point {point_id}"):
            data = files.read(os.path.join(path, manifest.FILE), documents.MAX_BYTES)
        return Entry(point_id, path, manifest.parse(data, point_id), None, merging(repository, point_id))
    except RepositoryError as error:
        # Deleted since the directory was listed: never mind.
        if not os.path.lexists(path):
            return None
        return Entry(point_id, path, None, error, merging(repository, point_id))


def merging(repository: Repository, point_id: PointId) -> Point | None:
    """The manifest that a merge has committed and not put in place yet, if there is a valid one."""
    directory = repository.merging_directory(point_id)
    try:
        if not files.is_directory(directory):
            return None
        data = files.read(os.path.join(directory, layout.MERGED), documents.MAX_BYTES)
        return manifest.parse(data, point_id)
    except (OSError, RepositoryError):
        return None


def readable(entries: Iterable[Entry]) -> dict[str, Point]:
    """The points whose manifests could be read, by their times."""
    return {entry.id.time: entry.point for entry in entries if entry.point is not None}


def chain(points: Mapping[str, Point], point: Point, disk: Disk) -> list[Link]:
    """The images that hold a disk, from the full one to the disk's own.

    :param points: the readable points of the object by their times
    :raises Damaged: a part of the chain is missing or does not fit
    """
    links = [Link(point, disk)]
    while (link := below(points, links[-1])) is not None:
        links.append(link)
    return links[::-1]


def below(points: Mapping[str, Point], link: Link) -> Link | None:
    """The image that an image stands on; None below a full one.

    :raises Damaged: it is missing or does not fit
    """
    disk, parent = link.disk, link.disk.parent
    if parent is None:
        return None
    step = "Run the backup again: it makes a full copy of this disk."
    point = points.get(parent.time)
    if point is None:
        raise Damaged(
            f"{disk.label} of {link.point.id} stands on restore point {parent.id}, which is missing or unreadable.",
            step,
        )
    for found in point.disks:
        if found.image == parent.file:
            if found.identity != disk.identity:
                break
            return Link(point, found)
    raise Damaged(
        f"{disk.label} of {link.point.id} stands on {parent.image}, which is no image of the same disk.", step
    )


def is_whole(points: Mapping[str, Point], point: Point) -> bool:
    """Whether every image of the point has all manifests of its chain."""
    try:
        for disk in point.disks:
            chain(points, point, disk)
    except Damaged:
        return False
    return True


def ancestry(repository: Repository, point_id: PointId) -> list[Entry]:
    """A restore point and all that it stands on, as they are now, oldest first. Empty when the point has gone."""
    found: dict[str, Entry] = {}
    wanted = [point_id.time]
    while wanted:
        time = wanted.pop()
        entry = read_entry(repository, PointId(point_id.object_id, time))
        if entry is not None:
            found[time] = entry
            disks = () if entry.point is None else entry.point.disks
            wanted += {disk.parent.time for disk in disks if disk.parent is not None} - found.keys() - set(wanted)
    return [found[time] for time in sorted(found)] if point_id.time in found else []


def dependents(points: Iterable[Point], time: str) -> list[Point]:
    """The points with an image that stands directly on one of the point of this time."""
    return [point for point in points if any(disk.parent and disk.parent.time == time for disk in point.disks)]


def of_all(repository: Repository) -> dict[str, list[Entry]]:
    """The entries of every object that has any, by its ID."""
    found = {object_id: read_entries(repository, object_id) for object_id in repository.object_ids()}
    return {object_id: entries for object_id, entries in found.items() if entries}


def owner(entries: Sequence[Entry]) -> Owner | None:
    """The object as the newest readable of its entries calls it."""
    return next((entry.point.owner for entry in reversed(entries) if entry.point is not None), None)


def called(found: Mapping[str, Sequence[Entry]], kind: type[Owner], key: str, value: str) -> str:
    """The ID of the one object of a kind whose record has this value.

    It is looked up in the newest point of each object, then, when none has it, in all points.

    :param key: ``name`` or ``moid``
    :raises NotFound: no point has it
    :raises Ambiguous: several objects fit
    """
    records = {
        object_id: [entry.point.owner for entry in entries if entry.point is not None]
        for object_id, entries in found.items()
    }
    fitting = _fitting({object_id: some[-1:] for object_id, some in records.items()}, kind, key, value)
    fitting = fitting or _fitting(records, kind, key, value)
    if len(fitting) > 1:
        raise Ambiguous(
            f"The repository holds restore points of {len(fitting)} {_WORDS[kind]}s called {value}.",
            f"Choose one by its {_IDS[kind]}.",
            candidates=[records[object_id][-1].as_dict() for object_id in fitting],
        )
    if not fitting:
        raise unknown(_WORDS[kind], value)
    return fitting[0]


def unknown(what: str, wanted: str) -> NotFound:
    """The error about an object without restore points."""
    return NotFound(
        f"The repository holds no restore point of the {what} {wanted}.",
        "List all with restore_point_info without naming any.",
    )


def no_point(point_id: PointId) -> NotFound:
    """The error about a restore point that is not there."""
    return NotFound(f"There is no restore point {point_id}.", "List the restore points with restore_point_info.")


def _fitting(records: Mapping[str, Sequence[Owner]], kind: type[Owner], key: str, value: str) -> list[str]:
    return [
        object_id
        for object_id, owners in records.items()
        if any(isinstance(one, kind) and getattr(one, key) == value for one in owners)
    ]
