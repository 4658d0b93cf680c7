# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: switching the change tracking of a VM's disks, as ``change_tracking`` plans it.

Each step sets what is to be set and stuns the VM by a snapshot that is removed at once, whatever happens between.
Tasks of others on the VM are let end before.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, VsphereFault
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    change_tracking,
    inventory,
    snapshot_create,
    snapshot_remove,
    snapshot_tasks,
    snapshots,
    turns,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.change_tracking import JOB, Plan, Step, Tracking
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_create import Wish
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.stamps import Stamp

REMOVALS = 2  # further attempts to remove a snapshot of ours


@dataclass(frozen=True)
class Outcome:
    """What became of a plan.

    :param after: as the configuration says now, or as it would
    :param refused: why the disks are not all in the wanted state, if so
    :param warnings: what the snapshots left
    """

    plan: Plan
    after: Tracking
    refused: VsphereFault | None = None
    warnings: Sequence[str] = ()

    @property
    def before(self) -> Tracking:
        return self.plan.before

    @property
    def changed(self) -> bool:
        return self.plan.changes


def bring_about(
    c: Connection,
    vm: Any,
    properties: Mapping[str, Any],
    planned: Callable[[Tracking], Plan],
    timeout: float,
    *,
    dry: bool = False,
    beside: Callable[[bool], None] = lambda on: None,
) -> Outcome:
    """Plan the change tracking of a VM, and carry it out. What vSphere refuses is told in the outcome.

    :param properties: ``inventory.IDENTITY`` and values of ``change_tracking.PROPERTIES`` as they are
    :param planned: makes the plan; it is asked again if there was another task to wait for
    :param timeout: seconds, for each task
    :param dry: only foretell the outcome
    :param beside: is done in each step before the settings, given whether it switches tracking on
    :raises VsphereFault: our own snapshot could not be removed
    :raises TimedOut: a task took too long
    """
    patience = Patience(timeout)
    plan = planned(_inspected(properties))
    if dry or not plan.changes:
        return Outcome(plan, plan.outcome)
    if let_tasks_end(c, vm, patience):
        properties = inventory.read_vm(c, vm, change_tracking.PROPERTIES)
        plan = planned(_inspected(properties))
    warnings = clear(c, vm, patience) if plan.before.leftovers else []
    # What vSphere refuses at first does not keep tracking from being on in the end. With a snapshot that cannot be
    # removed it would begin above that, so then it stays off, and the next run switches it on.
    refusals = [_take(c, vm, properties, step, patience, beside, warnings) for step in plan.todo]
    # Read anew: vSphere does not announce extraConfig after a snapshot changed it.
    after = replace(_inspected(inventory.read_vm(c, vm, change_tracking.PROPERTIES)), kept=plan.before.kept)
    refused = next((refusal for refusal in refusals if refusal), None)
    missed = None if plan.blocked else plan.missed(after)
    if missed and not refused:
        refused = VsphereFault(f"{missed}.", "See the events of the virtual machine and the limits of its host.")
    return Outcome(plan, after, refused, warnings)


def _take(
    c: Connection,
    vm: Any,
    properties: Mapping[str, Any],
    step: Step,
    patience: Patience,
    beside: Callable[[bool], None],
    warnings: list[str],
) -> VsphereFault | None:
    """Take one step, and add to ``warnings``; returns why vSphere refuses."""
    said = "on" if step.on else "off"
    try:
        beside(step.on)
        if step.settings:
            turns.in_turn(c, lambda: patience.wait(c, c.call(vm.ReconfigVM_Task, _spec(step))), patience.timeout)
    except VsphereFault as error:
        return _refusal(f"change tracking cannot be switched {said}", error)
    try:
        if step.stun:
            warnings += stun(c, vm, properties, patience)
    except Unstunned as error:
        return _refusal(f"the snapshot that switches change tracking {said} cannot be made", error)
    return None


def _refusal(what: str, error: VsphereFault) -> VsphereFault:
    refusal = VsphereFault(f"{what}: {error.message}", error.next_step, **error.details)
    refusal.__cause__ = error
    return refusal


def _spec(step: Step) -> vim.vm.ConfigSpec:
    options = [
        vim.option.OptionValue(key=f"{slot}.ctkEnabled", value="TRUE" if on else "FALSE")
        for slot, on in step.slots.items()
    ]
    return vim.vm.ConfigSpec(changeTrackingEnabled=step.enabled, extraConfig=options)


class Unstunned(VsphereFault):
    """vSphere refused the snapshot that was to stun the VM."""


def stun(c: Connection, vm: Any, properties: Mapping[str, Any], patience: Patience) -> list[str]:
    """Make a snapshot and remove it again, whatever happens between; returns warnings.

    :raises Unstunned: vSphere refuses to make it
    :raises VsphereFault: it could not be removed
    """
    expires = datetime.now(timezone.utc) + timedelta(seconds=patience.timeout)
    wish = Wish(
        name="holdfast.backup change tracking",
        description="Switches change tracking and is removed at once.",
        stamp=Stamp(JOB, uuid.uuid4().hex, expires.replace(microsecond=0)),
    )
    made = False
    try:
        state, _record, _warnings = turns.in_turn(
            c, lambda: snapshot_create.create(c, vm, properties, wish, patience), patience.timeout
        )
        made = True
        return _remove(c, vm, state, patience)
    except BaseException as error:
        warnings = clear(c, vm, patience)
        if made and isinstance(error, BackupError):
            return warnings
        if isinstance(error, VsphereFault):
            raise Unstunned(error.message, error.next_step, **error.details) from error
        raise


def clear(c: Connection, vm: Any, patience: Patience) -> list[str]:
    """Remove our stunning snapshots, also one that an interrupted call is still making; returns warnings.

    Whatever comes between, be it a fault or the wish to stop, the removal is tried again first.
    """
    attempts_left = REMOVALS
    while True:
        attempts_left -= 1
        try:
            let_tasks_end(c, vm, patience, "createSnapshot")
            state, _disks = snapshot_tasks.look(c, vm)
            return _remove(c, vm, state, patience)
        except BackupError:
            if not attempts_left:
                raise


def _remove(c: Connection, vm: Any, state: snapshot_tasks.State, patience: Patience) -> list[str]:
    ours = snapshots.owned(state.snapshots, JOB)
    _state, warnings = snapshot_remove.remove(c, vm, ours, children=False, patience=patience)
    return warnings


def let_tasks_end(c: Connection, vm: Any, patience: Patience, kinds: str = "") -> bool:
    """Wait for the tasks that work on a VM, whatever becomes of them; returns whether there were any.

    :param kinds: only those whose description ID has a match for this pattern
    """
    recent = inventory.read_vm(c, vm, along={"recentTask": ("info.descriptionId", "info.state")})["recentTask"]
    found = turns.under_way(recent, kinds)
    turns.let_end(c, found, time.monotonic() + patience.timeout)
    return bool(found)


def _inspected(properties: Mapping[str, Any]) -> Tracking:
    return change_tracking.inspect(inventory.unescape(properties["name"]), properties)
