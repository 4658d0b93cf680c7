# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: begin a restore point."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, NoSpace
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    files,
    incremental,
    layout,
    locks,
    manifest,
    points,
    switching,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.incremental import Since
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry


@dataclass(frozen=True)
class Request:
    """What the caller wants of :func:`start`. Sizes in bytes, times in seconds.

    ``vcenter`` is the instance UUID of the one that has the object now; ``moved`` says that it came from another.
    """

    object_id: str
    disks: Sequence[Mapping[str, Any]]
    run: str | None = None
    mode: str = "auto"
    max_chain: int = 20
    create: bool = True
    min_free: int = 0
    lock_timeout: float = 0
    lease: int = locks.DEFAULT_LEASE
    vcenter: str | None = None
    moved: bool = False


@dataclass(frozen=True)
class Started:
    """A restore point that is being written in ``path``. ``swept`` is what dead runs had left."""

    changed: bool
    id: PointId
    path: str
    run: str
    since: list[Since]
    swept: list[str]


def start(path: str, request: Request, now: datetime, dry: bool = False) -> Started:
    """Take the object's lock, sweep what dead runs left, and make the directory of a new restore point.

    The same run may call it again: that renews its lock and changes nothing.

    :param dry: find out what would happen, changing nothing
    :raises Locked: another run is writing restore points of this object
    :raises NoSpace: less than ``min_free`` would be left to write into
    :raises Ambiguous: the object's restore points are of another vCenter, from where it was not said to have moved
    """
    repository, planned = layout.open_or_plan(path, request.create, now)
    run = request.run or uuid.uuid4().hex
    if dry:
        return _dry_start(repository, request, run, now)
    if planned:
        repository = layout.create_repository(repository)
    directory = layout.make_object_directory(repository, request.object_id)
    if locks.rejoin(directory, run):
        going_on = [name for name in layout.leftovers(directory) if name.endswith(layout.PARTIAL)]
        if going_on:
            point_id = PointId(request.object_id, going_on[-1][: -len(layout.PARTIAL)])
            return _started(repository, request, run, point_id, changed=False, swept=[])
    else:
        locks.acquire(directory, run, request.lease, request.lock_timeout)
    try:
        return _begin(repository, request, run, now)
    except BaseException:
        locks.release(directory, run)
        raise


def _begin(repository: Repository, request: Request, run: str, now: datetime) -> Started:
    directory = repository.object_directory(request.object_id)
    point_id = _new_id(directory, request, now)
    swept = switching.recover(directory)
    _moved(points.read_entries(repository, request.object_id), request)
    _check_space(repository, request.min_free)
    with files.reporting("make the directory of the restore point"):
        os.mkdir(repository.partial_directory(point_id), 0o700)
        files.sync_directory(directory)
    return _started(repository, request, run, point_id, changed=True, swept=swept)


def _dry_start(repository: Repository, request: Request, run: str, now: datetime) -> Started:
    directory = repository.object_directory(request.object_id)
    locks.check_free(directory, run)
    _moved(points.read_entries(repository, request.object_id), request)
    _check_space(repository, request.min_free)
    point_id = _new_id(directory, request, now)
    return _started(repository, request, run, point_id, changed=True, swept=layout.leftovers(directory))


def _started(
    repository: Repository, request: Request, run: str, point_id: PointId, changed: bool, swept: list[str]
) -> Started:
    entries = points.read_entries(repository, request.object_id)
    moved = _moved(entries, request)
    since = incremental.plan(repository, entries, request.disks, request.mode, request.max_chain, moved)
    return Started(changed, point_id, repository.partial_directory(point_id), run, since, swept)


def _moved(entries: Sequence[Entry], request: Request) -> str | None:
    """Why the disks of what came from another vCenter need full copies; None when it did not.

    A copy of a VM made outside vSphere may have its UUID. The two must not take turns in one chain.
    """
    known = [entry.point for entry in entries if entry.point is not None and entry.point.vcenter is not None]
    if request.vcenter is None or not known or known[-1].vcenter == request.vcenter:
        return None
    newest = known[-1]
    if not request.moved:
        raise Ambiguous(
            f"Restore point {newest.id} is of vCenter {newest.vcenter}, now {request.object_id} is in vCenter"
            f" {request.vcenter}. It has moved there, or there are two of the same UUID.",
            "If it has moved, back it up once with moved=true. If there are two, give one a new UUID, or back it up"
            " into a repository of its own.",
            candidates=[{"vcenter": newest.vcenter, "restore_point": newest.id}, {"vcenter": request.vcenter}],
        )
    return f"moved here from vCenter {newest.vcenter}"


def _new_id(directory: str, request: Request, now: datetime) -> PointId:
    return PointId(request.object_id, manifest.next_time(now, layout.taken_times(directory)))


def _check_space(repository: Repository, wanted: int) -> None:
    free = repository.free()
    if free < wanted:
        raise NoSpace(
            f"The repository {repository.path} has {free} bytes free, fewer than the {wanted} of min_free.",
            "Free space in the repository, delete old restore points, or lower min_free.",
        )
