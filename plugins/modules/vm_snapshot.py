#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Create, rename, remove and consolidate snapshots of a virtual machine, and revert to them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot
short_description: Create, rename and remove snapshots of a virtual machine, and revert to them
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Creates a snapshot of a virtual machine, and returns its disks with the change IDs that a later incremental backup
    needs.
  - Renames a snapshot or changes its description.
  - Removes snapshots by name, by ID, by managed object ID, by a pattern of their names, by age, by number, by the stamp
    of a job, or all of them. A removal also consolidates the disks when vSphere says that they need it.
  - Reverts the virtual machine to a snapshot.
  - What is planned is planned on the server's clock and on what is there once no other task works on the snapshots of
    the virtual machine. Such a task is let end first, for O(timeout) at most.
  - Nothing is downgraded in silence. O(quiesce_policy) says what happens when the guest cannot be quiesced, and
    RV(snapshot.consistency) says what was reached.
options:
  state:
    description:
      - V(present) makes sure that the snapshot exists. O(stamp) and O(snapshot_name) say when one that exists will do.
      - V(absent) makes sure that the chosen snapshots do not exist.
      - V(revert) takes the virtual machine back to the chosen snapshot. That is always a change. It fails if there is
        no such snapshot.
      - V(remove_all) is V(absent) with O(remove_all=true). O(snapshot_name) and O(snapshot_id) are not used then.
      - V(consolidated) makes sure that the disks need no consolidation.
    type: str
    choices: [present, absent, revert, remove_all, consolidated]
    default: present
  snapshot_name:
    description:
      - Name of the snapshot to create, to rename, to remove or to revert to, as it is shown or as it is stored.
      - With O(state=present) and without O(stamp), a snapshot that has this name will do.
    type: str
  snapshot_id:
    description:
      - ID of the snapshot to rename, to remove or to revert to. It is unique within the virtual machine.
    type: int
  snapshot_moid:
    description:
      - Managed object ID of the snapshot to rename, to remove or to revert to, for example V(snapshot-42).
    type: str
  duplicates:
    description:
      - What to do when several snapshots are named O(snapshot_name), or several fit with O(state=revert). The default
        is to fail and to list them. With O(state=present), the newest will do if none of them has to be changed.
      - With O(state=absent) and one of O(name_pattern), O(older_than) and O(keep_last), all of that name are meant
        unless this is V(newest) or V(oldest).
      - V(all) can only be used with O(state=absent).
    type: str
    choices: [fail, newest, oldest, all]
    default: fail
  name_pattern:
    description:
      - Pattern of the names of snapshots, with C(*), C(?) and C([...]) as in a shell, for example V(before *). Upper
        and lower case are told apart.
      - With O(state=absent), snapshots are chosen by it. With O(state=present), see O(last_snapshot_min_age).
    type: str
  older_than:
    description:
      - With O(state=absent), only snapshots are removed that were made longer ago than this, in seconds or like V(36h)
        or V(7d). If nothing else is chosen, this goes for all snapshots of the virtual machine, whoever made them.
    type: str
  keep_last:
    description:
      - With O(state=absent), so many of the newest snapshots stay, whatever their age, of all that O(snapshot_name),
        O(name_pattern) and O(stamp) choose. They also stay where O(remove_children=true) would take them along.
      - If nothing else is chosen, this goes for all snapshots of the virtual machine, whoever made them.
    type: int
  current:
    description:
      - With O(state=revert) or O(state=absent), whether the snapshot is meant that the virtual machine runs on.
    type: bool
    default: false
  description:
    description:
      - Description of the snapshot. An empty string clears the description of a snapshot that exists; if the option is
        not set, that description stays.
    type: str
  new_snapshot_name:
    description:
      - Name to give to the snapshot that exists. If only a snapshot of this name exists, nothing is changed. If neither
        exists, the task fails.
      - Cannot be used with O(stamp).
    type: str
  new_description:
    description:
      - Description to give to the snapshot that exists, instead of O(description). If it does not exist, the task
        fails.
      - An empty string clears the description, unless O(description) says another. A snapshot that does not exist is
        made then.
    type: str
  last_snapshot_min_age:
    description:
      - With O(state=present), a snapshot that is younger than this will do, in seconds or like V(30m), and none is
        made; an older one will not, even if it has the same name.
      - What counts are snapshots whose names fit O(name_pattern) and that carry a stamp of O(stamp.job); if neither is
        set, those named O(snapshot_name).
    type: str
  quiesce:
    description:
      - Whether VMware Tools shall bring the file systems of the running guest into a consistent state.
      - A guest that is powered off cannot be quiesced and needs no quiescing. As it is not known how it was stopped,
        RV(snapshot.consistency) is V(crash).
    type: bool
    default: false
  quiesce_policy:
    description:
      - What to do when the guest cannot be quiesced.
      - V(fail) fails without leaving a snapshot behind.
      - V(warn) makes the snapshot without quiescing and warns.
      - V(crash_consistent) makes the snapshot without quiescing.
    type: str
    choices: [fail, warn, crash_consistent]
    default: fail
  quiesce_timeout:
    description:
      - Minutes that the guest may take to quiesce, between 5 and 240. vSphere takes 15 if it is not set.
    type: int
  vss:
    description:
      - Asks for application consistency by the Volume Shadow Copy Service of a Windows guest.
      - Only used with O(quiesce=true).
    type: dict
    suboptions:
      backup_type:
        description:
          - What the applications are told. V(copy) does not disturb backups that they make of themselves; V(full) lets
            them, for example, cut their logs.
        type: str
        choices: [full, incremental, differential, log, copy, other]
        default: copy
      backup_context:
        description: Which writers take part. V(ctx_auto) leaves the choice to vSphere.
        type: str
        choices: [ctx_auto, ctx_backup, ctx_file_share_backup]
        default: ctx_auto
      bootable_system_state:
        description: Whether the state of the system is included so that it can be booted.
        type: bool
        default: false
      partial_file_support:
        description: Whether applications may back up parts of files.
        type: bool
        default: false
  memory_dump:
    description:
      - Whether the snapshot holds the memory of the running virtual machine. The guest is not quiesced then, and with
        O(quiesce=true) there is a warning, unless O(quiesce_policy=crash_consistent).
    type: bool
    default: false
  stamp:
    description:
      - With O(state=present), marks the snapshot as belonging to a job, by a line in its description. Only a snapshot
        of the same job and run then counts as existing, whatever its name. Without O(stamp.run) one is always created.
      - With O(state=absent) and O(state=revert), only snapshots with a stamp of this job are meant.
    type: dict
    suboptions:
      job:
        description: Name of the job.
        type: str
        required: true
      run:
        description:
          - Name of the run of the job. A unique one is made up with O(state=present) if it is not set.
          - With O(state=absent) and O(state=revert), only snapshots of this run are meant.
        type: str
      expires_in:
        description:
          - Time after which the snapshot counts as forgotten, in seconds or like V(36h) or V(7d).
          - If it is not set, the snapshot never does.
          - Only used with O(state=present).
        type: str
      expired_only:
        description: With O(state=absent), whether only snapshots are removed that have expired by the server's clock.
        type: bool
        default: false
  remove_children:
    description:
      - With O(state=absent), whether all snapshots below the chosen ones are removed as well, whoever made them.
    type: bool
    default: false
  remove_all:
    description:
      - With O(state=absent), whether all snapshots of the virtual machine are removed, whoever made them.
    type: bool
    default: false
  power:
    description:
      - The power state after O(state=revert).
      - V(as_snapshot) is that of the snapshot, which is off unless it holds the memory. V(keep) lets the virtual
        machine run if it ran before, and no other.
    type: str
    choices: [as_snapshot, keep, "on", "off"]
    default: as_snapshot
  suppress_power_on:
    description:
      - With O(state=revert), whether the virtual machine is not started though the snapshot would have it running. One
        whose memory the snapshot holds is suspended then; O(power=off) has it off.
    type: bool
    default: false
  host:
    description:
      - Name or managed object ID of the host on which the virtual machine shall run if O(state=revert) starts it.
    type: str
  max_depth:
    description:
      - Fail instead of creating a snapshot that would be more than this many below each other. vSphere allows 32.
    type: int
    default: 32
  min_free_space:
    description:
      - Fail instead of creating a snapshot when a datastore to which the virtual machine or the snapshot writes has
        less free space than this, in bytes or like V(20GB). These are the datastores of all disks and of the working
        directory; with O(memory_dump=true), the latter needs space for the memory too.
    type: str
  unprotected_disks:
    description:
      - What to do before creating a snapshot when it would not hold all disks, because one is independent, for example.
      - V(fail) fails, V(warn) warns, and V(ignore) does neither. RV(snapshot.disks) tells about each disk in any case.
    type: str
    choices: [fail, warn, ignore]
    default: warn
  wait:
    description:
      - Whether to wait for the task of vSphere. If not, RV(task) tells which it is, and the rest of the result is
        what is planned. The next task with this module on the same virtual machine waits until it has ended.
      - Where several snapshots are removed one after the other, only the last removal is not waited for.
      - What happens after the task has begun is not seen then. O(quiesce_policy), O(retries) and O(power) are only
        looked after as far as that is possible before.
    type: bool
    default: true
  timeout:
    description:
      - Seconds to wait for each task of vSphere.
    type: int
    default: 3600
  on_timeout:
    description:
      - What to do with a task of vSphere that takes longer than O(timeout). V(leave) lets it go on, V(cancel) tries to
        cancel it. The module fails in both cases and says which of the two happened.
    type: str
    choices: [leave, cancel]
    default: leave
  retries:
    description:
      - How often a consolidation is tried again that fails or leaves something behind, because a backup proxy holds a
        file, for example. A removal that consolidates does so too.
    type: int
    default: 0
  retry_delay:
    description:
      - Seconds before each further attempt to consolidate.
    type: int
    default: 30
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.vm
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.login
seealso:
  - module: holdfast.backup.vm_snapshot_info
  - module: holdfast.backup.disk_changed_areas
