# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: where things are in a repository.

::

    repository.json
    <object>/.lock/<run>.json           while a run writes points of this object
    <object>/<UTC time>.partial/        being written
    <object>/<UTC time>.deleted/        being deleted
    <object>/<UTC time>.merging/        new images of a point, made without those that it stood on (see merging.py)
    <object>/<UTC time>/point.json ...  a restore point, complete

An object is a VM, by its instance UUID, or a first class disk, by its ID.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import documents, files, manifest
from ansible_collections.holdfast.backup.plugins.module_utils._repository.documents import Fields
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import PointId

FORMAT = "holdfast.repository"
VERSION = 1
FILE = "repository.json"
PARTIAL = ".partial"
DELETED = ".deleted"
MERGING = ".merging"
MERGED = "merge.json"
"""In a ``.merging`` directory: the whole new manifest of the point. From when it is there, the merge counts."""

# With nothing else a directory counts as empty: a new file system's own, and ours of a killed run.
_OF_FILE_SYSTEM = "lost+found"
_PREPARED = f".{FILE}."


@dataclass(frozen=True)
class Repository:
    """A directory that holds restore points."""

    path: str
    id: str
    version: int
    created: str

    def object_directory(self, object_id: str) -> str:
        """The directory of one VM's or first class disk's points."""
        return os.path.join(self.path, object_id)

    def point_directory(self, point: PointId) -> str:
        """The directory of a complete point."""
        return os.path.join(self.path, point.object_id, point.time)

    def partial_directory(self, point: PointId) -> str:
        """The directory of a point that is being written."""
        return self.point_directory(point) + PARTIAL

    def merging_directory(self, point: PointId) -> str:
        """The directory of new images of a complete point."""
        return self.point_directory(point) + MERGING

    def object_ids(self) -> list[str]:
        """Every VM and first class disk that has a directory here, sorted."""
        with files.reporting("list the repository"):
            names = os.listdir(self.path)
        uuids = filter(manifest.is_uuid, names)
        return sorted(name for name in uuids if files.is_directory(self.object_directory(name)))

    def free(self) -> int:
        """Bytes that the user of this process may still write."""
        with files.reporting("ask for the free space of the repository"):
            status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def as_dict(self) -> dict[str, Any]:
        """What a result says of it."""
        return {"path": self.path, "id": self.id, "version": self.version, "created": self.created, "free": self.free()}


def open_repository(path: str) -> Repository:
    """The repository at ``path``.

    :raises RepositoryError: absent, no repository, or of a newer format
    :raises Damaged: its ``repository.json`` is not what was written
    """
    path = _directory(path)
    file = os.path.join(path, FILE)
    try:
        with files.reporting("read the repository"):
            data = files.read(file, documents.MAX_BYTES)
    except RepositoryError:
        if os.path.lexists(file):
            raise
        raise RepositoryError(
            f"{path} is not a repository: it has no {FILE}.",
            "Check the path and that the share is mounted; the first backup into an empty directory makes it one.",
        ) from None
    fields = Fields(documents.parse(data, FORMAT, VERSION, file), file)
    return Repository(path, fields.text("id"), fields.integer("version", VERSION), fields.text("created"))


def open_or_plan(path: str, create: bool, now: datetime) -> tuple[Repository, bool]:
    """The repository at ``path``, or the one that would be made there; and whether it is still to be made.

    :raises RepositoryError: as :func:`open_repository`, and when the directory holds something else
    """
    path = _directory(path)
    if os.path.lexists(os.path.join(path, FILE)):
        return open_repository(path), False
    with files.reporting("list the repository"):
        found = sorted(name for name in os.listdir(path) if name != _OF_FILE_SYSTEM and not name.startswith(_PREPARED))
    if found:
        raise RepositoryError(
            f"{path} is not a repository and not empty: it holds {', '.join(found[:3])}.",
            "Give an empty directory, or the directory of a repository.",
        )
    if not create:
        raise RepositoryError(
            f"{path} is empty, not a repository.", "See that the share is mounted, or set create=true for a new one."
        )
    return Repository(path, str(uuid.uuid4()), VERSION, manifest.format_time(now)), True


def create_repository(planned: Repository) -> Repository:
    """Write a planned repository; one that another run made meanwhile is taken as it is."""
    body = {"id": planned.id, "created": planned.created}
    prepared = os.path.join(planned.path, _PREPARED + planned.id)
    with files.reporting("create the repository"):
        # It was made meanwhile when its name is taken, or when its maker has cleaned up.
        with suppress(FileExistsError, FileNotFoundError):
            files.write(prepared, documents.render(FORMAT, VERSION, body))
            os.link(prepared, os.path.join(planned.path, FILE))
        for name in os.listdir(planned.path):
            if name.startswith(_PREPARED):
                files.remove(os.path.join(planned.path, name))
        files.sync_directory(planned.path)
    return open_repository(planned.path)


def make_object_directory(repository: Repository, object_id: str) -> str:
    """The object's directory, made if need be.

    :raises Damaged: something else has its name
    """
    directory = repository.object_directory(object_id)
    with files.reporting("make the directory of the restore points"):
        try:
            os.mkdir(directory, 0o700)
            files.sync_directory(repository.path)
        except FileExistsError:
            pass
    if not files.is_directory(directory):
        raise Damaged(f"{directory} is not a directory.", "A repository holds only plain directories; remove it.")
    return directory


def leftovers(directory: str) -> list[str]:
    """Names in an object's directory of what is half written, half merged or half deleted, oldest first."""
    return sorted(name for name in _names(directory) if _unfinished(name))


def taken_times(directory: str) -> list[str]:
    """Every time in an object's directory that a point had, has, or was about to have."""
    names = (os.path.splitext(name)[0] if _unfinished(name) else name for name in _names(directory))
    return sorted(name for name in names if manifest.is_time(name))


def complete_times(directory: str) -> list[str]:
    """The times of the complete points in an object's directory, oldest first."""
    return sorted(name for name in _names(directory) if manifest.is_time(name))


def _unfinished(name: str) -> bool:
    time, suffix = os.path.splitext(name)
    return suffix in (PARTIAL, DELETED, MERGING) and manifest.is_time(time)


def _names(directory: str) -> list[str]:
    with files.reporting("list the restore points"):
        try:
            return os.listdir(directory)
        except FileNotFoundError:
            return []


def _directory(path: str) -> str:
    path = os.path.realpath(path)
    if not os.path.isdir(path):
        raise RepositoryError(
            f"The repository {path} does not exist or is not a directory.",
            "Mount the share or make the directory; it is never made by itself, so that a missing mount is noticed.",
        )
    return path
