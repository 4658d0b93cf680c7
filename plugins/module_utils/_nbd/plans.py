# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what a user wants copied, checked before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, comparison, state
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.backup import is_done
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.jobs import Task

_AGAIN = "Have disk_changed_areas look at this snapshot, or copy the disk in full."


# What a result says of what its copy had nothing to do with.
NOTHING: Mapping[str, Any] = {
    "parent": None,
    "bytes_read": 0,
    "bytes_stored": 0,
    "bytes_written": 0,
    "sha256": None,
    "seconds": 0,
    "rate": 0,
    "audit": None,
    "identical": None,
    "differences": [],
    "resumed": False,
    "warnings": [],
}


@dataclass(frozen=True)
class Wanted:
    """What one item of vddk_copy's option ``disks`` asks for; see :class:`jobs.Task` for the fields."""

    image: str
    kind: str
    capacity: int
    work: list[areas.Area] | None
    parent: str | None


def read_item(
    item: Mapping[str, Any], image: str | None, name: str, direction: str, size: int, change_id: str | None
) -> Wanted:
    """Check one item against the disk that it means.

    :param image: path to use when the item has none
    :param name: of the disk, for messages
    :param direction: ``backup``, ``restore`` or ``compare``
    :param size: of the disk in bytes
    :param change_id: that the disk has in the snapshot that is backed up
    :raises InvalidInput: the item contradicts the disk or itself
    """
    image = item.get("image") or (direction == "compare" and item.get("parent")) or image
    if not image:
        raise InvalidInput(f"There is no image for {name}.", "Give image in disks, or image_dir.")
    try:
        capacity = int(item.get("capacity") or size)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name}: the capacity {item['capacity']!r} is no number.", "Give bytes.") from error
    listed = item.get("areas_file")
    if direction == "restore":
        if capacity > size:
            raise InvalidInput(f"{name} has {size} bytes, the image is of {capacity}.", "Restore to a larger disk.")
        return Wanted(os.path.abspath(image), "full", capacity, _work(listed, name, capacity), None)
    kind, parent = item.get("kind") or "full", item.get("parent")
    if kind not in ("full", "incremental"):
        raise InvalidInput(f"{name}: the kind {kind} is unknown.", "Give full or incremental.")
    if capacity != size:
        raise InvalidInput(f"{name} has {size} bytes in the snapshot, not {capacity}.", _AGAIN)
    # A comparison without areas may name a restore point's disk, with the change ID of another snapshot.
    counted = direction == "backup" or listed
    if counted and item.get("change_id") and item["change_id"] != change_id:
        raise InvalidInput(f"{name} has the change ID {change_id} in the snapshot, not {item['change_id']}.", _AGAIN)
    if direction == "compare":
        return Wanted(os.path.abspath(image), kind, capacity, _work(listed, name, capacity), None)
    if kind == "full":
        return Wanted(os.path.abspath(image), kind, capacity, None, None)
    if not parent or not listed:
        raise InvalidInput(f"{name}: an incremental copy needs parent and areas_file.", _AGAIN)
    return Wanted(os.path.abspath(image), kind, capacity, _work(listed, name, capacity), os.path.abspath(parent))


def check_images(tasks: Sequence[Task], direction: str) -> None:
    """See that there is a place for every image, one disk only for each, and nothing that a new one would destroy.

    :raises InvalidInput: there is not
    """
    images = [task.image for task in tasks]
    for image in images:
        if not os.path.isdir(os.path.dirname(image)):
            raise InvalidInput(f"There is no directory {os.path.dirname(image)}.", "Make it, or name another one.")
        if images.count(image) > 1:
            raise InvalidInput(f"Several disks have the image {image}.", "Give each disk an image of its own.")
        if direction == "backup":
            _check_new(image, tasks)


def _check_new(image: str, tasks: Sequence[Task]) -> None:
    """See that an image may be made: a parent, and what no copy of ours left there, must not make way for it."""
    if any(task.parent and os.path.realpath(task.parent) == os.path.realpath(image) for task in tasks):
        raise InvalidInput(f"The image {image} is the parent of a new one.", "Give the new image another path.")
    if os.path.lexists(image) and not os.path.exists(state.note_path(image)):
        raise InvalidInput(
            f"{image} exists already, and it is not what a copy left to be gone on with.",
            "Name another image, or move what is there.",
        )


def foretell(task: Task, direction: str) -> dict[str, Any]:
    """The result of a task as far as it is known beforehand."""
    changed = direction == "restore" or (direction == "backup" and not is_done(task))
    work = task.work if changed else []
    if direction == "compare":
        work = comparison.unchanged(task)
    size = task.capacity if work is None else areas.total(work)
    return {
        **NOTHING,
        **task.facts,
        **dict.fromkeys(("transport", "bytes_stored", "sha256", "seconds", "rate")),
        "image": task.image,
        "parent": task.parent,
        "capacity": task.capacity,
        "bytes_read": 0 if direction == "restore" else size,
        "bytes_written": size if direction == "restore" else 0,
        "changed": changed,
    }


def diff(plan: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is copied where, and how many bytes at most."""
    copies = {
        f"{disk['label']} ({disk['image']})": disk["bytes_read"] + disk["bytes_written"]
        for disk in plan
        if disk["changed"]
    }
    return {"before": dict.fromkeys(copies, 0), "after": copies}


def _work(path: str | None, name: str, capacity: int) -> list[areas.Area] | None:
    """The areas in a file, None without a file."""
    if not path:
        return None
    listed, work = areas.read_file(path)
    if listed != capacity:
        raise InvalidInput(f"{path} is of a disk of {listed} bytes, {name} has {capacity}.", _AGAIN)
    return work
