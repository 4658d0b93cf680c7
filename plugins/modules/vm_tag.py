#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Attach tags to a virtual machine, or take them off."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_tag
short_description: Attach tags to a virtual machine, or take them off
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Sees to it that a virtual machine has the given tags of vCenter, or has them not. Its other tags are left alone.
  - Such tags choose virtual machines, for example by O(holdfast.backup.vm_snapshot_info#module:tags).
options:
  tags:
    description:
      - Tags as C(category:name), written exactly as vCenter shows them, or their IDs.
    type: list
    elements: str
    required: true
  state:
    description:
      - Whether the virtual machine is to have the tags.
    type: str
    choices: [present, absent]
    default: present
  create:
    description:
      - Whether tags that do not exist are made, and their categories. Else they are an error with O(state=present).
      - A tag that does not exist is on no virtual machine, so that O(state=absent) has nothing to do.
    type: bool
    default: false
  single:
    description:
      - Whether a virtual machine can have only one tag of a category that is made.
    type: bool
    default: false
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.vm
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.login
seealso:
  - module: holdfast.backup.vm_snapshot_info
notes:
  - Needs the Automation API of vCenter 7.0 Update 2 or later. A host on its own has no tags.
  - Privileges needed are C(InventoryService.Tagging.AttachTag) on the tags and C(System.Read) on the virtual machine,
    and for O(create=true) C(InventoryService.Tagging.CreateTag) and C(InventoryService.Tagging.CreateCategory).
"""

EXAMPLES = r"""
- name: Mark a virtual machine for the nightly backup
  holdfast.backup.vm_tag:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: web01
    tags: ["backup:nightly"]
    create: true
  delegate_to: localhost

- name: Take the mark off again
  holdfast.backup.vm_tag:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: web01
    tags: ["backup:nightly"]
    state: absent
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
tags:
  description: All tags that the virtual machine has afterwards, sorted.
  returned: success
  type: list
  elements: str
  sample: ["backup:nightly", "tier:production"]
attached:
  description: The tags that were attached.
  returned: success
  type: list
  elements: str
  sample: ["backup:nightly"]
detached:
  description: The tags that were taken off.
  returned: success
  type: list
  elements: str
  sample: []
created:
  description: The tags that were made.
  returned: success
  type: list
  elements: str
  sample: []
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import VCENTER, VM, endpoint, vm_selection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.automation import Automation
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_vm, vm_dict
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.tags import Tags, split


def run(module: AnsibleModule) -> dict[str, Any]:
    """Compare the tags that are there with those that are wanted, and change what differs."""
    params = module.params
    present, wanted = params["state"] == "present", list(dict.fromkeys(params["tags"]))
    with Connection(endpoint(params)) as c:
        vm, properties = find_vm(c, **vm_selection(params))
        moid = vm._GetMoId()
        with Automation(c) as api:
            tags = Tags(api)
            before = {tag.id: str(tag) for tag in tags.attached(moid)}
            ids = tags.find(wanted)
            missing = [called for called, id in ids.items() if id is None] if present else []
            if missing and not params["create"]:
                tags.need(missing)
            changing = [called for called, id in ids.items() if ((id in before) != present) and (id or present)]
            if not module.check_mode:
                ids.update({called: tags.create(*split(called), params["single"]) for called in missing})
                (tags.attach if present else tags.detach)(moid, [str(ids[called]) for called in changing])
            names = [called if called in missing else str(tags.named(str(ids[called]))) for called in changing]
    after = sorted({*before.values(), *names} if present else {*before.values()} - {*names})
    return {
        "changed": bool(changing),
        "vm": vm_dict(vm, properties),
        "tags": after,
        "attached": names if present else [],
        "detached": [] if present else names,
        "created": missing,
        "diff": {"before": {"tags": sorted(before.values())}, "after": {"tags": after}},
    }


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "tags": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "create": {"type": "bool", "default": False},
            "single": {"type": "bool", "default": False},
        },
        groups=(VCENTER, VM),
    )


if __name__ == "__main__":
    main()
