#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Create, rename and remove snapshots of a virtual machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot
short_description: Create, rename and remove snapshots of a virtual machine
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Creates a snapshot of a virtual machine, and returns its disks with the change IDs that a later incremental backup
    needs.
  - Renames a snapshot or changes its description.
  - Removes snapshots by name, by ID, by managed object ID, by the stamp of a job, or all of them. A removal also
    consolidates the disks when vSphere says that they need it.
  - Nothing is downgraded in silence. O(quiesce_policy) says what happens when the guest cannot be quiesced, and
    RV(snapshot.consistency) says what was reached.
options:
  state:
    description:
      - V(present) makes sure that the snapshot exists. O(stamp) and O(snapshot_name) say when one that exists will do.
      - V(absent) makes sure that the chosen snapshots do not exist.
    type: str
    choices: [present, absent]
    default: present
  snapshot_name:
    description:
      - Name of the snapshot to create, to rename or to remove.
      - With O(state=present) and without O(stamp), a snapshot that has this name will do.
    type: str
  snapshot_id:
    description:
      - ID of the snapshot to rename or to remove. It is unique within the virtual machine.
    type: int
  snapshot_moid:
    description:
      - Managed object ID of the snapshot to rename or to remove, for example V(snapshot-42).
    type: str
  duplicates:
    description:
      - What to do when several snapshots are named O(snapshot_name). The default is to fail and to list them.
      - V(all) can only be used with O(state=absent).
    type: str
    choices: [fail, newest, oldest, all]
    default: fail
  description:
    description:
      - Description of the snapshot. An empty string clears the description of a snapshot that exists; if the option is
        not set, that description stays.
    type: str
  new_snapshot_name:
    description:
      - Name to give to the snapshot that exists. If only a snapshot of this name exists, nothing is changed.
      - Cannot be used with O(stamp).
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
      - Whether the snapshot holds the memory of the running virtual machine. It cannot be quiesced then.
    type: bool
    default: false
  stamp:
    description:
      - With O(state=present), marks the snapshot as belonging to a job, by a line in its description. Only a snapshot
        of the same job and run then counts as existing, whatever its name. Without O(stamp.run) one is always created.
      - With O(state=absent), removes the snapshots with a stamp of this job and no others.
    type: dict
    suboptions:
      job:
        description: Name of the job.
        type: str
        required: true
      run:
        description:
          - Name of the run of the job. A unique one is made up with O(state=present) if it is not set.
          - With O(state=absent), only snapshots of this run are removed.
        type: str
      expires_in:
        description:
          - Time after which the snapshot counts as forgotten, in seconds or like V(36h) or V(7d).
          - If it is not set, the snapshot never does.
          - Only used with O(state=present).
        type: str
      expired_only:
        description: With O(state=absent), whether only snapshots that have expired are removed.
        type: bool
        default: false
  remove_children:
    description:
      - With O(state=absent), whether all snapshots below the chosen ones are removed as well.
    type: bool
    default: false
  remove_all:
    description:
      - With O(state=absent), whether all snapshots of the virtual machine are removed, whoever made them.
    type: bool
    default: false
  max_depth:
    description:
      - Fail instead of creating a snapshot that would be more than this many below each other. vSphere allows 32.
    type: int
    default: 32
  min_free_space:
    description:
      - Fail instead of creating a snapshot when a datastore of the virtual machine has less free space than this, in
        bytes or like V(20GB).
    type: str
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
  - Privileges needed are C(VirtualMachine.State.CreateSnapshot), C(VirtualMachine.State.RemoveSnapshot) and
    C(VirtualMachine.State.RenameSnapshot), and C(System.View) and C(System.Read) on the way to the virtual machine.
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
    - The snapshot that was created, renamed or found. What is not known yet in check mode is V(null).
    - V(null) with O(state=absent).
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
consolidation_needed:
  description: Whether vSphere says that the disks of the virtual machine need consolidation.
  returned: success
  type: bool
  sample: false
