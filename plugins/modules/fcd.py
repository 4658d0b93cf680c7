#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Create, change, attach and delete first class disks."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fcd
short_description: Create, change, attach and delete first class disks
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Manages first class disks (improved virtual disks), the disks of VMware vSphere that belong to no virtual machine
    and that back Kubernetes volumes, Cinder and App Volumes.
  - Creates a disk or makes one of a virtual disk that exists, extends and renames it, sets its control flags, metadata,
    tags and storage policy, attaches it to a virtual machine and detaches it, and deletes it.
  - What is not asked for is left as it is. A disk never shrinks.
options:
  state:
    description:
      - V(present) makes sure that the disk exists and is as the options say.
      - V(attached) does the same for a disk that exists, and makes sure that it is attached to O(vm).
      - V(detached) does the same for a disk that exists, and makes sure that it is attached to no virtual machine, or
        not to O(vm) if that is given.
      - V(finished) does the same for a disk that exists, and takes the mark of O(restore_id) off.
      - V(absent) deletes the disk with its content. It fails for a disk that is attached.
    type: str
    choices: [present, attached, detached, finished, absent]
    default: present
  new_name:
    description:
      - Name to give to the disk. If only a disk of this name exists, nothing is changed.
    type: str
  capacity:
    description:
      - Size of the disk, in bytes or like V(10GB), rounded up to whole MiB. Needed to create one.
      - A disk that is smaller is extended. If it is larger, the task fails.
    type: str
  provisioning:
    description:
      - How the disk is laid out when it is created. If it is not set, vSphere decides.
      - A disk that exists stays as it is, with a warning if it differs.
    type: str
    choices: [thin, lazyZeroedThick, eagerZeroedThick]
  path:
    description:
      - A virtual disk that exists, like V([datastore1] web01/data.vmdk), to make the first class disk O(name) of.
        vSphere cannot undo this.
    type: str
  storage_policy:
    description:
      - Name of the storage policy for the disk.
    type: str
  control_flags:
    description:
      - Control flags of the disk.
    type: dict
    suboptions:
      keep_after_delete_vm:
        description: Whether the disk stays when a virtual machine that it is attached to is deleted.
        type: bool
      disable_relocation:
        description: Whether vSphere must not move the disk.
        type: bool
      enable_changed_block_tracking:
        description: Whether changes are tracked, which incremental backups need.
        type: bool
  metadata:
    description:
      - Metadata of the disk, as keys and values. An entry with the value V(null) is removed.
    type: dict
    default: {}
  purge_metadata:
    description:
      - Whether entries that are not in O(metadata) are removed.
    type: bool
    default: false
  tags:
    description:
      - Tags that the disk has. Category and tag must exist.
    type: list
    elements: dict
    default: []
    suboptions:
      category:
        description: Name of the tag's category.
        type: str
        required: true
      name:
        description: Name of the tag.
        type: str
        required: true
  purge_tags:
    description:
      - Whether tags that are not in O(tags) are taken off.
    type: bool
    default: false
  vm:
    description:
      - The virtual machine that the disk is attached to. Needed with O(state=attached).
    type: dict
    suboptions:
      name:
        description:
          - Name of the virtual machine. Exactly one of this, O(vm.uuid), O(vm.moid) and O(vm.inventory_path) is needed.
        type: str
      name_match:
        description: Which of several of that name. If it is not set, the task fails.
        type: str
        choices: [first, last]
      folder:
        description: Folder of the virtual machine, like V(/dc1/vm/production). Only used with O(vm.name).
        type: str
      folder_paths_are_absolute:
        description: Whether O(vm.folder) is never taken for a relative path.
        type: bool
        default: false
      datacenter:
        description: Datacenter in which to look. Only used with O(vm.name).
        type: str
      inventory_path:
        description: Path of the virtual machine itself, like V(/dc1/vm/production/web01).
        type: str
      uuid:
        description: BIOS UUID of the virtual machine, or its instance UUID.
        type: str
      use_instance_uuid:
        description: Whether O(vm.uuid) is an instance UUID.
        type: bool
        default: false
      moid:
        description: Managed object ID of the virtual machine.
        type: str
  controller:
    description:
      - Where to attach the disk, by bus, number of the bus and unit like V(scsi0:1), or by controller only like
        V(scsi0). If it is not set, a free place is found.
      - Only used with O(state=attached).
    type: str
  restore_id:
    description:
      - Names a restore that makes a disk anew. With O(state=present), the disk is created with a mark of this name in
        its metadata, or the one with O(name) and this mark is taken up again; any other disk of that name is refused.
      - With any other O(state), a disk without this mark is refused. For O(state=finished) a disk without any mark will
        do, because its restore is finished already.
    type: str
  delete_snapshots:
    description:
      - Whether O(state=absent) deletes a disk that has snapshots, and all of them with it, whoever made them.
    type: bool
    default: false
  timeout:
    description:
      - Seconds to wait for each task of vSphere.
    type: int
    default: 3600
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.fcd
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.login
seealso:
  - module: holdfast.backup.fcd_info
  - module: holdfast.backup.fcd_snapshot
