# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: put merged images in place, so that a kill at any moment loses nothing.

New images of a point are made in ``<UTC time>.merging`` beside it. ``merge.json`` in there, the new manifest, commits
them: before it, recovery removes the directory; after it, recovery puts all of it in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Point
from ansible_collections.holdfast.backup.plugins.module_utils._repository.merging import Merge


class Made(Protocol):
    """What became of one image. Sizes in bytes; ``way`` is ``copy``, ``reflink`` or ``rewrite``."""

    size: int
    sha256: str
    bytes_read: int
    bytes_written: int
    way: str


class MakeImage(Protocol):
    """Makes one image; ``_nbd.merging.make_image`` with its settings and its watch given beforehand."""

    def __call__(
        self,
        *,
        target: str,
        sources: Sequence[tuple[str, int, str]],
        parent: str | None,
        capacity: int,
        name: str,
        renew: Any,
    ) -> Made:
        """Make ``target`` of ``sources`` (path, size, SHA-256; the oldest first), on stable storage at the end.

        :param parent: path of the image that the new one stands on
        :param name: of the disk, for messages and progress
        :param renew: to be called at least every few seconds; what it raises ends the work
        """


@dataclass(frozen=True)
class Carried:
    """A merge that was done: the point's new record, and what was made, in the order of the merge's disks."""

    point: Point
    made: tuple[Made, ...]


def carry_out(repository: Repository, merge: Merge, run: str, make_image: MakeImage) -> Carried:
    """Make the images of a merge and put them in place. On failure the object is as it was.

    :param run: that has the object's lock
    :raises Damaged: an image is not what was written; ``details["damaged"]`` names it by ``id`` and ``image``
    :raises Locked: the run lost its lock
    """
    raise NotImplementedError


def recover(directory: str) -> list[str]:
    """Roll forward or remove what dead runs left in an object's directory; the names that were there.

    Only for the owner of the lock.
    """
    raise NotImplementedError
