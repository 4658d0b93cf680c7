#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: restore_point
short_description: Start, complete, abort, verify, pin or delete a restore point
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast-backup)
description:
  - A restore point holds one virtual machine or one first class disk at one moment, in a directory of a repository.
  - It is written under another name, checked, and made visible at once by O(state=completed).
    Readers see all of it or nothing.
  - One run at a time writes restore points of a virtual machine or disk. O(state=started) takes the lock,
    O(state=completed) and O(state=aborted) give it back. The lock of a dead run is taken over.
notes:
  - The module runs where the repository is mounted, and needs C(qemu-img) there. Verifying at the O(level) V(restore)
    also needs C(nbdcopy), C(qemu-nbd) and C(nbdkit) with its Python plugin.
  - O(state=verified) is changed when it finds something else than was stored, like another level; a newer
    time alone is no change. In check mode it examines as much, and stores nothing.
extends_documentation_fragment:
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.local
options:
  repository:
    description:
      - The directory of the repository. It must exist, so that a share that is not mounted is noticed.
    type: path
    required: true
  state:
    description:
      - V(started) makes the directory that the run copies into, and says for each disk what an incremental copy
        may stand on. The same O(run) may repeat it, which renews its lock.
      - V(completed) checks what was copied, records it and makes it visible.
      - V(aborted) removes what the run has written, and nothing else.
      - V(verified) examines a complete restore point with all that it stands on, at the O(level) asked for, and stores
        what was found. It fails when anything is damaged. Needs no lock.
      - V(pinned) keeps a complete restore point from being deleted, by retention and by V(absent), until V(unpinned)
        takes that back.
      - V(absent) deletes a complete restore point that no other one needs and that is not pinned.
    type: str
    choices: [started, completed, aborted, verified, pinned, unpinned, absent]
    default: started
  id:
    description:
      - The restore point, as returned by O(state=started) and M(holdfast.backup.restore_point_info).
      - Required by all states but V(started).
    type: str
  run:
    description:
      - The run that owns the restore point while it is written. Unique, a new one for each backup.
      - Made up by O(state=started) when missing; required by O(state=completed) and O(state=aborted).
    type: str
  vm:
    description:
      - The virtual machine as other modules return it. C(instance_uuid) is required, C(name) and C(moid) are recorded.
      - Either this or O(fcd) is required by O(state=started) and O(state=completed).
    type: dict
  fcd:
    description:
      - The first class disk as other modules return it. C(id) is required, C(name) and C(datastore) are recorded.
    type: dict
  disks:
    description:
      - For O(state=started) the disks of the virtual machine, or the first class disk, as
        M(holdfast.backup.disk_changed_areas) returns them. Those with C(protected=false) are left out.
      - For O(state=completed) the disks that M(holdfast.backup.vddk_copy) returns.
      - Required by these two states.
    type: list
    elements: dict
  mode:
    description:
      - With V(full) every disk is to be copied in full.
      - V(auto) and V(incremental) do the same here. What to do about a disk that needs a full copy is for the playbook
        to decide.
    type: str
    choices: [auto, full, incremental]
    default: auto
  max_chain:
    description: The most images that may stand on each other. A disk whose chain is as long gets a full copy.
    type: int
    default: 20
  create:
    description: Whether to make a repository of an empty directory.
    type: bool
    default: true
  min_free:
    description: Refuse to start when fewer bytes than this are free in the repository, like V(50G).
    type: bytes
    default: "0"
  lock_timeout:
    description: Seconds to wait for another run that is writing restore points of the same virtual machine or disk.
    type: int
    default: 0
  lease:
    description:
      - Seconds without a sign of life after which other machines take this run for dead.
      - Writing a file of the restore point is a sign of life, and so is repeating O(state=started).
    type: int
    default: 1800
  vcenter:
    description:
      - The instance UUID of the vCenter that has the virtual machine or disk, as
        M(holdfast.backup.disk_changed_areas) returns it. O(state=completed) records it.
      - O(state=started) refuses when the newest restore point that tells of one is of another vCenter. The virtual
        machine has moved then, or there are two of the same UUID, which must not share a chain.
    type: str
  moved:
    description:
      - With O(state=started), that the virtual machine or disk has moved here from the vCenter of its restore points.
        All its disks are to be copied in full then.
    type: bool
    default: false
  consistency:
    description: How consistent the snapshot is that the disks were copied from.
    type: str
    choices: [application, filesystem, crash]
    default: crash
  snapshot_time:
    description: The time when the snapshot was taken, in ISO 8601. This is the moment that the restore point shows.
    type: str
  unprotected:
    description:
      - What the restore point does not hold. Each has a C(reason), and C(label), C(key) and C(backing_uuid)
        as far as there are.
    type: list
    elements: dict
    default: []
  warnings:
    description: Warnings of the run to record.
    type: list
    elements: str
    default: []
  level:
    description:
      - How O(state=verified) examines.
      - V(structure) sees that all files of the chain are there and have their sizes, that every image stands on the
        right one, and runs C(qemu-img check).
      - V(content) compares the hash of every file with the recorded one, so it finds every flipped bit.
      - V(restore) also reads every disk through its chain as a restore would, and compares what it holds with
        the hash of the first time. This finds what went wrong in a merge, or in QEMU.
    type: str
    choices: [structure, content, restore]
    default: content
  reason:
    description:
      - With O(state=pinned), why the restore point is kept. Without it, a pin that is there keeps its reason.
    type: str
  force:
    description:
      - With O(state=absent), delete also the last restore point of a virtual machine or disk, and one that a damaged
        one may need. A pinned one is not deleted, also not with this.
    type: bool
    default: false
  progress_dir:
    description:
      - With O(state=verified), a directory on the proxy in which the progress is written and a sign of life is looked
        for.
      - Not to be set in a playbook.
    type: path
