#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: restore_point_info
short_description: List and verify restore points
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast-backup)
description:
  - Lists the restore points of a repository, of all virtual machines and first class disks or of one. Restore points of
    virtual machines that hold the first class disk as one of their disks are listed with its own.
  - Verifies them on request, with the images that they stand on. A damaged restore point is listed
    with what is wrong with it.
  - Only complete restore points are seen. Nothing is written, and no lock is taken or waited for.
notes:
  - The module runs where the repository is mounted. Verifying needs C(qemu-img) there.
extends_documentation_fragment:
  - holdfast.backup.attributes
  - holdfast.backup.attributes.reads
  - holdfast.backup.attributes.local
  - holdfast.backup.repository_object
options:
  id:
    description: This restore point; not to be used with an option that names a machine or disk.
    type: str
  as_of:
    description:
      - Of each virtual machine or disk, the newest readable restore point that shows this moment or an earlier one.
      - A time in ISO 8601; UTC when it names no zone.
    type: str
  newest:
    description: Of each virtual machine or disk, the newest readable restore point. Adds nothing to O(id) and O(as_of).
    type: bool
    default: false
  verify:
    description:
      - V(structure) sees that all files of the chain are there and have their sizes, that every image stands on the
        right one, and runs C(qemu-img check).
      - V(content) also compares the hash of every file with the recorded one. It reads each image once.
      - V(none) only reads the manifests.
    type: str
    choices: [none, structure, content]
    default: none
seealso:
  - module: holdfast.backup.restore_point
"""

EXAMPLES = r"""
- name: List everything
  holdfast.backup.restore_point_info:
    repository: /backup

- name: Find the newest restore point of a virtual machine and prove it
  holdfast.backup.restore_point_info:
    repository: /backup
    name: web01
    newest: true
    verify: content

- name: Find the newest restore points that hold a first class disk, its own and those of its virtual machine
  holdfast.backup.restore_point_info:
    repository: /backup
    fcd_id: 1ec1b4a8-2a5f-4dcd-a3f9-3d1e0c7f5b11
    newest: true

- name: Find the state before an accident
  holdfast.backup.restore_point_info:
    repository: /backup
    name: web01
    as_of: "2026-11-20T08:30:00+01:00"
"""

RETURN = r"""
vm:
  description: The virtual machine, when restore points of exactly one are listed; else null.
  returned: success
  type: dict
  sample: {name: web01, moid: vm-42, instance_uuid: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11}
fcd:
  description: The first class disk, when restore points of exactly one are listed; else null.
  returned: success
  type: dict
  sample: {id: 1ec1b4a8-2a5f-4dcd-a3f9-3d1e0c7f5b11, name: pvc-7d1f, datastore: datastore1}
repository:
  description: The repository. Its C(free) is in bytes.
  returned: success
  type: dict
  sample:
    path: /backup
    id: 0b3c5b8e-5f0b-4f5e-9d5c-0c8a2f1f7f10
    version: 1
    created: "2026-11-01T02:15:00Z"
    free: 1099511627776
