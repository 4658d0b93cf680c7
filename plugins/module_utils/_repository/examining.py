# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: is one image or file of a restore point still what was written?

Readers take no lock, so a merge may put another image in place, and a deletion may take a restore point away, while
it is read. What does not fit the manifest is therefore compared with the manifest as it is *now*, and with the one
that a merge has committed. The latter is read first: were it read last, it might just have taken the former's place.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from threading import Lock
from typing import Callable, Iterable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    Damaged,
    RepositoryError,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    files,
    images,
    layout,
    manifest,
    points,
    records,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.images import CheckImage
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, File, Point, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry, Link
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import FileRecord

AT_A_TIME = 2
"""Files read at a time: a hash keeps one processor busy. More of them make a disk seek."""

_REREADS = 4
# Errors of the storage, which tell of the file. Others, like a lack of rights, tell of the one who reads.
_OF_THE_FILE = (errno.EIO, errno.ENOENT, errno.EUCLEAN, errno.EBADMSG)
NEXT_STEP = "Restore it from a copy of the repository."


Check = Callable[[int], None]


def unhurried(count: int) -> None:
    """A check that lets everything go on."""


class OutOfTime(BackupError):
    """The time that was given is over: no result, and no damage."""


@dataclass(frozen=True)
class Part:
    """One image or file that a restore point consists of, as a manifest tells. ``disk`` is that of an image."""

    point_id: PointId
    name: str
    size: int
    sha256: str
    disk: Disk | None = None

    @classmethod
    def of_link(cls, link: Link) -> Part:
        """An image of a chain."""
        return cls(PointId.parse(link.point.id), link.disk.image, link.disk.size, link.disk.sha256, link.disk)

    @classmethod
    def of_file(cls, point: Point, file: File) -> Part:
        """Another file of a restore point."""
        return cls(PointId.parse(point.id), file.name, file.size, file.sha256)

    def path(self, repository: Repository) -> str:
        """The file."""
        return os.path.join(repository.point_directory(self.point_id), self.name)


@dataclass(frozen=True)
class Finding:
    """What became of one part.

    :param part: of the manifest that it was held against last
    :param error: what is wrong with it, or None
    :param bytes_read: of the file
    :param vanished: it was deleted meanwhile, with its restore point
    """

    part: Part
    level: str
    time: str
    error: BackupError | None = None
    bytes_read: int = 0
    vanished: bool = False

    @property
    def record(self) -> FileRecord | None:
        """What is to be stored of it: nothing when it could not be looked at, for reasons of the reader's."""
        if self.vanished or (self.error is not None and not _is_of_the_file(self.error)):
            return None
        what = None if self.error is None else self.error.message
        return FileRecord(self.part.name, self.part.sha256, self.level, self.time, self.error is None, what)


