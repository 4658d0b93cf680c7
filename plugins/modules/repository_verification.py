#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: repository_verification
short_description: Verify restore points in batches, those first that were not verified for longest
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast-backup)
description:
  - Verifies the files of restore points, an image that several of them share only once, and stores what it finds beside
    them. M(holdfast.backup.restore_point_info) shows it.
  - For a first class disk, restore points of virtual machines that hold it as one of their disks are verified, too.
  - What was never verified, or not for longest, comes first. With O(max_seconds) or O(max_bytes) a nightly job works
    through a repository of any size, a part each night.
  - Fails at its end when any damage is known, and tells what is lost by it and what can still be restored. The next
    backup of a disk whose images are damaged is full by itself.
  - Takes no lock, and waits for none. What is merged or deleted meanwhile is not called damaged.
notes:
  - The module runs where the repository is mounted, and needs C(qemu-img) there. The O(level) V(restore) also needs
    C(nbdcopy), C(qemu-nbd) and C(nbdkit) with its Python plugin.
  - In check mode nothing is examined. It says what is due, and which damage is known.
  - It has changed something when it finds something else than was stored. A newer time alone is no change.
extends_documentation_fragment:
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.local
  - holdfast.backup.repository_object
options:
  level:
    description:
      - V(structure) sees that all files are there and have their sizes, that every image stands on the right one, and
        runs C(qemu-img check).
      - V(content) compares the hash of every file with the recorded one, so it finds every flipped bit.
      - V(restore) also reads every disk of every restore point through its chain as a restore would, and compares what
        it holds with the hash of the first time.
    type: str
    choices: [structure, content, restore]
    default: content
  max_seconds:
    description:
      - Stop after this time. A file that is not finished then is begun again by the next run. V(0) is no limit.
    type: int
    default: 0
  max_bytes:
    description:
      - Begin no file that would make it more bytes than this, like V(500G), but one file at least. V(0) is no limit.
    type: bytes
    default: "0"
  min_age:
    description:
      - Leave out what was verified at this O(level), or a higher one, within this time, like V(30d) or V(36h).
    type: str
  fail_on_damage:
    description: Whether to fail when any damage is known of what was asked for.
    type: bool
    default: true
  progress_dir:
    description:
      - Directory on the proxy in which the progress is written and a sign of life is looked for.
      - Not to be set in a playbook.
    type: path
seealso:
  - module: holdfast.backup.restore_point
  - module: holdfast.backup.restore_point_info
  - module: holdfast.backup.repository_retention
"""

EXAMPLES = r"""
- name: Verify two hours each night, everything once a month
  holdfast.backup.repository_verification:
    repository: /backup
    max_seconds: 7200
    min_age: 30d

- name: Read back one virtual machine as a restore would
  holdfast.backup.repository_verification:
    repository: /backup
    name: web01
    level: restore

- name: Look what is known to be damaged, reading nothing
  holdfast.backup.repository_verification:
    repository: /backup
    fail_on_damage: false
  check_mode: true
  register: known
"""

RETURN = r"""
repository:
  description: The repository. Its C(free) is in bytes.
  returned: success or damage
  type: dict
  sample:
    path: /backup
    id: 0b3c5b8e-5f0b-4f5e-9d5c-0c8a2f1f7f10
    version: 1
    created: "2026-11-01T02:15:00Z"
    free: 1099511627776
level:
  description: The level asked for.
  returned: success or damage
  type: str
  sample: content
due:
  description:
    - What there was to verify, in C(files), C(disks) to be read back and C(bytes) of files. Bytes are counted for each
      disk, so what several share is counted several times for disks that are to be read back.
  returned: success or damage
  type: dict
  sample: {files: 1260, disks: 0, bytes: 9123456789012}
examined:
  description: What was verified, with the bytes that were read.
  returned: success or damage
  type: dict
  sample: {files: 310, disks: 0, bytes: 2199023255552}
remaining:
  description: What is left of RV(due) for the next run.
  returned: success or damage
  type: dict
  sample: {files: 950, disks: 0, bytes: 6924433533460}
oldest:
  description: Since when everything asked for was verified at this level. Null when some of it never was.
  returned: success or damage
  type: str
  sample: "2026-10-27T01:12:45Z"
seconds:
  description: The time it took.
  returned: success or damage
  type: float
  sample: 1781.206
rate:
  description: Bytes per second.
  returned: success or damage
  type: int
  sample: 1234569803
problems:
  description:
    - What is wrong with what was verified. What could not be read for lack of rights is a problem, and no damage.
  returned: success or damage
  type: list
  elements: dict
  contains:
    restore_point:
      description: The restore point of the file.
      type: str
      sample: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
    file:
      description: Its name.
      type: str
      sample: disk-2000.qcow2
    path:
      description: The file.
      type: str
      sample: /backup/5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z/disk-2000.qcow2
    what:
      description: The problem.
      type: str
    next_step:
      description: What can be done.
      type: str
