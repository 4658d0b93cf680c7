#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Describe the snapshots of a virtual machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot_info
short_description: Describe the snapshots of a virtual machine
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Returns the snapshots of a virtual machine as a flat list and as a tree, with their age, depth, stamp, and their
    disks with change IDs.
  - The number of requests does not depend on the number of snapshots.
options:
  snapshot_name:
    description:
      - Return only the snapshots of this name.
    type: str
  snapshot_id:
    description:
      - Return only the snapshot with this ID.
    type: int
  snapshot_moid:
    description:
      - Return only the snapshot with this managed object ID.
    type: str
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.vm
  - holdfast.backup.attributes
  - holdfast.backup.attributes.reads
  - holdfast.backup.attributes.login
seealso:
  - module: holdfast.backup.vm_snapshot
notes:
  - Privileges needed are C(System.View) and C(System.Read) on the virtual machine.
"""

EXAMPLES = r"""
- name: Look at the snapshots of a virtual machine
  holdfast.backup.vm_snapshot_info:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: web01
  register: found
  delegate_to: localhost

- name: Fail if one is older than three days
  ansible.builtin.assert:
    that: found.snapshots | selectattr('age_seconds', 'gt', 3 * 86400) | list | length == 0
    fail_msg: Some snapshots are too old.
"""

RETURN = r"""
vm:
  description: The virtual machine.
  returned: success
  type: dict
  sample:
    name: web01
    moid: vm-42
    instance_uuid: 5012fc1f-3b5e-4a2a-8a0d-3d6a9a4f0f11
  contains:
    name:
      description: Its name.
      type: str
    moid:
      description: Its managed object ID.
      type: str
    instance_uuid:
      description: Its instance UUID.
      type: str
current_snapshot:
  description: The snapshot that the virtual machine runs on, like RV(snapshots[]); V(null) if it has none.
  returned: success
  type: dict
  sample: null
snapshots:
  description: The snapshots, parents before children. An empty list if there are none.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Its ID, unique within the virtual machine.
      type: int
      sample: 7
    moid:
      description: Its managed object ID.
      type: str
      sample: snapshot-108
    name:
      description: Its name.
      type: str
      sample: nightly backup
    description:
      description: Its description, without the stamp.
      type: str
      sample: Taken by the nightly job.
    creation_time:
      description: When it was created, in UTC.
      type: str
      sample: "2026-11-20T02:00:04Z"
    age_seconds:
      description: How long ago that was, by the clock of the server.
      type: int
      sample: 3600
    state:
      description: The power state that it holds. Without memory it is V(poweredOff).
      type: str
      sample: poweredOff
    quiesced:
      description: Whether the guest was quiesced for it.
      type: bool
      sample: true
    parent_id:
      description: The ID of the snapshot above it; V(null) for a root.
      type: int
      sample: null
    child_ids:
      description: The IDs of the snapshots directly below it.
      type: list
      elements: int
      sample: []
    depth:
      description: How many snapshots there are from the root to it, counting both.
      type: int
      sample: 1
    current:
      description: Whether the virtual machine runs on it.
      type: bool
      sample: true
    stamp:
      description: The stamp of the job that made it; V(null) if it has none.
      type: dict
      sample:
        job: nightly
        run: 7c0e4c8e2b7d4c6aa9c7f4f0e3c1b2a9
        expires: "2026-11-21T02:00:00Z"
      contains:
        job:
          description: Name of the job.
          type: str
        run:
          description: Name of the run.
          type: str
        expires:
          description: When it expires, in UTC; V(null) if never.
          type: str
    consistency:
      description: V(filesystem) if the guest was quiesced for it, else V(crash).
      type: str
      sample: filesystem
    disks:
      description: Its disks, as its own configuration has them.
      type: list
      elements: dict
      sample:
        - key: 2000
          label: Hard disk 1
          backing_uuid: 6000C295-ab9c-4d2f-9a50-3f5a1c0e7d11
          capacity: 17179869184
          path: "[datastore1] web01/web01.vmdk"
          change_id: 52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63/81
          controller: scsi0:0
          mode: persistent
          backing: flat_v2
          thin: true
          sharing: sharingNone
          protected: true
          reason: null
      contains:
        key:
          description: Its device key.
          type: int
        label:
          description: Its label.
          type: str
        backing_uuid:
          description: The UUID of its backing, which stays the same when the disk is moved.
          type: str
        capacity:
          description: Its size in bytes.
          type: int
        path:
          description: The path of its backing.
          type: str
        change_id:
          description: The change ID from which a later backup can be incremental; V(null) if changes are not tracked.
          type: str
        controller:
          description: The place of the disk, by bus, number of the bus and unit.
          type: str
        mode:
          description: Its mode.
          type: str
        backing:
          description: The kind of its backing.
          type: str
        thin:
          description: Whether it is thin provisioned; V(null) if that means nothing for the kind of backing.
          type: bool
        sharing:
          description: How it is shared between virtual machines.
          type: str
        protected:
          description: Whether the snapshot holds its content.
          type: bool
        reason:
          description: Why it is not protected, or what else there is to know about it.
          type: str
        fcd_id:
          description: The ID of a first class disk that is attached to the virtual machine; else V(null).
          type: str
snapshots_tree:
  description: The same snapshots, each with its C(children).
  returned: success
  type: list
  elements: dict
  sample: []
consolidation_needed:
  description: Whether vSphere says that the disks of the virtual machine need consolidation.
  returned: success
  type: bool
  sample: false
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import VCENTER, VM, endpoint, vm_selection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshot_tasks, snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_vm, vm_dict


def run(module: AnsibleModule) -> dict[str, Any]:
    """Read the snapshots; the number of requests does not depend on theirs."""
    params = module.params
    with Connection(endpoint(params)) as c:
        vm, properties = find_vm(c, **vm_selection(params), properties=snapshot_tasks.STATE_PROPERTIES)
        state = snapshot_tasks.state_of(properties)
        records = snapshot_tasks.describe_all(c, state.snapshots)
    named = {"name": params["snapshot_name"], "snapshot_id": params["snapshot_id"], "moid": params["snapshot_moid"]}
    chosen = state.snapshots
    if any(value is not None for value in named.values()):
        chosen = snapshots.choose(chosen, **named, duplicates="all")
    current = next((one for one in state.snapshots if one.current), None)
    return {
        "changed": False,
        "vm": vm_dict(vm, properties),
        "current_snapshot": records[current] if current else None,
        "snapshots": [records[one] for one in chosen],
        "snapshots_tree": snapshots.nest(records[one] for one in chosen),
        "consolidation_needed": state.consolidation_needed,
    }


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "snapshot_name": {"type": "str"},
            "snapshot_id": {"type": "int"},
            "snapshot_moid": {"type": "str"},
        },
        groups=(VCENTER, VM),
        mutually_exclusive=[("snapshot_name", "snapshot_id", "snapshot_moid")],
    )


if __name__ == "__main__":
    main()