class Examiner:
    """Examines parts of one repository, each at most once. Threads may share it.

    :param level: ``structure`` or ``content``
    :param check: called between blocks with the bytes that were read; what it raises ends the examination without a
        result
    """

    def __init__(self, repository: Repository, level: str, check_image: CheckImage, check: Check = unhurried) -> None:
        self._repository = repository
        self._level = level
        self._check_image = check_image
        self._check = check
        self._seen: dict[tuple[PointId, str, str], Finding] = {}
        self._locks: dict[tuple[PointId, str, str], Lock] = defaultdict(Lock)

    def examine_all(self, parts: Iterable[Part]) -> list[Finding]:
        """Examine some parts, several at a time; what was found, in their order."""
        wanted = list(parts)
        new = [part for part in dict.fromkeys(wanted) if _key(part) not in self._seen]
        if len(new) == 1:
            self.examine(new[0])
        elif new:
            with ThreadPoolExecutor(AT_A_TIME) as pool:
                list(pool.map(self.examine, new))
        return [self.examine(part) for part in wanted]

    def examine(self, part: Part) -> Finding:
        """Examine one part.

        :raises RepositoryError: the repository itself has gone away
        """
        with self._locks[_key(part)]:
            found = self._seen.get(_key(part))
            if found is None:
                found = self._examine(part)
                self._seen[_key(part)] = self._seen[_key(found.part)] = found
            return found

    def _examine(self, part: Part) -> Finding:
        wanted: Sequence[Part] = [part]
        tried: list[Part] = []
        error: BackupError | None = None
        bytes_read = 0
        for _turn in range(_REREADS):
            untried = [one for one in wanted if one not in tried]
            if not untried:
                break
            for one in untried:
                tried.append(one)
                problem = self._problem(one)
                bytes_read += one.size if self._level != records.STRUCTURE else 0
                if problem is None:
                    return Finding(one, self._level, now(), None, bytes_read)
                error = problem
            current = self._current(part)
            if current is None:
                return Finding(part, self._level, now(), None, bytes_read, vanished=True)
            wanted = current
        return Finding(wanted[-1] if wanted else part, self._level, now(), error, bytes_read)

    def _problem(self, part: Part) -> BackupError | None:
        self._check(0)
        try:
            self._look(part)
        except RepositoryError as error:
            return error
        return None

    def _look(self, part: Part) -> None:
        path = part.path(self._repository)
        if part.disk is not None:
            images.check(path, part.disk)
        else:
            with files.reporting("read a file of the restore point"):
                if not files.is_plain(path) or os.lstat(path).st_size != part.size:
                    raise Damaged(f"{path} is missing or not {part.size} bytes long.", NEXT_STEP)
        if self._level != records.STRUCTURE:
            # With this hash it is what QEMU found sound before it was recorded.
            with files.reporting("read a file of the restore point"):
                if files.digest(path, self._check)[1] != part.sha256:
                    raise Damaged(f"The content of {path} is not what was written.", images.NEXT_STEP)
        elif part.disk is not None:
            images.check_structure(path, self._check_image)

    def _current(self, part: Part) -> list[Part] | None:
        """The part as the manifests tell of it now; None when it has gone, with its restore point or from it."""
        merged = points.merging(self._repository, part.point_id)
        entry = points.read_entry(self._repository, part.point_id)
        if entry is None:
            check_there(self._repository)
            return None
        found = [same for point in (entry.point, merged) if point is not None for same in _same(point, part)]
        return found if found or entry.point is None else None


def check_there(repository: Repository) -> None:
    """See that a file is missing, and not all of the repository.

    :raises RepositoryError: it is not there
    """
    if not os.path.lexists(os.path.join(repository.path, layout.FILE)):
        raise RepositoryError(
            f"The repository {repository.path} went away while it was read.", "See that the share is mounted."
        )


def parts_of(point: Point) -> list[Part]:
    """A restore point's own images and files."""
    own = [Part.of_link(Link(point, disk)) for disk in point.disks]
    return own + [Part.of_file(point, file) for file in point.files]


def parts_of_entry(entry: Entry) -> list[Part]:
    """The same of a restore point as it may be, while a merge is put in place."""
    return [part for point in (entry.point, entry.merging) if point is not None for part in parts_of(point)]


def images_below(readable: Mapping[str, Point], link: Link) -> list[Link]:
    """An image and those that it stands on, as far as the manifests tell."""
    links = [link]
    with suppress(Damaged):
        while (below := points.below(readable, links[-1])) is not None:
            links.append(below)
    return links


def needed(readable: Mapping[str, Point], point: Point) -> list[Part]:
    """All files that a restore point needs, each once, as far as the manifests tell."""
    chains = [images_below(readable, Link(point, disk)) for disk in point.disks]
    found = [Part.of_link(link) for links in chains for link in links]
    return list(dict.fromkeys(found + [Part.of_file(point, file) for file in point.files]))


def now() -> str:
    """The time, as records have it."""
    return manifest.format_time(datetime.now(timezone.utc))


def _same(point: Point, part: Part) -> list[Part]:
    return [one for one in parts_of(point) if one.name == part.name]


def _key(part: Part) -> tuple[PointId, str, str]:
    return part.point_id, part.name, part.sha256


def _is_of_the_file(error: BackupError) -> bool:
    cause = error.__cause__
    return isinstance(error, Damaged) or (isinstance(cause, OSError) and cause.errno in _OF_THE_FILE)
