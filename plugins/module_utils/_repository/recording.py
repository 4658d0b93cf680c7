# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the manifest of what a run has copied."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Mapping, Sequence, TypeVar

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._repository import files, images, manifest
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import (
    Disk,
    File,
    Owner,
    Parent,
    Point,
    PointId,
    Unprotected,
)
from ansible_collections.holdfast.backup.plugins.module_utils._version import VERSION

FILES = ("config.json", "vm.nvram", "fcd.json")
"""What may be in a restore point beside the images."""

_Text = TypeVar("_Text", str, None)
_LONGEST = 4096
_MOST_WARNINGS = 500
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Content:
    """What the run knows of the restore point. ``disks`` are the results of the copy."""

    owner: Owner
    disks: Sequence[Mapping[str, Any]]
    consistency: str
    snapshot_time: str | None
    unprotected: Sequence[Mapping[str, Any]]
    warnings: Sequence[str]
    vcenter: str | None = None


def point(repository: Repository, point_id: PointId, run: str, content: Content, now: datetime) -> Point:
    """The restore point in the partial directory, as its manifest will tell it.

    :raises InvalidInput: the results of the copy make no valid manifest
    :raises Damaged: a file that they name is not there
    """
    partial = repository.partial_directory(point_id)
    found = Point(
        id=str(point_id),
        run=run,
        **manifest.by_kind(content.owner),
        started=manifest.format_time(point_id.moment),
        completed=manifest.format_time(now),
        snapshot_time=content.snapshot_time,
        consistency=content.consistency,
        disks=tuple(_disk(repository, point_id, result) for result in content.disks),
        files=tuple(_file(partial, name) for name in FILES if files.is_plain(os.path.join(partial, name))),
        unprotected=tuple(_unprotected(item) for item in content.unprotected),
        warnings=tuple(str(_short(warning)) for warning in content.warnings[:_MOST_WARNINGS]),
        collection_version=VERSION,
        vcenter=content.vcenter,
    )
    try:
        return manifest.parse(manifest.render(found), point_id)
    except Damaged as error:
        raise InvalidInput(
            f"The results given make no valid manifest: {error.message}", "Pass the results of the copy as they are."
        ) from error


def _disk(repository: Repository, point_id: PointId, result: Mapping[str, Any]) -> Disk:
    partial = repository.partial_directory(point_id)
    try:
        path, parent = str(result["image"]), result.get("parent")
        if os.path.dirname(os.path.realpath(path)) != partial:
            raise InvalidInput(f"The image {path} is not in {partial}.", "Copy into the path that 'started' returned.")
        size, sha256 = _measure(path, result.get("sha256"))
        return Disk(
            key=int(result["key"]),
            label=_short(result["label"]),
            backing_uuid=str(result["backing_uuid"]),
            capacity=int(result["capacity"]),
            change_id=result.get("change_id"),
            kind=str(result["kind"]),
            reason=_short(result.get("reason")),
            parent=None if parent is None else _parent(repository, point_id, str(parent)),
            image=os.path.basename(path),
            size=size,
            sha256=sha256,
            transport=result.get("transport"),
            bytes_read=int(result.get("bytes_read") or 0),
            bytes_stored=int(result.get("bytes_stored") or size),
            fcd_id=result.get("fcd_id"),
        )
    except KeyError as error:
        raise InvalidInput(f"A disk's result has no {error}.", "Pass the results of the copy as they are.") from error
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"A disk's result is not usable: {error}.", "Pass the results of the copy as they are."
        ) from error


def _measure(path: str, sha256: Any) -> tuple[int, str]:
    """Size and hash of an image; the hash that the copy took is not taken again."""
    with files.reporting("read an image"):
        try:
            if isinstance(sha256, str) and _SHA256.fullmatch(sha256) and files.is_plain(path):
                return os.lstat(path).st_size, sha256
            return files.digest(path)
        except FileNotFoundError as error:
            raise Damaged(f"Image missing: {path}.", images.NEXT_STEP) from error


def _parent(repository: Repository, point_id: PointId, path: str) -> Parent:
    directory = repository.object_directory(point_id.object_id)
    time, _slash, image = os.path.relpath(os.path.realpath(path), directory).partition(os.sep)
    if not manifest.is_time(time) or not manifest.is_image(image):
        raise InvalidInput(
            f"The parent {path} is no image of a complete restore point in {directory}.",
            "Pass the parent that 'started' returned.",
        )
    return Parent(str(PointId(point_id.object_id, time)), manifest.relative_image(time, image))


def _file(directory: str, name: str) -> File:
    with files.reporting("read the configuration"):
        return File(name, *files.digest(os.path.join(directory, name)))


def _unprotected(item: Mapping[str, Any]) -> Unprotected:
    return Unprotected(
        label=_short(item.get("label")),
        key=item.get("key"),
        backing_uuid=_short(item.get("backing_uuid")),
        reason=_short(item.get("reason")) or "not said",
    )


def _short(text: _Text) -> _Text:
    """Text that any manifest takes: a long message of a server must not fail a backup."""
    return None if text is None else str(text)[:_LONGEST].replace("\0", " ")
