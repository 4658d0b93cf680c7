# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what damaged files mean: what is lost, and what can still be restored."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Mapping, NamedTuple, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._repository import examining, images, manifest, points
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, Point, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import Known


class Place(NamedTuple):
    """A file of one object: the time of its point, and its name. ``content`` is what the chain of an image holds."""

    time: str
    name: str
    content: bool = False


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file, and the way out."""

    what: str
    next_step: str = images.NEXT_STEP


def faults(entries: Sequence[Entry], known: Known) -> dict[Place, Fault]:
    """All damage that is known of one object, by the file.

    :param entries: the restore points of the object
    :param known: what verifications have found
    """
    readable = points.readable(entries)
    found: dict[Place, Fault] = {}
    for point in readable.values():
        found.update(_missing(readable, point))
        found.update(_stored(known, point))
    for entry in entries:
        if entry.problem is not None:
            found[Place(entry.id.time, manifest.FILE)] = Fault(entry.problem.message, entry.problem.next_step)
    return found


def report(repository: Repository, entries: Sequence[Entry], damaged: Mapping[Place, Fault]) -> list[dict[str, Any]]:
    """For each damaged file, by time: what is lost, and what of its object can still be restored."""
    if not damaged:
        return []
    readable = points.readable(entries)
    needs = {point.id: {disk: _needs(readable, point, disk) for disk in point.disks} for point in readable.values()}
    restorable = _restorable(readable, needs, damaged)
    answer = []
    for place, fault in sorted(damaged.items()):
        object_id = entries[0].id.object_id
        owner = points.owner(entries) or manifest.unnamed(object_id, None)
        point_id = PointId(object_id, place.time)
        answer.append(
            {
                "path": os.path.join(repository.point_directory(point_id), place.name),
                "restore_point": str(point_id),
                "file": place.name,
                **{kind: one and one.as_dict() for kind, one in manifest.by_kind(owner).items()},
                "what": fault.what,
                "next_step": fault.next_step,
                "lost": _lost(point_id, readable, needs, place),
                "restorable": restorable,
            }
        )
    return answer


def _missing(readable: Mapping[str, Point], point: Point) -> dict[Place, Fault]:
    """What the manifests of a chain point to and do not find."""
    found = {}
    for disk in point.disks:
        place = max(_needs(readable, point, disk), default=None, key=lambda one: one.name == manifest.FILE)
        if place is not None and place.name == manifest.FILE:
            what = f"{disk.label} of {point.id} stands on {place.time}, which is missing or unreadable."
            found[place] = Fault(what)
    return found


def _needs(readable: Mapping[str, Point], point: Point, disk: Disk) -> set[Place]:
    """The files that a disk is restored from; the manifest where the chain ends too soon."""
    own = PointId.parse(point.id).time
    found = {Place(own, disk.image), Place(own, disk.image, True)}
    while disk.parent is not None:
        parent, time = disk.parent, disk.parent.time
        below = readable.get(time)
        fitting = [] if below is None else [one for one in below.disks if one.image == parent.file]
        if not fitting or fitting[0].identity != disk.identity:
            found.add(Place(time, manifest.FILE))
            break
        disk = fitting[0]
        found.add(Place(time, disk.image))
    return found


def _stored(known: Known, point: Point) -> dict[Place, Fault]:
    time, own = PointId.parse(point.id).time, known.of(point)
    found = {}
    for part in examining.parts_of(point):
        for record in own.of_file(part.name, part.sha256):
            if not record.ok:
                step = images.NEXT_STEP if part.disk is not None else examining.NEXT_STEP
                found[Place(time, part.name)] = Fault(record.what or "", step)
    for disk in point.disks:
        content = own.of_disk(disk.image)
        if content is not None and not content.ok:
            found[Place(time, disk.image, True)] = Fault(content.what or "")
    return found


def _lost(
    point_id: PointId, readable: Mapping[str, Point], needs: Mapping[str, Mapping[Disk, set[Place]]], place: Place
) -> list[dict[str, Any]]:
    lost = []
    if point_id.time not in readable and place.name == manifest.FILE:
        lost.append({"restore_point": str(point_id), "disks": [], "files": [manifest.FILE]})
    for point in readable.values():
        disks = [disk.label for disk, places in needs[point.id].items() if place in places]
        own = [file.name for file in point.files if (PointId.parse(point.id).time, file.name) == place[:2]]
        if disks or own:
            lost.append({"restore_point": point.id, "disks": disks, "files": own})
    return lost


def _restorable(
    readable: Mapping[str, Point], needs: Mapping[str, Mapping[Disk, set[Place]]], damaged: Mapping[Place, Fault]
) -> dict[str, Any]:
    whole, partly = [], []
    for time, point in readable.items():
        good = [disk.label for disk, places in needs[point.id].items() if places.isdisjoint(damaged)]
        if len(good) == len(point.disks) and not any(Place(time, file.name) in damaged for file in point.files):
            whole.append(point.id)
        elif good:
            partly.append({"restore_point": point.id, "disks": good})
    return {"newest": whole[-1] if whole else None, "points": whole, "partly": partly}
