# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: which images must be merged so that restore points can go. Pure.

A point can go although others stand on it: each of them gets an image of its own that holds what the images between
it and the nearest one that stays held. Its content, seen through the chain, is the same before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Collection, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._repository import manifest, points
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, Parent, Point, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Link

SYNTHETIC = "synthetic full"
_LONGEST_REASON = 1000


@dataclass(frozen=True)
class Cost:
    """Bytes of images that are read and written. ``bytes_written`` is also the space that is taken at first."""

    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes_read + other.bytes_read, self.bytes_written + other.bytes_written)


@dataclass(frozen=True)
class DiskMerge:
    """One image to make.

    :param disk: the record of the disk as it is
    :param run: the images that become one, the oldest first, the disk's own last
    :param parent: what the new image stands on; None when it becomes full
    :param reason: why, for people
    :param fresh: write all of it anew, so that it does not depend on an old image's blocks
    :param cost: estimated, for the worst case
    """

    disk: Disk
    run: tuple[Link, ...]
    parent: Link | None
    reason: str
    fresh: bool
    cost: Cost


@dataclass(frozen=True)
class Merge:
    """The new images of one restore point, which all come into force at once."""

    point: Point
    disks: tuple[DiskMerge, ...]

    @property
    def cost(self) -> Cost:
        """Of all its disks, estimated."""
        return sum((disk.cost for disk in self.disks), Cost())


def plan(
    known: Mapping[str, Point],
    kept: Collection[str],
    synthetic: Collection[tuple[str, str]] = (),
    reflink: bool = False,
) -> list[Merge]:
    """What must be merged before all points but those kept can go, in the order in which to do it: the oldest first.

    Each merge expects those before it to be done, and needs no point that is not kept but those in its runs.

    :param known: the readable points of one object by their times
    :param kept: the times of those that stay
    :param synthetic: (time, image) of kept points' images that shall become full in any case
    :param reflink: whether the file system shares blocks between files, which a copy then does not write
    :raises Damaged: a kept point stands on one that goes, but its chain is not whole
    """
    current, wanted, merges = dict(known), set(synthetic), []
    for time in sorted(set(kept) & set(known)):
        point = current[time]
        found = (
            _plan_disk(current, kept, Link(point, disk), (time, disk.image) in wanted, reflink) for disk in point.disks
        )
        disks = tuple(disk for disk in found if disk is not None)
        if disks:
            merges.append(Merge(point, disks))
            current[time] = with_images(point, {disk.disk.image: _expected(disk) for disk in disks})
    return merges


def merged(disk: DiskMerge, old: Disk, size: int, sha256: str) -> Disk:
    """The record of a disk whose merged image has been made.

    :param old: the record that it replaces
    """
    parent = disk.parent and Parent(
        disk.parent.point.id, manifest.relative_image(_time(disk.parent), disk.parent.disk.image)
    )
    return replace(
        old,
        kind="incremental" if parent else "full",
        reason=None if parent else disk.reason,
        parent=parent,
        size=size,
        sha256=sha256,
        bytes_stored=size,
    )


def with_images(point: Point, disks: Mapping[str, Disk]) -> Point:
    """A point with other records of some of its disks, by the names of their images."""
    return replace(point, disks=tuple(disks.get(disk.image, disk) for disk in point.disks))


def _plan_disk(
    current: Mapping[str, Point], kept: Collection[str], link: Link, synthetic: bool, reflink: bool
) -> DiskMerge | None:
    try:
        links = points.chain(current, *link)
    except Damaged:
        if synthetic or any(time not in kept for time in _below(current, link)):
            raise
        return None
    first = len(links) - 1
    while first and (synthetic or _time(links[first - 1]) not in kept):
        first -= 1
    run = tuple(links[first:])
    if len(run) == 1:
        return None
    reason = SYNTHETIC if synthetic else f"merged with {', '.join(_time(one) for one in run[:-1])}"[:_LONGEST_REASON]
    return DiskMerge(
        link.disk, run, links[first - 1] if first else None, reason, synthetic, _cost(run, synthetic, reflink)
    )


def _below(current: Mapping[str, Point], link: Link) -> list[str]:
    """The times of the points that a broken chain is known to need."""
    times = []
    while link.disk.parent is not None:
        times.append(link.disk.parent.time)
        found = [disk for disk in _disks(current.get(times[-1])) if disk.image == link.disk.parent.file]
        if not found:
            break
        link = Link(current[times[-1]], found[0])
    return times


def _disks(point: Point | None) -> tuple[Disk, ...]:
    return () if point is None else point.disks


def _expected(disk: DiskMerge) -> Disk:
    """The record of the image before it is made: at its largest, its hash not known."""
    return merged(disk, disk.disk, sum(link.disk.size for link in disk.run), "0" * 64)


def is_rewritten(oldest: int, newer: int) -> bool:
    """Whether to write all content anew instead of into a copy of the oldest image.

    A copy saves little where the rest is not much more than that, and is left with gaps where content was replaced.

    :param oldest: bytes of the oldest image
    :param newer: bytes of all newer images
    """
    return 2 * newer > oldest


def _cost(run: tuple[Link, ...], fresh: bool, reflink: bool) -> Cost:
    oldest, newer = run[0].disk.size, sum(link.disk.size for link in run[1:])
    size = oldest + newer
    # Each source is hashed, then read to be written, then to be compared; the new image compared and hashed.
    if fresh or is_rewritten(oldest, newer):
        return Cost(5 * size, size)
    return Cost(2 * size + 3 * newer, newer if reflink else size)


def _time(link: Link) -> str:
    return PointId.parse(link.point.id).time
