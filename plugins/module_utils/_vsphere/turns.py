# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: doing something to a VM on which others work too, once their tasks have ended."""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any, Callable, Iterable, Mapping, TypeVar

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    NotFound,
    TaskFailed,
    TimedOut,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection

T = TypeVar("T")


def in_turn(
    c: Connection,
    action: Callable[[], T],
    timeout: float,
    *,
    others: Iterable[Any] = (),
    waited: Callable[[], None] = lambda: None,
) -> T:
    """Do something to a VM, and do it again if vSphere refused because of another task, when that has ended.

    Each task is let end once: a server that names one that has ended is not asked for ever.

    :param timeout: seconds in which the last of the others has to end
    :param others: tasks to let end before the first attempt
    :param waited: is called whenever others have ended, before the next attempt
    :raises TimedOut: another task goes on longer
    :raises VsphereFault: ``action`` did, for another reason or because of a task that has ended
    """
    deadline = time.monotonic() + timeout
    ended: set[Any] = set()
    others = list(others)
    while True:
        if others:
            let_end(c, others, deadline)
            ended.update(others)
            waited()
        try:
            return action()
        except VsphereFault as error:
            other = _in_the_way(error)
            if other is None or other in ended or time.monotonic() > deadline:
                raise
            others = [other]


def let_end(c: Connection, others: Iterable[Any], deadline: float) -> None:
    """Wait until somebody else's tasks end, whatever becomes of them.

    :param deadline: until when, of ``time.monotonic()``
    :raises TimedOut: one goes on longer
    """
    for task in others:
        try:
            with contextlib.suppress(TaskFailed, NotFound):
                tasks.wait(c, task, timeout=max(1.0, deadline - time.monotonic()))
        except TimedOut as error:
            raise TimedOut(
                f"Another task works on the virtual machine, and nothing was begun. {error.message}",
                "Run this one again when that has ended, or give it a longer timeout.",
                **error.details,
            ) from error


def under_way(recent: Mapping[Any, Mapping[str, Any]], kinds: str = "") -> list[Any]:
    """Those of a VM's recent tasks that had not ended when they were read.

    :param recent: task -> ``info.state`` and ``info.descriptionId``
    :param kinds: only those whose description ID has a match for this pattern, in any case
    """
    return [
        task
        for task, info in recent.items()
        if str(info.get("info.state")) in ("queued", "running")
        and re.search(kinds, info.get("info.descriptionId") or "", re.IGNORECASE)
    ]


def _in_the_way(error: BackupError) -> Any:
    """The other task because of which vSphere refused ours; None if that is not the reason or it does not tell."""
    return getattr(error.__cause__, "task", None) if error.details.get("fault") == "TaskInProgress" else None
