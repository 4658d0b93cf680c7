# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: snapshots of several VMs that belong together, taken and reverted as one set.

A set is known by the job and the run in the stamps of its snapshots, and by nothing else, so that every later run finds
it. What is done to several VMs is done to all of them at once, and one that fails never stops the others.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Callable, Iterable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    Ambiguous,
    BackupError,
    NotFound,
    NotSupported,
    SetFailed,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    fleet,
    guests,
    inventory,
    snapshot_changes,
    snapshot_create,
    snapshot_revert,
    snapshots,
    stamps,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import IDENTITY, traverse, vm_dict
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim, vmodl
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.session import Session
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_changes import Changes
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_create import Wish
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_guards import Guards
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_plans import Adjustment, Choice
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_revert import Power
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshots import Snapshot

AT_ONCE = 64  # VMs whose snapshots are taken, or that are reverted, at the same time
REMOVED_AT_ONCE = 8  # a removal copies what was written since: more of them would starve the guests


@dataclass(frozen=True)
class Key:
    """What a set is known by: the job and the run in the stamps. Without both it is no set, but a choice of stamps."""

    job: str | None
    run: str | None

    def __str__(self) -> str:
        return f"set {self.run} of the job {self.job}"


@dataclass(frozen=True, eq=False)
class Member:
    """One VM, as it was read."""

    vm: Any
    identity: dict[str, Any]  # name, moid, instance_uuid
    properties: Mapping[str, Any]
    snapshots: tuple[Snapshot, ...]

    @property
    def name(self) -> str:
        """What to call it: of one that was not found, what it was asked for by."""
        return next((one for one in (self.identity["name"], *self.identity.values()) if one), "(no name)")

    @property
    def moid(self) -> str:
        return self.identity["moid"]

    def of_set(self, key: Key) -> list[Snapshot]:
        """Its snapshots in this set: one, unless something went wrong."""
        return snapshots.owned(self.snapshots, key.job, key.run) if key.job and key.run else []

    def expired(self, key: Key, now: datetime) -> list[Snapshot]:
        """Its snapshots with a stamp that has expired, of this job and this run where they are given."""
        return [
            one
            for one in self.snapshots
            if one.stamp
            and key.job in (None, one.stamp.job)
            and key.run in (None, one.stamp.run)
            and one.stamp.expired(now)
        ]

    def runs_on(self) -> list[Snapshot]:
        """The snapshots that its disks stand on, the youngest first."""
        by_id: dict[int | None, Snapshot] = {one.id: one for one in self.snapshots}
        line = [one for one in self.snapshots if one.current]
        while line and line[-1].parent_id in by_id:
            line.append(by_id[line[-1].parent_id])
        return line


@dataclass(frozen=True)
class Fleet:
    """The VMs at the moment ``now`` of the server's clock; ``missing`` are those that are meant and cannot be read."""

    members: list[Member]
    now: datetime
    missing: list[Outcome] = field(default_factory=list)


