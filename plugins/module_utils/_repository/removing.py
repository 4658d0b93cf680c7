# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: give up a restore point that is being written, or delete a complete one."""

from __future__ import annotations

import os
import uuid

from ansible_collections.holdfast.backup.plugins.module_utils._errors import RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    files,
    layout,
    locks,
    owners,
    pins,
    points,
    switching,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Point, PointId


def abort(path: str, point_id: PointId, run: str, dry: bool = False) -> bool:
    """Remove what a run has written of its restore point, and release its lock; whether there was any.

    What belongs to another run is left alone, and a complete restore point too.
    """
    repository = layout.open_repository(path)
    directory = repository.object_directory(point_id.object_id)
    held = locks.holder(directory)
    if held is None or held.run != run:
        return False
    if not dry:
        with files.reporting("remove the unfinished restore point"):
            files.remove(repository.partial_directory(point_id))
            files.sync_directory(directory)
        locks.release(directory, run)
    return True


def remove(
    path: str,
    point_id: PointId,
    force: bool = False,
    lock_timeout: float = 0,
    lease: int = locks.DEFAULT_LEASE,
    dry: bool = False,
) -> tuple[bool, Point | None]:
    """Delete a complete restore point.

    :param force: also the last one of its object that can be read
    :return: whether that changes anything, and what its manifest said, if that could be read
    :raises RepositoryError: it is pinned, another restore point needs it, or it is the last one
    :raises Locked: a run is writing restore points of this object
    """
    repository = layout.open_repository(path)
    directory, target = repository.object_directory(point_id.object_id), repository.point_directory(point_id)
    if not os.path.lexists(target):
        return False, None
    if dry:
        locks.check_free(directory, "")
        return True, _removable(repository, point_id, force)
    run = uuid.uuid4().hex
    locks.acquire(directory, run, lease, lock_timeout, owners.this_process())
    try:
        # What a merge has committed counts, and may be what no longer needs this point.
        switching.recover(directory)
        point = _removable(repository, point_id, force)
        with files.reporting("delete the restore point"):
            # Out of sight first, at once: a reader never sees half of it.
            os.rename(target, target + layout.DELETED)
            files.sync_directory(directory)
        switching.recover(directory)
    finally:
        locks.release(directory, run)
    return True, point


def _removable(repository: Repository, point_id: PointId, force: bool) -> Point | None:
    pin = pins.read(repository.point_directory(point_id))
    if pin is not None:
        why = f": {pin.reason}" if pin.reason else ""
        raise RepositoryError(
            f"Restore point {point_id} is pinned{why}.",
            "Take the pin away first, with state=unpinned; force does not overrule it.",
            pinned=pin.as_dict(),
        )
    entries = points.read_entries(repository, point_id.object_id)
    readable = points.readable(entries)
    needed_by = [point.id for point in points.dependents(readable.values(), point_id.time)]
    if needed_by:
        raise RepositoryError(
            f"Restore point {point_id} is needed by {len(needed_by)} other, the next is {needed_by[0]}.",
            "Delete the later ones first, newest first.",
            dependents=needed_by,
        )
    unknown = [str(entry.id) for entry in entries if entry.point is None and entry.id.time > point_id.time]
    if unknown and not force:
        raise RepositoryError(
            f"Restore point {point_id} may be needed by {unknown[0]}, which is damaged.",
            "Delete the damaged one first, or set force=true.",
            dependents=unknown,
        )
    if list(readable) == [point_id.time] and not force:
        raise RepositoryError(
            f"Restore point {point_id} is the last one of its VM or first class disk.",
            "Set force=true to delete it all the same.",
        )
    return readable.get(point_id.time)
