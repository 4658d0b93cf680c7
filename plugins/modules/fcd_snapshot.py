#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Create and delete snapshots of a first class disk, and revert to one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fcd_snapshot
short_description: Create and delete snapshots of a first class disk, and revert to one
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Creates a snapshot of a first class disk and returns it with its change ID, which a later incremental backup needs.
  - Deletes snapshots by ID, by description, or by the stamp of a job, and takes the disk back to a snapshot.
  - Other programs (CNS, Velero) make snapshots of the same disks. One of theirs is only ever deleted by O(snapshot_id)
    or its exact O(description), and only reverted to by O(snapshot_id).
options:
  state:
    description:
      - V(present) makes sure that the snapshot exists. O(stamp) and O(description) say when one that exists will do.
      - V(absent) makes sure that the chosen snapshots do not exist. All options that choose must fit.
      - V(revert) takes the disk back to the content of the chosen snapshot. The disk must not be in use.
    type: str
    choices: [present, absent, revert]
    default: present
  snapshot_id:
    description:
      - ID of the snapshot to delete or to revert to.
    type: str
  description:
    description:
      - Description of the snapshot, without the stamp.
      - With O(state=present) and without O(stamp), a snapshot that has this description will do.
      - If several have it, O(state=absent) and O(state=revert) fail and list them; O(snapshot_id) tells them apart.
    type: str
  stamp:
    description:
      - With O(state=present), marks the snapshot as belonging to a job, by a line in its description. Only a snapshot
        of the same job and run then counts as existing. Without O(stamp.run) one is always created.
      - With O(state=absent), deletes the snapshots with a stamp of this job and no others.
    type: dict
    suboptions:
      job:
        description: Name of the job.
        type: str
        required: true
      run:
        description:
          - Name of the run of the job. A unique one is made up with O(state=present) if it is not set.
          - Otherwise, only snapshots of this run are chosen.
        type: str
      expires_in:
        description:
          - Time after which the snapshot counts as forgotten, in seconds or like V(36h) or V(7d).
          - If it is not set, the snapshot never does.
          - Only used with O(state=present).
        type: str
      expired_only:
        description: With O(state=absent), whether only snapshots that have expired are deleted.
        type: bool
        default: false
  tracking:
    description:
      - With O(state=present), V(enabled) switches changed block tracking on before the snapshot is made, so that the
        snapshot has a change ID.
      - Where there are snapshots already, tracking is not switched on, because its answers would miss changes; a
        warning says so.
    type: str
    choices: [enabled, unchanged]
    default: unchanged
  force:
    description:
      - Whether O(state=revert) goes back beyond younger snapshots of other programs.
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
  - module: holdfast.backup.fcd
  - module: holdfast.backup.fcd_info
  - module: holdfast.backup.disk_changed_areas
notes:
  - The privilege needed is C(Datastore.FileManagement) on the datastore.
  - A disk that is busy for a moment refuses a snapshot; it is asked again a few times, for some seconds in all.
"""

EXAMPLES = r"""
- name: Take a snapshot that a sweeper may delete after a day, with a change ID
  holdfast.backup.fcd_snapshot:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    name: pvc-1c9f3f2a-6b1c-4a55-8b9b-0f6f5d3f2a11
    stamp:
      job: nightly
      expires_in: 24h
    tracking: enabled
  register: nightly
  delegate_to: localhost

- name: Delete it by its ID
  holdfast.backup.fcd_snapshot:
    id: "{{ nightly.fcd.id }}"
    datastore: "{{ nightly.fcd.datastore }}"
    snapshot_id: "{{ nightly.snapshot.id }}"
    state: absent
  delegate_to: localhost

- name: Delete what cancelled runs of the job have left
  holdfast.backup.fcd_snapshot:
    id: "{{ nightly.fcd.id }}"
    state: absent
    stamp:
      job: nightly
      expired_only: true
  delegate_to: localhost

- name: Take a disk back to a snapshot
  holdfast.backup.fcd_snapshot:
    id: "{{ nightly.fcd.id }}"
    snapshot_id: 0b13f8bc-738f-4a9d-b3fc-efa801b4c7ce
    state: revert
  delegate_to: localhost
"""

RETURN = r"""
fcd:
  description: The disk.
  returned: success
  type: dict
  sample:
    id: 5a2ed28a-4a23-4b6a-9f4e-7a3a8f9f6c11
    name: data01
    datastore: datastore1
    datastore_moid: datastore-12
  contains:
    id:
      description: Its ID.
      type: str
    name:
      description: Its name.
      type: str
    datastore:
      description: The name of its datastore.
      type: str
    datastore_moid:
      description: The managed object ID of its datastore.
      type: str