notes:
  - Privileges needed are C(Datastore.FileManagement) on the datastore; C(VirtualMachine.Config.AddExistingDisk) and
    C(VirtualMachine.Config.RemoveDisk) on the virtual machine to attach and detach; C(StorageProfile.View) for storage
    policies; C(InventoryService.Tagging.AttachTag) for tags.
"""

EXAMPLES = r"""
- name: Create a disk with changed block tracking
  holdfast.backup.fcd:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: data01
    datastore: datastore1
    capacity: 20GB
    provisioning: thin
    control_flags:
      keep_after_delete_vm: true
      enable_changed_block_tracking: true
    tags:
      - category: backup
        name: daily
    metadata:
      owner: accounting
  register: created
  delegate_to: localhost

- name: Attach it wherever there is room
  holdfast.backup.fcd:
    id: "{{ created.fcd.id }}"
    datastore: "{{ created.fcd.datastore }}"
    state: attached
    vm:
      name: web01
  delegate_to: localhost

- name: Make a first class disk of a virtual disk that exists
  holdfast.backup.fcd:
    name: archive
    path: "[datastore1] archive/archive.vmdk"
  delegate_to: localhost

- name: Delete a disk
  holdfast.backup.fcd:
    id: "{{ created.fcd.id }}"
    state: absent
  delegate_to: localhost
"""

RETURN = r"""
fcd:
  description:
    - The disk as it is, or in check mode as it would be; what is not known yet is V(null).
    - With O(state=absent), what there was of it, without the rest of the keys; V(null) if there was none.
  returned: success
  type: dict
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
actions:
  description: What was done, or would be done in check mode, in this order.
  returned: success
  type: list
  elements: str
  sample: [create, set_control_flags, set_tags]
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import (
    FCD,
    VCENTER,
    VM,
    endpoint,
    fcd_selection,
    vm_selection,
)
from ansible_collections.holdfast.backup.plugins.module_utils._quantities import in_bytes
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    datastore_files,
    fcd,
    fcd_attachments,
    fcd_plan,
    inventory,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Fcd
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_plan import MARK
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_records import full_record
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_store import Store, open_store
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.storage_policies import StoragePolicies

PROVISIONING = ["thin", "lazyZeroedThick", "eagerZeroedThick"]


def run(module: AnsibleModule) -> dict[str, Any]:
    """Find the disk, and do what ``state`` says."""
    params = module.params
    wish = _wish(params)
    with Connection(endpoint(params)) as c:
        task = _Task(open_store(c, params["api"]), StoragePolicies(c), params, wish, module.check_mode)
        disk = task.find()
        if params["state"] == "absent":
            return task.absent(disk)
        return task.create() if disk is None else task.adjust(disk)