seealso:
  - module: holdfast.backup.restore_point_info
  - module: holdfast.backup.vddk_copy
"""

EXAMPLES = r"""
- name: Start a restore point
  holdfast.backup.restore_point:
    repository: /backup
    state: started
    vm: "{{ examined.vm }}"
    disks: "{{ examined.disks }}"
    min_free: 50G
  register: started

- name: Start the first one after the virtual machine has moved to another vCenter
  holdfast.backup.restore_point:
    repository: /backup
    state: started
    vm: "{{ examined.vm }}"
    disks: "{{ examined.disks }}"
    vcenter: "{{ examined.vcenter }}"
    moved: true

- name: Complete it after the copy
  holdfast.backup.restore_point:
    repository: /backup
    state: completed
    id: "{{ started.restore_point.id }}"
    run: "{{ started.restore_point.run }}"
    vm: "{{ examined.vm }}"
    disks: "{{ copied.disks }}"
    consistency: "{{ snapshot.snapshot.consistency }}"
    snapshot_time: "{{ snapshot.snapshot.creation_time }}"

- name: Give it up when the copy failed
  holdfast.backup.restore_point:
    repository: /backup
    state: aborted
    id: "{{ started.restore_point.id }}"
    run: "{{ started.restore_point.run }}"

- name: Keep the restore point from before an upgrade, whatever retention says
  holdfast.backup.restore_point:
    repository: /backup
    state: pinned
    id: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
    reason: before the upgrade to release 5

- name: Prove a restore point, and remember that
  holdfast.backup.restore_point:
    repository: /backup
    state: verified
    id: "{{ done.restore_point.id }}"
    level: content

- name: Delete a restore point
  holdfast.backup.restore_point:
    repository: /backup
    state: absent
    id: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
"""

RETURN = r"""
vm:
  description:
    - The virtual machine, or null. Name and moid are null where nothing tells them.
    - What nothing else is known of is taken for a virtual machine.
  returned: success
  type: dict
  sample: {name: web01, moid: vm-42, instance_uuid: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11}
fcd:
  description: The first class disk, or null. Name and datastore are null where nothing tells them.
  returned: success
  type: dict
  sample: {id: 1ec1b4a8-2a5f-4dcd-a3f9-3d1e0c7f5b11, name: pvc-7d1f, datastore: datastore1}
