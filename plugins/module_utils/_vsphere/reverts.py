# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: whether a VM was reverted to a snapshot, by the tasks that vCenter remembers.

After a revert, change tracking begins anew under another UUID, and an incremental copy is out of the question. But
there were hosts on which it went on as if nothing had happened, and its answers left out what the revert had undone
(VMware KB 1021607). Change IDs cannot tell that, so the tasks are asked too.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

MARGIN = timedelta(minutes=5)  # by which the clocks of a host and of vCenter may differ
PAGE = 500


def newest(c: Connection, vm: Any, after: datetime) -> datetime | None:
    """When the VM was last reverted after that moment, or shortly before; None if no such task is remembered.

    vCenter keeps its tasks for thirty days unless told otherwise. A host without vCenter is not asked: it
    forgets them within minutes.

    :raises BackupError: vCenter does not tell
    """
    if not c.is_vcenter:
        return None
    only = vim.TaskFilterSpec
    wanted = only(
        entity=only.ByEntity(entity=vm, recursion="self"),
        time=only.ByTime(timeType="queuedTime", beginTime=after - MARGIN),
    )
    collector = c.call(c.content.taskManager.CreateCollectorForTasks, wanted)
    try:
        # "vm.Snapshot.revert", "VirtualMachine.revertToCurrentSnapshot"
        reverts = [task.queueTime for task in _all(c, collector) if "revert" in task.descriptionId.lower()]
    finally:
        c.call(collector.DestroyCollector)
    return max(reverts, default=None)


def _all(c: Connection, collector: Any) -> Iterator[Any]:
    """The tasks of a collector, page by page."""
    page = None
    while page is None or len(page) == PAGE:
        page = c.call(collector.ReadNextTasks, PAGE)
        yield from page
