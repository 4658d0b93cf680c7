#!/usr/bin/python
# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Take, verify, revert and remove snapshots of several virtual machines as one set."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_snapshot_set
short_description: Take, verify, revert and remove snapshots of several virtual machines as one set
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Takes snapshots of several virtual machines at the same time, reverts all of them, and removes the snapshots.
  - A set is known by the job and the run in the stamp of its snapshots (O(stamp)), and by nothing else. So a later
    play, another job, or a sweeper after a crash finds it, and no snapshot without that very stamp is ever touched.
  - It is about the virtual machines that fit all of O(vms), O(folder), O(cluster), O(datacenter) and O(tags) that are
    set, with each of the tags. A name in O(vms) that several virtual machines have is refused. Without O(vms),
    O(state=present) is about all that fit the others, of which one must be given, and the other states about those of
    them, or of all the inventory, that have a snapshot of the set.
  - Everything is checked for all virtual machines before anything is done to the first one. If one of them cannot be
    snapshotted nevertheless, what was taken of the set is removed again.
  - Fails if anything went wrong with one of the virtual machines, after the others were done. RV(members) says what
    became of each.
options:
  state:
    description:
      - V(present) takes the set.
      - V(verified) fails unless each virtual machine has its snapshot of the set, and the snapshot is a way back to
        count on. It changes nothing.
      - V(reverted) reverts all virtual machines to their snapshots of the set, which stay unless O(remove=true).
      - V(absent) removes the snapshots of the set, or with O(stamp.expired_only) those that have expired.
    type: str
    choices: [present, verified, reverted, absent]
    default: present
  stamp:
    description:
      - Which set.
    type: dict
    required: true
    suboptions:
      job:
        description:
          - Name of the job. It can only be left out with O(stamp.expired_only), which then is about all jobs.
        type: str
      run:
        description:
          - Name of the set. Two sets of a job can exist at the same time under different names.
          - It can only be left out with O(stamp.expired_only), which then is about all sets.
        type: str
      expires_in:
        description:
          - Time after which the snapshots count as forgotten, in seconds or like V(36h) or V(7d).
          - If it is not set, they never do.
          - Only used with O(state=present).
        type: str
      expired_only:
        description:
          - With O(state=absent), whether only snapshots that have expired are removed.
        type: bool
        default: false
  existing:
    description:
      - What O(state=present) does when all virtual machines have a snapshot of the set already. V(keep) changes
        nothing, V(fail) fails, because those snapshots are of an earlier moment.
      - If only some of them have one, it fails in any case.
    type: str
    choices: [keep, fail]
    default: keep
  snapshot_name:
    description:
      - Name of the snapshots. Defaults to O(stamp.run). It need not be unique.
    type: str
  description:
    description:
      - Description of the snapshots. The stamp is added to it.
    type: str
    default: ""
  quiesce:
    description:
      - Whether VMware Tools shall bring the file systems of the running guests into a consistent state.
    type: bool
    default: false
  quiesce_policy:
    description:
      - What to do when a guest cannot be quiesced, as in M(holdfast.backup.vm_snapshot).
    type: str
    choices: [fail, warn, crash_consistent]
    default: fail
  quiesce_timeout:
    description:
      - Minutes that a guest may take to quiesce, between 5 and 240. vSphere takes 15 if it is not set.
    type: int
  memory_dump:
    description:
      - Whether the snapshots hold the memory of the running virtual machines. They cannot be quiesced then.
    type: bool
    default: false
  max_depth:
    description:
      - With O(state=present), fail if a snapshot would be more than this many below each other; with O(state=verified),
        if there are more. vSphere allows 32.
    type: int
    default: 32
  min_free_space:
    description:
      - With O(state=present) and O(state=verified), fail if a datastore of one of the virtual machines has less free
        space than this, in bytes or like V(20GB).
    type: str
  max_age:
    description:
      - With O(state=verified), fail if a snapshot is older than this, in seconds or like V(36h).
    type: str
  power:
    description:
      - The power state after O(state=reverted), as in M(holdfast.backup.vm_snapshot). With V(keep), what ran when the
        set was taken runs again, and nothing else, whatever happened since.
    type: str
    choices: [keep, as_snapshot, "on", "off"]
    default: keep
  wait_for_tools:
    description:
      - With O(state=reverted), seconds to wait until VMware Tools answer in each virtual machine that runs then.
        V(0) does not wait.
    type: int
    default: 0
  remove:
    description:
      - With O(state=reverted), whether the snapshots are removed from the virtual machines that were reverted.
    type: bool
    default: false
  timeout:
    description:
      - Seconds to wait for each task of vSphere. A snapshot that takes longer is cancelled; other tasks go on.
    type: int
    default: 3600
