#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Describe the snapshots of one virtual machine or of many."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot_info
short_description: Describe the snapshots of one virtual machine or of many
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Returns the snapshots of a virtual machine as a flat list and as a tree, with their age, depth, size, stamp, and
    their disks with change IDs.
  - Without O(name), O(inventory_path), O(uuid) or O(moid) it does so for many, namely for those that fit all of O(vms),
    O(folder), O(cluster), O(datacenter) and O(tags) that are set, or for all of the inventory. If several have a name
    of O(vms), all of them are taken.
  - The number of requests depends neither on the number of virtual machines nor on that of snapshots, apart from
    answers of more than 500 objects, which come in pages. A virtual machine that cannot be read is listed with the
    reason and does not keep the others from being read.
options:
  folder_recursive:
    description:
      - Whether the virtual machines in the folders below O(folder) are taken, too. Only used without O(name).
    type: bool
    default: true
  tag_match:
    description:
      - Whether a virtual machine needs V(all) of the O(tags) or V(any) of them.
    type: str
    choices: [all, any]
    default: all
  include_empty:
    description:
      - Whether RV(virtual_machines) also lists those without a snapshot that is meant.
    type: bool
    default: false
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
  name_pattern:
    description:
      - Return only the snapshots whose name fits this shell pattern, for example V(before *).
    type: str
  older_than:
    description:
      - Return only the snapshots that are older than this, for example V(3d) or V(36h), by the clock of the server.
    type: str
  larger_than:
    description:
      - Return only the snapshots that occupy more than this, in bytes or like V(20G). Implies O(sizes=true).
      - A snapshot whose size is not known is left out.
    type: str
  deeper_than:
    description:
      - Return only the snapshots with a higher RV(snapshots[].depth) than this.
    type: int
  owner:
    description:
      - V(ours) returns only snapshots with a stamp of this collection, V(foreign) only those without.
    type: str
    choices: [any, ours, foreign]
    default: any
  expired:
    description:
      - V(true) returns only snapshots whose stamp has expired, V(false) only the others.
    type: bool
  filters:
    description:
      - Values that a snapshot must have, by C(creation_time), C(description), C(folder) (the name of the folder of the
        virtual machine), C(id), C(name), C(quiesced), C(state) and C(vm_name), compared as text without regard to case,
        and times in whole seconds.
      - They are those of community.vmware.vmware_all_snapshots_info. A name that is none of these is an error.
    type: dict
    default: {}
  match_type:
    description:
      - Whether the values of O(filters) must be equal (V(exact)) or contained (V(includes)).
    type: str
    choices: [exact, includes]
    default: exact
  disks:
    description:
      - Whether the disks of each snapshot are read, with their change IDs. Leave it out in large inventories.
    type: bool
    default: true
  sizes:
    description:
      - Whether it is read how many bytes each snapshot occupies.
    type: bool
    default: true
  creators:
    description:
      - Whether vCenter is asked who made each snapshot. It takes two requests, and one more for each thousand tasks
        that vCenter has run since the oldest of these snapshots was made.
    type: bool
    default: false
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.vm
  - holdfast.backup.vms
  - holdfast.backup.attributes
  - holdfast.backup.attributes.reads
  - holdfast.backup.attributes.login
seealso:
  - module: holdfast.backup.vm_snapshot
notes:
  - O(name), O(inventory_path), O(uuid) or O(moid) chooses one virtual machine. With none of them the module looks at
    many, and O(folder) and O(datacenter) are of use without O(name).
  - Privileges needed are C(System.View) and C(System.Read) on the virtual machines and the folders above them, and for
    O(creators) on the root folder.
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

- name: Find what others have left for a week or made large, in all production folders, and who it was
  holdfast.backup.vm_snapshot_info:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    folder: production
    owner: foreign
    older_than: 7d
    larger_than: 10G
    creators: true
    disks: false
  delegate_to: localhost

- name: Look at some virtual machines with a tag
  holdfast.backup.vm_snapshot_info:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    vms: [web01, db01, vm-42]
    tags: ["backup:nightly"]
  delegate_to: localhost
