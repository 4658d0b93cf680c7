# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: from a disk into a new image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import (
    areas,
    audit,
    copy,
    images,
    jobs,
    servers,
    state,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.jobs import Settings, Task
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch


def is_done(task: Task) -> bool:
    """Whether the image is there already."""
    return _earlier(task) is not None


def backup(task: Task, settings: Settings, watch: Watch) -> dict[str, Any]:
    """Copy a disk, or its changed areas, into an image.

    Does nothing when an earlier run made the same image, and goes on where an earlier run left it in good order.
    When the audit finds that change tracking missed changes, the disk is copied in full; when it finds data in what is
    said to be unused, all of the disk is read.

    :returns: image, parent, capacity, bytes_read, bytes_stored, sha256, seconds, rate, transport, allocation, warnings,
        audit, resumed, changed, and the task's facts
    """
    earlier = _earlier(task)
    if earlier is not None:
        return {**task.facts, **earlier, "resumed": False, "changed": False}
    if task.work is None and task.hints and not audit.examine_hints(task, settings, watch):
        return _backup(audit.distrusted(task), settings, watch, [], {"audit": None})
    chain = images.require_parent(task.parent) if task.parent else []
    found = audit.examine(task, settings, watch, chain) if task.parent and task.work is not None else None
    if found is None or found.reason is None:
        return _backup(task, settings, watch, chain, {"audit": found and found.as_dict()})
    task, told = audit.in_full(task, found)
    warnings = [f"It was copied in full: {found.reason}."]
    return _backup(task, settings, watch, [], {**told, "audit": found.as_dict(), "warnings": warnings})


def _earlier(task: Task) -> dict[str, Any] | None:
    """What the copy that made the image returned, also one that a failed audit led to."""
    done = state.result_of(task.image, _identity(task))
    audited = task.parent or task.hints
    return done or (state.result_of(task.image, _identity(audit.distrusted(task))) if audited else None)


def _backup(
    task: Task, settings: Settings, watch: Watch, below: Sequence[str], told: Mapping[str, Any]
) -> dict[str, Any]:
    """The copy itself.

    :param below: the images below the new one
    :param told: keys of the result that are known beforehand
    """
    identity = _identity(task)
    chain = [task.image, *below]
    work = None if task.work is None else areas.normalise(task.work, task.capacity, servers.CLUSTER)
    resumed = state.is_resumable(task.image, identity) and _is_sound(task.image, watch)
    if resumed:
        wanted = _allocated(task) if work is None else work
        work = areas.subtract(_whole_clusters(wanted, task), images.present(task.image))
        # QEMU refuses to compress over a cluster that is there, so nothing may be read but what is missing.
        request = jobs.request_size(settings, work, over_read=1.0)
    else:
        _begin(task, settings, identity)
        request = jobs.request_size(settings, work)
    outcome = _fill(task, settings, watch, chain, work, request)
    with ThreadPoolExecutor(max_workers=1) as background:
        # The storage takes what was written while the processor hashes it.
        kept = background.submit(_keep_or_discard, task, identity, outcome)
        sha256 = None if outcome.error else _digest(task, watch)
        kept.result()
    if outcome.error:
        raise task.disk.error or outcome.error
    if settings.verify:
        jobs.verify(task, settings, watch, chain)
    result = {
        "image": task.image,
        "parent": task.parent,
        "capacity": task.capacity,
        "bytes_read": outcome.tally.read,
        "bytes_stored": os.path.getsize(task.image),
        "sha256": sha256,
        **jobs.figures(outcome.tally.read, outcome.seconds),
        "transport": task.disk.transport,
        "allocation": task.allocation() if task.work is None else None,
        **told,
        "warnings": [*told.get("warnings", ()), *task.disk.warnings],
    }
    state.save(task.image, state.COMPLETE, identity, result)
    images.sync(os.path.dirname(task.image))
    return {**task.facts, **result, "resumed": resumed, "changed": True}


def _identity(task: Task) -> dict[str, Any]:
    work = hashlib.sha256(json.dumps(task.work).encode()).hexdigest()
    return {**task.identity, "capacity": task.capacity, "work": work, "parent": task.parent}


def _begin(task: Task, settings: Settings, identity: Mapping[str, Any]) -> None:
    state.discard(task.image)
    state.save(task.image, state.COPYING, identity)
    images.create(task.image, task.capacity, task.parent, settings.compression)


def _fill(
    task: Task, settings: Settings, watch: Watch, chain: Sequence[str], work: list[areas.Area] | None, request: int
) -> copy.Outcome:
    """Copy ``work`` into the first image of the chain."""
    if work is not None and not work:
        return copy.Outcome(copy.Tally(), 0.0)

    def build(serve: Callable[..., list[str]], options: list[str]) -> list[str]:
        options = [*options, "--destination-is-zero"]
        if task.parent:
            # Zeros in a changed area hide what the parent has there: they are content, not a hole.
            options.append("--sparse=0")
        source = serve([*jobs.only(work, settings), ("truncate", f"round-up={servers.CLUSTER}")])
        return servers.nbdcopy(source, servers.image_writer(chain, settings.compression != "none"), options)

    return jobs.transfer(task, settings, watch, "copy", request, build, None if work is None else areas.total(work))


def _keep_or_discard(task: Task, identity: Mapping[str, Any], outcome: copy.Outcome) -> None:
    """Note that the image can be gone on with, or remove it when it cannot."""
    kept = False
    try:
        if outcome.orderly:
            images.sync(task.image)
            problem = images.check(task.image)
            if problem and not outcome.error:
                raise Damaged(f"The new image {task.image} is not sound: {problem}.", "Run it again.")
            if not problem:
                state.save(task.image, state.INTERRUPTED, identity)
                kept = True
    finally:
        if not kept:
            state.discard(task.image)


def _is_sound(image: str, watch: Watch) -> bool:
    """Whether all that is in an image that was left can be read."""
    if images.check(image, repair_leaks=True):
        return False
    decode = servers.nbdcopy(servers.image_reader([image]), ())
    outcome = copy.run(decode, copy.RequestLog(), check=watch.check)
    watch.check()
    return outcome.error is None


def _allocated(task: Task) -> list[areas.Area]:
    with task.disk.open() as disk:
        return copy.allocated(servers.disk_server(disk), [] if disk.descriptor is None else [disk.descriptor])


def _whole_clusters(wanted: list[areas.Area], task: Task) -> list[areas.Area]:
    return areas.normalise(wanted, images.virtual_size(task.capacity), servers.CLUSTER)


def _digest(task: Task, watch: Watch) -> str:
    size = os.path.getsize(task.image)

    def on_progress(done: int) -> None:
        watch.tell(task.name, "hash", done, size)
        watch.check()

    return images.digest(task.image, on_progress)
