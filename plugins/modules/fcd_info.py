#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find and describe first class disks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fcd_info
short_description: Find and describe first class disks
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Returns the first class disks (improved virtual disks) of VMware vSphere that fulfil all conditions given, or all
    there are.
  - No disk that fits is no error.
options:
  tag:
    description:
      - Return only disks with this tag.
    type: dict
    suboptions:
      category:
        description: Name of the tag's category.
        type: str
        required: true
      name:
        description: Name of the tag.
        type: str
        required: true
  metadata:
    description:
      - Return only disks whose metadata have these keys and values. The value V(null) is any value.
    type: dict
    default: {}
  details:
    description:
      - Whether everything that is known of a disk is asked for, which costs one or two requests for each disk found.
      - Without it, a vCenter with the storage lifecycle service answers for a hundred disks at once, and
        C(provisioning), C(consumers), C(attached_to), C(control_flags), C(tags) and C(storage_policy) are V(null) then.
    type: bool
    default: true
  snapshots:
    description:
      - Whether the snapshots of each disk are returned, which costs one request for each disk found.
    type: bool
    default: false
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.fcd
  - holdfast.backup.attributes
  - holdfast.backup.attributes.reads
  - holdfast.backup.attributes.login
seealso:
  - module: holdfast.backup.fcd
  - module: holdfast.backup.fcd_snapshot
notes:
  - Privileges needed are C(System.View) and C(System.Read) on the datastores, and C(StorageProfile.View) for storage
    policies.
"""

EXAMPLES = r"""
- name: Describe a disk with its snapshots
  holdfast.backup.fcd_info:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: pvc-1c9f3f2a-6b1c-4a55-8b9b-0f6f5d3f2a11
    snapshots: true
  register: found
  delegate_to: localhost

- name: Find the disks of the volumes of a Kubernetes cluster
  holdfast.backup.fcd_info:
    metadata:
      cns.containerCluster.clusterId: production
    details: false
  register: volumes
  delegate_to: localhost

- name: Find the disks with a tag on one datastore
  holdfast.backup.fcd_info:
    datastore: datastore1
    tag:
      category: backup
      name: daily
  delegate_to: localhost
"""

RETURN = r"""
fcds:
  description: The disks, in the order of their names.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Its ID.
      type: str
      sample: 5a2ed28a-4a23-4b6a-9f4e-7a3a8f9f6c11
    name:
      description: Its name.
      type: str
      sample: data01
    datastore:
      description: The name of its datastore.
      type: str
      sample: datastore1
    datastore_moid:
      description: The managed object ID of its datastore.
      type: str
      sample: datastore-12
    capacity:
      description: Its size in bytes.
      type: int
      sample: 21474836480
    path:
      description: The path of its backing.
      type: str
      sample: "[datastore1] fcd/5a2ed28a4a234b6a9f4e7a3a8f9f6c11.vmdk"
    backing_object_id:
      description: The ID of its backing object, where the storage has such.
      type: str
      sample: null
    provisioning:
      description: How it is laid out; V(null) if vSphere does not tell.
      type: str
      sample: thin
    create_time:
      description: When it was created, in UTC.
      type: str
      sample: "2026-11-20T02:00:04Z"
    consumers:
      description: The IDs of what it is attached to, as vSphere gives them.
      type: list
      elements: str
      sample: []
    attached_to:
      description: Where it is attached; V(null) if it is not, or not to a virtual machine that the user may see.
      type: dict
      sample:
        vm:
          name: web01
          moid: vm-42
          instance_uuid: 5012fc1f-3b5e-4a2a-8a0d-3d6a9a4f0f11
        key: 2001
        controller: scsi0:1
      contains:
        vm:
          description: The virtual machine, with C(name), C(moid) and C(instance_uuid).
          type: dict
        key:
          description: The device key of the disk there.
          type: int
        controller:
          description: The place of the disk, by bus, number of the bus and unit.
          type: str
    control_flags:
      description: Its control flags.
      type: dict
      sample:
        keep_after_delete_vm: true
        disable_relocation: false
        enable_changed_block_tracking: true
      contains:
        keep_after_delete_vm:
          description: Whether it stays when a virtual machine that it is attached to is deleted.
          type: bool
        disable_relocation:
          description: Whether vSphere must not move it.
          type: bool
        enable_changed_block_tracking:
          description: Whether changes are tracked.
          type: bool
    metadata:
      description: Its metadata, as keys and values.
      type: dict
      sample:
        owner: accounting
    tags:
      description: Its tags; V(null) on ESXi, which has none.
      type: list
      elements: dict
      sample:
        - category: backup
          name: daily
      contains:
        category:
          description: Name of the tag's category.
          type: str
        name:
          description: Name of the tag.
          type: str
    storage_policy:
      description: The name of its storage policy; V(null) if it has none or the user may not see it.
      type: str
      sample: null
    snapshots:
      description: Its snapshots, the oldest first.
      returned: with O(snapshots=true)
      type: list
      elements: dict
      sample:
        - id: 0b13f8bc-738f-4a9d-b3fc-efa801b4c7ce
          description: before the update
          creation_time: "2026-11-20T02:00:04Z"
          backing_object_id: null
          own: false
          stamp: null
      contains:
        id:
          description: Its ID.
          type: str
        description:
          description: Its description, without the stamp.
          type: str
        creation_time:
          description: When it was created, in UTC.
          type: str
        backing_object_id:
          description: The ID of its backing object, where the storage has such.
          type: str
        own:
          description: Whether it carries a stamp of this collection.
          type: bool
        stamp:
          description: The stamp of the job that made it, with C(job), C(run) and C(expires); V(null) if it has none.
          type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import (
    FCD,
    VCENTER,
    endpoint,
    fcd_selection,
    optional,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd, fits
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_records import full_records
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_store import Store, open_store
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.storage_policies import StoragePolicies


def run(module: AnsibleModule) -> dict[str, Any]:
    """Find the disks, and read what is asked for."""
    params = module.params
    with Connection(endpoint(params)) as c:
        store = open_store(c, params["api"])
        found = _find(store, params)
        records = [disk.as_dict() for disk in found]
        warnings: list[str] = []
        if params["details"]:
            records, warnings = full_records(store, StoragePolicies(c), found)
        if params["snapshots"]:
            for disk, record in zip(found, records):
                record["snapshots"] = [snapshot.as_dict() for snapshot in store.snapshots(disk)]
    return {"changed": False, "fcds": records, "warnings": warnings}


def _find(store: Store, params: dict[str, Any]) -> list[Fcd]:
    given = fcd_selection(params)
    metadata = {key: None if value is None else str(value) for key, value in params["metadata"].items()}
    tag = params["tag"]
    if given["id"] is None:
        return store.select(
            name=given["name"],
            datastore=given["datastore"],
            tag=(tag["category"], tag["name"]) if tag else None,
            metadata=metadata,
            details=params["details"],
        )
    disk = store.seek(**given)
    chosen = disk is not None and fits(disk, None, metadata) and (tag is None or tag in store.tags(disk))
    return [disk] if disk is not None and chosen else []


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "tag": {
                "type": "dict",
                "options": {
                    "category": {"type": "str", "required": True},
                    "name": {"type": "str", "required": True},
                },
            },
            "metadata": {"type": "dict", "default": {}},
            "details": {"type": "bool", "default": True},
            "snapshots": {"type": "bool", "default": False},
        },
        groups=(VCENTER, optional(FCD)),
        mutually_exclusive=[("id", "name")],
    )


if __name__ == "__main__":
    main()
