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
from typing import Any, Callable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
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

_PATHS = ["info.state", "info.result", "info.error", "info.descriptionId", "info.entityName", "info.completeTime"]


def wait(
    c: Connection,
    task: Any,
    *,
    timeout: float,
    on_progress: Callable[[int | None], None] | None = None,
    on_timeout: str = "leave",
    beside: Mapping[Any, Sequence[str]] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Any:
    """Wait for one task and return its result.

    :param timeout: seconds
    :param on_progress: called with the percentage (None when the server gives none) when it changes
    :param on_timeout: ``leave`` the task running, or ``cancel`` it
    :param beside: managed object -> property paths, told as they are when the task has ended, in no further request
    :param check: called at least once in :data:`SLICE` seconds; what it raises ends the wait, not the task
    :returns: the result; with ``beside`` a pair of the result and object -> {path: value}, where an unset or
        unreadable property is a missing key; the task itself is among the objects
    :raises TaskFailed: ``details``: fault (its type), task (its moid)
    :raises TimedOut: ``details``: task, task_state (``running``, ``cancelled``, ...)
    """
    # Every change of a property that is watched costs a request, so progress is only watched for somebody.
    paths = _PATHS if on_progress is None else [*_PATHS, "info.progress"]
    watched: dict[Any, Sequence[str]] = {**(beside or {}), task: paths}
    told: dict[Any, dict[str, Any]] = {obj: {} for obj in watched}
    if not _follow(c, task, watched, told, timeout, on_progress, check):
        _give_up(c, task, watched, told, timeout, on_timeout)
    if told[task]["info.state"] != vim.TaskInfo.State.success:
        raise _failure(task, told[task]) from told[task].get("info.error")
    result = told[task].get("info.result")
    return result if beside is None else (result, told)


def wait_for(c: Connection, obj: Any, path: str, wanted: Any, timeout: float) -> Any:
    """Wait until a property of an object has a value; returns that which it has at the end of the time (seconds)."""
    deadline = time.monotonic() + timeout
    told: dict[Any, dict[str, Any]] = {obj: {}}
    with _Watch(c, {obj: [path]}) as watch:
        while told[obj].get(path) != wanted and (left := deadline - time.monotonic()) > 0:
            watch.update(told, left)
    return told[obj].get(path)


def _follow(
    c: Connection,
    task: Any,
    watched: Mapping[Any, Sequence[str]],
    told: dict[Any, dict[str, Any]],
    timeout: float,
    on_progress: Callable[[int | None], None] | None,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Keep ``told`` up to date until the task ended (True) or the time is over (False)."""
    deadline = time.monotonic() + timeout
    reported = None
    with _Watch(c, watched) as watch:
        while not (watch.complete and _ended(told[task])):
            left = deadline - time.monotonic()
            if left <= 0 and not _ended(told[task]):  # what is left to tell of its end comes at once
                return False
            check()
            watch.update(told, left)
            progress = told[task].get("info.progress")
            if on_progress is not None and progress != reported:
                on_progress(progress)
                reported = progress
    return True


class _Watch:
    """Updates on some objects, by a filter of a property collector.

    A collector belongs to its session and serves one wait at a time. In our own session its default one will do: the
    filter ends with the session, and one of an earlier wait is not listened to. In a shared session others may wait
    by the default one, so there it is a collector for this alone; so it is, too, when the connection dropped or an
    earlier wait was interrupted, as the server may still be answering what was cut off. When the session is renewed
    all is gone. Whatever is opened anew tells the whole state first.
    """

    def __init__(self, c: Connection, watched: Mapping[Any, Sequence[str]]) -> None:
        self._c = c
        paths: dict[Any, set[str]] = {}
        for obj, wanted in watched.items():
            paths.setdefault(type(obj), set()).update(wanted)
        self._spec = vmodl.query.PropertyCollector.FilterSpec(
            objectSet=[vmodl.query.PropertyCollector.ObjectSpec(obj=obj) for obj in watched],
            propSet=[
                vmodl.query.PropertyCollector.PropertySpec(type=kind, pathSet=sorted(names))
                for kind, names in paths.items()
            ],
        )
        self.complete = True  # False while the latest state has been told in part
        self._open(alone=c.shared or c.interrupted)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if exc_info[0] is not None:
            self._c.interrupted = True
        if self._is_alone:
            with contextlib.suppress(BackupError):
                self._c.call(self._collector.DestroyPropertyCollector)

    def _open(self, alone: bool) -> None:
        self._is_alone = alone
        self._collector = self._c.content.propertyCollector
        if alone:
            self._collector = self._c.read(self._collector.CreatePropertyCollector)
        self._filter = self._c.read(self._collector.CreateFilter, self._spec, False)
        self._logins = self._c.logins
        self._version = ""

    def update(self, told: dict[Any, dict[str, Any]], seconds: float) -> None:
        """Wait so long for a change, and note it in ``told``."""
        options = vmodl.query.PropertyCollector.WaitOptions(maxWaitSeconds=max(1, round(min(seconds, SLICE))))
        try:
            updates = self._c.call(self._ask, options)
        except (NotFound, ConnectionFailed):
            self._open(alone=True)
            return
        if updates is None:
            return
        self._version, self.complete = updates.version, not updates.truncated
        for changed in (one for part in updates.filterSet if part.filter == self._filter for one in part.objectSet):
            for change in changed.changeSet:
                if change.val is None:
                    told[changed.obj].pop(change.name, None)
                else:
                    told[changed.obj][change.name] = change.val

    def _ask(self, options: Any) -> Any:
        if self._logins != self._c.logins:  # asked again, in a new session
            self._open(alone=self._c.shared or self._c.interrupted)
        return self._collector.WaitForUpdatesEx(self._version, options)


def _ended(info: dict[str, Any]) -> bool:
    return info.get("info.state") in (vim.TaskInfo.State.success, vim.TaskInfo.State.error)


def _cancelled(info: dict[str, Any]) -> bool:
    return _ended(info) and isinstance(info.get("info.error"), vmodl.fault.RequestCanceled)


def _give_up(
    c: Connection,
    task: Any,
    watched: Mapping[Any, Sequence[str]],
    told: dict[Any, dict[str, Any]],
    timeout: float,
    on_timeout: str,
) -> None:
    """Cancel the task if wished, and raise TimedOut unless it ended by itself meanwhile."""
    if on_timeout == "cancel":
        with contextlib.suppress(VsphereFault):  # not cancelable, or ended just now: the state tells
            c.call(task.CancelTask)
        _follow(c, task, watched, told, CANCEL_GRACE, None)
    info = told[task]
    if _ended(info) and not _cancelled(info):
        return
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
