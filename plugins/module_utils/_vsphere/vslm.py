# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: vCenter's storage lifecycle service (``/vslm/sdk``), the catalog of all disks.

It knows a first class disk by its ID or name without being told the datastore, and tells of many disks at once.
Its tasks have no property collector, so they are polled with growing pauses.
"""

from __future__ import annotations

import time
from http.client import HTTPException
from typing import Any, Callable, Iterable, Iterator, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    ConnectionFailed,
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
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vslm

PATH = "/vslm/sdk"
FIRST_VERSION = (6, 7, 2)  # of vCenter
PAGE = 100  # disks in one answer; what VMware's own clients ask for
FIRST_PAUSE = 0.1  # seconds between two looks at a task
LAST_PAUSE = 2.0
# What the service calls a disk that it does not know.
UNKNOWN_DISK = ("NotFound", "InvalidArgument")


class Catalog:
    """The service, asked by the session of ``c``. ``manager`` has the methods."""

    def __init__(self, c: Connection, manager: Any) -> None:
        self._c = c
        self.manager = manager

    def retrieve(self, disk: str) -> Any:
        """The VStorageObject with this ID, or None."""
        try:
            return self._c.read(self.manager.RetrieveVStorageObject, vim.vslm.ID(id=disk))
        except VsphereFault as error:
            if error.details.get("fault") in UNKNOWN_DISK:
                return None
            raise

    def results(self, disks: Sequence[str]) -> list[Any]:
        """The VStorageObjectResults of the disks with these IDs that exist; one request for :data:`PAGE` of them."""
        found: list[Any] = []
        for page in _pages(disks):
            answer = self._c.read(self.manager.RetrieveVStorageObjects, [vim.vslm.ID(id=disk) for disk in page])
            found.extend(result for result in answer or () if result.error is None)
        return found

    def search(self, *conditions: tuple[str, str]) -> Iterator[Any]:
        """The VStorageObjectResults of all disks that fulfil the conditions (query field, value equal to it)."""
        query = [_condition(field, "equals", value) for field, value in conditions]
        last: list[Any] = []
        while True:
            answer = self._c.read(self.manager.ListVStorageObjectsForSpec, [*query, *last], PAGE)
            results = list(answer.queryResults or ())
            yield from results
            if answer.allRecordsReturned or not results:
                return
            last = [_condition("id", "greaterThan", results[-1].id.id)]  # they come in the order of their IDs


def open_catalog(c: Connection) -> Catalog | None:
    """The service of this vCenter; None where there is none: on ESXi, on an old vCenter, with an old pyVmomi."""
    if vslm is None or not c.is_vcenter or _numbers(c.about.apiVersion) < FIRST_VERSION:
        return None
    stub = c.beside(PATH, "vslm")
    try:
        content = c.call(vslm.ServiceInstance("ServiceInstance", stub).RetrieveContent)
    except ConnectionFailed as error:
        if isinstance(error.__cause__, HTTPException) and str(error.__cause__).startswith("404 "):
            return None
        raise
    return Catalog(c, content.vStorageObjectManager)


def wait(c: Connection, task: Any, *, timeout: float, check: Callable[[], None] = lambda: None) -> Any:
    """Wait for a task of the service and return its result.

    :param timeout: seconds
    :param check: called at least once in :data:`LAST_PAUSE` seconds; what it raises ends the wait, not the task
    :raises TaskFailed: ``details``: fault (its type), task (its moid)
    :raises TimedOut: ``details``: task, task_state
    """
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while True:
        info = c.read(task.QueryInfo)
        if info.state == vslm.TaskInfo.State.success:
            # The result has a method of its own, and need not be in the state.
            return c.read(task.QueryResult) if info.result is None else info.result
        if info.state == vslm.TaskInfo.State.error:
            raise _failure(task, info) from info.error
        check()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(
                f"The task {info.descriptionId} ({task._GetMoId()}) did not end within {timeout:g} seconds. "
                f"It goes on in vSphere (state {info.state}).",
                "Give a longer timeout.",
                task=task._GetMoId(),
                task_state=str(info.state),
            )
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LAST_PAUSE)


def _failure(task: Any, info: Any) -> TaskFailed:
    name, text = (fault_name(info.error), fault_text(info.error)) if info.error else ("unknown", "no cause given")
    return TaskFailed(
        f"The task {info.descriptionId} ({task._GetMoId()}) failed: {text} ({name}).",
        next_step(name),
        fault=name,
        task=task._GetMoId(),
    )


def _condition(field: str, operator: str, value: str) -> Any:
    return vslm.vso.VStorageObjectQuerySpec(queryField=field, queryOperator=operator, queryValue=[value])


def _pages(disks: Sequence[str]) -> Iterable[Sequence[str]]:
    return (disks[start : start + PAGE] for start in range(0, len(disks), PAGE))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
