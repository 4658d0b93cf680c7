#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Capture the configuration of a virtual machine, and make the machine again from it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_config
short_description: Capture the configuration of a virtual machine, and make the machine again from it
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Captures what a virtual machine is made of into a readable, versioned JSON file, with its NVRAM beside it.
  - Makes a virtual machine again from such a file, switched off and with empty disks of the right sizes on the right
    controllers and units, ready for M(holdfast.backup.vddk_copy) to fill them.
  - A virtual machine that is made so carries a mark until its restore is finished. Only a virtual machine with the
    mark can be deleted by this module, and a repeated task with the same O(restore_id) finds its virtual machine by
    the mark.
  - Nothing is overwritten, and everything that is asked for is looked up before anything is made.
options:
  state:
    description:
      - V(captured) writes C(config.json) and C(vm.nvram) into the directory O(path).
      - V(present) makes the virtual machine O(name) from O(config) and marks it as an unfinished restore.
      - V(finished) takes the mark off, turns what was a template into a template again, and applies O(power_state).
      - V(absent) deletes the virtual machine of an unfinished restore. It fails for any other virtual machine.
    type: str
    choices: [captured, present, finished, absent]
    required: true
  path:
    description:
      - Directory for the files, which must exist. Needed with O(state=captured).
      - The files can be read by their owner only, and each is either complete or not there.
      - Files that hold the same already are left alone; nothing else in the directory is touched.
    type: path
  snapshot:
    description:
      - Managed object ID of a snapshot of the virtual machine whose frozen configuration is captured, not the
        present one.
      - The NVRAM is always the present one. Only used with O(state=captured).
    type: str
  config:
    description:
      - The path of a C(config.json), or of the directory that has it, or its content as a dictionary.
      - NVRAM is only restored from a path. Needed with O(state=present).
    type: raw
  restore_id:
    description:
      - What is being restored, for example the ID of a restore point. Needed with O(state=present).
      - With O(state=absent), the unfinished restore must have this ID if it is given.
    type: str
  datastore:
    description:
      - Datastore for the new virtual machine and all of its disks. By default each is made where it was.
    type: str
  resource_pool:
    description:
      - Resource pool of the new virtual machine, by name or absolute path. By default that of O(cluster) or
        O(esxi_hostname), or the one where it was.
    type: str
  cluster:
    description:
      - Cluster (or stand-alone host) for the new virtual machine, by name or absolute path.
    type: str
  esxi_hostname:
    description:
      - Host for the new virtual machine, by name or absolute path. By default DRS chooses, or the first host in
        working order of a cluster without DRS.
    type: str
  networks:
    description:
      - New networks, by name or managed object ID, for the network adapters of the new virtual machine.
      - The keys are the old names of networks, or labels of adapters such as V(Network adapter 2), which win.
      - Adapters that are not named stay on the network of the same name.
    type: dict
    default: {}
  mac_policy:
    description:
      - Whether to keep the MAC addresses or to let vSphere generate new ones.
      - vSphere may overrule an address that it assigned itself and that is in use; the result warns of it.
    type: str
    choices: [keep, generate]
    default: keep
  identity:
    description:
      - V(new) gives the virtual machine and its disks new UUIDs, as a copy should have.
      - V(keep) asks for the BIOS, instance and disk UUIDs of the old one, as its replacement should have. This is
        refused while a virtual machine with that instance UUID exists.
    type: str
    choices: [new, keep]
    default: new
  tags:
    description:
      - With O(state=captured), whether the tags of the virtual machine are captured. That takes a log-in to the
        Automation API unless O(session) has one; V(ignore) does without.
      - With O(state=present), V(keep) attaches those that exist, by their IDs or else by the names of category and tag,
        and warns of the others. V(create) makes these, and their categories, in which a virtual machine can have
        several tags.
    type: str
    choices: [keep, create, ignore]
    default: keep
  storage_policies:
    description:
      - With O(state=captured), whether the storage policies of the virtual machine's home and disks are captured.
      - With O(state=present), V(keep) applies those that exist, by their IDs or else by their names, and warns of the
        others. V(ignore), and where one is not applied, leaves it to the default of the datastore.
    type: str
    choices: [keep, ignore]
    default: keep
  storage_policy_map:
    description:
      - Names of storage policies to apply instead of others. The keys are the names in O(config).
      - The policy of what was encrypted is only applied if it is replaced here.
    type: dict
    default: {}
  provisioning:
    description:
      - How the disks are provisioned. By default each as it was; a raw device becomes a thin disk.
    type: str
    choices: [thin, lazy_zeroed, eager_zeroed]
  disks:
    description:
      - What shall be different for single disks.
    type: list
    elements: dict
    default: []
    suboptions:
      disk:
        description: The disk, by its key, label or backing UUID in O(config).
        type: str
        required: true
      datastore:
        description: Its datastore.
        type: str
      provisioning:
        description: How it is provisioned.
        type: str
        choices: [thin, lazy_zeroed, eager_zeroed]
      create:
        description:
          - Whether it is made. By default all disks are made but those that were not protected, such as independent
            disks, whose content no restore point holds.
        type: bool
  power_state:
    description:
      - Power state of the finished virtual machine. It is left as it is if this is not set. Only used with
        O(state=finished).
    type: str
    choices: [poweredOn]
  timeout:
    description:
      - Seconds that making the virtual machine (eagerly zeroed disks take long) or switching it on may take.
    type: int
    default: 3600
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.vm
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.login
requirements:
  - requests
