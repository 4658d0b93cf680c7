# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: choose restore points."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Mapping, NamedTuple

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._repository import points
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Fcd, PointId, Vm, check_uuid
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry


@dataclass(frozen=True)
class Selection:
    """Which object (at most one of the first five), or which point, and which of its points. All when empty.

    A first class disk has points of its own, and others hold it as a disk of the VM that it was attached to.
    """

    name: str | None = None
    moid: str | None = None
    instance_uuid: str | None = None
    fcd_id: str | None = None
    fcd_name: str | None = None
    id: PointId | None = None
    as_of: datetime | None = None
    newest: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Selection:
        """Whose restore points, by the options ``name`` to ``fcd`` that modules have in common; all if none is given.

        :raises InvalidInput: a UUID is none
        """
        uuid = options["instance_uuid"]
        if options["vm"] is not None:
            uuid = Vm.from_result(options["vm"]).instance_uuid
        fcd = options["fcd"] if options["fcd_id"] is None else {"id": options["fcd_id"]}
        return cls(
            name=options["name"],
            moid=options["moid"],
            instance_uuid=None if uuid is None else check_uuid(uuid),
            fcd_id=None if fcd is None else Fcd.from_result(fcd).id,
            fcd_name=options["fcd_name"],
        )


@dataclass(frozen=True)
class Selected:
    """A restore point, and all entries of its VM or first class disk, in which its chain lies."""

    entry: Entry
    entries: list[Entry]


def select(repository: Repository, selection: Selection) -> tuple[list[Selected], list[Entry]]:
    """The restore points asked for, by object and time; and the damaged ones passed over when only one was asked for.

    :raises NotFound: no such VM, first class disk or restore point
    :raises Ambiguous: several have the name
    """
    if selection.id is not None:
        return [_by_id(repository, selection.id)], []
    objects = _objects(repository, selection)
    if selection.as_of is None and not selection.newest:
        return [Selected(entry, one.all) for one in objects for entry in one.eligible], []
    found: list[Selected] = []
    passed_over: list[Entry] = []
    for one in objects:
        chosen, damaged = _newest(one, selection.as_of)
        passed_over += damaged
        found += [Selected(chosen, one.all)] if chosen else []
    if not found:
        moment = f" as of {selection.as_of}" if selection.as_of else ""
        raise NotFound(
            f"The repository holds no usable restore point{moment}.",
            "List all with restore_point_info and verify them.",
        )
    return found, passed_over


def object_ids(repository: Repository, selection: Selection) -> list[str]:
    """The VMs and first class disks asked for, by ID; not those that only hold the disk.

    When none is asked for, all that have a directory, also without a restore point.

    :raises NotFound: no such VM or first class disk
    :raises Ambiguous: several have the name
    """
    if selection == Selection():
        return repository.object_ids()
    found = _objects(repository, selection)
    if selection.fcd_id is not None or selection.fcd_name is not None:
        found = [one for one in found if one.all == one.eligible and not isinstance(points.owner(one.all), Vm)]
        if not found:
            raise points.unknown("first class disk", str(selection.fcd_id or selection.fcd_name))
    return [one.all[0].id.object_id for one in found]


class _Object(NamedTuple):
    """The entries of one object: all, and those that may be chosen."""

    all: list[Entry]
    eligible: list[Entry]


def _objects(repository: Repository, selection: Selection) -> list[_Object]:
    if selection.instance_uuid is not None:
        entries = points.read_entries(repository, selection.instance_uuid)
        if not entries:
            raise points.unknown("VM", selection.instance_uuid)
        return [_Object(entries, entries)]
    found = points.of_all(repository)
    if selection.fcd_id is not None or selection.fcd_name is not None:
        fcd_id = selection.fcd_id or points.called(found, Fcd, "name", selection.fcd_name or "")
        return _holding(found, fcd_id)
    for key in ("name", "moid"):
        if (value := getattr(selection, key)) is not None:
            entries = found[points.called(found, Vm, key, value)]
            return [_Object(entries, entries)]
    return [_Object(entries, entries) for entries in found.values()]


def _holding(found: Mapping[str, list[Entry]], fcd_id: str) -> list[_Object]:
    """The points that hold a first class disk. An unreadable one counts where others do: it may."""
    objects = []
    for object_id, entries in found.items():
        if object_id == fcd_id:
            objects.append(_Object(entries, entries))
        elif any(entry.point is not None and entry.point.holds(fcd_id) for entry in entries):
            eligible = [entry for entry in entries if entry.point is None or entry.point.holds(fcd_id)]
            objects.append(_Object(entries, eligible))
    if not objects:
        raise points.unknown("first class disk", fcd_id)
    return objects


def _by_id(repository: Repository, point_id: PointId) -> Selected:
    entries = points.read_entries(repository, point_id.object_id)
    for entry in entries:
        if entry.id == point_id:
            return Selected(entry, entries)
    raise points.no_point(point_id)


def _newest(one: _Object, as_of: datetime | None) -> tuple[Entry | None, list[Entry]]:
    """The newest entry with all its manifests, and the damaged ones that are newer."""
    readable = points.readable(one.all)
    damaged: list[Entry] = []
    for entry in sorted(one.eligible, key=lambda entry: entry.moment, reverse=True):
        if as_of is not None and entry.moment > as_of:
            continue
        if entry.point is not None and points.is_whole(readable, entry.point):
            return entry, damaged
        damaged.append(entry)
    return None, damaged
