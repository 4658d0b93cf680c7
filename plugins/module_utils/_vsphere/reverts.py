# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: whether a VM was reverted to a snapshot, by the tasks that vCenter remembers.

After a revert, change tracking begins anew under another UUID, and an incremental copy is out of the question. But
there were hosts on which it went on as if nothing had happened, and its answers left out what the revert had undone
(VMware KB 1021607). Change IDs cannot tell that, so the tasks are asked too.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import task_history
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection

MARGIN = timedelta(minutes=5)  # by which the clocks of a host and of vCenter may differ


def newest(c: Connection, vm: Any, after: datetime) -> datetime | None:
    """When the VM was last reverted after that moment, or shortly before; None if no such task is remembered.

    A host without vCenter is not asked.

    :raises BackupError: vCenter does not tell
    """
    if not c.is_vcenter:
        return None
    # "vm.Snapshot.revert", "VirtualMachine.revertToCurrentSnapshot"
    reverts = [
        task.queueTime
        for page in task_history.pages(c, vm, after - MARGIN)
        for task in page
        if "revert" in task.descriptionId.lower()
    ]
    return max(reverts, default=None)