seealso:
  - module: holdfast.backup.vddk_copy
  - module: holdfast.backup.restore_point
notes:
  - With O(state=present), O(name) and O(folder) say where the virtual machine is made, by default in the folder
    where it was. A relative O(folder) is below the virtual machine folder of O(datacenter), by default of the
    datacenter where it was. O(uuid) and O(moid) cannot be used then.
  - The present C(vm.nvram) of an encrypted virtual machine is kept, but a restored one is not encrypted and does
    not get it.
  - Change tracking is off in a restored virtual machine, because it would misreport what the restore wrote below
    it. A backup switches it on and begins with full copies.
  - Not restored are virtual TPMs, devices of the host (passed-through, serial, USB), media in drives, vApp options,
    NPIV names, and advanced settings that belong to the old machine or its host or may be secrets. The result warns
    of devices that are left out, and RV(config) lists everything under C(left_out) and C(extra_config_left_out).
  - Tags and storage policies are in vCenter only. Where they cannot be captured, C(notes) in C(config.json) and a
    warning say why, and the rest is captured. Both are always the present ones.
  - Tags are attached when the virtual machine is made, before its disks are filled.
  - Privileges needed to capture are C(System.View) and C(System.Read) on the way to the virtual machine, its host,
    resource pool and networks, C(Datastore.Browse) on its datastore for the NVRAM, C(StorageProfile.View) on vCenter
    for storage policies, and C(System.Read) on tags.
  - Privileges needed to restore are C(VirtualMachine.Inventory.Create) on the folder, C(Resource.AssignVMToPool) on
    the resource pool, C(Datastore.AllocateSpace), C(Datastore.Browse) and C(Datastore.FileManagement) on the
    datastores, C(Network.Assign) on the networks, and on the folder also C(VirtualMachine.Config.AddNewDisk),
    C(VirtualMachine.Config.AddRemoveDevice), C(VirtualMachine.Config.AdvancedConfig),
    C(VirtualMachine.Config.Settings), C(VirtualMachine.Config.CPUCount), C(VirtualMachine.Config.Memory),
    C(VirtualMachine.Config.Resource), C(VirtualMachine.Config.Annotation), C(VirtualMachine.Inventory.Delete),
    C(VirtualMachine.Interact.PowerOn) for O(power_state), C(VirtualMachine.Provisioning.MarkAsTemplate) for
    templates, C(Global.SetCustomField) for custom attributes, C(StorageProfile.View) on vCenter for storage policies,
    and C(InventoryService.Tagging.AttachTag) for tags, with C(InventoryService.Tagging.CreateTag) and
    C(InventoryService.Tagging.CreateCategory) for O(tags=create).
"""

EXAMPLES = r"""
- name: Keep the configuration of a virtual machine
  holdfast.backup.vm_config:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: web01
    state: captured
    path: /var/backups/web01
  delegate_to: localhost

- name: Keep the configuration that a snapshot holds
  holdfast.backup.vm_config:
    moid: vm-42
    state: captured
    snapshot: "{{ nightly.snapshot.moid }}"
    path: "{{ started.restore_point.path }}"
  delegate_to: localhost

- name: Make a copy of it beside the original, on other networks
  holdfast.backup.vm_config:
    name: web01-restored
    folder: /dc1/vm/restored
    state: present
    config: /var/backups/web01/config.json
    restore_id: web01 for the audit
    datastore: datastore2
    networks:
      VM Network: Isolated
    mac_policy: generate
  register: made
  delegate_to: localhost