notes:
  - Privileges needed are C(VirtualMachine.State.CreateSnapshot), C(VirtualMachine.State.RemoveSnapshot),
    C(VirtualMachine.State.RenameSnapshot) and C(VirtualMachine.State.RevertToSnapshot),
    C(VirtualMachine.Interact.PowerOn) and C(VirtualMachine.Interact.PowerOff) for O(power), and C(System.View) and
    C(System.Read) on the way to the virtual machine.
  - Tasks of C(vmware.vmware.vm_snapshot) and C(community.vmware.vmware_guest_snapshot) run with only the name of the
    module changed. C(docs/porting.md) tells what differs on purpose.
"""

EXAMPLES = r"""
- name: Take a snapshot before a deployment
  holdfast.backup.vm_snapshot:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: web01
    snapshot_name: before deployment
    quiesce: true
    quiesce_policy: warn
  delegate_to: localhost

- name: Remove it again
  holdfast.backup.vm_snapshot:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: web01
    snapshot_name: before deployment
    state: absent
  delegate_to: localhost

- name: Take a snapshot that a sweeper may remove after a day
  holdfast.backup.vm_snapshot:
    moid: vm-42
    snapshot_name: nightly backup
    stamp:
      job: nightly
      expires_in: 24h
  register: nightly
  delegate_to: localhost

