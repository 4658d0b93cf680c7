# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: restore points that are to stay, whatever the rules of retention say.

A pin is the sealed file ``pin.json`` in the directory of a complete restore point. Whatever has that
name pins, readable or not: in doubt a restore point stays.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    documents,
    files,
    layout,
    locks,
    manifest,
    owners,
    points,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.documents import Fields
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import PointId

FORMAT = "holdfast.pin"
VERSION = 1
FILE = "pin.json"
_LONGEST = 4096


@dataclass(frozen=True)
class Pin:
    """When and why a restore point was pinned; ``time`` is None when the pin cannot be read."""

    time: str | None
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def read(directory: str) -> Pin | None:
    """The pin in the directory of a restore point, or None."""
    path = os.path.join(directory, FILE)
    try:
        with files.reporting("read the pin"):
            if not os.path.lexists(path):
                return None
            fields = Fields(documents.parse(files.read(path, documents.MAX_BYTES), FORMAT, VERSION, path), path)
        return Pin(fields.text("time", longest=40), fields.optional_text("reason"))
    except RepositoryError as error:
        return Pin(None, f"its pin cannot be read: {error.message}") if os.path.lexists(path) else None


def change(
    path: str,
    point_id: PointId,
    pinned: bool,
    reason: str | None,
    now: datetime,
    lock_timeout: float = 0,
    lease: int = locks.DEFAULT_LEASE,
    dry: bool = False,
) -> tuple[Pin | None, Pin | None]:
    """Pin a restore point, or take its pin away; the pin before and after.

    It waits for a run that has the object's lock, which might be about to delete the restore point.

    :param pinned: whether it is to be pinned
    :param reason: why; None keeps the reason that a pin has
    :param dry: only say what would be
    :raises NotFound: there is no such restore point
    :raises Locked: a run is writing restore points of this object
    """
    repository = layout.open_repository(path)
    directory, target = repository.object_directory(point_id.object_id), repository.point_directory(point_id)
    before, after = _plan(target, point_id, pinned, reason, now)
    if before == after:
        return before, after
    if dry:
        locks.check_free(directory, "")
        return before, after
    run = uuid.uuid4().hex
    locks.acquire(directory, run, lease, lock_timeout, owners.this_process())
    try:
        before, after = _plan(target, point_id, pinned, reason, now)
        file = os.path.join(target, FILE)
        with files.reporting("change the pin of the restore point"):
            if after is None:
                files.remove(file)
                files.sync_directory(target)
            elif after != before:
                files.write(file, documents.render(FORMAT, VERSION, after.as_dict()))
    finally:
        locks.release(directory, run)
    return before, after


def _plan(
    target: str, point_id: PointId, pinned: bool, reason: str | None, now: datetime
) -> tuple[Pin | None, Pin | None]:
    if not files.is_directory(target):
        raise points.no_point(point_id)
    before = read(target)
    if not pinned:
        return before, None
    wanted = None if reason is None else reason[:_LONGEST].replace("\0", " ")
    if before is not None and before.time is not None and wanted in (None, before.reason):
        return before, before
    return before, Pin(manifest.format_time(now), wanted)