@dataclass
class Outcome:
    """What was done to one VM (``action``), what went wrong with it, and what else there is to say."""

    member: Member
    action: str = "none"
    errors: list[BackupError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    removed: list[Snapshot] = field(default_factory=list)


Act = Callable[[Changes, Member], Outcome]


def find(c: Connection, choice: fleet.Choice, wanted: Callable[[Member, datetime], bool]) -> Fleet:
    """Find the VMs that are meant, and read what there is to know of those that are ``wanted`` for their snapshots.

    The number of requests does not grow with that of the VMs, nor with the inventory (see :mod:`fleet`).

    :raises Ambiguous: a name that was given is that of several VMs
    """
    found = fleet.survey(c, choice, ["snapshot"])
    if choice.selections is None:  # a folder may hold templates, which nobody named
        found.machines = [one for one in found.machines if not one.properties.get("config.template")]
    elif len(found.machines) > len(choice.selections):
        listed = ", ".join(f"{one.folder}/{one.properties['name']} ({one.vm._GetMoId()})" for one in found.machines)
        raise Ambiguous(f"Names that were given fit several virtual machines: {listed}.", "Give managed object IDs.")
    named = {one.vm._GetMoId() for one in found.machines}
    missing = [
        Outcome(Member(None, one["vm"], {}, ()), "failed", [_unreadable(one["reason"])])
        for one in found.unreadable
        if one["vm"]["moid"] not in named
    ]
    return read(c, [one.vm for one in found.machines if wanted(_member(one.vm, one.properties), found.clock)], missing)


def _unreadable(reason: str) -> NotFound:
    return NotFound(f"{reason[0].upper()}{reason[1:]}.", "Check the spelling, and the role of the user on it.")


def read(c: Connection, vms: Iterable[Any], missing: Sequence[Outcome] = ()) -> Fleet:
    """Read VMs as ``inventory.read_vm`` does one, in one request (and one for each further page).

    :param missing: what to hand on; a VM that has gone meanwhile is added to it
    """
    vms = list(vms)
    ways = [traverse(path, vim.VirtualMachine, path) for path in snapshot_changes.ALONG]
    specs = [vmodl.query.PropertyCollector.ObjectSpec(obj=vm, selectSet=ways) for vm in vms]
    found, _refused = fleet.read_all(
        c,
        [*specs, fleet.server(c)],
        {
            vim.VirtualMachine: [*IDENTITY, *snapshots.PROPERTIES, "runtime.connectionState", "datastore"],
            vim.Task: snapshot_changes.ALONG["recentTask"],
            vim.Datastore: snapshot_changes.ALONG["datastore"],
            vim.ServiceInstance: ["serverClock"],
        },
    )
    now = fleet.clock(found)
    members, gone = [], []
    for vm in vms:
        if "name" in found.get(vm, {}):
            along = {
                path: {one: found.get(one, {}) for one in found[vm].get(path, ())} for path in snapshot_changes.ALONG
            }
            members.append(_member(vm, {**found[vm], **along, "serverClock": now}))
        else:
            known = {"name": vm._GetMoId(), "moid": vm._GetMoId(), "instance_uuid": None}
            error = NotFound("It cannot be read any more.", "Look whether somebody removed it.")
            gone.append(Outcome(Member(None, known, {}, ()), "failed", [error]))
    return Fleet(members, now, [*missing, *gone])


def _member(vm: Any, properties: Mapping[str, Any]) -> Member:
    return Member(vm, vm_dict(vm, properties), properties, tuple(snapshots.flatten(properties.get("snapshot"))))


# what must be so before anything is done


def obstacles(c: Connection, there: Fleet, wish: Wish, guards: Guards) -> list[Outcome]:
    """For each VM everything for which it could not have the snapshot, and what else there is to say of it."""
    found = []
    checks: list[Callable[[Member], list[str]]] = [
        check_connected,
        lambda one: guards.check(c, one.vm, one.properties, memory=wish.memory),
        lambda one: snapshot_create.plan_quiesce(one.properties, wish)[1],
    ]
    for member in there.members:
        outcome = Outcome(member)
        for check in checks:
            try:
                outcome.warnings += check(member)
            except BackupError as error:
                outcome.errors.append(error)
        found.append(outcome)
    return found


def concerns(c: Connection, there: Fleet, key: Key, guards: Guards, age: timedelta | None) -> list[Outcome]:
    """For each VM everything for which its snapshot of the set is no good way back, or should not live on.

    :param age: how old the snapshot may be
    """
    found = []
    for member in there.members:
        outcome = Outcome(member)
        try:
            check_connected(member)
            outcome.errors += _doubts(member, the_one(member, key), there.now, age)
            guards.check(c, member.vm, member.properties)
        except BackupError as error:
            outcome.errors.append(error)
        found.append(outcome)
    return found


def check_connected(member: Member) -> list[str]:
    """Raise NotSupported when vCenter cannot act on the VM."""
    state = str(member.properties.get("runtime.connectionState"))
    if state != "connected":
        raise NotSupported(f"It is {state}.", "Look at its host and its datastores.")
    return []


def the_one(member: Member, key: Key) -> Snapshot:
    """The VM's snapshot of the set; raises NotFound or Ambiguous if that is not one."""
    mine = member.of_set(key)
    if not mine:
        there = ", ".join(one.name for one in member.snapshots) or "none"
        raise NotFound(
            f"It has no snapshot of the {key}.", f"Somebody may have removed it; its snapshots are: {there}."
        )
    if len(mine) > 1:
        raise Ambiguous(
            f"It has {len(mine)} snapshots of the {key}.",
            "Revert it by hand (vm_snapshot with snapshot_id), and remove the others.",
        )
    return mine[0]


def _doubts(member: Member, snapshot: Snapshot, now: datetime, age: timedelta | None) -> Iterable[BackupError]:
    stamp = snapshot.stamp
    if stamp is not None and stamp.expires is not None and stamp.expired(now):
        until = stamps.timestamp(stamp.expires)
        yield NotSupported(f"The snapshot expired at {until}.", "Commit or roll back: a sweeper may remove it.")
    if age is not None and now - snapshot.created > age:
        taken = stamps.timestamp(snapshot.created)
        yield NotSupported(f"The snapshot is of {taken}, older than allowed.", "Commit it, or allow a greater max_age.")
    if snapshot not in member.runs_on():
        yield NotSupported("It was reverted to another snapshot since.", "Look at its snapshots before you go on.")
    if member.properties.get("runtime.consolidationNeeded"):
        yield NotSupported("Its disks need consolidation.", "Consolidate them before the snapshot is removed.")


# what is done


def take(c: Connection, members: Sequence[Member], wish: Wish, guards: Guards, patience: Patience) -> list[Outcome]:
    """Take the snapshots of all VMs at once; if one cannot be taken, the others are removed again.

    :param wish: what :func:`obstacles` found nothing against, with its stamp
    """
    stamp = wish.stamp
    if stamp is None:
        raise ValueError("a set is known by its stamp")
    mine = Choice(job=stamp.job, run=stamp.run)

    def act(changes: Changes, member: Member) -> Outcome:
        noted = replace(wish, stamp=replace(stamp, power=str(member.properties["runtime.powerState"])))
        done = changes.present(mine, lambda now: noted, guards, adjust=Adjustment(), min_age=None)
        return Outcome(member, "taken", warnings=[*done.warnings])

    def undo(changes: Changes, member: Member) -> Outcome:
        # What is there counts, not what was answered: a lost reply may be that of a snapshot.
        changes.properties = inventory.read_vm(changes.c, changes.vm, snapshots.PROPERTIES, snapshot_changes.ALONG)
        return Outcome(member, "undone" if changes.absent(mine, children=False).removed else "none")

    try:
        outcomes = at_once(c, members, act, patience)
    except BaseException:  # asked to stop: what was under way has ended by now
        at_once(c, members, undo, patience)
        raise
    if any(one.errors for one in outcomes):
        for one, undone in zip(outcomes, at_once(c, members, undo, patience)):
            one.action = "failed" if one.errors else undone.action
            one.errors += [
                BackupError(
                    f"Its snapshot could not be removed again: {error.message}",
                    "Remove it by hand, or leave it to the sweeper when it has expired.",
                )
                for error in undone.errors
            ]
    return outcomes


def revert(
    c: Connection, targets: Mapping[Member, Snapshot], power: Power, patience: Patience, *, tools: float, drop: bool
) -> list[Outcome]:
    """Go back to these snapshots of several VMs at once.

    :param tools: seconds to wait for VMware Tools where the VM runs then; 0 does not wait
    :param drop: whether the snapshot goes where all went well
    """

    def act(changes: Changes, member: Member) -> Outcome:
        outcome, target = Outcome(member, "reverted"), Choice(moid=targets[member].moid)
        try:
            after = changes.revert(target, _as_noted(power, targets[member])).after
        except BackupError as error:
            if not error.details.get("reverted"):  # else only the power state is not as it should be
                raise
            return replace(outcome, errors=[error])
        try:
            if tools and after.power_state == snapshot_revert.ON:
                guests.wait_for_tools(changes.c, changes.vm, tools)
            if drop:
                outcome.warnings = [*changes.absent(target, children=False).warnings]
                outcome.removed = [targets[member]]
        except BackupError as error:
            outcome.errors = [error]
        return outcome

    return at_once(c, [*targets], act, patience)


def _as_noted(power: Power, target: Snapshot) -> Power:
    """With ``keep``, the power state that the VM had when the set was taken."""
    if power.policy != "keep" or target.stamp is None or target.stamp.power is None:
        return power
    return replace(power, policy="on" if target.stamp.power == snapshot_revert.ON else "off")


def remove(c: Connection, doomed: Mapping[Member, Sequence[Snapshot]], patience: Patience) -> list[Outcome]:
    """Remove these snapshots of several VMs."""

    def act(changes: Changes, member: Member) -> Outcome:
        outcome = Outcome(member, "removed")
        for snapshot in doomed[member]:
            outcome.warnings += changes.absent(Choice(moid=snapshot.moid), children=False).warnings
            outcome.removed.append(snapshot)
        return outcome

    return at_once(c, [*doomed], act, patience, REMOVED_AT_ONCE)


def at_once(
    c: Connection, members: Sequence[Member], act: Act, patience: Patience, limit: int = AT_ONCE
) -> list[Outcome]:
    """Do something to all VMs at the same time; what goes wrong with one is in its outcome.

    Each VM has a connection of its own, in the session of ``c``.
    """
    endpoint = replace(c.endpoint, session=Session(c.soap_cookie(), server=c.vcenter).encode())

    def guarded(member: Member) -> Outcome:
        try:
            with Connection(endpoint) as own:
                vm = vim.VirtualMachine(member.moid, own.stub)
                changes = Changes(own, vm, dict(member.properties), patience, along=snapshot_changes.ALONG, check=False)
                return act(changes, member)
        except BackupError as error:
            return Outcome(member, "failed", errors=[error])

    if not members:
        return []
    with ThreadPoolExecutor(min(len(members), limit)) as pool:
        return list(pool.map(guarded, members))


# what is said of it


def settle(
    c: Connection, outcomes: Sequence[Outcome], key: Key, what: str, look: bool = True
) -> tuple[list[dict[str, Any]], float | None]:
    """What became of the VMs, as they are now, and how many seconds lie between the first and the last snapshot.

    :param key: the set whose snapshots are shown
    :param what: what to say if something went wrong
    :param look: whether anything was done, so that they are read again
    :raises SetFailed: something went wrong; ``details["members"]`` are the records
    """
    fresh: dict[Any, Member] = {}
    if look:
        with contextlib.suppress(BackupError):  # how the work ended is not hidden by this
            fresh = {one.vm: one for one in read(c, [one.member.vm for one in outcomes if one.member.vm]).members}
    after = [fresh.get(one.member.vm, one.member) for one in outcomes]
    records = [_record(one, member, key) for one, member in zip(outcomes, after)]
    wrong: dict[str, list[str]] = {}
    for one in outcomes:
        for error in one.errors:
            wrong.setdefault(str(error), []).append(one.member.name)
    if wrong:
        listed = " ".join(f"{', '.join(names)}: {text}" for text, names in wrong.items())
        raise SetFailed(f"{what} {listed}", members=records)
    times = [snapshot.created for member in after for snapshot in member.of_set(key)]
    return records, (max(times) - min(times)).total_seconds() if times else None


def _record(outcome: Outcome, after: Member, key: Key) -> dict[str, Any]:
    mine, power = after.of_set(key), after.properties.get("runtime.powerState")
    return {
        "vm": outcome.member.identity,
        "action": outcome.action,
        "snapshot": mine[-1].as_dict() if mine else None,
        "removed": [one.as_dict() for one in outcome.removed],
        "power_state": str(power) if power else None,
        "consolidation_needed": bool(after.properties.get("runtime.consolidationNeeded")),
        "problems": [str(error) for error in outcome.errors],
    }