- name: Declare the restore finished and switch the virtual machine on
  holdfast.backup.vm_config:
    moid: "{{ made.vm.moid }}"
    state: finished
    power_state: poweredOn
  delegate_to: localhost

- name: Give up an unfinished restore
  holdfast.backup.vm_config:
    moid: "{{ made.vm.moid }}"
    state: absent
    restore_id: web01 for the audit
  delegate_to: localhost
"""

RETURN = r"""
vm:
  description: The virtual machine. What is not known yet in check mode is V(null).
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
config:
  description: The configuration that was captured, as in C(config.json).
  returned: success and O(state=captured)
  type: dict
  sample:
    format: holdfast.vm_config
    version: 1
files:
  description:
    - The paths of the files that hold it. There is no C(vm.nvram) of a virtual machine that was never switched on.
  returned: success and O(state=captured)
  type: list
  elements: str
  sample: [/var/backups/web01/config.json, /var/backups/web01/vm.nvram]
unprotected:
  description: The disks whose content no snapshot holds, as in C(config.json), with C(reason).
  returned: success and O(state=captured)
  type: list
  elements: dict
  sample: []
plan:
  description: What the new virtual machine is like. V(null) if it existed already.
  returned: success and O(state=present)
  type: dict
  sample:
    name: web01-restored
    folder: /dc1/vm/restored
    resource_pool: /dc1/host/cluster1/Resources
    datastore: datastore2
disks:
  description:
    - Where the content of each disk goes. Disks that were not made again are not listed.
    - Empty in check mode if the virtual machine does not exist.
  returned: success and O(state=present)
  type: list
  elements: dict
  sample:
    - source_backing_uuid: 6000C295-ab9c-4d2f-9a50-3f5a1c0e7d11
      source_key: 2000
      key: 2000
      label: Hard disk 1
      backing_uuid: 6000C29e-0f4b-7d1a-51a5-9d0f2b1d3c44
      capacity: 17179869184
      path: "[datastore2] web01-restored/web01-restored.vmdk"
  contains:
    source_backing_uuid:
      description: The UUID of the old disk's backing.
      type: str
    source_key:
      description: The device key of the old disk.
      type: int
    key:
      description: The device key of the new disk.
      type: int
    label:
      description: The label of the new disk.
      type: str
    backing_uuid:
      description: The UUID of the new disk's backing.
      type: str
    capacity:
      description: Its size in bytes.
      type: int
    path:
      description: The path of its backing.
      type: str
