# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: who has a first class disk at the moment, as far as that stands in the way."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd_attachments, inventory
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd


@dataclass(frozen=True)
class Holder:
    """A VM. One that the user may not see has its ID for a name, and counts as powered on."""

    name: str
    powered_off: bool
    has_snapshots: bool
    is_seen: bool = True


def holder(c: Connection, disk: Fcd) -> Holder | None:
    """The VM that a disk is attached to; a disk that is attached to none costs no request."""
    if not disk.consumers:
        return None
    found = fcd_attachments.consumers(c, [disk], ["runtime.powerState", "snapshot"])
    if disk.id not in found:
        return Holder(disk.consumers[0], powered_off=False, has_snapshots=False, is_seen=False)
    _vm, read = found[disk.id]
    return Holder(
        inventory.unescape(read["name"]),
        powered_off=read["runtime.powerState"] == "poweredOff",
        has_snapshots="snapshot" in read,
    )
