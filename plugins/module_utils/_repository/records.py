# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what verifications have found, as it is stored.

The sealed file ``verified.json`` in the directory of a restore point tells of its own images and files, and of the
content of its disks. It is a note, not the truth: where it is missing, torn or of something else, nothing was
verified. A record of a file holds for the hash that it names, so it ends when a merge makes another image.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import documents, files, points
from ansible_collections.holdfast.backup.plugins.module_utils._repository.documents import Fields
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Point, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Link

FORMAT = "holdfast.verification"
VERSION = 1
FILE = "verified.json"

NONE, STRUCTURE, CONTENT, RESTORE = LEVELS = ("none", "structure", "content", "restore")

_MOST = 8192
_ABANDONED = 600
"""Seconds after which a file that was to become a record belongs to nobody."""
_NAME, _SHA256, _TIME = r"[a-z0-9][a-z0-9._-]{0,99}", r"[0-9a-f]{64}", r"[0-9TZ:.+-]{20,40}"


@dataclass(frozen=True)
class FileRecord:
    """One image or file of a restore point, as found at one level."""

    name: str
    sha256: str
    level: str
    time: str
    ok: bool
    what: str | None


@dataclass(frozen=True)
class DiskRecord:
    """The content of one disk of a restore point, read through its chain.

    ``content_hash`` is what it was the first time; None when it never could be read.
    """

    image: str
    content_hash: str | None
    time: str
    ok: bool
    what: str | None


@dataclass(frozen=True)
class Records:
    """What is stored about one restore point."""

    files: tuple[FileRecord, ...] = ()
    disks: tuple[DiskRecord, ...] = ()

    def of_file(self, name: str, sha256: str) -> list[FileRecord]:
        """The records of a file with this hash; the highest level last."""
        found = [one for one in self.files if (one.name, one.sha256) == (name, sha256)]
        return sorted(found, key=lambda one: LEVELS.index(one.level))

    def of_disk(self, image: str) -> DiskRecord | None:
        """The record of the content of a disk."""
        return next((one for one in self.disks if one.image == image), None)


def read(directory: str) -> Records:
    """What is stored in the directory of a restore point."""
    path = os.path.join(directory, FILE)
    try:
        with files.reporting("read the record of a verification"):
            data = files.read(path, documents.MAX_BYTES)
        fields = Fields(documents.parse(data, FORMAT, VERSION, path), path)
        return Records(
            tuple(_file(item) for item in fields.objects("files", _MOST)),
            tuple(_disk(item) for item in fields.objects("disks", _MOST)),
        )
    except RepositoryError:
        return Records()


def store(
    directory: str, found: Sequence[FileRecord], disks: Sequence[DiskRecord] = (), dry: bool = False
) -> tuple[bool, Records]:
    """Add what was found to what is stored; whether that says anything new besides a newer time, and all of it.

    Needs no lock. A restore point that was deleted meanwhile is passed over.

    :param dry: only say so
    :raises RepositoryError: it cannot be written
    """
    before = read(directory)
    after = Records(_merged_files(before.files, found), _merged_disks(before.disks, disks))
    new = _outcome(before) != _outcome(after)
    if after == before or dry:
        return new, after
    path = os.path.join(directory, FILE)
    prepared = f"{path}.{uuid.uuid4().hex}.new"
    body = {"files": [asdict(one) for one in after.files], "disks": [asdict(one) for one in after.disks]}
    try:
        with files.reporting("store what the verification found"):
            files.write(path, documents.render(FORMAT, VERSION, body), prepared)
    except RepositoryError:
        if os.path.lexists(directory):
            raise
        return False, after
    _sweep(directory, path)
    return new, after


def latest(records: Iterable[FileRecord], level: str) -> str | None:
    """When a file was last verified at a level or a higher one; None when it never was."""
    times = [one.time for one in records if LEVELS.index(one.level) >= LEVELS.index(level)]
    return max(times, default=None)