"""

RETURN = r"""
vm:
  description: The virtual machine.
  returned: for one virtual machine
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
  returned: for one virtual machine
  type: dict
  sample: null
snapshots:
  description: The snapshots that are meant, parents before children. An empty list if there are none.
  returned: for one virtual machine
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
    owner:
      description: V(ours) if it has a stamp of this collection, else V(foreign).
      type: str
      sample: ours
    expired:
      description: Whether its stamp has expired, by the clock of the server.
      type: bool
      sample: false
    size_bytes:
      description:
        - What its own files occupy, in bytes, which is what removing it frees at most. These are the disk files in
          which the guest has written since it was taken, up to the next snapshots, and those of its state and memory.
        - vSphere measures the files now and then, so that a file that is written to is often larger.
        - V(null) if it is not known.
      type: int
      sample: 1073741824
    memory_bytes:
      description: The part of RV(snapshots[].size_bytes) that holds the memory of the guest; V(0) without memory.
      type: int
      sample: 0
    datastores:
      description: RV(snapshots[].size_bytes) by name of datastore.
      type: dict
      sample:
        datastore1: 1073741824
    size_problem:
      description: Why the size is not known, or may be more; V(null) if all is well.
      type: str
      sample: null
    creator:
      description: Who made it; V(null) if that is not known.
      type: str
      sample: VSPHERE.LOCAL\\Administrator
    creator_problem:
      description: >-
        Why RV(snapshots[].creator) is not known. vCenter forgets its tasks, after 30 days unless it is set otherwise.
      type: str
      sample: null
    disks:
      description: Its disks, as its own configuration has them; V(null) with O(disks=false).
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
  returned: for one virtual machine
  type: list
  elements: dict
  sample: []
consolidation_needed:
  description: Whether vSphere says that the disks of the virtual machine need consolidation.
  returned: for one virtual machine
  type: bool
  sample: false
guest_snapshots:
  description:
    - RV(current_snapshot) and RV(snapshots) in the form of C(community.vmware.vmware_guest_snapshot_info), where times
      look like V(2026-11-20T02:00:04.123456+00:00). Empty if the virtual machine has no snapshots.
  returned: for one virtual machine
  type: dict
  sample: {}
virtual_machines:
  description: The virtual machines with snapshots that are meant, by name; with O(include_empty=true) the others, too.
  returned: for many virtual machines
  type: list
  elements: dict
  sample: []
  contains:
    vm:
      description: Like RV(vm).
      type: dict
    folder:
      description: The path of its folder; V(null) in a vApp.
      type: str
      sample: /dc1/vm/production/web
    template:
      description: Whether it is a template.
      type: bool
    power_state:
      description: Its power state.
      type: str
    connection_state:
      description: What vCenter says of its host's connection to it; V(connected) is normal.
      type: str
    current_snapshot:
      description: Like RV(current_snapshot).
      type: dict
    snapshots:
      description: Like RV(snapshots).
      type: list
      elements: dict
    consolidation_needed:
      description: Like RV(consolidation_needed).
      type: bool
unreadable:
  description: >-
    Virtual machines that were named and not found, or of which not all can be read. What is known of the latter is in
    RV(virtual_machines) all the same.
  returned: for many virtual machines
  type: list
  elements: dict
  sample:
    - vm:
        name: web02
        moid: vm-43
        instance_uuid: null
      reason: its host cannot read its configuration (invalid)
  contains:
    vm:
      description: Like RV(vm), as far as it is known.
      type: dict
    reason:
      description: Why.
      type: str
needs_consolidation:
  description: All virtual machines whose disks need consolidation, with snapshots or without, like RV(vm).
  returned: for many virtual machines
  type: list
  elements: dict
  sample: []