snapshot:
  description:
    - The snapshot that was created, found or reverted to. What is not known yet in check mode is V(null).
    - V(null) with O(state=absent).
  returned: success
  type: dict
  contains:
    id:
      description: Its ID.
      type: str
      sample: 0b13f8bc-738f-4a9d-b3fc-efa801b4c7ce
    description:
      description: Its description, without the stamp.
      type: str
      sample: ""
    creation_time:
      description: When it was created, in UTC.
      type: str
      sample: "2026-11-20T02:00:04Z"
    backing_object_id:
      description: The ID of its backing object, where the storage has such.
      type: str
      sample: null
    own:
      description: Whether it carries a stamp of this collection.
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
    path:
      description: The path of its backing.
      type: str
      sample: "[datastore1] fcd/5a2ed28a4a234b6a9f4e7a3a8f9f6c11.vmdk"
    change_id:
      description: The change ID from which a later backup can be incremental; V(null) if changes are not tracked.
      type: str
      sample: 52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63/81
    metadata:
      description: The metadata that were kept with it; V(null) unless O(api=vslm), as only that API tells them.
      type: dict
      sample: null
removed:
  description: The snapshots that were deleted, like RV(snapshot) without C(path), C(change_id) and C(metadata).
  returned: success
  type: list
  elements: dict
  sample: []
tracking:
  description: Changed block tracking of the disk.
  returned: success
  type: dict
  sample:
    enabled: true
    active: true
    reason: null
  contains:
    enabled:
      description: Whether it is switched on, or would be in check mode.
      type: bool
    active:
      description: Whether changes are tracked from the next snapshot on.
      type: bool
    reason:
      description: Why they are not; V(null) if they are.
      type: str
"""

import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Iterable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, NotSupported
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import (
    FCD,
    VCENTER,
    endpoint,
    fcd_selection,
)
from ansible_collections.holdfast.backup.plugins.module_utils._quantities import duration
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    fcd_snapshots,
    fcd_tracking,
    stamps,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import TRACKING, Fcd, Snapshot
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_store import Store, open_store
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_tracking import Tracking
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.stamps import Stamp


def run(module: AnsibleModule) -> dict[str, Any]:
    """Find the disk and its snapshots, and do what ``state`` says."""
    params = module.params
    if params["state"] == "present" and not (params["description"] or params["stamp"]):
        raise InvalidInput("A snapshot needs a description or a stamp.", "Give one; vSphere chooses the snapshot's ID.")
    with Connection(endpoint(params)) as c:
        store = open_store(c, params["api"])
        disk = store.find(**fcd_selection(params))
        task = _Task(store, disk, store.snapshots(disk), params, module.check_mode)
        actions = {"present": task.present, "absent": task.absent, "revert": task.revert}
        return {"fcd": disk.identity(), **actions[params["state"]]()}


@dataclass(frozen=True)
class _Task:
    """What one run of the module works with; ``before``: the disk's snapshots, the oldest first."""

    store: Store
    disk: Fcd
    before: list[Snapshot]
    params: dict[str, Any]
    check_mode: bool

    def present(self) -> dict[str, Any]:
        """Find or create the snapshot."""
        description, given = self.params["description"] or "", self.params["stamp"]
        existing = _existing(self.before, self.params)
        tracking = self._track()
        if existing is not None:
            return self._result(self.before, snapshot=existing, tracking=tracking)
        stamp = _stamp(given) if given else None
        if self.check_mode:
            planned = {
                **dict.fromkeys(("id", "creation_time", "backing_object_id", *_NO_DETAILS)),
                "description": description,
                "own": stamp is not None,
                "stamp": stamp.as_dict() if stamp else None,
            }
            result = self._result(self.before, changed=True, tracking=tracking)
            result["diff"]["after"]["snapshots"].append(_shown(planned))
            return {**result, "snapshot": planned}
        made = self.store.create_snapshot(self.disk, stamps.join(description, stamp), timeout=self.params["timeout"])
        after = self.store.snapshots(self.disk)
        snapshot = next(one for one in after if one.id == made)
        return self._result(after, changed=True, snapshot=snapshot, tracking=tracking)

    def absent(self) -> dict[str, Any]:
        """Delete what the options choose."""
        chosen = fcd_snapshots.choose(self.before, **_selection(self.params))
        if not self.check_mode:
            for snapshot in reversed(chosen):
                self.store.delete_snapshot(self.disk, snapshot.id, timeout=self.params["timeout"])
        return self._result([one for one in self.before if one not in chosen], changed=bool(chosen), removed=chosen)

    def revert(self) -> dict[str, Any]:
        """Take the disk back to the snapshot that the options choose."""
        snapshot = fcd_snapshots.choose_to_revert(self.before, **_selection(self.params))
        younger = [one for one in self.before if one.created > snapshot.created and one.stamp is None]
        if younger and not self.params["force"]:
            raise NotSupported(
                f"The first class disk {self.disk.name} has {len(younger)} younger snapshots of other programs: "
                f"{', '.join(one.id for one in younger)}.",
                "Ask their owner, or set force.",
                snapshots=[one.as_dict() for one in younger],
            )
        if self.check_mode:
            return self._result(self.before, changed=True, snapshot=snapshot)
        self.store.revert(self.disk, snapshot.id, timeout=self.params["timeout"])
        return self._result(self.store.snapshots(self.disk), changed=True, snapshot=snapshot)

    def _track(self) -> Tracking:
        """Switch tracking on if it is wished and possible; how it stands with it then, or would in check mode."""
        now = Tracking(self.disk.tracked)
        if now.enabled or self.params["tracking"] == "unchanged":
            return now
        found = fcd_tracking.inspect(self.store.c, self.store, self.disk)
        if not found.can_start:
            return found
        return fcd_tracking.STARTED if self.check_mode else fcd_tracking.start(self.store, self.disk)

    def _result(
        self,
        after: Iterable[Snapshot],
        *,
        changed: bool = False,
        snapshot: Snapshot | None = None,
        removed: Iterable[Snapshot] = (),
        tracking: Tracking | None = None,
    ) -> dict[str, Any]:
        """The same keys in every case."""
        tracking = tracking or Tracking(self.disk.tracked)
        wanted = self.params["tracking"] == "enabled" and self.params["state"] == "present"
        before, later = ([_shown(one.as_dict()) for one in listed] for listed in (self.before, after))
        return {
            "changed": changed or tracking.enabled != self.disk.tracked,
            "snapshot": None if snapshot is None else {**snapshot.as_dict(), **self._details(snapshot)},
            "removed": [one.as_dict() for one in removed],
            "tracking": tracking.as_dict(),
            "warnings": [f"{self.disk.name}: {tracking.reason}."] if wanted and tracking.reason else [],
            "diff": {
                "before": {"snapshots": before, TRACKING: self.disk.tracked},
                "after": {"snapshots": later, TRACKING: tracking.enabled},
            },
        }

    def _details(self, snapshot: Snapshot) -> dict[str, Any]:
        if not self.store.c.is_vcenter:
            return dict(_NO_DETAILS)  # ESXi does not tell them
        details = self.store.snapshot_details(self.disk, snapshot.id).as_dict()
        return {**details, "metadata": self.store.snapshot_metadata(self.disk, snapshot.id)}


