# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what is to become of a VM's snapshots, decided before anything is touched.

Pure functions over the records of ``snapshots.flatten``. Each plan can tell the snapshots that there will be, so check
mode answers what a run would.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Iterable, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshots import Snapshot


@dataclass(frozen=True)
class Choice:
    """Which of a VM's snapshots are meant. What is not set asks for nothing; a snapshot must fit all that is set.

    ``name_pattern`` is a shell pattern. Of the snapshots that fit name, pattern and stamp, the ``keep_last`` newest
    are spared, whatever their age. ``duplicates`` is as for ``snapshots.choose``; where something else tells snapshots
    of one name apart, all of them are meant.
    """

    name: str | None = None
    snapshot_id: int | None = None
    moid: str | None = None
    current: bool = False
    name_pattern: str | None = None
    job: str | None = None
    run: str | None = None
    expired_only: bool = False
    older_than: timedelta | None = None
    keep_last: int | None = None
    duplicates: str = "fail"

    @property
    def named(self) -> bool:
        """Whether one snapshot is named (or several of one name)."""
        return self.name is not None or self.snapshot_id is not None or self.moid is not None

    @property
    def by_age(self) -> bool:
        return self.older_than is not None or self.keep_last is not None

    @property
    def empty(self) -> bool:
        """Whether nothing at all was asked for."""
        return not (self.named or self.current or self.by_age or self.name_pattern is not None or self.job is not None)


@dataclass(frozen=True)
class Adjustment:
    """Name and description to give to a snapshot that exists; what is None stays.

    ``only``: a snapshot that does not exist is then an error, and none is made.
    """

    name: str | None = None
    description: str | None = None
    only: bool = False

    def applied(self, one: Snapshot) -> Snapshot:
        return replace(
            one,
            name=self.name or one.name,
            description=one.description if self.description is None else self.description,
        )


@dataclass(frozen=True)
class Step:
    """One call of vSphere that removes a snapshot, and all below it with ``children``."""

    snapshot: Snapshot
    children: bool = False


@dataclass(frozen=True)
class Removal:
    """Snapshots to remove, parents before children, and the calls that do it.

    Parents go first: each delta is then merged into a disk that stays, and none into another that goes next.
    """

    doomed: tuple[Snapshot, ...] = ()
    steps: tuple[Step, ...] = ()
    everything: bool = False  # one call removes all that the VM has


def select(everything: Sequence[Snapshot], choice: Choice, now: datetime) -> tuple[list[Snapshot], list[Snapshot]]:
    """The snapshots that are meant, and those that ``keep_last`` spares.

    :param now: the server's time
    :raises Ambiguous: several have the name, and nothing says which
    """
    series = [one for one in everything if _fits(one, choice)]
    if choice.named:
        several = choice.by_age or choice.name_pattern is not None
        series = snapshots.choose(
            series,
            name=choice.name,
            snapshot_id=choice.snapshot_id,
            moid=choice.moid,
            duplicates="all" if several and choice.duplicates == "fail" else choice.duplicates,
        )
    newest_first = sorted(series, key=lambda one: (one.created, one.id), reverse=True)
    spared = newest_first[: choice.keep_last or 0]
    meant = [
        one
        for one in everything
        if one in series
        and one not in spared
        and (choice.older_than is None or one.created < now - choice.older_than)
        and (not choice.expired_only or (one.stamp is not None and one.stamp.expired(now)))
    ]
    return meant, spared


def _fits(one: Snapshot, choice: Choice) -> bool:
    return (
        (choice.job is None or bool(snapshots.owned([one], choice.job, choice.run)))
        and (choice.name_pattern is None or fnmatch.fnmatchcase(one.name, choice.name_pattern))
        and (one.current or not choice.current)
    )


def plan_removal(everything: Sequence[Snapshot], choice: Choice, *, children: bool, now: datetime) -> Removal:
    """What has to go: the chosen snapshots, and with ``children`` all below them except those that are spared.

    :raises InvalidInput: nothing was chosen
    """
    if choice.empty:
        raise InvalidInput(
            "No snapshot was chosen to be absent.",
            "Give snapshot_name, snapshot_id, snapshot_moid, name_pattern, stamp, older_than, keep_last or remove_all.",
        )
    meant, spared = select(everything, choice, now)
    if children:
        meant = [one for one in snapshots.with_descendants(everything, meant) if one not in spared]
    return Removal(tuple(meant), tuple(_steps(everything, meant)) if children else tuple(map(Step, meant)))


def plan_remove_all(everything: Sequence[Snapshot]) -> Removal:
    """All of them, whoever made them."""
    return Removal(tuple(everything), everything=True)


