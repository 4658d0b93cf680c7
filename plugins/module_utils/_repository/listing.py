# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: choose restore points."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._repository import points
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry


@dataclass(frozen=True)
class Selection:
    """Which VM (at most one of the first three), or which point, and which of its points. All when empty."""

    name: str | None = None
    moid: str | None = None
    instance_uuid: str | None = None
    id: PointId | None = None
    as_of: datetime | None = None
    newest: bool = False


@dataclass(frozen=True)
class Selected:
    """A restore point, and all entries of its VM, in which its chain lies."""

    entry: Entry
    entries: list[Entry]


def select(repository: Repository, selection: Selection) -> tuple[list[Selected], list[Entry]]:
    """The restore points asked for, by VM and time; and the damaged ones passed over when only one was asked for.

    :raises NotFound: no such VM or restore point
    :raises Ambiguous: several VMs have the name
    """
    if selection.id is not None:
        return [_by_id(repository, selection.id)], []
    vms = points.of_vm(repository, name=selection.name, moid=selection.moid, instance_uuid=selection.instance_uuid)
    if selection.as_of is None and not selection.newest:
        return [Selected(entry, entries) for entries in vms.values() for entry in entries], []
    found: list[Selected] = []
    passed_over: list[Entry] = []
    for entries in vms.values():
        chosen, damaged = _newest(entries, selection.as_of)
        passed_over += damaged
        found += [Selected(chosen, entries)] if chosen else []
    if not found:
        moment = f" as of {selection.as_of}" if selection.as_of else ""
        raise NotFound(
            f"The repository holds no usable restore point{moment}.",
            "List all with restore_point_info and verify them.",
        )
    return found, passed_over


def _by_id(repository: Repository, point_id: PointId) -> Selected:
    entries = points.read_entries(repository, point_id.instance_uuid)
    for entry in entries:
        if entry.id == point_id:
            return Selected(entry, entries)
    raise NotFound(f"There is no restore point {point_id}.", "List the restore points with restore_point_info.")


def _newest(entries: list[Entry], as_of: datetime | None) -> tuple[Entry | None, list[Entry]]:
    """The newest entry with all its manifests, and the damaged ones that are newer."""
    readable = points.readable(entries)
    damaged: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: entry.moment, reverse=True):
        if as_of is not None and entry.moment > as_of:
            continue
        if entry.point is not None and points.is_whole(readable, entry.point):
            return entry, damaged
        damaged.append(entry)
    return None, damaged