"""

import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Iterable

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import (
    VCENTER,
    VM,
    duration,
    endpoint,
    vm_selection,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshot_tasks, snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_vm, vm_dict
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience, State, Wish
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshots import Snapshot
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.stamps import Stamp

VSS_TYPES = ("full", "incremental", "differential", "log", "copy", "other")  # 1 to 6 in the API


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    with Connection(endpoint(params)) as c:
        vm, properties = find_vm(c, **vm_selection(params), properties=snapshots.PROPERTIES)
        identity = vm_dict(vm, properties)
        task = _Task(c, vm, identity["name"], properties, params, module.check_mode)
        return {"vm": identity, **(task.absent() if params["state"] == "absent" else task.present())}


@dataclass(frozen=True)
class _Task:
    """What one run of the module works with."""

    c: Connection
    vm: Any
    name: str
    properties: dict[str, Any]
    params: dict[str, Any]
    check_mode: bool

    @property
    def before(self) -> State:
        return snapshot_tasks.state_of(self.properties)

    @property
    def patience(self) -> Patience:
        return Patience(self.params["timeout"], self.params["on_timeout"])

    def absent(self) -> dict[str, Any]:
        """Remove what the options choose."""
        everything = self.before.snapshots
        chosen = _to_remove(everything, self.params)
        children = self.params["remove_children"] or self.params["remove_all"]
        doomed = snapshots.with_descendants(everything, chosen) if children else chosen
        state, warnings = self.before, []
        if doomed and not self.check_mode:
            tops = snapshots.topmost(doomed) if children else doomed
            state, warnings = snapshot_tasks.remove(self.c, self.vm, tops, children=children, patience=self.patience)
        return self._result(
            state,
            [one for one in everything if one not in doomed],
            changed=bool(doomed),
            removed=[one.as_dict() for one in doomed],
            warnings=warnings,
        )

    def present(self) -> dict[str, Any]:
        """Find or create the snapshot."""
        existing = _existing(self.before.snapshots, self.params)
        return self._create() if existing is None else self._adjust(existing)

    def _adjust(self, existing: Snapshot) -> dict[str, Any]:
        """Rename or describe a snapshot that exists, if it needs it."""
        # One that is known by its stamp is used as it is.
        wanted = existing
        if self.params["stamp"] is None:
            text = self.params["description"]
            wanted = replace(
                existing,
                name=self.params["new_snapshot_name"] or existing.name,
                description=existing.description if text is None else text,
            )
        if wanted != existing and not self.check_mode:
            snapshot_tasks.rename(self.c, wanted)
        state, record = snapshot_tasks.look_at(self.c, self.vm, wanted)
        return self._result(
            state,
            [wanted if one == existing else one for one in self.before.snapshots],
            changed=wanted != existing,
            renamed=wanted != existing,
            snapshot=record,
        )

    def _create(self) -> dict[str, Any]:
        wish = _wish(self.params)
        snapshots.check_possible(self.name, self.properties, self.params["max_depth"])
        if self.params["min_free_space"] is not None:
            snapshot_tasks.check_space(self.c, self.vm, _bytes(self.params["min_free_space"]))
        if self.check_mode:
            state, record = self.before, wish.as_planned()
            _quiesce, warnings = snapshot_tasks.plan_quiesce(self.properties, wish)
        else:
            state, record, warnings = snapshot_tasks.create(self.c, self.vm, self.properties, wish, self.patience)
        return self._result(state, [*self.before.snapshots, wish], changed=True, snapshot=record, warnings=warnings)

    def _result(self, state: State, planned: list[Any], warnings: Iterable[str] = (), **facts: Any) -> dict[str, Any]:
        """The same keys in every case. ``planned`` is what there is or would be: things with name and description."""
        warnings = list(warnings)
        if state.consolidation_needed:
            warnings.append(f"The disks of {self.name} need consolidation.")
        before, after = (
            {"snapshots": [{"name": one.name, "description": one.description} for one in listed]}
            for listed in (self.before.snapshots, planned)
        )
        return {
            "snapshot": None,
            "removed": [],
            "renamed": False,
            "consolidation_needed": state.consolidation_needed,
            "warnings": warnings,
            "diff": {"before": before, "after": after},
            **facts,
        }


def _to_remove(everything: list[Snapshot], params: dict[str, Any]) -> list[Snapshot]:
    """What ``state: absent`` is about; a stamp and a name, ID or managed object ID must both fit."""
    named = {"name": params["snapshot_name"], "snapshot_id": params["snapshot_id"], "moid": params["snapshot_moid"]}
    by_name = any(value is not None for value in named.values())
    stamp = params["stamp"]
    if params["remove_all"]:
        if by_name or stamp:
            raise InvalidInput("remove_all leaves nothing to choose.", "Leave out either it or the chosen snapshot.")
        return everything
    if not by_name and not stamp:
        raise InvalidInput(
            "No snapshot was chosen to be absent.",
            "Give one of snapshot_name, snapshot_id, snapshot_moid, stamp and remove_all.",
        )
    if stamp:
        now = datetime.now(timezone.utc) if stamp["expired_only"] else None
        everything = snapshots.owned(everything, stamp["job"], stamp["run"], expired_at=now)
    return snapshots.choose(everything, **named, duplicates=params["duplicates"]) if by_name else everything


def _existing(everything: list[Snapshot], params: dict[str, Any]) -> Snapshot | None:
    """The snapshot that ``state: present`` is about, if it exists; None if it has to be created."""
    name, new_name, duplicates = (params[option] for option in ("snapshot_name", "new_snapshot_name", "duplicates"))
    if duplicates == "all":
        raise InvalidInput("duplicates=all only goes with state=absent.", "Choose newest, oldest or fail.")
    if params["stamp"]:
        run_name = params["stamp"]["run"]
        return next(iter(snapshots.owned(everything, params["stamp"]["job"], run_name)), None) if run_name else None
    found = snapshots.choose(
        everything,
        name=name,
        snapshot_id=params["snapshot_id"],
        moid=params["snapshot_moid"],
        duplicates=duplicates,
    )
    if not found and new_name:
        found = snapshots.choose(everything, name=new_name, duplicates=duplicates)
    if found:
        return found[0]
    if name is not None and not new_name:
        return None
    raise NotFound(
        "The virtual machine has no such snapshot to rename or describe.",
        f"It has {', '.join(f'{one.name} (ID {one.id})' for one in everything) or 'none'}.",
    )


def _wish(params: dict[str, Any]) -> Wish:
    if not params["snapshot_name"]:
        raise InvalidInput("A new snapshot needs a name.", "Give it as snapshot_name.")
    stamp = params["stamp"]
    if stamp:
        lifetime = stamp["expires_in"]
        expires = datetime.now(timezone.utc).replace(microsecond=0) + duration(lifetime) if lifetime else None
        stamp = Stamp(stamp["job"], stamp["run"] or uuid.uuid4().hex, expires)
    return Wish(
        name=params["snapshot_name"],
        description=params["description"] or "",
        stamp=stamp,
        memory=params["memory_dump"],
        quiesce=params["quiesce"],
        quiesce_policy=params["quiesce_policy"],
        quiesce_timeout=params["quiesce_timeout"],
        vss=params["vss"]
        and {
            "vssBackupType": VSS_TYPES.index(params["vss"]["backup_type"]) + 1,
            "vssBackupContext": params["vss"]["backup_context"],
            "vssBootableSystemState": params["vss"]["bootable_system_state"],
            "vssPartialFileSupport": params["vss"]["partial_file_support"],
        },
    )


def _bytes(size: str) -> int:
    try:
        return human_to_bytes(size)
    except ValueError as error:
        raise InvalidInput(f"min_free_space is no size: {size}.", "Write bytes or a form like 20GB.") from error


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "snapshot_name": {"type": "str"},
            "snapshot_id": {"type": "int"},
            "snapshot_moid": {"type": "str"},
            "duplicates": {"type": "str", "choices": ["fail", "newest", "oldest", "all"], "default": "fail"},
            "description": {"type": "str"},
            "new_snapshot_name": {"type": "str"},
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
            "max_depth": {"type": "int", "default": snapshots.MAX_DEPTH},
            "min_free_space": {"type": "str"},
            "timeout": {"type": "int", "default": 3600},
            "on_timeout": {"type": "str", "choices": ["leave", "cancel"], "default": "leave"},
        },
        groups=(VCENTER, VM),
        mutually_exclusive=[("snapshot_name", "snapshot_id", "snapshot_moid"), ("stamp", "new_snapshot_name")],
        required_if=[("state", "present", ("snapshot_name", "snapshot_id", "snapshot_moid"), True)],
    )


if __name__ == "__main__":
    main()