damage:
  description:
    - Each file that is known to be damaged, by this run or an earlier one, of the virtual machines and first class
      disks asked for.
  returned: success or damage
  type: list
  elements: dict
  contains:
    restore_point:
      description: The restore point of the file.
      type: str
      sample: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
    file:
      description: Its name. C(point.json) when the manifest cannot be read, or the whole restore point is missing.
      type: str
      sample: disk-2000.qcow2
    path:
      description: The file.
      type: str
      sample: /backup/5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z/disk-2000.qcow2
    vm:
      description: The virtual machine, or null.
      type: dict
      sample: {name: web01, moid: vm-42, instance_uuid: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11}
    fcd:
      description: The first class disk, or null.
      type: dict
    what:
      description: What is wrong with it.
      type: str
      sample: The content of /backup/.../disk-2000.qcow2 is not what was written.
    next_step:
      description: What can be done.
      type: str
    lost:
      description:
        - What cannot be restored without it, for each restore point the labels of its C(disks), and its other C(files).
      type: list
      elements: dict
      sample:
        - restore_point: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
          disks: [Hard disk 1]
          files: []
    restorable:
      description:
        - What of the virtual machine or first class disk is not known to be damaged. C(points) are whole, C(newest) is
          the last of these or null, and C(partly) are restore points of which some disks are whole.
      type: dict
      sample:
        newest: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261121T021500Z
        points: [5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261121T021500Z]
        partly:
          - restore_point: 5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11/20261120T021500Z
            disks: [Hard disk 2]
"""

import time
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import content, images, jobs, requirements
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.plugins.module_utils._quantities import duration
from ansible_collections.holdfast.backup.plugins.module_utils._repository import layout, listing, records
from ansible_collections.holdfast.backup.plugins.module_utils._repository.batches import Batch, Outcome, Wanted
from ansible_collections.holdfast.backup.plugins.module_utils._repository.listing import Selection
from ansible_collections.holdfast.backup.plugins.module_utils._repository_options import REPOSITORY_OBJECT

ARGUMENT_SPEC: dict[str, dict[str, Any]] = {
    "level": {"type": "str", "choices": list(records.LEVELS[1:]), "default": records.CONTENT},
    "max_seconds": {"type": "int", "default": 0},
    "max_bytes": {"type": "bytes", "default": "0"},
    "min_age": {"type": "str"},
    "fail_on_damage": {"type": "bool", "default": True},
    "progress_dir": {"type": "path"},
}


def run(module: AnsibleModule) -> dict[str, Any]:
    """Verify what is due."""
    params, begun = module.params, time.monotonic()
    wanted = Wanted(
        level=params["level"],
        max_seconds=params["max_seconds"],
        max_bytes=params["max_bytes"],
        min_age=timedelta(0) if params["min_age"] is None else duration(params["min_age"]),
    )
    if not module.check_mode:
        if params["level"] == records.RESTORE:
            requirements.check_programs()
        else:
            requirements.check_program("qemu-img")
    repository = layout.open_repository(params["repository"])
    watch = Watch(params["progress_dir"])
    selected, _passed_over = listing.select(repository, Selection.from_options(params))
    batch = Batch(repository, wanted, images.check, content.content_hash, watch.check, watch.tell)
    outcome = batch.run(selected, datetime.now(timezone.utc), module.check_mode)
    result = {
        "changed": outcome.changed,
        "repository": repository.as_dict(),
        "level": params["level"],
        "due": asdict(outcome.due),
        "examined": asdict(outcome.examined),
        "remaining": asdict(outcome.remaining),
        "oldest": outcome.oldest,
        **jobs.figures(outcome.examined.bytes, time.monotonic() - begun),
        "problems": outcome.problems,
        "damage": outcome.damage,
        "diff": {
            "before": {"damaged": outcome.known_before},
            "after": {"damaged": [one["path"] for one in outcome.damage]},
        },
    }
    warnings = [
        f"{name} was not verified within max_seconds={params['max_seconds']}: it is too large for that."
        for name in outcome.unfinished
    ]
    _raise_problems(module, outcome, {**result, "warnings": warnings} if warnings else result)
    return {**result, "warnings": warnings}


def _raise_problems(module: AnsibleModule, outcome: Outcome, result: dict[str, Any]) -> None:
    unstored = outcome.unstored
    if unstored is not None and not (outcome.damage and module.params["fail_on_damage"]):
        raise type(unstored)(unstored.message, unstored.next_step, **result)
    more = "" if unstored is None else f" {unstored.message}"
    if not module.params["fail_on_damage"]:
        return
    if outcome.damage:
        first = outcome.damage[0]
        points = {lost["restore_point"] for one in outcome.damage for lost in one["lost"]}
        raise Damaged(
            f"{len(outcome.damage)} files are damaged, {len(points)} restore points are lost in part or as a whole. "
            f"The first is {first['path']}: {first['what']}{more}",
            "See 'damage' for what is lost and what can still be restored. Restore the files from a copy of the"
            " repository; the next backup copies the disks in full.",
            **result,
        )
    if outcome.problems:
        first = outcome.problems[0]
        raise RepositoryError(
            f"{len(outcome.problems)} files could not be verified. The first is {first['path']}: {first['what']}",
            first["next_step"],
            **result,
        )


def main() -> None:
    """Entry point."""
    run_module(
        run,
        argument_spec=ARGUMENT_SPEC,
        groups=(REPOSITORY_OBJECT,),
    )


if __name__ == "__main__":
    main()
