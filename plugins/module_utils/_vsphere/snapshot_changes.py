# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: bringing a VM's snapshots into the state that is wished, or telling what would change.

Each change is planned on what one read of the VM told (``snapshot_plans``) and then carried out (``snapshot_create``,
``snapshot_remove``, ``snapshot_revert``). A task on the VM's snapshots that runs meanwhile is let end, and the plan is
made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Iterable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    inventory,
    snapshot_create,
    snapshot_plans,
    snapshot_remove,
    snapshot_revert,
    snapshot_tasks,
    snapshots,
    turns,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_create import Wish
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_guards import Guards
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_plans import (
    Adjustment,
    Choice,
    Removal,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_revert import Power
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import (
    Patience,
    State,
    TaskRecord,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshots import Snapshot

ALONG = {"recentTask": ("info.state", "info.descriptionId"), "datastore": ("name", "summary.freeSpace")}
# For what renames only: the disks of all snapshots too, so that nothing has to be read afterwards.
ALONG_WITH_DISKS = {**ALONG, "rootSnapshot": ("config.hardware.device",)}


@dataclass(frozen=True)
class Outcome:
    """What became of the snapshots, or would.

    ``before`` and ``after`` are the states; ``snapshots`` are the records after it. ``snapshot`` is the record of the
    one that it was about, with its disks.
    """

    before: State
    after: State
    snapshots: Sequence[dict[str, Any]]
    changed: bool = False
    snapshot: dict[str, Any] | None = None
    removed: Sequence[Snapshot] = ()
    renamed: bool = False
    reverted: bool = False
    warnings: Sequence[str] = ()

    def as_result(self) -> dict[str, Any]:
        """What the module returns of it: the same keys in every case."""
        task = self.after.task
        current = next((one for one in self.snapshots if one["current"]), None)
        warnings = list(self.warnings)
        if self.after.consolidation_needed:
            warnings.append("The disks of the virtual machine need consolidation.")
        return {
            "changed": self.changed,
            "snapshot": self.snapshot,
            "snapshots": list(self.snapshots),
            "current_snapshot": current,
            "snapshot_results": snapshots.as_community(self.after.snapshots, self.snapshots, current),
            "removed": [one.as_dict() for one in self.removed],
            "renamed": self.renamed,
            "reverted": self.reverted,
            "consolidation_needed": self.after.consolidation_needed,
            "power_state": self.after.power_state,
            "task": None if task is None else {"id": task.id, "state": task.state},
            "result": None if task is None else task.as_result(),
            "warnings": warnings,
            "diff": {
                "before": _shown(self.before, [one.as_dict() for one in self.before.snapshots]),
                "after": _shown(self.after, self.snapshots),
            },
        }


class Changes:
    """Changes to the snapshots of one VM.

    :param properties: what ``find_vm`` read of ``snapshots.PROPERTIES`` along ``along``
    :param along: :data:`ALONG` or :data:`ALONG_WITH_DISKS`
    :param check: whether only to tell what would be done
    :param waits: whether to wait for the (last) task; if not, the outcome is what is planned
    """

    def __init__(
        self,
        c: Connection,
        vm: Any,
        properties: dict[str, Any],
        patience: Patience,
        *,
        along: Mapping[str, Sequence[str]],
        check: bool,
        waits: bool = True,
    ) -> None:
        self.c = c
        self.vm = vm
        self.properties = properties
        self.patience = patience
        self.check = check
        self.waits = waits
        self.along = along

    @property
    def before(self) -> State:
        return snapshot_tasks.state_of(self.properties)

    @property
    def now(self) -> datetime:
        return self.properties.get("serverClock") or datetime.now(timezone.utc)

    def present(
        self,
        choice: Choice,
        wish: Callable[[datetime], Wish],
        guards: Guards,
        *,
        adjust: Adjustment,
        min_age: timedelta | None,
    ) -> Outcome:
        """Find the snapshot, or make it.

        :param wish: tells what to make, from the server's time
        :param adjust: name and description for a snapshot that exists
        :param min_age: as for ``snapshot_plans.plan_present``
        """

        def work() -> Outcome:
            existing = snapshot_plans.plan_present(self.before.snapshots, choice, adjust, min_age=min_age, now=self.now)
            if existing is None:
                return self._create(wish(self.now), guards)
            # One that is known by its stamp or its age is used as it is.
            known_otherwise = choice.job is not None or min_age is not None
            return self._adjust(existing, Adjustment() if known_otherwise else adjust)

        return self._undisturbed(work)

    def absent(self, choice: Choice, *, children: bool) -> Outcome:
        """Remove what is chosen."""
        return self._undisturbed(
            lambda: self._remove(
                snapshot_plans.plan_removal(self.before.snapshots, choice, children=children, now=self.now)
            )
        )

    def remove_all(self) -> Outcome:
        """Remove all snapshots, whoever made them."""
        return self._undisturbed(lambda: self._remove(snapshot_plans.plan_remove_all(self.before.snapshots)))

    def revert(self, choice: Choice, power: Power) -> Outcome:
        """Go back to the chosen snapshot."""
        return self._undisturbed(
            lambda: self._revert(snapshot_plans.plan_revert(self.before.snapshots, choice, self.now), power)
        )

    def consolidated(self) -> Outcome:
        """Consolidate the disks if they need it."""
        return self._undisturbed(self._consolidate)

    def _create(self, wish: Wish, guards: Guards) -> Outcome:
        warnings = guards.check(self.c, self.vm, self.properties, memory=wish.memory)
        quiesce, more = snapshot_create.plan_quiesce(self.properties, wish)
        if not self.check and self.waits:
            after, record, more = snapshot_create.create(self.c, self.vm, self.properties, wish, self.patience)
            more = [*more, *_twins(self.before, after, record)]
            return self._outcome(after, True, snapshot=record, warnings=[*warnings, *more])
        after = self.before
        if not self.check:
            after = _left(after, snapshot_create.begin(self.c, self.vm, self.properties, wish, quiesce))
        record = wish.as_planned(next((one for one in self.before.snapshots if one.current), None))
        outcome = self._outcome(after, True, snapshot=record, warnings=[*warnings, *more])
        there = [{**one, "current": False} for one in outcome.snapshots]
        made = {key: value for key, value in record.items() if key not in ("consistency", "disks")}
        return replace(outcome, snapshots=[*there, made])

    def _adjust(self, existing: Snapshot, adjust: Adjustment) -> Outcome:
        wanted = adjust.applied(existing)
        changed = wanted != existing
        if changed and not self.check:
            snapshot_tasks.rename(self.c, existing, wanted)
        known = snapshot_tasks.known_record(self.c, self.properties, existing)
        after, record = (self.before, known) if known else snapshot_tasks.look_at(self.c, self.vm, existing)
        if self.check or known:
            after = replace(
                self.before, snapshots=[wanted if one == existing else one for one in self.before.snapshots]
            )
            record.update(wanted.as_dict())
        return self._outcome(after, changed, snapshot=record, renamed=changed)

    def _remove(self, removal: Removal) -> Outcome:
        after = replace(self.before, snapshots=snapshot_plans.without(self.before.snapshots, removal.doomed))
        warnings: list[str] = []
        if removal.doomed and not self.check:
            if self.waits:
                after, warnings = snapshot_remove.carry_out(self.c, self.vm, removal, self.patience)
            else:
                after = _left(after, snapshot_remove.begin(self.c, self.vm, removal, self.patience))
        return self._outcome(after, bool(removal.doomed), removed=removal.doomed, warnings=warnings)

    def _revert(self, target: Snapshot, power: Power) -> Outcome:
        if not self.check and self.waits:
            after, record = snapshot_revert.revert(self.c, self.vm, self.properties, target, power, self.patience)
            return self._outcome(after, True, snapshot=record, reverted=True)
        _state, record = snapshot_tasks.look_at(self.c, self.vm, target)
        after = replace(
            self.before,
            snapshots=snapshot_plans.running_on(self.before.snapshots, target),
            power_state=power.outcome(target, self.before.power_state),
        )
        if not self.check:
            after = _left(after, snapshot_revert.begin(self.c, self.vm, self.properties, target, power))
        return self._outcome(after, True, snapshot={**record, "current": True}, reverted=True)

    def _consolidate(self) -> Outcome:
        needed = self.before.consolidation_needed
        after = replace(self.before, consolidation_needed=False)
        if needed and not self.check:
            if self.waits:
                after = snapshot_remove.consolidate(self.c, self.vm, self.patience)
            else:
                after = _left(after, self.c.call(self.vm.ConsolidateVMDisks_Task))
        return self._outcome(after, needed)

    def _outcome(self, after: State, changed: bool, **facts: Any) -> Outcome:
        return Outcome(self.before, after, [one.as_dict() for one in after.snapshots], changed, **facts)

    def _undisturbed(self, work: Callable[[], Outcome]) -> Outcome:
        """Plan and act once no other task works on the snapshots; anew if one began between the two."""

        def look_again() -> None:
            self.properties = inventory.read_vm(self.c, self.vm, snapshots.PROPERTIES, self.along)

        others = turns.under_way(self.properties["recentTask"], "snapshot|consolidate")
        return turns.in_turn(self.c, work, self.patience.timeout, others=others, waited=look_again)


def _left(after: State, task: Any) -> State:
    """What will be when a task ends that nobody waits for."""
    return after if task is None else replace(after, task=TaskRecord(task._GetMoId(), "running"))


def _twins(before: State, after: State, made: dict[str, Any]) -> list[str]:
    """Warns of a snapshot of the same name that came between the plan and the act."""
    known = {made["moid"], *(one.moid for one in before.snapshots)}
    twins = [str(one.id) for one in after.snapshots if one.name == made["name"] and one.moid not in known]
    told = f"Another snapshot named {made['name']} was made at the same time, with the ID {', '.join(twins)}."
    return [told] if twins else []


def _shown(state: State, listed: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One side of the difference."""
    listed = list(listed)
    return {
        "snapshots": [{"name": one["name"], "description": one["description"]} for one in listed],
        "current_snapshot": next((one["name"] for one in listed if one["current"]), None),
        "power_state": state.power_state,
        "consolidation_needed": state.consolidation_needed,
    }