- name: Remove it by its ID
  holdfast.backup.vm_snapshot:
    moid: vm-42
    snapshot_id: "{{ nightly.snapshot.id }}"
    state: absent
  delegate_to: localhost

- name: Remove what cancelled runs of the job have left
  holdfast.backup.vm_snapshot:
    moid: vm-42
    state: absent
    stamp:
      job: nightly
      expired_only: true
  delegate_to: localhost

- name: Let the databases of a Windows guest take part
  holdfast.backup.vm_snapshot:
    name: db01
    folder: /dc1/vm/production
    snapshot_name: consistent
    quiesce: true
    quiesce_timeout: 30
    vss:
      backup_type: copy
  delegate_to: localhost

- name: Keep the three newest snapshots of a series, and of the others those that are younger than a week
  holdfast.backup.vm_snapshot:
    name: web01
    state: absent
    name_pattern: "release *"
    keep_last: 3
    older_than: 7d
  delegate_to: localhost

- name: Go back to before the deployment, and let the machine run if it ran
  holdfast.backup.vm_snapshot:
    name: web01
    state: revert
    snapshot_name: before deployment
    power: keep
  delegate_to: localhost

- name: Consolidate the disks if a backup left them in need of it
  holdfast.backup.vm_snapshot:
    name: web01
    state: consolidated
    retries: 5
    retry_delay: 60
  delegate_to: localhost