def _steps(everything: Sequence[Snapshot], doomed: Sequence[Snapshot]) -> Iterable[Step]:
    """As few calls as possible: a snapshot of which all children go, takes them along."""
    gone: set[int] = set()
    for one in doomed:
        if one.id in gone:
            continue
        subtree = snapshots.with_descendants(everything, [one])
        whole = all(other in doomed for other in subtree)
        gone.update(other.id for other in subtree if whole)
        yield Step(one, children=whole)


def without(everything: Sequence[Snapshot], doomed: Iterable[Snapshot]) -> list[Snapshot]:
    """The snapshots that a removal leaves: children move up, and the VM runs on the nearest that is left above."""
    by_id = {one.id: one for one in everything}
    gone = {one.id for one in doomed}

    def home(number: int | None) -> int | None:
        while number in gone:
            number = by_id[number].parent_id
        return number

    current = home(next((one.id for one in everything if one.current), None))
    left: list[Snapshot] = []
    depths: dict[int | None, int] = {None: 0}
    for one in (one for one in everything if one.id not in gone):
        parent = home(one.parent_id)
        depths[one.id] = depths[parent] + 1
        left.append(replace(one, parent_id=parent, depth=depths[one.id], current=one.id == current))
    return [replace(one, child_ids=tuple(other.id for other in left if other.parent_id == one.id)) for one in left]


def plan_present(
    everything: Sequence[Snapshot],
    choice: Choice,
    adjust: Adjustment,
    *,
    min_age: timedelta | None,
    now: datetime,
) -> Snapshot | None:
    """The snapshot that will do, or None if one has to be made.

    :param min_age: a snapshot of the series that is younger will do; its name then says nothing
    :raises NotFound: what should be renamed or described does not exist
    """
    if min_age is not None:
        series, _spared = select(everything, _series(choice), now)
        young = [one for one in series if one.created > now - min_age]
        return max(young, key=lambda one: (one.created, one.id), default=None)
    if choice.job is not None:
        found = snapshots.owned(everything, choice.job, choice.run) if choice.run else []
        return found[0] if found else None
    named: dict[str, Any] = {"name": choice.name, "snapshot_id": choice.snapshot_id, "moid": choice.moid}
    several = snapshots.choose(everything, **named, duplicates="all")
    # Where none of them has to be changed, it does not matter which is meant.
    any_will_do = choice.duplicates == "fail" and all(adjust.applied(one) == one for one in several)
    found = snapshots.choose(several, **named, duplicates="newest" if any_will_do else choice.duplicates)
    if not found and adjust.name:
        found = snapshots.choose(everything, name=adjust.name, duplicates=choice.duplicates)
    if found:
        return found[0]
    if choice.name is not None and not adjust.only:
        return None
    raise NotFound("The virtual machine has no such snapshot to rename or describe.", _there_are(everything))


def _series(choice: Choice) -> Choice:
    """The snapshots among which a young one will do: by pattern, else by job, else those of the same name."""
    if choice.name_pattern is not None or choice.job is not None:
        return Choice(name_pattern=choice.name_pattern, job=choice.job)
    return replace(choice, duplicates="all")


def plan_revert(everything: Sequence[Snapshot], choice: Choice, now: datetime) -> Snapshot:
    """The one snapshot to go back to.

    :raises NotFound: there is no such snapshot
    :raises Ambiguous: several fit
    """
    if choice.empty:
        raise InvalidInput(
            "No snapshot was chosen to go back to.",
            "Give snapshot_name, snapshot_id, snapshot_moid, stamp or current.",
        )
    found, _spared = select(everything, choice, now)
    if not found:
        raise NotFound("The virtual machine has no such snapshot to go back to.", _there_are(everything))
    if len(found) > 1 and choice.duplicates == "fail":
        raise Ambiguous(
            f"{len(found)} snapshots fit, with the IDs {', '.join(str(one.id) for one in found)}.",
            "Say which by snapshot_id, or set duplicates.",
            candidates=[one.as_dict() for one in found],
        )
    by_age = sorted(found, key=lambda one: (one.created, one.id))
    return by_age[0] if choice.duplicates == "oldest" else by_age[-1]


def running_on(everything: Iterable[Snapshot], target: Snapshot) -> list[Snapshot]:
    """The snapshots as they are after the VM was reverted to one of them."""
    return [replace(one, current=one.id == target.id) for one in everything]


def _there_are(everything: Iterable[Snapshot]) -> str:
    return f"It has {', '.join(f'{one.name} (ID {one.id})' for one in everything) or 'none'}."
