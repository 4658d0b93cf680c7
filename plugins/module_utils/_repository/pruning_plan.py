# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: the steps by which restore points of one object go, their cost, and the space they take.

Pure, but for a look at the sizes of files.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Collection, Mapping, Sequence, Union

from ansible_collections.holdfast.backup.plugins.module_utils._errors import NoSpace
from ansible_collections.holdfast.backup.plugins.module_utils._repository import files, keeping, merging
from ansible_collections.holdfast.backup.plugins.module_utils._repository.keeping import Verdict, Wishes
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Point
from ansible_collections.holdfast.backup.plugins.module_utils._repository.merging import DiskMerge, Merge
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import Known


@dataclass(frozen=True)
class Removal:
    """A restore point goes, with so many bytes of files."""

    time: str
    size: int


Step = Union[Merge, Removal]


@dataclass(frozen=True)
class Costs:
    """Bytes of files that are read, written, and deleted or replaced."""

    bytes_read: int = 0
    bytes_written: int = 0
    bytes_freed: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
            self.bytes_freed + other.bytes_freed,
        )


@dataclass(frozen=True)
class Plan:
    """What is to be done with the restore points of one object, step by step.

    :param costs: at most
    :param needed: bytes that must be free before the first step
    :param gained: bytes more that are free after the last step, at least
    """

    verdicts: Mapping[str, Verdict]
    steps: Sequence[Step]
    costs: Costs = Costs()
    needed: int = 0
    gained: int = 0

    def check_space(self, name: str, free: int, min_free: int) -> None:
        """See that everything fits in before anything is done.

        :raises NoSpace: it does not
        """
        if self.needed and self.needed > free - min_free:
            kept = f", of which min_free keeps {min_free}" if min_free else ""
            raise NoSpace(
                f"Merging restore points of {name} needs {self.needed} bytes at first; {free} are free{kept}.",
                "Free space in the repository, or set merge=false to delete only what no other restore point needs.",
                needed=self.needed,
                free=free,
            )


def plan(entries: Sequence[Entry], known: Known, wishes: Wishes, now: datetime, reflink: bool) -> Plan:
    """What to do with the restore points of one object, given what is in the repository.

    :param entries: all of them, oldest first
    :param known: what verifications have found
    :param reflink: whether the file system can share blocks between files
    """
    verdicts = keeping.decide(entries, known, wishes, now)
    current = keeping.readable(entries)
    kept = {time for time, verdict in verdicts.items() if verdict.keep}
    merges = merging.plan(current, kept, keeping.due_synthetics(verdicts, wishes), reflink)
    sizes = {entry.id.time: size_of(entry.path) for entry in entries if entry.id.time not in kept}
    steps, left = schedule(current, sizes, merges)
    for time in left:
        # Not to be expected; what is not understood stays.
        verdicts[time].stay("others stand on it")
    return Plan(verdicts, steps, costs_of(steps), *_space(steps, current, reflink))


def schedule(
    current: Mapping[str, Point], going: Mapping[str, int], merges: Sequence[Merge]
) -> tuple[list[Step], set[str]]:
    """Merges and removals in an order in which, after each step, every restore point that is left is whole.

    A point goes as soon as nothing stands on it any more. So what no merge needs goes first, and whatever a merge still
    needs is there: each image of a run but the last has the next one standing on it.

    :param current: the readable points by their times
    :param going: the times of those that are to go, with the bytes of their files
    :param merges: in the order in which they are to be done
    :return: the steps, and what cannot go because something stands on it
    """
    parents = {time: _parents(point) for time, point in current.items()}
    children: dict[str, set[str]] = defaultdict(set)
    for time, below in parents.items():
        for parent in below:
            children[parent].add(time)
    steps: list[Step] = []
    left = set(going)

    def remove(candidates: Collection[str]) -> None:
        waiting = sorted(candidates)
        while waiting:
            time = waiting.pop()
            if time in left and not children[time]:
                left.remove(time)
                steps.append(Removal(time, going[time]))
                for parent in parents.get(time, ()):
                    children[parent].discard(time)
                    waiting.append(parent)

    remove(going)
    for merge in merges:
        steps.append(merge)
        time, before = merge.point.time, parents[merge.point.time]
        parents[time] = _parents_after(merge)
        for parent in before - parents[time]:
            children[parent].discard(time)
        for parent in parents[time]:
            children[parent].add(time)
        remove(before)
    return steps, left


def costs_of(steps: Sequence[Step]) -> Costs:
    """What the steps cost at most."""
    return sum((_cost(step) for step in steps), Costs())


def way(disk: DiskMerge, reflink: bool) -> str:
    """How an image is going to be made, as far as can be told beforehand."""
    if _is_rewritten(disk):
        return "rewrite"
    return "reflink" if reflink else "copy"


def replaced(merge: Merge) -> int:
    """The bytes of the images that the merge replaces."""
    return sum(disk.disk.size for disk in merge.disks)


def size_of(directory: str) -> int:
    """The bytes of the files of a restore point."""
    with files.reporting("look at the files of a restore point"):
        if not files.is_directory(directory):  # a link in a hostile repository may lead anywhere
            return 0
        try:
            with os.scandir(directory) as found:
                return sum(each.stat(follow_symlinks=False).st_size for each in found)
        except (FileNotFoundError, NotADirectoryError):
            return 0


def _parents(point: Point) -> set[str]:
    return {disk.parent.time for disk in point.disks if disk.parent is not None}


def _parents_after(merge: Merge) -> set[str]:
    changed = {disk.disk.image: disk.parent for disk in merge.disks}
    found = set()
    for disk in merge.point.disks:
        if disk.image in changed:
            link = changed[disk.image]
            found.update([] if link is None else [link.point.time])
        elif disk.parent is not None:
            found.add(disk.parent.time)
    return found


def _cost(step: Step) -> Costs:
    if isinstance(step, Removal):
        return Costs(bytes_freed=step.size)
    return Costs(step.cost.bytes_read, step.cost.bytes_written, replaced(step))


def _space(steps: Sequence[Step], current: Mapping[str, Point], reflink: bool) -> tuple[int, int]:
    """The bytes that must be free before the first step, and by how much more are after the last.

    New images lie beside the old ones until those go. What an image shares with a clone of it is not gained by
    deleting it.
    """
    balance = needed = 0
    shared: dict[str, int] = defaultdict(int)
    for step in steps:
        if isinstance(step, Removal):
            balance += step.size - shared[step.time]
            continue
        balance -= step.cost.bytes_written
        needed = max(needed, -balance)
        balance += replaced(step)
        for disk in step.disks:
            if reflink and not _is_rewritten(disk):
                shared[disk.run[0].point.time] += disk.run[0].disk.size
    return needed, balance


def _is_rewritten(disk: DiskMerge) -> bool:
    oldest, newer = disk.run[0].disk.size, sum(link.disk.size for link in disk.run[1:])
    return disk.fresh or merging.is_rewritten(oldest, newer)