- name: Rename a snapshot and clear its description
  holdfast.backup.vm_snapshot:
    name: web01
    snapshot_name: before deployment
    new_snapshot_name: before release 4
    description: ""
  delegate_to: localhost
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
snapshot:
  description:
    - The snapshot that was created, renamed, found or reverted to. What is not known yet, in check mode or with
      O(wait=false), is V(null).
    - V(null) with O(state=absent), O(state=remove_all) and O(state=consolidated).
  returned: success
  type: dict
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
      description:
        - The level of consistency that is certain. V(application) for a guest quiesced by O(vss), V(filesystem) for any
          other quiesced guest, else V(crash).
        - For a snapshot that existed, V(application) cannot be told from V(filesystem) any more, so that is returned.
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
snapshots:
  description:
    - All snapshots of the virtual machine after the task, parents before children, like RV(snapshot) without
      C(consistency) and C(disks).
  returned: success
  type: list
  elements: dict
  sample: []
current_snapshot:
  description: That of RV(snapshots) on which the virtual machine runs; V(null) if it has none.
  returned: success
  type: dict
  sample: null
snapshot_results:
  description:
    - The same in the form of C(community.vmware.vmware_guest_snapshot), where times look like
      V(2026-11-20T02:00:04.123456+00:00). Empty if the virtual machine has no snapshots.
  returned: success
  type: dict
  sample: {}
  contains:
    current_snapshot:
      description: The snapshot on which the virtual machine runs; empty if it runs on none.
      type: dict
    snapshots:
      description: All snapshots, each with C(id), C(name), C(description), C(creation_time), C(state) and C(quiesced).
      type: list
      elements: dict
removed:
  description: The snapshots that were removed, like RV(snapshot) without C(consistency) and C(disks).
  returned: success
  type: list
  elements: dict
  sample: []
renamed:
  description: Whether a snapshot got another name or description.
  returned: success
  type: bool
  sample: false
reverted:
  description: Whether the virtual machine was taken back to RV(snapshot).
  returned: success
  type: bool
  sample: false
consolidation_needed:
  description: Whether vSphere says that the disks of the virtual machine need consolidation.
  returned: success
  type: bool
  sample: false
power_state:
  description: The power state of the virtual machine after the task.
  returned: success
  type: str
  sample: poweredOn
task:
  description: The task of vSphere that did it, the last if there were several; V(null) if none was needed.
  returned: success
  type: dict
  sample:
    id: task-4711
    state: success
  contains:
    id:
      description: Its managed object ID.
      type: str
    state:
      description: V(success), or V(running) with O(wait=false).
      type: str
result:
  description: The same in the form of C(vmware.vmware.vm_snapshot); V(null) if no task was needed.
  returned: success
  type: dict
  sample:
    completion_time: "2026-11-20T02:00:09.123456+00:00"
    entity_name: web01
    error: null
    state: success
  contains:
    completion_time:
      description: When the task ended, in UTC; V(null) if it was not waited for.
      type: str
    entity_name:
      description: The name of the virtual machine.
      type: str
    error:
      description: Always V(null); if a task fails, the module fails.
      type: str
    state:
      description: Its state.
      type: str
msg:
  description: Why nothing had to be changed; V(null) if something was.
  returned: success
  type: str
  sample: The snapshot already exists as it is wished.
seconds:
  description: How long it took from the plan to the end of the last task.
  returned: success
  type: float
  sample: 4.2
