# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: from an image and those below it onto a disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, images, jobs, servers
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.jobs import Settings, Task
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch


def restore(task: Task, settings: Settings, watch: Watch) -> dict[str, Any]:
    """Write the content of an image onto a disk: all of it, or the task's areas and nothing else.

    :returns: image, capacity, bytes_written, seconds, rate, transport, warnings, changed, and the task's facts
    """
    chain = images.chain(task.image)
    images.check_capacity(task.image, task.capacity)
    work = None if task.work is None else areas.normalise(task.work, task.capacity, servers.CLUSTER)
    request = jobs.request_size(settings, work)

    def build(serve: Callable[..., list[str]], options: list[str]) -> list[str]:
        reader = servers.image_reader(chain, task.capacity)
        if work is not None:
            reader = servers.filtered(reader, jobs.only(work, settings))
            # Outside the areas nothing is written, inside them everything, zeros too.
            options = [*options, "--destination-is-zero", "--sparse=0"]
        elif settings.target_is_zero:
            options = [*options, "--destination-is-zero"]
        return servers.nbdcopy(reader, serve(read_only=False), options)

    total = None if work is None else areas.total(work)
    outcome = jobs.transfer(task, settings, watch, "copy", request, build, total)
    if outcome.error:
        raise task.disk.error or outcome.error
    if settings.verify:
        jobs.verify(task, settings, watch, chain)
    return {
        **task.facts,
        "image": task.image,
        "capacity": task.capacity,
        "bytes_written": outcome.tally.written,
        **jobs.figures(outcome.tally.written, outcome.seconds),
        "transport": task.disk.transport,
        "warnings": task.disk.warnings,
        "changed": True,
    }
