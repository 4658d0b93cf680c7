#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Find out which areas of disks changed, and see to it that changes are tracked."""

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_changed_areas
short_description: Find out which areas of disks changed
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - With O(snapshot), asks vSphere for the areas of each disk that changed between an earlier change ID and the
    snapshot, and decides per disk whether it can be copied incrementally. Any doubt ends in a full copy of that one
    disk, with a reason.
  - Without O(snapshot), reports whether changes are tracked, and with O(tracking=enabled) sees to it.
  - Change tracking (CBT) starts when the virtual machine is stunned for a moment. The module makes a snapshot for
    that and removes it at once. With O(tracking=reset) it does so twice.
  - With O(fcd_id) or O(fcd_name), does the same for a first class disk, whose tracking is a control flag.
options:
  snapshot:
    description:
      - Managed object ID of the snapshot that is going to be copied, for example V(snapshot-12), as
        M(holdfast.backup.vm_snapshot) returns it. Of a first class disk, the ID of its snapshot.
    type: str
  since:
    description:
      - What is known of each disk from the earlier backup. Items of RV(holdfast.backup.restore_point#module:since) are
        taken as they are.
      - An item written by hand needs C(disk) (key, label or backing UUID) and C(change_id). The change ID V(*) asks for
        all areas in use; VMware deprecated it.
      - With C(snapshot_time), the tasks that vCenter remembers are asked whether the virtual machine was reverted to a
        snapshot since then. Its disks are copied in full if so.
      - A disk without an item is copied in full.
      - Needs O(snapshot).
    type: list
    elements: dict
  disks:
    description:
      - Keys, labels or backing UUIDs of the disks to look at. All disks that a snapshot protects if it is not set.
    type: list
    elements: raw
  tracking:
    description:
      - With V(enabled), switches change tracking on, for the virtual machine and each of its disks or for the first
        class disk, and makes it active.
      - With V(reset), starts it anew, for O(disks) or for all, because its answers were wrong. It is switched off and
        on, and all change IDs from before are void. It is done each time that it is asked for.
      - Neither is done while there are snapshots, because its answers would be wrong. RV(tracking.reason) says so.
      - Only without O(snapshot).
    type: str
    choices: [enabled, reset, unchanged]
    default: unchanged
  areas_dir:
    description:
      - Directory in which an areas file is written for each disk that need not be read as a whole, for
        M(holdfast.backup.vddk_copy). It is made if it does not exist.
      - Needs O(snapshot).
    type: path
  return_areas:
    description:
      - Whether to return the areas themselves, if a disk has at most 1000 of them.
    type: bool
    default: false
  api:
    description:
      - Which API is asked for changed areas.
      - V(vi_json) needs vCenter 8.0 Update 1 or later and logs in once more. It cannot be used with
        O(fcd_api=vslm).
      - V(auto) is V(soap).
    type: str
    choices: [auto, soap, vi_json]
    default: auto
  timeout:
    description:
      - Seconds that switching tracking on may take, for each of its tasks in vSphere.
    type: int
    default: 600
extends_documentation_fragment:
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.login
  - holdfast.backup.vcenter
  - holdfast.backup.vm
  - holdfast.backup.fcd_disk
notes:
  - Needs the privilege C(VirtualMachine.Provisioning.DiskRandomRead) for the query, and for O(tracking=enabled)
    and O(tracking=reset) C(VirtualMachine.Config.ChangeTracking), C(VirtualMachine.State.CreateSnapshot) and
    C(VirtualMachine.State.RemoveSnapshot). For a first class disk C(Datastore.FileManagement) on its datastore is
    needed instead.
seealso:
  - module: holdfast.backup.vm_change_tracking
  - module: holdfast.backup.vm_snapshot
  - module: holdfast.backup.vddk_copy
  - module: holdfast.backup.restore_point
"""

EXAMPLES = r"""
- name: See to it that the changes of a VM are tracked
  holdfast.backup.disk_changed_areas:
    name: web01
    tracking: enabled

- name: Start the tracking of one disk anew, because it missed changes
  holdfast.backup.disk_changed_areas:
    name: web01
    tracking: reset
    disks: [Hard disk 1]

- name: What changed since the last restore point
  holdfast.backup.disk_changed_areas:
    name: web01
    snapshot: "{{ snapshot.snapshot.moid }}"
    since: "{{ started.since }}"
    areas_dir: "{{ started.restore_point.path }}"
  register: areas

- name: What changed on a first class disk
  holdfast.backup.disk_changed_areas:
    fcd_id: 1ec1b4a8-2a5f-4dcd-a3f9-3d1e0c7f5b11
    snapshot: "{{ snapshot.snapshot.id }}"
    since: "{{ started.since }}"
    areas_dir: "{{ started.restore_point.path }}"

- name: What changed on one disk since a change ID, by VI JSON
  holdfast.backup.disk_changed_areas:
    name: web01
    snapshot: snapshot-12
    since:
      - disk: Hard disk 1
        change_id: 52 d1 5e 7a 31 0f 9c 4e-8b 21 07 6d 3a 55 c0 f4/7
    disks: [Hard disk 1]
    return_areas: true
    api: vi_json
"""

RETURN = r"""
fcd:
  description: The first class disk.
  returned: success, with O(fcd_id) or O(fcd_name)
  type: dict
  sample: {id: 1ec1b4a8-2a5f-4dcd-a3f9-3d1e0c7f5b11, name: pvc-7d1f, datastore: ds1, datastore_moid: datastore-12}
vm:
  description: The virtual machine.
  returned: success, unless it is about a first class disk
  type: dict
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
tracking:
  description: Whether changes are tracked, after what the module did.
  returned: without O(snapshot)
  type: dict
  contains:
    enabled:
      description: Whether the virtual machine or first class disk has tracking switched on.
      type: bool
    active:
      description: Whether the changes of every protected disk are being recorded.
      type: bool
    reason:
      description: Why tracking is not active although it should be, or what keeps it from being switched on or reset.
      type: str
  sample: {enabled: true, active: true, reason: null}
snapshot:
  description: The snapshot as it was given.
  returned: with O(snapshot)
  type: str
  sample: snapshot-12
requests:
  description: How many queries for changed areas were sent.
  returned: with O(snapshot)
  type: int
  sample: 2
vcenter:
  description: The UUID of the vCenter itself; V(null) of a host on its own.
  returned: success
  type: str
  sample: 7f3c1d0e-5a1b-4a8e-9c39-0d2b6a0c7e41
disks:
  description:
    - Without O(snapshot) all disks of the virtual machine, else those that were asked for, as they are in the snapshot.
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
    capacity:
      description: Size in bytes.
      type: int
    path:
      description: Datastore path.
      type: str
    change_id:
      description: The change ID to remember for the next incremental copy.
      type: str
    controller:
      description: Controller and slot; null of a first class disk.
      type: str
    mode:
      description: Disk mode.
      type: str
    backing:
      description: Kind of the backing; V(fcd) of a first class disk that was asked for as such.
      type: str
    thin:
      description: Whether it is thinly provisioned.
      type: bool
    sharing:
      description: How it is shared with other virtual machines.
      type: str
    protected:
      description: Whether a snapshot holds its content.
      type: bool
    reason:
      description: Without O(snapshot) why the disk is not protected, else why it must be copied in full.
      type: str
    fcd_id:
      description: ID of a first class disk, also of one that is attached to the virtual machine; else null.
      type: str
    tracked:
      description: Whether its changes are being recorded.
      returned: without O(snapshot)
      type: bool
    reset:
      description: Whether its tracking was started anew. In check mode its new change ID is not known and V(null).
      returned: without O(snapshot)
      type: bool
    kind:
      description: How to copy it, V(full) or V(incremental).
      returned: with O(snapshot)
      type: str
    since:
      description: The change ID from which on the areas are counted.
      returned: with O(snapshot)
      type: str
    areas:
      description: How many areas there are to copy; null for the whole disk.
      returned: with O(snapshot)
      type: int
    changed_bytes:
      description: Their size in bytes; null for the whole disk.
      returned: with O(snapshot)
      type: int
    areas_file:
      description: The file that lists them, if O(areas_dir) was given.
      returned: with O(snapshot)
      type: str
    changed_areas:
      description:
        - The areas as pairs of start and length in bytes; null if there are more than 1000 or the whole disk is meant.
      returned: with O(snapshot) and O(return_areas=true)
      type: list
      elements: list
    parent:
      description: The image that an incremental copy is laid over, from O(since).
      returned: with O(snapshot)
      type: str
    parent_id:
      description: The restore point of that image, from O(since).
      returned: with O(snapshot)
      type: str
  sample:
    - key: 2000
      label: Hard disk 1
      backing_uuid: 6000C295-3b0e-6b1a-0d3f-93bd6ee1ba1b
      capacity: 17179869184
      kind: incremental
      reason: null
      since: 52 d1 5e 7a 31 0f 9c 4e-8b 21 07 6d 3a 55 c0 f4/7
      areas: 12
      changed_bytes: 2621440
      areas_file: /backup/5005b2a9-4b52-3d41-62f8-1cd9f5c9a0b1/20261120T020000Z.partial/disk-2000.areas.json
"""

import errno
import itertools
import os
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils import _options
from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    InvalidInput,
    NoSpace,
    NotSupported,
)
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas as arithmetic
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import changed_areas
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disk_owners import Owner, open_owner
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.disks import Disk, pick

MOST_RETURNED = 1000  # areas of one disk in the result
Content = tuple[int, list[arithmetic.Area]]  # of an areas file: the disk's capacity and the areas


def run(module: AnsibleModule) -> dict[str, Any]:
    if module.params["snapshot"] and module.params["tracking"] != "unchanged":
        raise InvalidInput(
            "Change tracking cannot be switched while the snapshot exists.",
            "Run the module without snapshot first, before the snapshot is made.",
        )
    params = module.params
    with Connection(_options.endpoint(params)) as c:
        owner = open_owner(c, _options.vm_selection(params), _options.fcd_selection(params, "fcd_"), params["fcd_api"])
        result = _query(module, owner) if params["snapshot"] else _track(module, owner)
        return {**result, "vcenter": c.vcenter}


def _track(module: AnsibleModule, owner: Owner) -> dict[str, Any]:
    """Report on change tracking, after switching it on or starting it anew if asked."""
    wanted, selectors, timeout = (module.params[name] for name in ("tracking", "disks", "timeout"))
    if wanted == "reset":
        found = owner.reset_tracking(partial(_wanted, selectors=selectors), timeout, module.check_mode)
    else:
        found = owner.track(wanted == "enabled", timeout, module.check_mode)
    if found.refused:
        module.warn(f"{owner.name}: change tracking did not begin anew: {found.refused}.")
    elif wanted != "unchanged" and not found.after.active:
        module.warn(f"{owner.name}: disks will be copied in full: {found.after.reason}.")
    disks = _picked(found.disks, selectors)
    before, after = found.before.as_dict(), found.after.as_dict()
    if found.refused:
        after["reason"] = found.refused
    diff = {"before": before, "after": after}
    if wanted == "reset":
        restarted = [disk.label for disk in disks if disk.key in found.reset]
        diff = {"before": {**before, "reset": []}, "after": {**after, "reset": restarted}}
    return {
        "changed": found.changed,
        owner.kind: owner.identity,
        "tracking": after,
        "disks": [
            {**disk.as_dict(), "tracked": found.after.tracks(disk), "reset": disk.key in found.reset} for disk in disks
        ],
        "diff": diff,
    }


def _query(module: AnsibleModule, owner: Owner) -> dict[str, Any]:
    """Decide per disk what has to be copied."""
    snapshot = module.params["snapshot"]
    in_snapshot, host = owner.in_snapshot(snapshot)
    wanted = _wanted(in_snapshot, module.params["disks"])
    since = changed_areas.match(module.params["since"] or (), in_snapshot)
    reverted = _last_revert(module, owner, [since.get(disk.key) for disk in wanted])
    asked = itertools.count()
    results: list[dict[str, Any]] = []
    files: dict[str, Content] = {}
    with owner.asking(snapshot, module.params["api"] == "vi_json") as ask:

        def query(key: int, offset: int, change_id: str) -> changed_areas.Page:
            next(asked)
            return ask(key, offset, change_id)

        for disk in wanted:
            record = since.get(disk.key)
            decision = changed_areas.decide(disk, record, query, arithmetic.normalise, host, reverted)
            if decision.warning:
                module.warn(decision.warning)
            path = None
            if module.params["areas_dir"] and decision.areas is not None:
                path = os.path.join(module.params["areas_dir"], f"disk-{disk.key}.areas.json")
                files[path] = (disk.capacity, decision.areas)
            results.append(_result(disk, record, decision, path, module.params["return_areas"]))
    changed, diff = _write(files, module.check_mode)
    return {
        "changed": changed,
        owner.kind: owner.identity,
        "snapshot": snapshot,
        "disks": results,
        "requests": next(asked),
        "diff": diff,
    }


def _last_revert(module: AnsibleModule, owner: Owner, records: list[changed_areas.Since | None]) -> datetime | None:
    """When the VM was last reverted to a snapshot, asked only if it can matter."""
    moments = [record.snapshot_time for record in records if record and record.change_id and record.snapshot_time]
    try:
        return owner.reverted(min(moments)) if moments else None
    except BackupError as error:
        # The change IDs tell of reverts too, on all hosts of today; who cannot read tasks need not copy in full.
        module.warn(f"Only change IDs tell whether the virtual machine was reverted: {error.message}")
        return None


def _picked(disks: list[Disk], selectors: list[Any] | None) -> list[Disk]:
    if selectors is None:
        return disks
    return list(dict.fromkeys(pick(disks, selector) for selector in selectors))


def _wanted(disks: list[Disk], selectors: list[Any] | None) -> list[Disk]:
    """The disks to decide on: those chosen, which must be protected, or all that are."""
    if selectors is None:
        return [disk for disk in disks if disk.protected]
    chosen = _picked(disks, selectors)
    for disk in chosen:
        if not disk.protected:
            raise NotSupported(f"{disk.label} is in no snapshot: {disk.reason}.", "Leave it out of disks.")
    return chosen


def _result(
    disk: Disk,
    record: changed_areas.Since | None,
    decision: changed_areas.Decision,
    path: str | None,
    with_areas: bool,
) -> dict[str, Any]:
    incremental = record if record and decision.kind == "incremental" else changed_areas.Since()
    areas = decision.areas
    result = {
        **disk.as_dict(),
        "kind": decision.kind,
        "reason": decision.reason,
        "since": incremental.change_id,
        "areas": None if areas is None else len(areas),
        "changed_bytes": None if areas is None else arithmetic.total(areas),
        "areas_file": path,
        "parent": incremental.parent,
        "parent_id": incremental.parent_id,
    }
    if with_areas:
        result["changed_areas"] = areas if areas is not None and len(areas) <= MOST_RETURNED else None
    return result


def _write(files: dict[str, Content], check_mode: bool) -> tuple[bool, dict[str, Any]]:
    """Write the areas files that differ from what is there; returns whether any does, and the diff."""
    old = {path: _read(path) for path in files}
    for path, content in files.items():
        if old[path] != content and not check_mode:
            _write_file(path, content)
    return old != files, {"before": _summary(old), "after": _summary(files)}


def _write_file(path: str, content: Content) -> None:
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        arithmetic.write_file(path, *content)
    except OSError as error:
        kind = NoSpace if error.errno == errno.ENOSPC else InvalidInput
        raise kind(f"The areas file {path} cannot be written: {error.strerror}.", "See to areas_dir.") from error


def _read(path: str) -> Content | None:
    try:
        return arithmetic.read_file(path)
    except InvalidInput:
        return None


def _summary(files: Mapping[str, Content | None]) -> dict[str, Any]:
    return {
        path: content and {"areas": len(content[1]), "bytes": arithmetic.total(content[1])}
        for path, content in files.items()
    }


def main() -> None:
    run_module(
        run,
        argument_spec={
            "snapshot": {"type": "str"},
            "since": {"type": "list", "elements": "dict"},
            "disks": {"type": "list", "elements": "raw"},
            "tracking": {"type": "str", "choices": ["enabled", "reset", "unchanged"], "default": "unchanged"},
            "areas_dir": {"type": "path"},
            "return_areas": {"type": "bool", "default": False},
            "api": {"type": "str", "choices": ["auto", "soap", "vi_json"], "default": "auto"},
            "timeout": {"type": "int", "default": 600},
        },
        groups=(_options.VCENTER, _options.optional(_options.VM), _options.FCD_DISK),
        required_by={"since": ["snapshot"], "areas_dir": ["snapshot"]},
    )


if __name__ == "__main__":
    main()