totals:
  description: Sums over the snapshots that are returned.
  returned: success
  type: dict
  sample:
    snapshots: 1
    ours: 1
    foreign: 0
    expired: 0
    size_bytes: 1073741824
    size_unknown: 0
    deepest: 1
    oldest: "2026-11-20T02:00:04Z"
  contains:
    snapshots:
      description: How many there are.
      type: int
    ours:
      description: How many of them have a stamp of this collection.
      type: int
    foreign:
      description: How many of them have none.
      type: int
    expired:
      description: How many of them have expired.
      type: int
    size_bytes:
      description: What all of them occupy, as far as it is known.
      type: int
    size_unknown:
      description: Of how many of them the size is not known.
      type: int
    deepest:
      description: The highest depth.
      type: int
    oldest:
      description: When the oldest of them was created; V(null) if there is none.
      type: str
    virtual_machines:
      description: How many virtual machines were looked at. For many virtual machines only, like the following ones.
      type: int
    with_snapshots:
      description: How many of these have any snapshot.
      type: int
    needs_consolidation:
      description: How many of these need consolidation.
      type: int
    unreadable:
      description: How many entries RV(unreadable) has.
      type: int
vmware_all_snapshots_info:
  description:
    - A row for each snapshot that is returned, with the values of O(filters), in the form of
      C(community.vmware.vmware_all_snapshots_info); times are those of RV(guest_snapshots).
  returned: for many virtual machines
  type: list
  elements: dict
  sample: []
"""

from typing import Any, Mapping

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import (
    VCENTER,
    VM,
    VM_KEYS,
    VMS,
    endpoint,
    optional,
    vm_selection,
)
from ansible_collections.holdfast.backup.plugins.module_utils._quantities import duration, in_bytes
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fleet, snapshot_tasks, snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_vm, unescape, vm_dict
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_filters import (
    OWNERS,
    Filter,
    totals,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_records import Details, base, describe


def run(module: AnsibleModule) -> dict[str, Any]:
    """Read the snapshots of one VM or of many; the number of requests depends on neither's."""
    params = module.params
    wanted = _filter(params)
    with Connection(endpoint(params)) as c:
        if any(params[option] is not None for option in VM_KEYS):  # an empty one is a mistake, and not all machines
            return {"changed": False, **_one(c, params, wanted)}
        return {"changed": False, **_many(c, params, wanted)}


def _one(c: Connection, params: Mapping[str, Any], wanted: Filter) -> dict[str, Any]:
    vm, properties = find_vm(c, **vm_selection(params), properties=snapshot_tasks.STATE_PROPERTIES)
    state = snapshot_tasks.state_of(properties)
    records = describe(c, {vm: state.snapshots}, _details(params), start=vm).get(vm)
    if records is None:
        raise NotFound(f"The virtual machine {properties['name']} went while it was read.", "Look for it once more.")
    entry = _entry(vm_dict(vm, properties), None, state, records, params, wanted)
    return {
        **entry,
        "snapshots_tree": snapshots.nest(entry["snapshots"]),
        "guest_snapshots": snapshots.as_community(state.snapshots, entry["snapshots"], entry["current_snapshot"]),
        "totals": totals(entry["snapshots"]),
    }


def _many(c: Connection, params: Mapping[str, Any], wanted: Filter) -> dict[str, Any]:
    found = fleet.survey(c, fleet.Choice.from_options(c, params), snapshot_tasks.STATE_PROPERTIES)
    states = {one.vm: snapshot_tasks.state_of(one.properties) for one in found.machines}
    # Most VMs have no snapshot that is meant, and need not be looked at any closer.
    near = [
        one
        for one in found.machines
        if any(wanted.matches(base(snapshot, found.clock), _names(one)) for snapshot in states[one.vm].snapshots)
    ]
    nearer = {one.vm: states[one.vm].snapshots for one in near}
    records = describe(c, nearer, _details(params), start=c.content.rootFolder, now=found.clock)
    entries: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for one in found.machines:
        if one.vm in nearer and one.vm not in records:
            found.complain("it went while it was read", **one.as_dict()["vm"])
            continue
        entry = _entry(one.as_dict()["vm"], one, states[one.vm], records.get(one.vm, {}), params, wanted)
        told = snapshots.community_rows(states[one.vm].snapshots, entry["snapshots"])
        rows += [{**_names(one), **row} for row in told]
        if entry["snapshots"] or params["include_empty"]:
            entries.append({**one.as_dict(), **entry})
    chosen = [snapshot for entry in entries for snapshot in entry["snapshots"]]
    uneasy = [one.as_dict()["vm"] for one in found.machines if states[one.vm].consolidation_needed]
    return {
        "virtual_machines": entries,
        "unreadable": found.unreadable,
        "needs_consolidation": uneasy,
        "totals": {
            "virtual_machines": len(found.machines),
            "with_snapshots": sum(bool(state.snapshots) for state in states.values()),
            "needs_consolidation": len(uneasy),
            "unreadable": len(found.unreadable),
            **totals(chosen),
        },
        "vmware_all_snapshots_info": rows,
    }