restore_point:
  description: The restore point.
  returned: success
  type: dict
  contains:
    id:
      description: Instance UUID of the virtual machine, or ID of the first class disk, and UTC time. Sorts by time.
      type: str
      sample: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
    path:
      description: Its directory. With O(state=started) the one to copy into.
      type: str
      sample: /backup/5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z.partial
    run:
      description: The run that made or makes it. Null where nothing tells it.
      type: str
      sample: 8d0f4b6a2c9e4f7f9b1d5e3a7c6b8a90
    state:
      description: The state asked for.
      type: str
      sample: started
    time:
      description: The time in the ID, in ISO 8601.
      type: str
      sample: "2026-11-20T02:15:00Z"
    size:
      description: Bytes of its files. Null until it is complete.
      type: int
      sample: 1073741824
    disks:
      description: The disks as recorded. Empty until it is complete.
      type: list
      elements: dict
    warnings:
      description: The warnings as recorded.
      type: list
      elements: str
    pinned:
      description: When and why it was pinned, or null. Both are null where its pin cannot be read.
      type: dict
      sample: {time: "2026-11-20T08:00:00Z", reason: before the upgrade to release 5}
    verification:
      description:
        - What is stored of verifications, after O(state=verified). Null in other states, and as
          RV(holdfast.backup.restore_point_info#module:restore_points[].verification).
      type: dict
      sample: {level: content, time: "2026-11-21T04:00:00Z", ok: true, problems: []}
    verified:
      description: The outcome of O(state=verified). Null in other states.
      type: dict
      contains:
        level:
          description: The level asked for.
          type: str
          sample: content
        ok:
          description: Whether nothing wrong was found.
          type: bool
          sample: true
        problems:
          description:
            - What is wrong, as RV(holdfast.backup.restore_point_info#module:restore_points[].verified.problems).
          type: list
          elements: dict
        files:
          description: The files examined.
          type: int
          sample: 6
        bytes:
          description: Bytes read of them, and of the disks through their chains.
          type: int
          sample: 21474836480
        seconds:
          description: The time it took.
          type: float
          sample: 17.402
        rate:
          description: Bytes per second.
          type: int
          sample: 1234046681
damage:
  description:
    - Returned also when O(state=verified) fails, which it does when there is any.
    - All damage that is known of the virtual machine or first class disk, with what is lost and what can still be
      restored, as RV(holdfast.backup.repository_verification#module:damage).
  returned: success or damage
  type: list
  elements: dict
since:
  description: For each disk, what an incremental copy may stand on. Empty in other states than V(started).
  returned: success
  type: list
  elements: dict
  contains:
    backing_uuid:
      description: The identity of the disk.
      type: str
      sample: 6000C295-90ab-4d8e-9a7c-3c1f7c8b9d10
    key:
      description: The key of the disk now.
      type: int
      sample: 2000
    label:
      description: The label of the disk now.
      type: str
      sample: Hard disk 1
    change_id:
      description: The change ID of the earlier restore point. Null when a full copy is needed.
      type: str
      sample: "52 e1 7a 9c/3"
    capacity:
      description: Bytes that the disk had then. Null when not known.
      type: int
      sample: 1073741824
    snapshot_time:
      description: When the snapshot of the earlier restore point was made. Null when a full copy is needed.
      type: str
      sample: "2026-11-19T02:15:03Z"
    parent:
      description: The image to stand on. Null when a full copy is needed.
      type: str
      sample: /backup/5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261119T021500Z/disk-2000.qcow2
    parent_id:
      description: The restore point of that image. Null when a full copy is needed.
      type: str
      sample: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261119T021500Z
    reason:
      description: Why a full copy is needed. Null when it is not.
      type: str
      sample: chain is 20 long
swept:
  description:
    - What dead runs had left. It was removed, but a merge (C(.merging)) whose images were complete was brought to its
      end.
  returned: success
  type: list
  elements: str
  sample: [20261118T021500Z.partial]
"""

import os
import time
from datetime import datetime, timezone
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import content, images, jobs, requirements
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    checking,
    completing,
    layout,
    manifest,
    pins,
    points,
    removing,
    starting,
    verification,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import PARTIAL
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Fcd, Owner, Point, PointId, Vm
from ansible_collections.holdfast.backup.plugins.module_utils._repository.recording import Content

# What a restore point was before a state was brought about.
_BEFORE = {
    "started": "absent",
    "completed": "started",
    "aborted": "started",
    "verified": "completed",
    "pinned": "unpinned",
    "unpinned": "pinned",
    "absent": "completed",
}
ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "repository": {"type": "path", "required": True},
    "state": {"type": "str", "choices": list(_BEFORE), "default": "started"},
    "id": {"type": "str"},
    "run": {"type": "str"},
    "vm": {"type": "dict"},
    "fcd": {"type": "dict"},
    "disks": {"type": "list", "elements": "dict"},
    "mode": {"type": "str", "choices": ["auto", "full", "incremental"], "default": "auto"},
    "max_chain": {"type": "int", "default": 20},
    "create": {"type": "bool", "default": True},
    "min_free": {"type": "bytes", "default": "0"},
    "lock_timeout": {"type": "int", "default": 0},
    "lease": {"type": "int", "default": 1800},
    "vcenter": {"type": "str"},
    "moved": {"type": "bool", "default": False},
    "consistency": {"type": "str", "choices": list(manifest.CONSISTENCIES), "default": "crash"},
    "snapshot_time": {"type": "str"},
    "unprotected": {"type": "list", "elements": "dict", "default": []},
    "warnings": {"type": "list", "elements": "str", "default": []},
    "level": {"type": "str", "choices": list(verification.LEVELS[1:]), "default": "content"},
    "reason": {"type": "str"},
    "force": {"type": "bool", "default": False},
    "progress_dir": {"type": "path"},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Bring the restore point to the state asked for."""
    if module.params["run"] is not None:
        manifest.check_run(module.params["run"])
    return _STATES[module.params["state"]](module.params, datetime.now(timezone.utc), module.check_mode)


def _owner(params: dict[str, Any]) -> Owner:
    """What the restore point is of, as the task names it."""
    return Vm.from_result(params["vm"]) if params["vm"] is not None else Fcd.from_result(params["fcd"])


def _vcenter(params: dict[str, Any]) -> str | None:
    given = params["vcenter"]
    return None if given is None else manifest.check_uuid(given, "the instance UUID of a vCenter")


def _start(params: dict[str, Any], now: datetime, dry: bool) -> dict[str, Any]:
    owner = _owner(params)
    request = starting.Request(
        object_id=owner.object_id,
        disks=[disk for disk in params["disks"] if disk.get("protected", True)],
        run=params["run"],
        mode=params["mode"],
        max_chain=params["max_chain"],
        create=params["create"],
        min_free=params["min_free"],
        lock_timeout=params["lock_timeout"],
        lease=params["lease"],
        vcenter=_vcenter(params),
        moved=params["moved"],
    )
    started = starting.start(params["repository"], request, now, dry)
    answer = _answer("started", started.changed, owner, started.id, started.path, started.run)
    answer.update(since=[item.as_dict() for item in started.since], swept=started.swept)
    return answer


def _complete(params: dict[str, Any], now: datetime, dry: bool) -> dict[str, Any]:
    owner, point_id = _owner(params), PointId.parse(params["id"])
    if owner.object_id != point_id.object_id:
        raise InvalidInput(f"{point_id} is no restore point of {owner.name}.", "Give the vm or fcd that was started.")
    requirements.check_program("qemu-img")
    taken = None if params["snapshot_time"] is None else manifest.exact_time(params["snapshot_time"])
    copied = Content(
        owner,
        params["disks"],
        params["consistency"],
        taken,
        params["unprotected"],
        params["warnings"],
        _vcenter(params),
    )
    changed, point = completing.complete(params["repository"], point_id, params["run"], copied, images.check, now, dry)
    return _answer("completed", changed, owner, point_id, _path(params, point_id), params["run"], point)


def _abort(params: dict[str, Any], now: datetime, dry: bool) -> dict[str, Any]:
    point_id = PointId.parse(params["id"])
    changed = removing.abort(params["repository"], point_id, params["run"], dry)
    owner = _known_owner(params, point_id)
    return _answer("aborted", changed, owner, point_id, _path(params, point_id) + PARTIAL, params["run"])


def _remove(params: dict[str, Any], now: datetime, dry: bool) -> dict[str, Any]:
    point_id = PointId.parse(params["id"])
    changed, point = removing.remove(
        params["repository"], point_id, params["force"], params["lock_timeout"], params["lease"], dry
    )
    owner = _known_owner(params, point_id) if point is None else point.owner
    made_by = None if point is None else point.run
    return _answer("absent", changed, owner, point_id, _path(params, point_id), made_by, point)


def _pin(params: dict[str, Any], now: datetime, dry: bool) -> dict[str, Any]:
    state, point_id = params["state"], PointId.parse(params["id"])
    before, after = pins.change(
        params["repository"],
        point_id,
        state == "pinned",
        params["reason"],
        now,
        params["lock_timeout"],
        params["lease"],
        dry,
    )
    answer = _of_complete(params, before != after, point_id)
    answer["restore_point"]["pinned"] = after and after.as_dict()
    for key, pin in (("before", before), ("after", after)):
        state = "unpinned" if pin is None else "pinned"
        answer["diff"][key] = {"id": str(point_id), "state": state, "pinned": pin and pin.as_dict()}
    return answer


def _verify(params: dict[str, Any], now: datetime, dry: bool) -> dict[str, Any]:
    point_id, level, begun = PointId.parse(params["id"]), params["level"], time.monotonic()
    if level == verification.RESTORE:
        requirements.check_programs()
    else:
        requirements.check_program("qemu-img")
    repository = layout.open_repository(params["repository"])
    watch = Watch(params["progress_dir"])
    checked = checking.verify(
        repository, point_id, level, images.check, content.content_hash, (watch.check, watch.tell), dry
    )
    report, seconds = checked.report, time.monotonic() - begun
    answer = _of_complete(params, checked.changed, point_id)
    answer["damage"] = checked.damage
    answer["restore_point"]["verification"] = checked.after
    answer["restore_point"]["verified"] = {
        **report.verified(),
        "files": len(report.findings),
        "bytes": report.bytes_read,
        **jobs.figures(report.bytes_read, seconds),
    }
    for key, stored in (("before", checked.before), ("after", checked.after)):
        answer["diff"][key] = {"id": str(point_id), "verification": stored}
    if checked.error is not None:
        raise type(checked.error)(checked.error.message, checked.error.next_step, **answer)
    return answer


def _of_complete(params: dict[str, Any], changed: bool, point_id: PointId) -> dict[str, Any]:
    """The answer about a complete restore point, readable or not."""
    entries = points.read_entries(layout.open_repository(params["repository"]), point_id.object_id)
    point = points.readable(entries).get(point_id.time)
    owner = manifest.unnamed(point_id.object_id, points.owner(entries)) if point is None else point.owner
    path, made_by = _path(params, point_id), None if point is None else point.run
    answer = _answer(params["state"], changed, owner, point_id, path, made_by, point)
    pin = pins.read(path)
    answer["restore_point"]["pinned"] = pin and pin.as_dict()
    return answer


def _known_owner(params: dict[str, Any], point_id: PointId) -> Owner:
    """What an ID stands for, as far as the task or other restore points of it tell."""
    if params["vm"] is not None or params["fcd"] is not None:
        like: Owner | None = _owner(params)
    else:
        like = points.owner(points.read_entries(layout.open_repository(params["repository"]), point_id.object_id))
    return manifest.unnamed(point_id.object_id, like)


_STATES = {
    "started": _start,
    "completed": _complete,
    "aborted": _abort,
    "verified": _verify,
    "pinned": _pin,
    "unpinned": _pin,
    "absent": _remove,
}


def _path(params: dict[str, Any], point_id: PointId) -> str:
    return os.path.join(os.path.realpath(params["repository"]), str(point_id))


def _answer(
    state: str,
    changed: bool,
    owner: Owner,
    point_id: PointId,
    path: str,
    run_id: str | None,
    point: Point | None = None,
) -> dict[str, Any]:
    recorded = {} if point is None else point.as_dict()
    return {
        "changed": changed,
        **{kind: one and one.as_dict() for kind, one in manifest.by_kind(owner).items()},
        "restore_point": {
            "id": str(point_id),
            "path": path,
            "run": run_id,
            "state": state,
            "time": manifest.format_time(point_id.moment),
            "size": None if point is None else point.size,
            "disks": recorded.get("disks", []),
            "warnings": recorded.get("warnings", []),
            "pinned": None,
            "verification": None,
            "verified": None,
        },
        "damage": [],
        "since": [],
        "swept": [],
        "diff": {
            "before": {"id": str(point_id), "state": _BEFORE[state] if changed else state},
            "after": {"id": str(point_id), "state": state},
        },
    }


def main() -> None:
    """Entry point."""
    run_module(
        run,
        argument_spec=ARGUMENT_SPEC,
        mutually_exclusive=[("vm", "fcd")],
        required_if=[
            ("state", "started", ("vm", "fcd"), True),
            ("state", "started", ("disks",)),
            ("state", "completed", ("vm", "fcd"), True),
            ("state", "completed", ("id", "run", "disks")),
            ("state", "aborted", ("id", "run")),
            *[("state", state, ("id",)) for state in ("verified", "pinned", "unpinned", "absent")],
        ],
    )


if __name__ == "__main__":
    main()