"""

import time
import uuid
from datetime import datetime
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import (
    VCENTER,
    VM,
    VM_KEYS,
    endpoint,
    optional,
    vm_selection,
)
from ansible_collections.holdfast.backup.plugins.module_utils._quantities import duration, in_bytes
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_host, find_vm, vm_dict
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_changes import (
    ALONG,
    ALONG_WITH_DISKS,
    Changes,
    Outcome,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_create import Wish
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_guards import Guards
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_plans import Adjustment, Choice
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_revert import Power
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.stamps import Stamp

VSS_TYPES = ("full", "incremental", "differential", "log", "copy", "other")  # 1 to 6 in the API


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    act = _ACTIONS[params["state"]]
    with Connection(endpoint(params)) as c:
        along = ALONG_WITH_DISKS if _renames_only(params) else ALONG
        vm, properties = find_vm(c, **vm_selection(params), properties=snapshots.PROPERTIES, along=along)
        begun = time.monotonic()
        patience = Patience(params["timeout"], params["on_timeout"], params["retries"], params["retry_delay"])
        how = {"check": module.check_mode, "waits": params["wait"], "along": along}
        identity = vm_dict(vm, properties)
        try:
            outcome = act(Changes(c, vm, properties, patience, **how), params)
        except BackupError as error:  # in a loop over many, nobody else says which
            error.message = f"{identity['name']}: {error.message}"
            raise
        why = None if outcome.changed else _NOTHING_TO_DO[params["state"]]
        return {"vm": identity, "msg": why, "seconds": round(time.monotonic() - begun, 1), **outcome.as_result()}


def _present(changes: Changes, params: dict[str, Any]) -> Outcome:
    if params["duplicates"] == "all":
        raise InvalidInput("duplicates=all only goes with state=absent.", "Choose newest, oldest or fail.")
    floor = params["min_free_space"]
    # An empty new_description clears, but not what the same task describes.
    texts = (params["new_description"] or None, params["description"], params["new_description"])
    return changes.present(
        _choice(params),
        lambda now: _wish(params, now),
        Guards(params["max_depth"], in_bytes(floor, "min_free_space") if floor else None, params["unprotected_disks"]),
        adjust=Adjustment(
            params["new_snapshot_name"],
            next((text for text in texts if text is not None), None),
            only=_renames_only(params),
        ),
        min_age=_duration(params["last_snapshot_min_age"]),
    )


def _renames_only(params: dict[str, Any]) -> bool:
    """Whether nothing is created if there is no such snapshot."""
    return bool(params["new_snapshot_name"] or params["new_description"])


def _absent(changes: Changes, params: dict[str, Any]) -> Outcome:
    if not params["remove_all"]:
        return changes.absent(_choice(params), children=params["remove_children"])
    if not _choice({**params, "snapshot_name": params["snapshot_name"] or None}).empty:
        raise InvalidInput("remove_all leaves nothing to choose.", "Leave out either it or the chosen snapshots.")
    return changes.remove_all()


def _remove_all(changes: Changes, params: dict[str, Any]) -> Outcome:
    # As in community.vmware, which of them is named says nothing. What is asked beyond that must not be overheard.
    return _absent(changes, {**params, "remove_all": True, "snapshot_name": None, "snapshot_id": None})


def _revert(changes: Changes, params: dict[str, Any]) -> Outcome:
    host = find_host(changes.c, params["host"]) if params["host"] else None
    return changes.revert(_choice(params), Power(params["power"], params["suppress_power_on"], host))


def _consolidated(changes: Changes, params: dict[str, Any]) -> Outcome:
    return changes.consolidated()


_NOTHING_TO_DO = {
    "present": "The snapshot already exists as it is wished.",
    "absent": "No such snapshot exists.",
    "remove_all": "The virtual machine has no snapshots.",
    "consolidated": "The disks need no consolidation.",
}
_ACTIONS = {
    "present": _present,
    "absent": _absent,
    "revert": _revert,
    "remove_all": _remove_all,
    "consolidated": _consolidated,
}


def _choice(params: dict[str, Any]) -> Choice:
    if params["snapshot_name"] == "":  # from a variable without a value; left out, it might mean all snapshots
        raise InvalidInput("The name of the snapshot is empty.", "Give snapshot_name a value, or leave it out.")
    stamp = params["stamp"] or {}
    if (params["keep_last"] or 0) < 0:
        raise InvalidInput("keep_last is less than 0.", "Give how many of the newest snapshots stay.")
    return Choice(
        name=params["snapshot_name"],
        snapshot_id=params["snapshot_id"],
        moid=params["snapshot_moid"],
        current=params["current"],
        name_pattern=params["name_pattern"],
        job=stamp.get("job"),
        run=stamp.get("run"),
        expired_only=stamp.get("expired_only", False),
        older_than=_duration(params["older_than"]),
        keep_last=params["keep_last"],
        duplicates=params["duplicates"],
    )


def _wish(params: dict[str, Any], now: datetime) -> Wish:
    if not params["snapshot_name"]:
        raise InvalidInput("A new snapshot needs a name.", "Give it as snapshot_name.")
    stamp, vss = params["stamp"], params["vss"]
    if stamp:
        lifetime = _duration(stamp["expires_in"])
        expires = None if lifetime is None else now.replace(microsecond=0) + lifetime
        stamp = Stamp(stamp["job"], stamp["run"] or uuid.uuid4().hex, expires)
    return Wish(
        name=params["snapshot_name"],
        description=params["description"] or "",
        stamp=stamp,
        memory=params["memory_dump"],
        quiesce=params["quiesce"],
        quiesce_policy=params["quiesce_policy"],
        quiesce_timeout=params["quiesce_timeout"],
        vss=vss
        and {
            "vssBackupType": VSS_TYPES.index(vss["backup_type"]) + 1,
            "vssBackupContext": vss["backup_context"],
            "vssBootableSystemState": vss["bootable_system_state"],
            "vssPartialFileSupport": vss["partial_file_support"],
        },
    )


def _duration(text: str | None) -> Any:
    return None if text is None else duration(text)


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "state": {"type": "str", "choices": list(_ACTIONS), "default": "present"},
            "snapshot_name": {"type": "str"},
            "snapshot_id": {"type": "int"},
            "snapshot_moid": {"type": "str"},
            "duplicates": {"type": "str", "choices": ["fail", "newest", "oldest", "all"], "default": "fail"},
            "name_pattern": {"type": "str"},
            "older_than": {"type": "str"},
            "keep_last": {"type": "int"},
            "current": {"type": "bool", "default": False},
            "description": {"type": "str"},
            "new_snapshot_name": {"type": "str"},
            "new_description": {"type": "str"},
            "last_snapshot_min_age": {"type": "str"},
            "quiesce": {"type": "bool", "default": False},
            "quiesce_policy": {"type": "str", "choices": ["fail", "warn", "crash_consistent"], "default": "fail"},
            "quiesce_timeout": {"type": "int"},
            "vss": {
                "type": "dict",
                "options": {
                    "backup_type": {"type": "str", "choices": list(VSS_TYPES), "default": "copy"},
                    "backup_context": {
                        "type": "str",
                        "choices": ["ctx_auto", "ctx_backup", "ctx_file_share_backup"],
                        "default": "ctx_auto",
                    },
                    "bootable_system_state": {"type": "bool", "default": False},
                    "partial_file_support": {"type": "bool", "default": False},
                },
            },
            "memory_dump": {"type": "bool", "default": False},
            "stamp": {
                "type": "dict",
                "options": {
                    "job": {"type": "str", "required": True},
                    "run": {"type": "str"},
                    "expires_in": {"type": "str"},
                    "expired_only": {"type": "bool", "default": False},
                },
            },
            "remove_children": {"type": "bool", "default": False},
            "remove_all": {"type": "bool", "default": False},
            "power": {"type": "str", "choices": ["as_snapshot", "keep", "on", "off"], "default": "as_snapshot"},
            "suppress_power_on": {"type": "bool", "default": False},
            "host": {"type": "str"},
            "max_depth": {"type": "int", "default": snapshots.MAX_DEPTH},
            "min_free_space": {"type": "str"},
            "unprotected_disks": {"type": "str", "choices": ["fail", "warn", "ignore"], "default": "warn"},
            "wait": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 3600},
            "on_timeout": {"type": "str", "choices": ["leave", "cancel"], "default": "leave"},
            "retries": {"type": "int", "default": 0},
            "retry_delay": {"type": "int", "default": 30},
        },
        groups=(VCENTER, optional(VM)),  # as in community.vmware, several may name the same machine
        required_one_of=[VM_KEYS],
        mutually_exclusive=[("snapshot_name", "snapshot_id", "snapshot_moid"), ("stamp", "new_snapshot_name")],
        required_if=[("state", "present", ("snapshot_name", "snapshot_id", "snapshot_moid"), True)],
    )


if __name__ == "__main__":
    main()
