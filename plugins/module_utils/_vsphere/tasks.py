# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: waiting for vSphere tasks without polling.

The server answers WaitForUpdatesEx when something changed, so the end of a task is noticed at
once and a long task costs one request in :data:`SLICE` seconds.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    ConnectionFailed,
    NotFound,
    TaskFailed,
    TimedOut,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import (
    Connection,
    fault_name,
    fault_text,
    next_step,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl

SLICE = 30  # seconds that one WaitForUpdatesEx may take: as late is it noticed that the session ended
CANCEL_GRACE = 30  # seconds that a cancelled task has to end

_PATHS = ["info.state", "info.result", "info.error", "info.descriptionId", "info.entityName"]


def wait(
    c: Connection,
    task: Any,
    *,
    timeout: float,
    on_progress: Callable[[int | None], None] | None = None,
    on_timeout: str = "leave",
) -> Any:
    """Wait for one task and return its result.

    :param timeout: seconds
    :param on_progress: called with the percentage (None when the server gives none) when it changes
    :param on_timeout: ``leave`` the task running, or ``cancel`` it
    :raises TaskFailed: ``details``: fault (its type), task (its moid)
    :raises TimedOut: ``details``: task, task_state (``running``, ``cancelled``, ...)
    """
    return wait_all(c, [task], timeout=timeout, on_progress=on_progress, on_timeout=on_timeout)[0]


def wait_all(
    c: Connection,
    tasks: Sequence[Any],
    *,
    timeout: float,
    on_progress: Callable[[int | None], None] | None = None,
    on_timeout: str = "leave",
) -> list[Any]:
    """Like :func:`wait` for several tasks at once; returns their results in the same order.

    The first failed task is raised, after all of them have ended.
    """
    infos: dict[Any, dict[str, Any]] = {task: {} for task in tasks}
    if not _follow(c, infos, timeout, on_progress):
        _give_up(c, infos, timeout, on_timeout)
    for task in tasks:
        if infos[task]["info.state"] != vim.TaskInfo.State.success:
            raise _failure(task, infos[task]) from infos[task].get("info.error")
    return [infos[task].get("info.result") for task in tasks]


def _follow(
    c: Connection, infos: dict[Any, dict[str, Any]], timeout: float, on_progress: Callable[[int | None], None] | None
) -> bool:
    """Keep ``infos`` up to date until all tasks ended (True) or the time is over (False)."""
    deadline = time.monotonic() + timeout
    # Every change of a property that is watched costs a request, so progress is only watched for somebody.
    watch = _Watch(c, list(infos), _PATHS if on_progress is None else [*_PATHS, "info.progress"])
    reported = None
    while not all(_ended(info) for info in infos.values()) and (left := deadline - time.monotonic()) > 0:
        watch.update(infos, left)
        progress = next(iter(infos.values())).get("info.progress")
        if on_progress is not None and progress != reported:
            on_progress(progress)
            reported = progress
    watch.close()
    return all(_ended(info) for info in infos.values())


class _Watch:
    """Updates on some tasks, by a property collector of their own.

    A collector belongs to its session and serves one wait at a time. When the session is renewed it is gone;
    when the connection drops, the server may still be answering the wait that was cut off. In both cases a
    new one starts over: it tells the whole state first.
    """

    def __init__(self, c: Connection, tasks: list[Any], paths: list[str]) -> None:
        self._c = c
        self._spec = vmodl.query.PropertyCollector.FilterSpec(
            objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=task) for task in tasks],
            propSet=[vmodl.query.PropertyCollector.PropertySpec(type=vim.Task, pathSet=paths)],
        )
        self._open()

    def _open(self) -> None:
        self._collector = self._c.read(self._c.content.propertyCollector.CreatePropertyCollector)
        self._c.read(self._collector.CreateFilter, self._spec, True)
        self._version = ""

    def update(self, infos: dict[Any, dict[str, Any]], seconds: float) -> None:
        """Wait so long for a change, and note it in ``infos``."""
        options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=max(1, round(min(seconds, SLICE))))
        try:
            updates = self._c.call(self._collector.WaitForUpdatesEx, self._version, options)
        except (NotFound, ConnectionFailed):
            self._open()
            return
        if updates is not None:
            self._version = updates.version
            for changed in (one for filters in updates.filterSet for one in filters.objectSet):
                infos[changed.obj].update({change.name: change.val for change in changed.changeSet})

    def close(self) -> None:
        """Forget the collector; where an error cuts the wait short, it ends with the session."""
        with contextlib.suppress(NotFound, VsphereFault, ConnectionFailed):
            self._c.call(self._collector.DestroyPropertyCollector)


def _ended(info: dict[str, Any]) -> bool:
    return info.get("info.state") in (vim.TaskInfo.State.success, vim.TaskInfo.State.error)


def _cancelled(info: dict[str, Any]) -> bool:
    return _ended(info) and isinstance(info.get("info.error"), vmodl.fault.RequestCanceled)


def _give_up(c: Connection, infos: dict[Any, dict[str, Any]], timeout: float, on_timeout: str) -> None:
    """Cancel the tasks if wished, and raise TimedOut unless all of them ended by themselves meanwhile."""
    late = {task: info for task, info in infos.items() if not _ended(info)}
    if on_timeout == "cancel":
        for task in late:
            with contextlib.suppress(VsphereFault):  # not cancelable, or ended just now: the state tells
                c.call(task.CancelTask)
        _follow(c, late, CANCEL_GRACE, None)
        late = {task: info for task, info in late.items() if not _ended(info) or _cancelled(info)}
        if not late:
            return
    task, info = next(iter(late.items()))
    state = "cancelled" if _cancelled(info) else str(info.get("info.state") or "unknown")
    outcome = "It was cancelled" if state == "cancelled" else f"It goes on in vSphere (state {state})"
    raise TimedOut(
        f"The task {_title(task, info)} did not end within {timeout:g} seconds. {outcome}.",
        "Give a longer timeout.",
        task=task._GetMoId(),
        task_state=state,
    )


def _title(task: Any, info: dict[str, Any]) -> str:
    kind, name = info.get("info.descriptionId") or "of unknown kind", info.get("info.entityName")
    return f"{kind} of {name} ({task._GetMoId()})" if name else f"{kind} ({task._GetMoId()})"


def _failure(task: Any, info: dict[str, Any]) -> TaskFailed:
    fault = info.get("info.error")
    name, text = (fault_name(fault), fault_text(fault)) if fault is not None else ("unknown", "no cause given")
    return TaskFailed(
        f"The task {_title(task, info)} failed: {text} ({name}).", next_step(name), fault=name, task=task._GetMoId()
    )