"""

import os
from dataclasses import fields

from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import VCENTER, VM, endpoint, vm_selection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    inventory,
    vm_capture,
    vm_config,
    vm_create,
    vm_placement,
    vm_retarget,
    vm_unfinished,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection

PROVISIONING = ["thin", "lazy_zeroed", "eager_zeroed"]


def captured(module, c):
    """``state=captured``: read the configuration, write the files that differ."""
    params = module.params
    found = vm_capture.read(c, vm_selection(params), params["snapshot"], params["tags"], params["storage_policies"])
    wanted = vm_capture.files(found)
    names = vm_capture.changes(params["path"], wanted)
    if names and not module.check_mode:
        vm_capture.save(params["path"], wanted, names)
    unprotected = vm_config.unprotected(found.document)
    lost = [f"{disk['label']} ({disk['path']}) is not protected: {disk['reason']}." for disk in unprotected]
    return {
        "changed": bool(names),
        "vm": found.vm,
        "config": found.document,
        "files": [os.path.join(params["path"], name) for name, content in wanted.items() if content is not None],
        "unprotected": unprotected,
        "warnings": lost + vm_config.warnings(found.document),
        "diff": {"before": {"files_to_write": names}, "after": {"files_to_write": []}},
    }


def present(module, c):
    """``state=present``: make the virtual machine, or find the one that an earlier run made."""
    params = module.params
    document, nvram = vm_capture.load(params["config"])
    folder = _folder(params, document["placement"])
    wishes = vm_placement.Wishes(folder, params["resource_pool"], params["cluster"], params["esxi_hostname"])
    changes = vm_retarget.Changes(**{one.name: params[one.name] for one in fields(vm_retarget.Changes)})
    plan = vm_create.plan(c, document, wishes, changes, params["restore_id"])
    if plan.vm is not None:
        disks = vm_create.disk_map(c, plan.vm, document)
        return {
            "changed": False,
            "vm": _vm(c, plan.vm),
            "plan": None,
            "disks": disks,
            "diff": {"before": {}, "after": {}},
        }
    if nvram is None and document.get("nvram"):
        plan.warnings.append("The NVRAM is not restored: it is only read from beside a config.json given by its path.")
    summary = vm_retarget.summary(plan.target)
    result = {"changed": True, "plan": summary, "warnings": plan.warnings, "diff": {"before": {}, "after": summary}}
    if module.check_mode:
        return {**result, "vm": {"name": params["name"], "moid": None, "instance_uuid": None}, "disks": []}
    vm, warnings = vm_create.create(c, plan, nvram, params["restore_id"], params["timeout"])
    disks = vm_create.disk_map(c, vm, plan.target)
    return {**result, "vm": _vm(c, vm), "disks": disks, "warnings": plan.warnings + warnings}


def finished(module, c):
    """``state=finished``: take the mark off and apply what the virtual machine was and shall be."""
    params = module.params
    vm, props = inventory.find_vm(c, **vm_selection(params), properties=vm_unfinished.STATE)
    steps = vm_unfinished.pending(props, params["power_state"])
    if steps and not module.check_mode:
        vm_unfinished.finish(c, vm, steps, params["timeout"])
    return {
        "changed": bool(steps),
        "vm": inventory.vm_dict(vm, props),
        "diff": {"before": {"pending": steps}, "after": {"pending": []}},
    }


def absent(module, c):
    """``state=absent``: delete the virtual machine of an unfinished restore."""
    params = module.params
    try:
        vm, props = inventory.find_vm(c, **vm_selection(params), properties=vm_unfinished.STATE)
    except NotFound:
        record = {"name": params["name"], "moid": params["moid"], "instance_uuid": None}
        return {"changed": False, "vm": record, "diff": {"before": {}, "after": {}}}
    vm_unfinished.check_removable(props, params["restore_id"])
    if not module.check_mode:
        vm_unfinished.remove(c, vm)
    record = inventory.vm_dict(vm, props)
    return {"changed": True, "vm": record, "diff": {"before": record, "after": {}}}


def _folder(params, before):
    """The absolute path of the folder in which the virtual machine is made."""
    folder = params["folder"]
    if folder and folder.startswith("/"):
        return folder.rstrip("/")
    datacenter = params["datacenter"] or before.get("datacenter")
    if folder or params["datacenter"]:
        return f"/{(datacenter or '').strip('/')}/vm/{(folder or '').strip('/')}".rstrip("/")
    if not before.get("folder"):
        raise InvalidInput("The configuration does not say which folder the VM was in.", "Give folder.")
    return before["folder"]


def _vm(c, vm):
    return inventory.vm_dict(*inventory.find_vm(c, moid=vm._GetMoId()))


def run(module):
    """Connect, and do what ``state`` says."""
    actions = {"captured": captured, "present": present, "finished": finished, "absent": absent}
    with Connection(endpoint(module.params)) as c:
        return actions[module.params["state"]](module, c)


def main():
    """Entry point."""
    disk_spec = {
        "disk": {"type": "str", "required": True},
        "datastore": {"type": "str"},
        "provisioning": {"type": "str", "choices": PROVISIONING},
        "create": {"type": "bool"},
    }
    run_module(
        run,
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["captured", "present", "finished", "absent"]},
            "path": {"type": "path"},
            "snapshot": {"type": "str"},
            "config": {"type": "raw"},
            "restore_id": {"type": "str"},
            "datastore": {"type": "str"},
            "resource_pool": {"type": "str"},
            "cluster": {"type": "str"},
            "esxi_hostname": {"type": "str"},
            "networks": {"type": "dict", "default": {}},
            "mac_policy": {"type": "str", "choices": ["keep", "generate"], "default": "keep"},
            "identity": {"type": "str", "choices": ["new", "keep"], "default": "new"},
            "tags": {"type": "str", "choices": ["keep", "create", "ignore"], "default": "keep"},
            "storage_policies": {"type": "str", "choices": ["keep", "ignore"], "default": "keep"},
            "storage_policy_map": {"type": "dict", "default": {}},
            "provisioning": {"type": "str", "choices": PROVISIONING},
            "disks": {"type": "list", "elements": "dict", "default": [], "options": disk_spec},
            "power_state": {"type": "str", "choices": ["poweredOn"]},
            "timeout": {"type": "int", "default": 3600},
        },
        groups=(VCENTER, VM),
        required_if=[("state", "captured", ("path",)), ("state", "present", ("config", "restore_id", "name"))],
    )


if __name__ == "__main__":
    main()