extends_documentation_fragment:
  - holdfast.backup.vcenter
  - holdfast.backup.vms
  - holdfast.backup.attributes
  - holdfast.backup.attributes.changes
  - holdfast.backup.attributes.login
seealso:
  - module: holdfast.backup.vm_snapshot
  - module: holdfast.backup.vm_snapshot_info
  - name: safety_snapshot
    description: The role that puts a set around a change.
    link: https://github.com/holdfast-backup/holdfast.backup/blob/main/docs/safety-snapshots.md
notes:
  - After a revert the next backup of a virtual machine copies its disks in full, for its change tracking began anew.
  - Privileges needed are C(VirtualMachine.State.CreateSnapshot), C(VirtualMachine.State.RemoveSnapshot),
    C(VirtualMachine.State.RevertToSnapshot), C(VirtualMachine.Interact.PowerOn) and
    C(VirtualMachine.Interact.PowerOff), and C(System.View) and C(System.Read) on the way to the virtual machines and on
    their datastores.
"""

EXAMPLES = r"""
- name: Take snapshots of three virtual machines at the same time
  holdfast.backup.vm_snapshot_set:
    hostname: vcenter.example.com
    username: backup@vsphere.local
    password: "{{ vcenter_password }}"
    vms: [web01, web02, db01]
    stamp:
      job: deployments
      run: release 4
      expires_in: 3d
    min_free_space: 20GB
  delegate_to: localhost

- name: Go back
  holdfast.backup.vm_snapshot_set:
    vms: [web01, web02, db01]
    state: reverted
    stamp:
      job: deployments
      run: release 4
  delegate_to: localhost

- name: Remove what cancelled runs have left
  holdfast.backup.vm_snapshot_set:
    vms: [web01, web02, db01]
    state: absent
    stamp:
      job: deployments
      expired_only: true
  delegate_to: localhost
"""

RETURN = r"""
members:
  description: What became of each virtual machine. Also returned when the task fails because of one of them.
  returned: success
  type: list
  elements: dict
  sample:
    - vm:
        name: web01
        moid: vm-42
        instance_uuid: 5012fc1f-3b5e-4a2a-8a0d-3d6a9a4f0f11
      action: taken
      snapshot:
        id: 7
        moid: snapshot-108
        name: release 4
        description: ""
        creation_time: "2026-11-20T02:00:04Z"
        state: poweredOff
        quiesced: false
        parent_id: null
        child_ids: []
        depth: 1
        current: true
        stamp:
          job: deployments
          run: release 4
          expires: "2026-11-23T02:00:00Z"
      removed: []
      power_state: poweredOn
      consolidation_needed: false
      problems: []
  contains:
    vm:
      description: Its name, managed object ID and instance UUID.
      type: dict
    action:
      description:
        - What was done, or would be in check mode, V(taken), V(kept) (the snapshot existed), V(reverted), V(removed),
          V(undone) (taken, and removed again because of another one), V(failed) or V(none).
      type: str
    snapshot:
      description: Its snapshot of the set after that, as in M(holdfast.backup.vm_snapshot); V(null) if it has none.
      type: dict
    removed:
      description: The snapshots that were removed.
      type: list
      elements: dict
    power_state:
      description: Its power state after that.
      type: str
    consolidation_needed:
      description: Whether vSphere says that its disks need consolidation.
      type: bool
    problems:
      description: What went wrong with it.
      type: list
      elements: str
spread_seconds:
  description:
    - The time between the first and the last snapshot of the set. V(null) if there are none.
  returned: success
  type: float
  sample: 0.4
