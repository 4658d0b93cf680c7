#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Switch the change tracking of a virtual machine's disks on or off, or start it anew."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_change_tracking
short_description: Switch change tracking of a virtual machine's disks
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Sees to it that the changes of a virtual machine's disks are tracked (Changed Block Tracking, CBT), that they are
    not, or that their tracking starts anew.
  - The setting alone changes nothing before the virtual machine is stunned for a moment. The module makes a snapshot
    for that and removes it at once, also of a virtual machine that is powered off. If a run is killed in between, the
    next one removes it. What the module reports is what vSphere shows afterwards.
  - Tasks that work on the virtual machine are let end before anything is changed.
  - To see to it as a part of a backup, where what cannot be tracked is copied in full and is no error, use
    O(holdfast.backup.disk_changed_areas#module:tracking).
options:
  state:
    description:
      - V(enabled) has the changes tracked. Disks that a setting of their own leaves out are taken in, disks that were
        added later get the stun that they wait for.
      - V(disabled) has them not tracked. All change IDs from before are void, so that the next backup of these disks,
        by whatever product, is a full one, and so is each one after it. vSphere deletes the tracking files
        (C(-ctk.vmdk)) itself; those of a snapshot go with the snapshot.
      - V(reset) switches tracking off and on again, because its answers were wrong. All change IDs from before are
        void. It is done each time that it is asked for.
    type: str
    choices: [enabled, disabled, reset]
    default: enabled
  disks:
    description:
      - Keys, labels or backing UUIDs of the disks that are meant. The others keep the state that they have.
      - All disks that can be tracked if it is not set, and with them the setting of the virtual machine, which new
        disks take. Independent disks, raw devices in physical compatibility mode and others that no snapshot holds
        are then left as they are, with RV(disks[].reason). Only one that is named here is an error.
    type: list
    elements: raw
  foreign_snapshots:
    description:
      - What to do if there are snapshots while something would have to be changed.
      - V(fail) changes nothing and fails. Tracking that begins above snapshots does not know what is in use below
        them, so that products which ask for the areas in use (change ID V(*)) may miss data.
      - V(allow) goes on, with a warning. The snapshots stay as they are.
      - Snapshots that a killed run of this module left are removed in any case.
    type: str
    choices: [fail, allow]
    default: fail
  timeout:
    description:
      - Seconds that each task of vSphere may take, those of others that are waited for included.
    type: int
    default: 600
extends_documentation_fragment:
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.login
  - holdfast.backup.vcenter
  - holdfast.backup.vm
notes:
  - Privileges needed are C(VirtualMachine.Config.ChangeTracking), C(VirtualMachine.State.CreateSnapshot) and
    C(VirtualMachine.State.RemoveSnapshot), for O(disks) also C(VirtualMachine.Config.AdvancedConfig), and
    C(System.View) and C(System.Read) on the way to the virtual machine.
  - A first class disk that is attached to the virtual machine can also be tracked by a control flag of its own, which
    M(holdfast.backup.fcd) sets. It stays tracked then, and RV(disks[].reason) says so.
seealso:
  - module: holdfast.backup.disk_changed_areas
  - module: holdfast.backup.fcd
"""

EXAMPLES = r"""
- name: See to it that the changes of all disks are tracked
  holdfast.backup.vm_change_tracking:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: web01
  delegate_to: localhost

- name: Leave out the disk with the swap space
  holdfast.backup.vm_change_tracking:
    moid: vm-42
    state: disabled
    disks: [Hard disk 2]
  delegate_to: localhost

- name: Start tracking anew after a change was missed, whoever has snapshots
  holdfast.backup.vm_change_tracking:
    moid: vm-42
    state: reset
    foreign_snapshots: allow
  delegate_to: localhost
"""

RETURN = r"""
vm:
  description: The virtual machine.
  returned: success
  type: dict
  sample: {name: web01, moid: vm-42, instance_uuid: 5005b2a9-4b52-3d41-62f8-1cd9f5c9a0b1}
enabled:
  description: Whether the virtual machine itself has tracking switched on. Without it no disk is tracked.
  returned: success
  type: bool
  sample: true
stunned:
  description: Whether the virtual machine was stunned, or would be in check mode.
  returned: success
  type: bool
  sample: true
disks:
  description: All disks of the virtual machine, after what the module did.
  returned: success
  type: list
  elements: dict
  contains:
    key:
      description: Device key.
      type: int
    label:
      description: Label, as the user interface shows it.
      type: str
    backing_uuid:
      description: UUID of the backing, the identity of the disk.
      type: str
    tracked:
      description: Whether its changes are being recorded.
      type: bool
    change_id:
      description:
        - Its change ID at present; V(null) if it is not tracked. In check mode that of a disk whose tracking begins is
          not known and V(null).
      type: str
    reason:
      description: Why it is not tracked, or what to know of one that is.
      type: str
  sample:
    - key: 2000
      label: Hard disk 1
      backing_uuid: 6000C295-3b0e-6b1a-0d3f-93bd6ee1ba1b
      tracked: true
      change_id: 52 d1 5e 7a 31 0f 9c 4e-8b 21 07 6d 3a 55 c0 f4/7
      reason: null
    - key: 2001
      label: Hard disk 2
      backing_uuid: 6000C29f-1c7d-0a52-9d3e-5b1f0a6b7c88
      tracked: false
      change_id: null
      reason: "independent disk (mode independent_persistent): snapshots leave it out"
"""

from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils import _options
from ansible_collections.holdfast.backup.plugins.module_utils._errors import NotSupported, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import change_tracking, fcd_tracking
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.change_tracking import Plan, Tracking
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.change_tracking_tasks import bring_about
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import pick
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_vm, vm_dict


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    with Connection(_options.endpoint(params)) as c:
        vm, properties = find_vm(c, **_options.vm_selection(params), properties=change_tracking.PROPERTIES)
        identity = vm_dict(vm, properties)
        name = identity["name"]

        def planned(seen: Tracking) -> Plan:
            return _plan(c, name, seen, params)

        done = bring_about(c, vm, properties, planned, params["timeout"], dry=module.check_mode)
    if done.refused:
        raise VsphereFault(f"{name}: {done.refused.message}", done.refused.next_step, **done.refused.details)
    before, after = _shown(done.before), _shown(done.after)
    return {
        "vm": identity,
        "changed": done.changed,
        **after,
        "stunned": done.plan.stuns,
        "diff": {"before": before, "after": after},
        "warnings": [*_warnings(name, done.plan), *done.warnings],
    }


def _plan(c: Connection, name: str, seen: Tracking, params: dict[str, Any]) -> Plan:
    """What to do.

    :raises NotSupported: it cannot be done
    """
    state, selectors = params["state"], params["disks"]
    if state != "enabled":
        seen = replace(seen, kept=fcd_tracking.kept_on(c, seen.disks))
    meant = None if selectors is None else [pick(seen.disks, selector) for selector in selectors]
    for disk in meant or ():
        if not disk.protected and state != "disabled":
            raise NotSupported(f"{name}: {disk.label} cannot be tracked: {disk.reason}.", "Leave it out of disks.")
        if disk.key in seen.kept:
            raise NotSupported(
                f"{name}: {disk.label} is a first class disk ({disk.fcd_id}) that its own control flag tracks.",
                "Change the flag by fcd, or reset it by disk_changed_areas with fcd_id.",
            )
    allowed = params["foreign_snapshots"] == "allow"
    plan = change_tracking.plan(seen, state, None if meant is None else [disk.key for disk in meant], above=allowed)
    if plan.steps and plan.blocked:
        hint = "Remove them, or set foreign_snapshots to allow." if not seen.obstacle else "Nothing was changed."
        raise NotSupported(f"{name}: {plan.blocked}.", hint, foreign_snapshots=list(seen.foreign))
    return plan


def _warnings(name: str, plan: Plan) -> list[str]:
    """What the change costs."""
    void = [disk.label for disk in plan.before.disks if disk.key in plan.lost]
    warnings = []
    if void:
        warnings.append(f"{name}: the change IDs of {', '.join(void)} are void: their next backups are full copies.")
    if plan.steps and plan.state != "disabled" and plan.before.foreign:
        warnings.append(
            f"{name}: tracking begins above {', '.join(plan.before.foreign)}: "
            "what is in use below is not known to products that ask for the areas in use."
        )
    return warnings


def _shown(seen: Tracking) -> dict[str, Any]:
    return {
        "enabled": seen.enabled,
        "disks": [
            {
                "key": disk.key,
                "label": disk.label,
                "backing_uuid": disk.backing_uuid,
                "tracked": seen.tracks(disk),
                "change_id": disk.change_id,
                "reason": seen.why_not(disk),
            }
            for disk in seen.disks
        ],
    }


def main() -> None:
    run_module(
        run,
        argument_spec={
            "state": {"type": "str", "choices": ["enabled", "disabled", "reset"], "default": "enabled"},
            "disks": {"type": "list", "elements": "raw"},
            "foreign_snapshots": {"type": "str", "choices": ["fail", "allow"], "default": "fail"},
            "timeout": {"type": "int", "default": 600},
        },
        groups=(_options.VCENTER, _options.VM),
    )


if __name__ == "__main__":
    main()