@dataclass(frozen=True)
class _Task:
    """What one run of the module works with."""

    store: Store
    policies: StoragePolicies
    params: dict[str, Any]
    wish: fcd_plan.Wish
    check_mode: bool

    def find(self) -> Fcd | None:
        """The disk that the options choose; None if it does not exist and need not.

        :raises NotFound: it must exist
        """
        given = fcd_selection(self.params)
        state, new_name = self.params["state"], self.params["new_name"]
        may_miss = state == "absent" or (state == "present" and not given["id"])
        if self.params["restore_id"] is not None:
            disk = self._find_marked(given)
        elif may_miss or new_name:
            disk = self.store.seek(**given)
            if disk is None and given["name"] and new_name:
                disk = self.store.seek(**{**given, "name": new_name})
        else:
            return self.store.find(**given)
        return disk if disk is not None or may_miss else self.store.find(**given)

    def _find_marked(self, given: dict[str, str | None]) -> Fcd | None:
        """The disk that the restore made; it is never confused with another of the same name."""
        restore = self.params["restore_id"]
        if given["id"]:
            disk = self.store.seek(**given)
            found = [] if disk is None else [disk]
        else:
            found = self.store.select(name=given["name"], datastore=given["datastore"])
        marked = [disk for disk in found if (disk.metadata or {}).get(MARK) == restore]
        # One without any mark may be a disk of this restore that is finished, which needs no more than that.
        finished = self.params["state"] == "finished" and all(MARK not in (disk.metadata or {}) for disk in found)
        if found and not (marked or finished):
            raise NotSupported(
                f"The first class disk {found[0].name} ({found[0].id}) was not made by the restore {restore}.",
                "Choose another name; a disk that a restore has not made is never taken for its own.",
                candidates=[disk.identity() for disk in found],
            )
        return fcd.only(marked or found, f"named {given['name']}")

    def absent(self, disk: Fcd | None) -> dict[str, Any]:
        """Delete the disk."""
        if disk is None:
            return {"changed": False, "fcd": None, "actions": [], "diff": {"before": {}, "after": {}}}
        if disk.consumers:
            raise NotSupported(
                f"The first class disk {disk.name} ({disk.id}) is attached to {', '.join(disk.consumers)}.",
                "Detach it first (state=detached).",
            )
        snapshots = self.store.snapshots(disk)
        if snapshots and not self.params["delete_snapshots"]:
            raise NotSupported(
                f"The first class disk {disk.name} ({disk.id}) has {len(snapshots)} snapshots, which would go with it.",
                "Delete them first, or set delete_snapshots.",
                snapshots=[snapshot.as_dict() for snapshot in snapshots],
            )
        if not self.check_mode:
            for snapshot in reversed(snapshots):
                self.store.delete_snapshot(disk, snapshot.id, timeout=self.params["timeout"])
            self.store.delete(disk, timeout=self.params["timeout"])
        actions = ["delete_snapshots"] * bool(snapshots) + ["delete"]
        return {
            "changed": True,
            "fcd": disk.identity(),
            "actions": actions,
            "diff": {"before": disk.as_dict(), "after": {}},
        }

    def create(self) -> dict[str, Any]:
        """Make the disk, or make one of a virtual disk."""
        path, name = self.params["path"], self.params["name"]
        place = datastore_files.split(path)[0] if path else self.params["datastore"]
        if not place or not (path or self.wish.capacity):
            raise InvalidInput(
                f"There is no first class disk {name}, and a new one needs a datastore and a capacity.",
                "Give both, or the path of a virtual disk to make it of.",
            )
        start = fcd_plan.blank(name, place, self.params["provisioning"], path)
        after = fcd_plan.target(start, self.wish)
        made = "register" if path else "create"
        if self.check_mode:
            before = start if path else fcd_plan.as_created(after)
            return _result({}, after, [made, *fcd_plan.actions(before, after)], [])
        if path:
            disk = self._register(path, name)
            before, _warnings = full_record(self.store, self.policies, disk)
        else:
            spec = fcd_plan.create_spec(self.store, self.policies, after)
            disk = self.store.create(spec, timeout=self.params["timeout"])
            # A new disk has no tags, and the policy that it was made with.
            before = {**disk.as_dict(), "tags": [], "storage_policy": after["storage_policy"]}
        after = fcd_plan.target(before, self.wish)
        self._apply(disk, before, after)
        record, warnings = full_record(self.store, self.policies, self.store.refreshed(disk))
        return _result({}, record, [made, *fcd_plan.actions(before, after)], warnings)

    def adjust(self, disk: Fcd) -> dict[str, Any]:
        """Bring a disk that exists to what the options say."""
        self._check_path(disk)
        before, warnings = full_record(self.store, self.policies, disk)
        wanted = self.params["provisioning"]
        if wanted and before["provisioning"] not in (None, wanted):
            warnings.append(
                f"The disk {disk.name} is {before['provisioning']} and stays so; it cannot become {wanted}."
            )
        after = fcd_plan.target(before, self.wish)
        move = self._move(disk, before["attached_to"])
        after["attached_to"] = move.after
        actions = [
            *(["detach"] if move.detach else []),
            *fcd_plan.actions(before, after),
            *(["attach"] if move.slot else []),
        ]
        if not actions or self.check_mode:
            return _result(before, after, actions, warnings)
        if move.detach:
            self.store.detach(disk, move.vm, timeout=self.params["timeout"])
        self._apply(disk, before, after)
        if move.slot:
            self.store.attach(disk, move.vm, move.slot.controller, move.slot.unit, timeout=self.params["timeout"])
        record, _warnings = full_record(self.store, self.policies, self.store.refreshed(disk))
        return _result(before, record, actions, warnings)

    def _apply(self, disk: Fcd, before: dict[str, Any], after: dict[str, Any]) -> None:
        fcd_plan.apply(self.store, self.policies, disk, before, after, self.params["timeout"])

    def _register(self, path: str, name: str) -> Fcd:
        c, place = self.store.c, self.store.datastores.named(datastore_files.split(path)[0])
        reference = vim.Datastore(place.moid, c.stub)
        datacenter = inventory.paths(c, [reference])[reference].partition("/datastore/")[0]
        return self.store.register(datastore_files.url(c, datacenter, path), name)

    def _check_path(self, disk: Fcd) -> None:
        path = self.params["path"]
        if path and disk.path != path:
            raise InvalidInput(
                f"The first class disk {disk.name} ({disk.id}) exists already, of {disk.path} and not of {path}.",
                "Choose another name, or leave path out.",
            )

    def _move(self, disk: Fcd, now: dict[str, Any] | None) -> _Move:
        """What has to be attached or detached, given where the disk is."""
        state = self.params["state"]
        if state not in ("attached", "detached"):
            return _Move(now)
        if disk.consumers and now is None:
            raise NotSupported(
                f"The first class disk {disk.name} is attached to {', '.join(disk.consumers)}, which cannot be seen.",
                "Check the role of the user on that virtual machine.",
            )
        if state == "attached":
            return self._attachment(disk, now)
        if now is None or (self.params["vm"] and self._find_vm()[1]["moid"] != now["vm"]["moid"]):
            return _Move(now)
        return _Move(None, vim.VirtualMachine(now["vm"]["moid"], self.store.c.stub), detach=True)

    def _attachment(self, disk: Fcd, now: dict[str, Any] | None) -> _Move:
        wish = self.params["controller"]
        vm, identity, devices = self._find_vm()
        if now is None:
            slot = fcd_attachments.choose_slot(devices, wish)
            return _Move({"vm": identity, "key": None, "controller": slot.name}, vm, slot=slot)
        if now["vm"]["moid"] != identity["moid"]:
            raise NotSupported(
                f"The first class disk {disk.name} is attached to {now['vm']['name']} ({now['vm']['moid']}).",
                "Detach it there first (state=detached).",
            )
        if wish and wish not in (now["controller"], str(now["controller"]).partition(":")[0]):
            raise NotSupported(
                f"The first class disk {disk.name} is attached at {now['controller']} and not at {wish}.",
                "Detach it first (state=detached), or leave controller out.",
            )
        return _Move(now)

    def _find_vm(self) -> tuple[Any, dict[str, Any], Sequence[Any]]:
        """The VM of the options, its identity and its devices."""
        selection = vm_selection(self.params["vm"])
        vm, props = inventory.find_vm(self.store.c, **selection, properties=[fcd_attachments.DEVICES])
        return vm, inventory.vm_dict(vm, props), props.get(fcd_attachments.DEVICES, ())


