# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: which images must be merged so that restore points can go. Pure.

A point can go although others stand on it: each of them gets an image of its own that holds what the images between
it and the nearest one that stays held. Its content, seen through the chain, is the same before and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Collection, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, Point
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Link

SYNTHETIC = "synthetic full"


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
    :param cost: estimated, for the worst case
    """

    disk: Disk
    run: tuple[Link, ...]
    parent: Link | None
    reason: str
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
    raise NotImplementedError