class Known:
    """What is stored about the restore points of one repository; each record is read once."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._read: dict[str, Records] = {}

    def of(self, point: Point) -> Records:
        """The records in a restore point's directory."""
        if point.id not in self._read:
            self._read[point.id] = read(self._repository.point_directory(PointId.parse(point.id)))
        return self._read[point.id]

    def note(self, point_id: PointId, found: Records) -> None:
        """Take these for what is stored of a restore point."""
        self._read[str(point_id)] = found

    def damage(self, links: Sequence[Link]) -> Fault | None:
        """The first image of a chain that was found damaged, or else the content that the chain holds."""
        for point, disk in links:
            for one in self.of(point).of_file(disk.image, disk.sha256):
                if not one.ok:
                    return Fault(point, disk.image, one)
        point, disk = links[-1]
        content = self.of(point).of_disk(disk.image)
        return Fault(point, disk.image, content) if content is not None and not content.ok else None

    def faults(self, readable: Mapping[str, Point], point: Point) -> list[Fault]:
        """What was found damaged of a restore point and all that it stands on.

        :param readable: the readable points of the object by their times
        """
        own = self.of(point)
        found: dict[tuple[str, str], Fault] = {}
        for one, name, sha256 in _parts(readable, point):
            for record in self.of(one).of_file(name, sha256):
                if not record.ok:
                    found[one.id, name] = Fault(one, name, record)
        for disk in point.disks:
            content = own.of_disk(disk.image)
            if content is not None and not content.ok:
                found.setdefault((point.id, disk.image), Fault(point, disk.image, content))
        return list(found.values())

    def verification(self, readable: Mapping[str, Point], point: Point) -> dict[str, Any] | None:
        """The stored state of a restore point with all that it stands on: its lowest level and its oldest time.

        None when some of it was never verified and nothing is known to be damaged.
        """
        best: list[FileRecord | None] = []
        for one, name, sha256 in _parts(readable, point):
            best.append(next(reversed(self.of(one).of_file(name, sha256)), None))
        faults = self.faults(readable, point)
        known = [one for one in best if one is not None]
        complete = bool(known) and len(known) == len(best) and points.is_whole(readable, point)
        if not complete and not faults:
            return None
        level, times = NONE, [one.time for one in known]
        if complete:
            level = min((one.level for one in known), key=LEVELS.index, default=CONTENT)
            disks = [self.of(point).of_disk(disk.image) for disk in point.disks]
            if level == CONTENT and disks and all(disks):
                level = RESTORE
                times += [disk.time for disk in disks if disk is not None]
        times += [fault.record.time for fault in faults]
        return {
            "level": level,
            "time": min(times, default=None),
            "ok": not faults,
            "problems": [
                {"restore_point": fault.point.id, "file": fault.name, "what": fault.record.what} for fault in faults
            ],
        }


class Fault(NamedTuple):
    """A file of a restore point, or the content of the disk of an image, that was found damaged."""

    point: Point
    name: str
    record: FileRecord | DiskRecord

    @property
    def path(self) -> str:
        """The file, named from the directory of its object's restore points."""
        return f"{PointId.parse(self.point.id).time}/{self.name}"


def _parts(readable: Mapping[str, Point], point: Point) -> list[tuple[Point, str, str]]:
    """Every image and file that a restore point needs, once, as far as the manifests tell: its point, name, hash."""
    found: dict[tuple[str, str], tuple[Point, str, str]] = {}
    for disk in point.disks:
        links = [Link(point, disk)]
        with suppress(Damaged):
            links = points.chain(readable, point, disk)
        for link in links:
            found[link.point.id, link.disk.image] = (link.point, link.disk.image, link.disk.sha256)
    for file in point.files:
        found[point.id, file.name] = (point, file.name, file.sha256)
    return list(found.values())


def _merged_files(before: Iterable[FileRecord], found: Iterable[FileRecord]) -> tuple[FileRecord, ...]:
    kept = list(before)
    for new in found:
        kept = [one for one in kept if not _supersedes(new, one)] + [new]
    return tuple(sorted(kept, key=lambda one: (one.name, LEVELS.index(one.level))))


def _supersedes(new: FileRecord, old: FileRecord) -> bool:
    """A higher level includes the lower; what is damaged at a low level is not sound at a high one."""
    if new.name != old.name:
        return False
    return new.sha256 != old.sha256 or not new.ok or LEVELS.index(old.level) <= LEVELS.index(new.level)


def _merged_disks(before: Iterable[DiskRecord], found: Iterable[DiskRecord]) -> tuple[DiskRecord, ...]:
    kept = {one.image: one for one in before}
    kept.update((one.image, one) for one in found)
    return tuple(kept[image] for image in sorted(kept))


def _outcome(records: Records) -> tuple[Any, ...]:
    """What the records come to: of each file its highest level and what is wrong, and the disks; without times."""
    highest = {
        (one.name, one.sha256): one.level for one in sorted(records.files, key=lambda one: LEVELS.index(one.level))
    }
    wrong = [(one.name, one.level, one.what) for one in records.files if not one.ok]
    return highest, wrong, [replace(one, time="") for one in records.disks]


def _sweep(directory: str, path: str) -> None:
    """Remove what killed verifications left."""
    with suppress(OSError):
        now = os.lstat(path).st_mtime
        for name in os.listdir(directory):
            inner = os.path.join(directory, name)
            if name.startswith(FILE + ".") and now - os.lstat(inner).st_mtime > _ABANDONED:
                files.remove(inner)


def _file(fields: Fields) -> FileRecord:
    return FileRecord(
        fields.text("name", _NAME),
        fields.text("sha256", _SHA256),
        fields.text("level", "|".join(LEVELS[1:])),
        fields.text("time", _TIME),
        fields.boolean("ok"),
        fields.optional_text("what"),
    )


def _disk(fields: Fields) -> DiskRecord:
    return DiskRecord(
        fields.text("image", _NAME),
        fields.optional_text("content_hash", _SHA256),
        fields.text("time", _TIME),
        fields.boolean("ok"),
        fields.optional_text("what"),
    )