class _Move(NamedTuple):
    """Where a disk should be attached, and what it takes: to detach it from ``vm``, or to attach it at a slot there."""

    after: dict[str, Any] | None
    vm: Any = None
    detach: bool = False
    slot: fcd_attachments.Slot | None = None


def _result(before: dict[str, Any], after: dict[str, Any], actions: list[str], warnings: list[str]) -> dict[str, Any]:
    return {
        "changed": bool(actions),
        "fcd": after,
        "actions": actions,
        "warnings": warnings,
        "diff": {"before": before, "after": after},
    }


def _wish(params: dict[str, Any]) -> fcd_plan.Wish:
    metadata = {key: None if value is None else str(value) for key, value in params["metadata"].items()}
    if params["state"] == "finished":
        metadata[MARK] = None
    elif params["state"] == "present" and params["restore_id"] is not None:
        metadata[MARK] = params["restore_id"]
    flags = params["control_flags"] or {}
    return fcd_plan.Wish(
        name=params["new_name"],
        capacity=None if params["capacity"] is None else _capacity(params["capacity"]),
        storage_policy=params["storage_policy"],
        control_flags={name: value for name, value in flags.items() if value is not None},
        metadata=metadata,
        purge_metadata=params["purge_metadata"],
        tags=params["tags"],
        purge_tags=params["purge_tags"],
    )


def _capacity(text: str) -> int:
    wanted = in_bytes(text, "capacity")
    if wanted <= 0:
        raise InvalidInput(f"capacity must be more than nothing, not {text}.", "Write bytes or a form like 10GB.")
    return -(-wanted // fcd.MEBIBYTE) * fcd.MEBIBYTE


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["present", "attached", "detached", "finished", "absent"],
                "default": "present",
            },
            "new_name": {"type": "str"},
            "capacity": {"type": "str"},
            "provisioning": {"type": "str", "choices": PROVISIONING},
            "path": {"type": "str"},
            "storage_policy": {"type": "str"},
            "control_flags": {"type": "dict", "options": {name: {"type": "bool"} for name in fcd.FLAGS}},
            "metadata": {"type": "dict", "default": {}},
            "purge_metadata": {"type": "bool", "default": False},
            "tags": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "category": {"type": "str", "required": True},
                    "name": {"type": "str", "required": True},
                },
            },
            "purge_tags": {"type": "bool", "default": False},
            "vm": {
                "type": "dict",
                "options": VM.argument_spec,
                "mutually_exclusive": VM.mutually_exclusive,
                "required_one_of": VM.required_one_of,
            },
            "controller": {"type": "str"},
            "restore_id": {"type": "str"},
            "delete_snapshots": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 3600},
        },
        groups=(VCENTER, FCD),
        required_if=[("state", "attached", ("vm",))],
    )


if __name__ == "__main__":
    main()