"""

from dataclasses import replace
from datetime import datetime
from typing import Any, Callable, Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._module import run_module
from ansible_collections.holdfast.backup.plugins.module_utils._options import VCENTER, VMS, endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._quantities import duration, in_bytes
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshot_sets, snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fleet import Choice
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_create import Wish
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_guards import Guards
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_revert import Power
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_sets import (
    Fleet,
    Key,
    Member,
    Outcome,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.stamps import Stamp


def run(module: AnsibleModule) -> dict[str, Any]:
    params, check_mode = module.params, module.check_mode
    key = _key(params)
    with Connection(endpoint(params)) as c:
        fleet = snapshot_sets.find(c, Choice.from_options(c, params), _wanted(key, params))
        act = {"present": _present, "verified": _verified, "reverted": _reverted, "absent": _absent}[params["state"]]
        outcomes, what = act(c, fleet, key, params, check_mode)
        sweeping, strays = params["stamp"]["expired_only"], []
        if sweeping:
            strays = [f"{one.member.name}: {error}" for one in fleet.missing for error in one.errors]
        else:
            outcomes = [*outcomes, *(one for one in fleet.missing if one not in outcomes)]
        done = not check_mode and any(one.action not in ("none", "kept") for one in outcomes)
        members, spread = snapshot_sets.settle(c, outcomes, key, what, look=done)
        return {
            "changed": any(one.action in ("taken", "reverted", "removed") for one in outcomes),
            "members": members,
            "spread_seconds": spread,
            "warnings": [*strays, *(f"{one.member.name}: {text}" for one in outcomes for text in one.warnings)],
            "diff": _diff(outcomes, params),
        }


Answer = tuple[list[Outcome], str]  # what became of the VMs, and what to say if something went wrong


def _present(c: Connection, fleet: Fleet, key: Key, params: dict[str, Any], check_mode: bool) -> Answer:
    if fleet.missing or not fleet.members:
        outcomes = [*fleet.missing, *(Outcome(member) for member in fleet.members)]
        if not fleet.members and not fleet.missing:
            raise NotFound("There is no virtual machine in that place.", "Look at folder, cluster and datacenter.")
        return outcomes, f"No snapshot of the {key} was taken."
    having = [member for member in fleet.members if member.of_set(key)]
    if having:
        _refuse_existing(fleet, having, key, params["existing"])
        return [Outcome(member, "kept") for member in fleet.members], ""
    lifetime = params["stamp"]["expires_in"]
    expires = fleet.now.replace(microsecond=0) + duration(lifetime) if lifetime else None
    wish = Wish(
        name=params["snapshot_name"] or key.run or "",
        stamp=Stamp(key.job or "", key.run or "", expires),
        description=params["description"],
        memory=params["memory_dump"],
        quiesce=params["quiesce"],
        quiesce_policy=params["quiesce_policy"],
        quiesce_timeout=params["quiesce_timeout"],
    )
    outcomes = snapshot_sets.obstacles(c, fleet, wish, _guards(params))
    if any(one.errors for one in outcomes):
        return outcomes, f"No snapshot of the {key} was taken."
    if check_mode:
        return [replace(one, action="taken") for one in outcomes], ""
    outcomes = snapshot_sets.take(c, fleet.members, wish, _guards(params), Patience(params["timeout"], "cancel"))
    return outcomes, f"The {key} was not taken, and what had been taken of it was removed again."


def _refuse_existing(fleet: Fleet, having: Sequence[Any], key: Key, existing: str) -> None:
    names = ", ".join(member.name for member in having)
    if len(having) < len(fleet.members):
        raise InvalidInput(
            f"Of the {key} there are snapshots of {names} only, from a run that did not end well.",
            "Remove them (state: absent), or take a set of another name.",
        )
    if existing == "fail":
        since = min(member.of_set(key)[0].created for member in having)
        raise InvalidInput(
            f"The {key} exists since {since:%Y-%m-%d %H:%M} UTC, on {names}.",
            "Remove it or revert to it, or take a set of another name.",
        )


def _refuse_none(fleet: Fleet, key: Key) -> None:
    if not fleet.members and not fleet.missing:
        raise NotFound(f"No virtual machine there has a snapshot of the {key}.", "Look at stamp.job and stamp.run.")


def _verified(c: Connection, fleet: Fleet, key: Key, params: dict[str, Any], check_mode: bool) -> Answer:
    _refuse_none(fleet, key)
    age = params["max_age"]
    outcomes = snapshot_sets.concerns(c, fleet, key, _guards(params), duration(age) if age else None)
    return outcomes, f"The {key} is no way back to count on."


def _reverted(c: Connection, fleet: Fleet, key: Key, params: dict[str, Any], check_mode: bool) -> Answer:
    outcomes, targets = {}, {}
    for member in fleet.members:
        try:
            targets[member] = snapshot_sets.the_one(member, key)
        except BackupError as error:
            outcomes[member] = Outcome(member, "failed", errors=[error])
    _refuse_none(fleet, key)
    if check_mode:
        done = [Outcome(member, "reverted") for member in targets]
    else:
        done = snapshot_sets.revert(
            c,
            targets,
            Power(params["power"]),
            Patience(params["timeout"]),
            tools=params["wait_for_tools"],
            drop=params["remove"],
        )
    outcomes.update((one.member, one) for one in done)
    return [outcomes[member] for member in fleet.members], "Not all virtual machines could be rolled back."


def _absent(c: Connection, fleet: Fleet, key: Key, params: dict[str, Any], check_mode: bool) -> Answer:
    expired = params["stamp"]["expired_only"]
    found = {one: one.expired(key, fleet.now) if expired else one.of_set(key) for one in fleet.members}
    doomed = {member: chosen for member, chosen in found.items() if chosen}
    if check_mode:
        outcomes = [Outcome(member, "removed", removed=chosen) for member, chosen in doomed.items()]
    else:
        outcomes = snapshot_sets.remove(c, doomed, Patience(params["timeout"]))
    done = {one.member: one for one in outcomes}
    return [done.get(member) or Outcome(member) for member in fleet.members], "Not all snapshots could be removed."


def _key(params: dict[str, Any]) -> Key:
    stamp = params["stamp"]
    if params["state"] == "present" and not any(params[option] for option in VMS.argument_spec):
        raise InvalidInput("It is not said which virtual machines are meant.", "Give vms, folder, cluster or the like.")
    if not (stamp["job"] and stamp["run"]) and not (params["state"] == "absent" and stamp["expired_only"]):
        raise InvalidInput("It is not said which set is meant.", "Give stamp.job and stamp.run.")
    if stamp["expired_only"] and params["state"] != "absent":
        raise InvalidInput("stamp.expired_only only goes with state=absent.", "Leave it out.")
    return Key(stamp["job"], stamp["run"])


def _guards(params: dict[str, Any]) -> Guards:
    floor = params["min_free_space"]
    return Guards(params["max_depth"], in_bytes(floor, "min_free_space") if floor else None)


def _wanted(key: Key, params: dict[str, Any]) -> Callable[[Member, datetime], bool]:
    """Which of the VMs that were found are looked at: those named, or those in a place that have what is asked for."""
    if params["stamp"]["expired_only"]:
        return lambda member, now: bool(member.expired(key, now))
    if params["vms"] is not None or params["state"] == "present":
        return lambda member, now: True
    return lambda member, now: bool(member.of_set(key))


def _diff(outcomes: list[Outcome], params: dict[str, Any]) -> dict[str, Any]:
    """The names of the snapshots before and after it, by VM."""
    new = [params["snapshot_name"] or params["stamp"]["run"]]
    return {
        "before": {one.member.name: [snapshot.name for snapshot in one.member.snapshots] for one in outcomes},
        "after": {
            one.member.name: [snapshot.name for snapshot in one.member.snapshots if snapshot not in one.removed]
            + (new if one.action == "taken" else [])
            for one in outcomes
        },
    }


def main() -> None:
    """Take the options and run."""
    run_module(
        run,
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["present", "verified", "reverted", "absent"],
                "default": "present",
            },
            "stamp": {
                "type": "dict",
                "required": True,
                "options": {
                    "job": {"type": "str"},
                    "run": {"type": "str"},
                    "expires_in": {"type": "str"},
                    "expired_only": {"type": "bool", "default": False},
                },
            },
            "existing": {"type": "str", "choices": ["keep", "fail"], "default": "keep"},
            "snapshot_name": {"type": "str"},
            "description": {"type": "str", "default": ""},
            "quiesce": {"type": "bool", "default": False},
            "quiesce_policy": {"type": "str", "choices": ["fail", "warn", "crash_consistent"], "default": "fail"},
            "quiesce_timeout": {"type": "int"},
            "memory_dump": {"type": "bool", "default": False},
            "max_depth": {"type": "int", "default": snapshots.MAX_DEPTH},
            "min_free_space": {"type": "str"},
            "max_age": {"type": "str"},
            "power": {"type": "str", "choices": ["keep", "as_snapshot", "on", "off"], "default": "keep"},
            "wait_for_tools": {"type": "int", "default": 0},
            "remove": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 3600},
        },
        groups=(VCENTER, VMS),
    )


if __name__ == "__main__":
    main()
