# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: put merged images in place, so that a kill at any moment loses nothing.

New images of a point are made in ``<UTC time>.merging`` beside it. ``merge.json`` in there, the new manifest, commits
them: before it, recovery removes the directory; after it, recovery puts all of it in place.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Callable, Mapping, Protocol, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    documents,
    files,
    images,
    incremental,
    layout,
    locks,
    manifest,
    points,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Point, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.merging import (
    DiskMerge,
    Merge,
    merged,
    with_images,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Link

_RENEWAL = 20.0
"""Seconds between two signs of life of a run that merges."""


class Made(Protocol):
    """What became of one image. Sizes in bytes; ``way`` is ``copy``, ``reflink`` or ``rewrite``."""

    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...
    @property
    def way(self) -> str: ...


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
        fresh: bool,
        renew: Callable[[], None],
    ) -> Made:
        """Make ``target`` of ``sources`` (path, size, SHA-256; the oldest first), on stable storage at the end.

        :param parent: path of the image that the new one stands on
        :param name: of the disk, for messages and progress
        :param fresh: share nothing with an old image, and leave out what is no longer used
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
    point_id = PointId.parse(merge.point.id)
    directory, merging = repository.object_directory(point_id.object_id), repository.merging_directory(point_id)
    renew = _Renewal(directory, run)
    renew()
    known = _read_again(repository, merge)
    runs = [_run(known, merge, disk) for disk in merge.disks]
    try:
        with files.reporting("make the directory of the merged images"):
            _discard(merging)
            os.mkdir(merging, 0o700)
            files.sync_directory(directory)
        made = tuple(
            _make(repository, merging, disk, links, renew, run, make_image) for disk, links in zip(merge.disks, runs)
        )
        records = {
            links[-1].disk.image: merged(disk, links[-1].disk, image.size, image.sha256)
            for disk, links, image in zip(merge.disks, runs, made)
        }
        point = with_images(known[point_id.time], records)
        _commit(directory, merging, run, point_id, point)
    except BaseException:
        with suppress(OSError, RepositoryError):
            locks.check_owner(directory, run)  # else it is another run's by now
            _discard(merging)
        raise
    with files.reporting("put merged images in place"):
        _put_in_place(directory, point_id.time, point)
    return Carried(point, made)


def recover(directory: str) -> list[str]:
    """Remove what dead runs left in an object's directory, but put in place what a merge has committed.

    Only for the owner of the lock.

    :return: the names of what was left
    """
    names = layout.leftovers(directory)
    with files.reporting("clear up what a dead run left"):
        for name in names:
            path = os.path.join(directory, name)
            if not name.endswith(layout.MERGING):
                files.remove(path)
                continue
            time_name = name[: -len(layout.MERGING)]
            point = _committed(directory, time_name)
            if point is None:
                _discard(path)
                files.sync_directory(directory)
            else:
                _put_in_place(directory, time_name, point)
    return names


class _Renewal:
    """Keeps the lock of a run that writes nothing for long; fails when the lock is lost."""

    def __init__(self, directory: str, run: str) -> None:
        self._directory, self._run = directory, run
        self._due = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now >= self._due:
            locks.renew(self._directory, self._run)
            self._due = now + _RENEWAL


def _read_again(repository: Repository, merge: Merge) -> dict[str, Point]:
    """The points that a merge needs, as they are now, by their times: an earlier merge may have changed them."""
    links = {link.point.id for disk in merge.disks for link in (*disk.run, disk.parent) if link is not None}
    entries = (points.read_entry(repository, PointId.parse(text)) for text in sorted(links))
    return points.readable(entry for entry in entries if entry is not None)


def _run(known: Mapping[str, Point], merge: Merge, disk: DiskMerge) -> list[Link]:
    """The images to merge as their manifests are now, the oldest first.

    :raises RepositoryError: they are not those of the plan
    """
    wanted = [*([disk.parent] if disk.parent else []), *disk.run]
    point = known.get(PointId.parse(merge.point.id).time)
    found = [] if point is None else [Link(point, one) for one in point.disks if one.image == disk.disk.image]
    while found and len(found) < len(wanted) and (link := points.below(known, found[0])) is not None:
        found.insert(0, link)
    if [_name(link) for link in found] != [_name(link) for link in wanted] or (
        disk.parent is None and found[0].disk.parent is not None
    ):
        raise RepositoryError(
            f"The images of {merge.point.id} are no longer those that were to be merged.", "Run it again."
        )
    return found[len(wanted) - len(disk.run) :]


def _name(link: Link) -> tuple[str, str]:
    return link.point.id, link.disk.image


def _make(
    repository: Repository,
    merging: str,
    disk: DiskMerge,
    links: list[Link],
    renew: _Renewal,
    run: str,
    make_image: MakeImage,
) -> Made:
    target = os.path.join(merging, links[-1].disk.image)
    # A program that a killed run left must not find what a later one makes.
    unfinished = f"{target}.{run}"
    paths = {incremental.image_path(repository, link): link for link in links}
    path = next(iter(paths))
    try:
        for path, link in paths.items():
            images.check(path, link.disk)
        path = ""
        with files.reporting("make a merged image"):
            made = make_image(
                target=unfinished,
                sources=[(path, link.disk.size, link.disk.sha256) for path, link in paths.items()],
                parent=None if disk.parent is None else incremental.image_path(repository, disk.parent),
                capacity=links[-1].disk.capacity,
                name=_title(links[-1]),
                fresh=disk.fresh,
                renew=renew,
            )
            os.rename(unfinished, target)
            return made
    except RepositoryError as error:
        path = error.details.get("path") or getattr(error.__cause__, "filename", None) or path
        found = paths.get(path)
        if found is None or not files.tells_of_the_file(error):
            raise
        # What the storage gives back no more is damaged, too.
        damaged = error if isinstance(error, Damaged) else Damaged(error.message, images.NEXT_STEP)
        # The next backup must not stand on it, nor any merge launder it.
        damaged.details["damaged"] = [{"id": found.point.id, "image": found.disk.image}]
        raise damaged from error.__cause__


def _title(link: Link) -> str:
    """A disk in a restore point, for people."""
    owner = link.point.owner
    names = (owner.name or owner.object_id, PointId.parse(link.point.id).time, link.disk.label)
    return " ".join(dict.fromkeys(names))  # a first class disk is called like its only disk


def _commit(directory: str, merging: str, run: str, point_id: PointId, point: Point) -> None:
    data = manifest.render(point)
    manifest.parse(data, point_id)
    with files.reporting("commit the merged images"):
        for name in set(os.listdir(merging)) - {disk.image for disk in point.disks}:
            files.remove(os.path.join(merging, name))
        files.sync_directory(merging)
        # The last moment to notice that another run took this one for dead.
        locks.renew(directory, run)
        files.write(os.path.join(merging, layout.MERGED), data)


def _committed(directory: str, time_name: str) -> Point | None:
    """The manifest of a merge that is to be put in place; None when it never came so far.

    :raises RepositoryError: a newer release made it
    """
    merging, complete = os.path.join(directory, time_name + layout.MERGING), os.path.join(directory, time_name)
    if not files.is_directory(merging) or not files.is_directory(complete):
        return None
    point_id = PointId(os.path.basename(directory), time_name)
    try:
        point = _read(os.path.join(merging, layout.MERGED), point_id)
        with suppress(Damaged, FileNotFoundError):
            if not _is_merged_from(point, _read(os.path.join(complete, manifest.FILE), point_id)):
                return None
        for disk in point.disks:
            path = os.path.join(merging, disk.image)
            images.check(path if os.path.lexists(path) else os.path.join(complete, disk.image), disk)
    except (Damaged, FileNotFoundError):
        return None
    return point


def _read(path: str, point_id: PointId) -> Point:
    return manifest.parse(files.read(path, documents.MAX_BYTES), point_id)


def _is_merged_from(point: Point, old: Point) -> bool:
    """Whether a manifest tells of the same as an older one but for the images that hold it."""
    if [disk.image for disk in point.disks] != [disk.image for disk in old.disks]:
        return False
    as_before = {
        new.image: replace(
            new,
            kind=disk.kind,
            reason=disk.reason,
            parent=disk.parent,
            size=disk.size,
            sha256=disk.sha256,
            bytes_stored=disk.bytes_stored,
        )
        for new, disk in zip(point.disks, old.disks)
    }
    return with_images(point, as_before) == old


def _put_in_place(directory: str, time_name: str, point: Point) -> None:
    """Bring committed images into their point: whatever step is the last, all of it can be done again."""
    merging, complete = os.path.join(directory, time_name + layout.MERGING), os.path.join(directory, time_name)
    for disk in point.disks:
        new = os.path.join(merging, disk.image)
        if os.path.lexists(new):
            os.rename(new, os.path.join(complete, disk.image))
    files.sync_directory(complete)
    files.sync_directory(merging)
    os.rename(os.path.join(merging, layout.MERGED), os.path.join(complete, manifest.FILE))
    files.sync_directory(complete)
    files.remove(merging)
    files.sync_directory(directory)


def _discard(merging: str) -> None:
    """Remove a merge; first what would commit it, for good, so that no part of it is ever put in place."""
    if files.is_directory(merging):
        merge = os.path.join(merging, layout.MERGED)
        if os.path.lexists(merge):
            files.remove(merge)
            files.sync_directory(merging)
    files.remove(merging)