def _entry(
    vm: Mapping[str, Any],
    machine: fleet.Machine | None,
    state: snapshot_tasks.State,
    records: Mapping[snapshots.Snapshot, dict[str, Any]],
    params: Mapping[str, Any],
    wanted: Filter,
) -> dict[str, Any]:
    """What there is to say of one VM."""
    named = {"name": params["snapshot_name"], "snapshot_id": params["snapshot_id"], "moid": params["snapshot_moid"]}
    chosen = list(records)
    if any(value is not None for value in named.values()):
        chosen = snapshots.choose(chosen, **named, duplicates="all")
    names = _names(machine) if machine else {"vm_name": vm["name"], "folder": ""}
    current = next((one for one in state.snapshots if one.current), None)
    return {
        "vm": dict(vm),
        "current_snapshot": records.get(current) if current else None,
        "snapshots": [records[one] for one in chosen if wanted.matches(records[one], names)],
        "consolidation_needed": state.consolidation_needed,
    }


def _names(machine: fleet.Machine) -> dict[str, str]:
    return {
        "vm_name": unescape(machine.properties["name"]),
        "folder": (machine.folder or "").rpartition("/")[2],
    }


def _details(params: Mapping[str, Any]) -> Details:
    return Details(
        disks=params["disks"], sizes=params["sizes"] or bool(params["larger_than"]), creators=params["creators"]
    )


def _filter(params: Mapping[str, Any]) -> Filter:
    return Filter(
        older_than=duration(params["older_than"]) if params["older_than"] else None,
        larger_than=in_bytes(params["larger_than"], "larger_than") if params["larger_than"] else None,
        deeper_than=params["deeper_than"],
        owner=params["owner"],
        expired=params["expired"],
        name_pattern=params["name_pattern"],
        fields=params["filters"],
        match_type=params["match_type"],
    )


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "folder_recursive": {"type": "bool", "default": True},
            "tag_match": {"type": "str", "choices": ["all", "any"], "default": "all"},
            "include_empty": {"type": "bool", "default": False},
            "snapshot_name": {"type": "str"},
            "snapshot_id": {"type": "int"},
            "snapshot_moid": {"type": "str"},
            "name_pattern": {"type": "str"},
            "older_than": {"type": "str"},
            "larger_than": {"type": "str"},
            "deeper_than": {"type": "int"},
            "owner": {"type": "str", "choices": list(OWNERS), "default": "any"},
            "expired": {"type": "bool"},
            "filters": {"type": "dict", "default": {}},
            "match_type": {"type": "str", "choices": ["exact", "includes"], "default": "exact"},
            "disks": {"type": "bool", "default": True},
            "sizes": {"type": "bool", "default": True},
            "creators": {"type": "bool", "default": False},
        },
        groups=(VCENTER, optional(VM), VMS),  # as in community.vmware, several may name the same machine
        mutually_exclusive=[
            ("snapshot_name", "snapshot_id", "snapshot_moid"),
            *((one, many) for one in VM_KEYS for many in ("vms", "cluster", "tags")),
        ],
    )


if __name__ == "__main__":
    main()
