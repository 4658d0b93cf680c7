# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: make a restore point complete, and so visible."""

from __future__ import annotations

import os
from datetime import datetime

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    files,
    images,
    layout,
    locks,
    manifest,
    points,
    recording,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.images import CheckImage
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Point, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.recording import Content


def complete(
    path: str, point_id: PointId, run: str, content: Content, check_image: CheckImage, now: datetime, dry: bool = False
) -> tuple[bool, Point | None]:
    """Check and record what was copied, then make the restore point visible and release the lock.

    :param dry: say what would be recorded, changing nothing; None when nothing was started
    :return: whether that changes anything, and the restore point
    :raises Locked: the run lost its lock
    :raises Damaged: an image is not what the copy said
    """
    repository = layout.open_repository(path)
    directory = repository.object_directory(point_id.object_id)
    done = _completed(repository, point_id, run)
    if done is not None:
        if not dry:
            locks.release(directory, run)
        return False, done
    partial = repository.partial_directory(point_id)
    if not files.is_directory(partial):
        if dry:
            return True, None
        raise NotFound(
            f"Restore point {point_id} is not being written.",
            "It was aborted, or taken for dead and removed by a later run. Start the backup again.",
        )
    locks.check_owner(directory, run)
    point = recording.point(repository, point_id, run, content, now)
    _check_images(repository, partial, point, check_image)
    if not dry:
        locks.renew(directory, run)
        _publish(repository, point_id, run, point)
    return True, point


def _completed(repository: Repository, point_id: PointId, run: str) -> Point | None:
    for entry in points.read_entries(repository, point_id.object_id):
        if entry.id == point_id:
            if entry.point is not None and entry.point.run == run:
                return entry.point
            raise InvalidInput(
                f"Restore point {point_id} exists and was not made by run {run}.", "Give the id and run of this backup."
            )
    return None


def _publish(repository: Repository, point_id: PointId, run: str, point: Point) -> None:
    directory, partial = repository.object_directory(point_id.object_id), repository.partial_directory(point_id)
    named = [disk.image for disk in point.disks] + [file.name for file in point.files]
    with files.reporting("complete the restore point"):
        for name in set(os.listdir(partial)) - set(named):
            files.remove(os.path.join(partial, name))
        for name in named:
            files.sync(os.path.join(partial, name))
        files.write(os.path.join(partial, manifest.FILE), manifest.render(point))
        # The last moment to notice that another run took this one for dead.
        locks.renew(directory, run)
        os.rename(partial, repository.point_directory(point_id))
        files.sync_directory(directory)
    locks.release(directory, run)


def _check_images(repository: Repository, partial: str, point: Point, check_image: CheckImage) -> None:
    """See that every new image is sound and stands on a chain that is there."""
    readable = points.readable(points.read_entries(repository, point.owner.object_id))
    for disk in point.disks:
        path = os.path.join(partial, disk.image)
        images.check(path, disk)
        if disk.size != disk.bytes_stored:  # the hash that the copy took is of another file then
            raise Damaged(f"{path} has {disk.size} bytes, it was copied with {disk.bytes_stored}.", images.NEXT_STEP)
        points.chain(readable, point, disk)
        images.check_structure(path, check_image)
