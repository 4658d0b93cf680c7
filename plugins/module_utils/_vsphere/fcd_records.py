# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: everything that is known of first class disks, from all the places that know it."""

from __future__ import annotations

from typing import Any, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotSupported, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_attachments import attachments
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_store import Store
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.storage_policies import StoragePolicies


def full_records(
    store: Store, policies: StoragePolicies, found: Sequence[Fcd]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The full records of disks, and warnings.

    Besides a request per VM and per disk (its tags), the cost is the same for any number of disks. What only
    vCenter has is None on ESXi; what the user may not see is None with a warning.
    """
    attached = attachments(store.c, found)
    records = [{**disk.as_dict(), "attached_to": attached.get(disk.id)} for disk in found]
    warnings: list[str] = []
    if store.c.is_vcenter:
        for disk, record in zip(found, records):
            record["tags"] = store.tags(disk)
        try:
            names = policies.of_disks([disk.id for disk in found])
            records = [{**record, "storage_policy": names.get(record["id"])} for record in records]
        except (VsphereFault, NotSupported) as error:
            warnings.append(f"The storage policies are not known: {error.message}")
    return records, warnings


def full_record(store: Store, policies: StoragePolicies, disk: Fcd) -> tuple[dict[str, Any], list[str]]:
    """The same for one disk."""
    records, warnings = full_records(store, policies, [disk])
    return records[0], warnings
