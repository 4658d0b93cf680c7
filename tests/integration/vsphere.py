# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests of the vSphere layer share beside their fixtures."""

from __future__ import annotations

from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.lab.client import Lab


def methods(lab: Lab) -> dict[str, int]:
    """How often each method was called."""
    return lab.requests()["methods"]


def begin_snapshot(c: Connection, vm: dict[str, Any], name: str = "waited") -> Any:
    """Begin to take a snapshot of a machine of the lab; returns the task."""
    return c.call(vim.VirtualMachine(vm["moid"], c.stub).CreateSnapshot_Task, name, "", False, False)