_NO_DETAILS = {"path": None, "change_id": None, "metadata": None}


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("id", "description", "stamp")}


def _selection(params: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``fcd_snapshots.choose`` and ``choose_to_revert`` from the options."""
    stamp = params["stamp"] or {}
    return {
        "snapshot_id": params["snapshot_id"] or None,
        "description": params["description"] or None,  # an empty one chooses nothing
        "job": stamp.get("job"),
        "run": stamp.get("run"),
        "expired_at": datetime.now(timezone.utc) if stamp.get("expired_only") else None,
    }


def _existing(everything: list[Snapshot], params: dict[str, Any]) -> Snapshot | None:
    """The snapshot that ``state: present`` is about, if it exists; None if it has to be created."""
    stamp = params["stamp"]
    if stamp and not stamp["run"]:
        return None
    job, run_name = (stamp["job"], stamp["run"]) if stamp else (None, None)
    text = None if stamp else params["description"]
    return next(iter(fcd_snapshots.select(everything, description=text, job=job, run=run_name)), None)


def _stamp(given: dict[str, Any]) -> Stamp:
    lifetime = given["expires_in"]
    expires = datetime.now(timezone.utc).replace(microsecond=0) + duration(lifetime) if lifetime else None
    return Stamp(given["job"], given["run"] or uuid.uuid4().hex, expires)


def main() -> None:
    """Take the options and run."""
    choices = ("snapshot_id", "description", "stamp")
    run_module(
        run,
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent", "revert"], "default": "present"},
            "snapshot_id": {"type": "str"},
            "description": {"type": "str"},
            "stamp": {
                "type": "dict",
                "options": {
                    "job": {"type": "str", "required": True},
                    "run": {"type": "str"},
                    "expires_in": {"type": "str"},
                    "expired_only": {"type": "bool", "default": False},
                },
            },
            "tracking": {"type": "str", "choices": ["enabled", "unchanged"], "default": "unchanged"},
            "force": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 3600},
        },
        groups=(VCENTER, FCD),
        required_if=[("state", state, choices, True) for state in ("absent", "revert")],
    )


if __name__ == "__main__":
    main()
