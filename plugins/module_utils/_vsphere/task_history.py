# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the tasks that vCenter remembers.

It keeps them for thirty days unless told otherwise (``task.maxAge``). A host without vCenter forgets them within
minutes, and has no such history.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from datetime import datetime
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

PAGE = 1000  # tasks; vCenter gives no more at once


def pages(
    c: Connection, start: Any, begin: datetime, end: datetime | None = None, *, most: int | None = None
) -> Generator[list[Any], None, None]:
    """Pages of tasks (vim.TaskInfo) of a time, the oldest first; two requests and one for each page.

    Close the generator to forget the collector, of which vCenter has few.

    :param start: a VM, or a folder with all below it
    :param most: pages, after which the rest is left out
    :raises BackupError: vCenter does not tell
    """
    only = vim.TaskFilterSpec
    wanted = only(
        entity=only.ByEntity(entity=start, recursion="self" if isinstance(start, vim.VirtualMachine) else "all"),
        time=only.ByTime(timeType="queuedTime", beginTime=begin, endTime=end),
    )
    # A new collector stands at the oldest task.
    collector = c.call(c.content.taskManager.CreateCollectorForTasks, wanted)
    try:
        read = 0
        while most is None or read < most:
            page = c.call(collector.ReadNextTasks, PAGE)
            yield page
            if len(page) < PAGE:
                return
            read += 1
    finally:
        with contextlib.suppress(BackupError):
            c.call(collector.DestroyCollector)
