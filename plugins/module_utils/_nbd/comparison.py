# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: whether an image and those below it hold what a disk holds."""

from __future__ import annotations

from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, images, jobs, servers
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.jobs import Settings, Task
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch


def compare(task: Task, settings: Settings, watch: Watch) -> dict[str, Any]:
    """Compare a disk with an image: all of it, or all but the task's areas, which have changed since.

    :returns: image, capacity, bytes_read, identical, differences, transport, warnings, changed, and the task's facts
    :raises Damaged: they differ; ``details`` has ``differences``, the first places that were found
    """
    chain = images.chain(task.image)
    images.check_capacity(task.image, task.capacity)
    within = unchanged(task)
    differences = [] if within == [] else jobs.compare(task, settings, watch, "compare", chain, within)
    if differences:
        raise Damaged(
            f"{task.image} is not what {task.name} holds: they differ at byte {differences[0][0]}.",
            "Verify the restore point's content. If that is sound, change tracking missed changes: have the tracking "
            "reset and the disk copied in full.",
            identical=False,
            differences=[list(area) for area in differences],
        )
    return {
        **task.facts,
        "image": task.image,
        "capacity": task.capacity,
        "bytes_read": task.capacity if within is None else areas.total(within),
        "identical": True,
        "differences": [],
        "transport": task.disk.transport,
        "warnings": task.disk.warnings,
        "changed": False,
    }


def unchanged(task: Task) -> list[areas.Area] | None:
    """The areas to compare: whole clusters, since the image keeps whole ones. None for the whole disk."""
    if task.work is None:
        return None
    return areas.subtract([(0, task.capacity)], areas.normalise(task.work, task.capacity, servers.CLUSTER))
