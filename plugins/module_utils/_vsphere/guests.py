# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: waiting for the guest of a running VM."""

from __future__ import annotations

from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import TimedOut
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection

RUNNING = "guestToolsRunning"


def wait_for_tools(c: Connection, vm: Any, timeout: float) -> None:
    """Wait until VMware Tools answer in the guest (seconds); raises TimedOut if they do not."""
    status = tasks.wait_for(c, vm, "guest.toolsRunningStatus", RUNNING, timeout)
    if status != RUNNING:
        raise TimedOut(
            f"VMware Tools did not answer within {timeout:g} seconds ({status or 'no status'}).",
            "Look at the console of the virtual machine, or give it more time.",
        )
