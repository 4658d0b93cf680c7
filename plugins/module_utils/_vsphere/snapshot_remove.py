# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: removing snapshots, which is only over when the disks need no consolidation any more."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from typing import Any, Callable, Iterable, TypeVar

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    ConnectionFailed,
    NotFound,
    VsphereFault,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshot_tasks, snapshots, turns
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_plans import Removal, Step
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_tasks import Patience, State

T = TypeVar("T")


def remove(
    c: Connection, vm: Any, chosen: Iterable[snapshots.Snapshot], *, children: bool, patience: Patience
) -> tuple[State, list[str]]:
    """Remove snapshots, one after the other, and see to it that the disks are consolidated.

    :param children: whether all snapshots below go too
    :returns: the state after it, and warnings
    """
    doomed = tuple(chosen)
    return carry_out(c, vm, Removal(doomed, tuple(Step(one, children) for one in doomed)), patience)


def carry_out(c: Connection, vm: Any, removal: Removal, patience: Patience) -> tuple[State, list[str]]:
    """Remove snapshots as planned, and see to it that the disks are consolidated.

    :returns: the state after it, and warnings
    :raises BackupError: with ``removed`` and ``not_removed`` in its details where there were several
    """
    state, calls = None, _removals(c, vm, removal)
    try:
        for start in calls[:-1]:
            _finish(c, start, patience.wait, patience)
        for start in calls[-1:]:
            state = _finish(c, start, lambda c, task: patience.finish(c, vm, task)[0], patience)
    except BackupError as error:
        if len(removal.doomed) > 1:
            raise _halfway(c, vm, removal, error) from error
        raise
    return settle(c, vm, patience, state)


def begin(c: Connection, vm: Any, removal: Removal, patience: Patience) -> Any:
    """Remove snapshots as planned, but do not wait for the last; returns its task (None if that one was gone)."""
    *first, last = _removals(c, vm, removal)
    for start in first:
        _finish(c, start, patience.wait, patience)
    try:
        return last()
    except NotFound:
        return None


def _removals(c: Connection, vm: Any, removal: Removal) -> list[Callable[[], Any]]:
    """The calls that start the tasks of a removal, in order."""
    if removal.everything:
        calls = [functools.partial(vm.RemoveAllSnapshots_Task, True)]
    else:
        calls = [
            functools.partial(snapshot_tasks.managed(c, step.snapshot).RemoveSnapshot_Task, step.children, True)
            for step in removal.steps
        ]
    return [functools.partial(_ask_twice, c, call) for call in calls]


def _ask_twice(c: Connection, call: Callable[[], Any]) -> Any:
    try:
        return c.call(call)
    except ConnectionFailed:
        # Removing is safe to ask for again: it is about these objects, and never about others.
        return c.call(call)


def _finish(
    c: Connection, start: Callable[[], Any], wait: Callable[[Connection, Any], T], patience: Patience
) -> T | None:
    """Start a removal, after another task if one is in the way, and ``wait`` for it; None if it had nothing to do."""
    try:
        return turns.in_turn(c, lambda: wait(c, start()), patience.timeout)
    except BackupError as error:
        if error.details.get("fault") != "ManagedObjectNotFound":
            raise
        return None  # somebody else was faster


def _halfway(c: Connection, vm: Any, removal: Removal, error: BackupError) -> BackupError:
    """The error of a removal that ended in the middle, with what was removed by then."""
    try:
        there = {one.moid for one in snapshot_tasks.look(c, vm)[0].snapshots}
    except BackupError:  # what happened first counts
        return error
    gone = [one for one in removal.doomed if one.moid not in there]
    left = [one for one in removal.doomed if one.moid in there]
    told = "; ".join(
        f"{what}: {', '.join(f'{one.name} (ID {one.id})' for one in some) or 'none'}"
        for what, some in (("removed", gone), ("not removed", left))
    )
    details = {
        **error.details,
        "removed": [one.as_dict() for one in gone],
        "not_removed": [one.as_dict() for one in left],
    }
    return type(error)(f"{error.message} Of the snapshots, {told}.", error.next_step, **details)


def settle(c: Connection, vm: Any, patience: Patience, state: State | None = None) -> tuple[State, list[str]]:
    """Consolidate the VM's disks if they need it; a failure is a warning, for what was asked has been done.

    :param state: how the removal left the VM, if that is known
    """
    state = state or snapshot_tasks.look(c, vm)[0]
    if not state.consolidation_needed:
        return state, []
    try:
        return replace(consolidate(c, vm, patience), task=state.task), []
    except VsphereFault as error:
        later, _unused = snapshot_tasks.look(c, vm)
        return replace(later, task=state.task), [error.message]


def consolidate(c: Connection, vm: Any, patience: Patience) -> State:
    """Consolidate the VM's disks until vSphere says that they need it no more.

    :raises VsphereFault: they still do after the last attempt
    """
    for attempts_left in reversed(range(patience.retries + 1)):
        try:
            task = c.call(vm.ConsolidateVMDisks_Task)
            state, _unused = patience.finish(c, vm, task)
            if not state.consolidation_needed:
                return state
        except VsphereFault:
            if not attempts_left:
                raise
        if attempts_left:
            time.sleep(patience.retry_delay)  # whoever holds a file needs time to let it go, and tells nobody
    raise VsphereFault(
        "The disks still need consolidation after they were consolidated.",
        "Find out who holds their files, a backup proxy for example, and run this again.",
    )