restore_points:
  description: The restore points by virtual machine or disk and time, oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Instance UUID of the virtual machine, or ID of the first class disk, and UTC time.
      type: str
      sample: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
    run:
      description: The run that made it.
      type: str
      sample: 8d0f4b6a2c9e4f7f9b1d5e3a7c6b8a90
    vm:
      description: The virtual machine as it was called then; null in a restore point of a first class disk.
      type: dict
      sample: {name: web01, moid: vm-42, instance_uuid: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11}
    fcd:
      description: The first class disk as it was called then; null in a restore point of a virtual machine.
      type: dict
    time:
      description: The moment that it shows, in ISO 8601.
      type: str
      sample: "2026-11-20T02:15:00Z"
    started:
      description: When it was started.
      type: str
      sample: "2026-11-20T02:15:00Z"
    completed:
      description: When it was completed.
      type: str
      sample: "2026-11-20T02:31:07Z"
    snapshot_time:
      description: When its snapshot was taken, or null.
      type: str
      sample: "2026-11-20T02:15:04Z"
    consistency:
      description: How consistent the snapshot was.
      type: str
      sample: filesystem
    path:
      description: Its directory.
      type: str
      sample: /backup/5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
    age_seconds:
      description: Seconds since RV(restore_points[].time).
      type: int
      sample: 86400
    size:
      description: Bytes of its own files. Null when its manifest cannot be read.
      type: int
      sample: 1073741824
    disks:
      description:
        - The disks. C(path) is the image; C(parent) is what it stands on.
        - C(fcd_id) is the ID of a disk that was a first class disk, else null.
      type: list
      elements: dict
      sample:
        - key: 2000
          label: Hard disk 1
          backing_uuid: 6000C295-90ab-4d8e-9a7c-3c1f7c8b9d10
          capacity: 1073741824
          change_id: "52 e1 7a 9c/4"
          kind: incremental
          reason:
          parent:
            id: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261119T021500Z
            image: ../20261119T021500Z/disk-2000.qcow2
          image: disk-2000.qcow2
          path: /backup/5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z/disk-2000.qcow2
          size: 10485760
          sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
          transport: nbdssl
          bytes_read: 20971520
          bytes_stored: 10485760
          fcd_id:
    files:
      description: The other files, with size and hash.
      type: list
      elements: dict
    unprotected:
      description: What it does not hold, and why.
      type: list
      elements: dict
    warnings:
      description: The warnings of its run.
      type: list
      elements: str
    vcenter:
      description: The instance UUID of the vCenter that had it, or null.
      type: str
      sample: 0d9f2d4c-5c0e-4a52-9a5e-6a3f1b7c2e10
    collection_version:
      description: The release that made it.
      type: str
      sample: 1.0.0
    chain:
      description: All restore points that it needs, oldest first, itself included.
      type: list
      elements: str
    chain_length:
      description: The most images that stand on each other for one disk.
      type: int
      sample: 2
    broken:
      description: Whether its manifest, or one that it stands on, cannot be read. O(newest) and O(as_of) pass over it.
      type: bool
      sample: false
    pinned:
      description: When and why it was pinned, or null. C(time) is null where its pin cannot be read.
      type: dict
      sample: {time: "2026-11-20T08:00:00Z", reason: before the upgrade to release 5}
    verification:
      description:
        - What verifications have stored of it and all that it stands on. Null when some of that was never verified, and
          nothing is known to be damaged.
        - M(holdfast.backup.restore_point) with O(holdfast.backup.restore_point#module:state=verified) stores it, this
          module does not.
      type: dict
      contains:
        level:
          description: The level that all of it was verified at. V(none) when some of it never was.
          type: str
          sample: content
        time:
          description: When the part of it was verified that was verified longest ago.
          type: str
          sample: "2026-11-21T04:00:00Z"
        ok:
          description: Whether nothing of it is known to be damaged.
          type: bool
          sample: true
        problems:
          description: What is damaged.
          type: list
          elements: dict
          contains:
            restore_point:
              description: The restore point of the file.
              type: str
            file:
              description: Its name.
              type: str
            what:
              description: The problem.
              type: str
    verified:
      description: The outcome of O(verify), which is not stored.
      type: dict
      contains:
        level:
          description: The level asked for.
          type: str
          sample: content
        ok:
          description: Whether nothing wrong was found at that level.
          type: bool
          sample: true
        problems:
          description: What is wrong.
          type: list
          elements: dict
          contains:
            what:
              description: The problem.
              type: str
            image:
              description: The file, or null.
              type: str
            next_step:
              description: What can be done.
              type: str
"""

import os
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import images, requirements
from ansible_collections.holdfast.backup.plugins.module_utils._repository import layout, listing, manifest, pins, points
from ansible_collections.holdfast.backup.plugins.module_utils._repository.listing import Selected, Selection
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Owner, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import Known
from ansible_collections.holdfast.backup.plugins.module_utils._repository.verification import (
    CONTENT,
    NONE,
    STRUCTURE,
    Report,
    Verifier,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository_options import REPOSITORY_OBJECT

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "id": {"type": "str"},
    "as_of": {"type": "str"},
    "newest": {"type": "bool", "default": False},
    "verify": {"type": "str", "choices": [NONE, STRUCTURE, CONTENT], "default": NONE},
}

_KEYS = {"vm": "instance_uuid", "fcd": "id"}
_UNREADABLE: dict[str, Any] = {
    **dict.fromkeys(("run", "started", "completed", "snapshot_time", "consistency", "collection_version", "vcenter")),
    "disks": [],
    "files": [],
    "unprotected": [],
    "warnings": [],
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """List the restore points asked for."""
    params, now = module.params, datetime.now(timezone.utc)
    if params["verify"] != NONE:
        requirements.check_program("qemu-img")
    repository = layout.open_repository(params["repository"])
    verifier = Verifier(repository, params["verify"], images.check)
    selected, passed_over = listing.select(repository, _selection(params))
    for entry in passed_over:
        module.warn(f"Restore point {entry.id} is damaged and passed over: {entry.problem}")
    known = Known(repository)
    # What is deleted while it is looked at is no restore point any more.
    reports = ((one, verifier.examine(one.entries, one.entry)) for one in selected)
    found = [_describe(one, report, known, now) for one, report in reports if report is not None]
    return {
        "changed": False,
        **{kind: _only([item[kind] for item in found if item[kind]], key) for kind, key in _KEYS.items()},
        "repository": repository.as_dict(),
        "restore_points": found,
    }


def _only(owners: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """The last record of the one object that all are about."""
    return owners[-1] if len({one[key] for one in owners}) == 1 else None


def _selection(params: dict[str, Any]) -> Selection:
    return replace(
        Selection.from_options(params),
        id=None if params["id"] is None else PointId.parse(params["id"]),
        as_of=None if params["as_of"] is None else manifest.parse_time(params["as_of"]),
        newest=params["newest"],
    )


def _describe(selected: Selected, report: Report, known: Known, now: datetime) -> dict[str, Any]:
    entry, pin = selected.entry, pins.read(selected.entry.path)
    recorded = _UNREADABLE if entry.point is None else entry.point.as_dict()
    return {
        **recorded,
        "id": str(entry.id),
        **{kind: one and one.as_dict() for kind, one in manifest.by_kind(_owner(selected)).items()},
        "disks": [{**disk, "path": os.path.join(entry.path, disk["image"])} for disk in recorded["disks"]],
        "time": manifest.format_time(entry.moment),
        "path": entry.path,
        "age_seconds": int((now - entry.moment).total_seconds()),
        "chain": report.chain,
        "chain_length": report.chain_length,
        "size": None if entry.point is None else entry.point.size,
        "broken": report.broken,
        "pinned": pin and pin.as_dict(),
        "verification": entry.point and known.verification(points.readable(selected.entries), entry.point),
        "verified": report.verified(),
    }


def _owner(selected: Selected) -> Owner:
    entry = selected.entry
    if entry.point is not None:
        return entry.point.owner
    return manifest.unnamed(entry.id.object_id, points.owner(selected.entries))


def main() -> None:
    """Entry point."""
    run_module(
        run,
        argument_spec=ARGUMENT_SPEC,
        groups=(REPOSITORY_OBJECT,),
        mutually_exclusive=[("id", other) for other in (*REPOSITORY_OBJECT.mutually_exclusive[0], "as_of")],
    )


if __name__ == "__main__":
    main()
