# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: is a restore point still what was written?

Every problem is found and named; nothing raises, so that one damaged restore point never hides
another. An image that several points share is examined once. A restore point that is deleted while it is
examined, or merged with those that it stands on, is not damaged.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Iterable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    CopyFailed,
    Damaged,
    RepositoryError,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository import examining, images, points, records
from ansible_collections.holdfast.backup.plugins.module_utils._repository.examining import (
    Check,
    Examiner,
    Finding,
    Part,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.images import CheckImage
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, Point, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry, Link
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import DiskRecord, Known

NONE, STRUCTURE, CONTENT, RESTORE = LEVELS = records.LEVELS

ReadContent = Callable[[Sequence[str], int, Callable[[], None]], "tuple[str, int]"]
"""The content hash of a disk, and the bytes read for it: from a chain of images (paths, the topmost first), the disk's
capacity in bytes, and a function to call often."""

_TURNS = 4


@dataclass(frozen=True)
class Problem:
    """What is wrong, with which image (absolute path; None when with something else), and the way out."""

    what: str
    image: str | None
    next_step: str

    @classmethod
    def of(cls, error: BackupError, image: str | None = None) -> Problem:
        """The problem that an error tells."""
        return cls(error.message, image, error.next_step)


@dataclass(frozen=True)
class Report:
    """A restore point's chain and what was found. ``chain`` holds point IDs, oldest first, itself included.

    ``findings`` are about all files that it needs, ``disks`` about its own disks, read back.
    """

    chain: list[str]
    chain_length: int
    broken: bool
    level: str
    problems: list[Problem]
    findings: list[Finding] = field(default_factory=list)
    disks: list[DiskRecord] = field(default_factory=list)
    bytes_read: int = 0

    def verified(self) -> dict[str, Any]:
        """The outcome in JSON values."""
        return {
            "level": self.level,
            "ok": not self.problems,
            "problems": [asdict(problem) for problem in self.problems],
        }


class Verifier:
    """Examines the restore points of one repository, each image at most once.

    :param read_content: for the level ``restore``
    :param check: called often with the bytes that were read; what it raises ends the examination without a result
    """

    def __init__(
        self,
        repository: Repository,
        level: str,
        check_image: CheckImage,
        read_content: ReadContent | None = None,
        check: Check = examining.unhurried,
    ) -> None:
        self._repository = repository
        self._level = level
        self.examiner = Examiner(repository, CONTENT if level == RESTORE else level, check_image, check)
        self._read_content = read_content
        self._check = check
        self._read_back: dict[tuple[PointId, str], tuple[DiskRecord, int]] = {}

    def examine(self, entries: Iterable[Entry], entry: Entry) -> Report | None:
        """Examine one of the entries of an object; None when it was deleted since they were read."""
        readable = points.readable(entries)
        report = self._examine(readable, entry)
        for _turn in range(_TURNS):
            if not (report.broken or report.problems or any(one.vanished for one in report.findings)):
                return report
            fresh = points.ancestry(self._repository, entry.id)
            if not fresh:
                examining.check_there(self._repository)
                return None
            if all(_is_same(one, readable) for one in fresh) and not any(one.vanished for one in report.findings):
                return report
            entry, readable = fresh[-1], points.readable(fresh)
            report = self._examine(readable, entry)
        return report

    def read_back(self, readable: Mapping[str, Point], point: Point, disk: Disk) -> tuple[DiskRecord, int]:
        """The content of a disk, through its chain, against what it was the first time; and the bytes read.

        Every file of the chain is known to be as written.
        """
        key = PointId.parse(point.id), disk.image
        if key in self._read_back:
            return self._read_back[key]
        found = self._read_disk(readable, point, disk)
        if found[0].ok:  # else a merge may have taken away what it was read from
            self._read_back[key] = found
        return found

    def _examine(self, readable: Mapping[str, Point], entry: Entry) -> Report:
        if entry.problem is not None:
            return Report([], 0, True, self._level, [Problem.of(entry.problem)])
        return self._examine_point(readable, readable[entry.id.time], entry.path)

    def _examine_point(self, readable: Mapping[str, Point], point: Point, path: str) -> Report:
        problems: list[Problem] = []
        members, longest, broken = {point.id}, 0, False
        chains: list[Sequence[Link]] = []
        for disk in point.disks:
            try:
                links = points.chain(readable, point, disk)
            except Damaged as error:
                problems.append(Problem.of(error, os.path.join(path, disk.image)))
                broken = True
                continue
            members.update(link.point.id for link in links)
            longest = max(longest, len(links))
            chains.append(links)
        report = Report(sorted(members), longest, broken, self._level, problems)
        return report if self._level == NONE else self._examine_files(readable, point, chains, report)

    def _examine_files(
        self, readable: Mapping[str, Point], point: Point, chains: Iterable[Sequence[Link]], report: Report
    ) -> Report:
        of_disks = [(links, [Part.of_link(link) for link in links]) for links in chains]
        others = [Part.of_file(point, file) for file in point.files]
        needed = dict.fromkeys([part for _links, parts in of_disks for part in parts] + others)
        found = dict(zip(needed, self.examiner.examine_all(needed)))
        problems = report.problems
        for part, finding in found.items():
            if finding.error is not None:
                problems.append(Problem.of(finding.error, part.path(self._repository)))
        disks, bytes_read = [], sum(one.bytes_read for one in found.values())
        for links, parts in of_disks if self._level == RESTORE else ():
            if all(found[part].error is None and not found[part].vanished for part in parts):
                record, count = self.read_back(readable, point, links[-1].disk)
                disks.append(record)
                bytes_read += count
                if not record.ok:
                    image = os.path.join(self._directory(point), record.image)
                    problems.append(Problem(record.what or "", image, images.NEXT_STEP))
        return Report(
            report.chain,
            report.chain_length,
            report.broken,
            report.level,
            problems,
            list(found.values()),
            disks,
            bytes_read,
        )

    def _read_disk(self, readable: Mapping[str, Point], point: Point, disk: Disk) -> tuple[DiskRecord, int]:
        if self._read_content is None:
            raise TypeError("The level restore needs a way to read the content.")
        earlier = records.read(self._directory(point)).of_disk(disk.image)
        recorded = None if earlier is None else earlier.content_hash
        paths = [Part.of_link(link).path(self._repository) for link in points.chain(readable, point, disk)]
        try:
            digest, count = self._read_content(paths[::-1], disk.capacity, lambda: self._check(0))
        except (CopyFailed, RepositoryError) as error:
            what = f"The content of {disk.label} cannot be read through its chain: {error.message}"
            return DiskRecord(disk.image, recorded, examining.now(), False, what), 0
        if recorded not in (None, digest):
            what = f"The content of {disk.label}, read through its chain, is not what it was before."
            return DiskRecord(disk.image, recorded, examining.now(), False, what), count
        return DiskRecord(disk.image, digest, examining.now(), True, None), count

    def _directory(self, point: Point) -> str:
        return self._repository.point_directory(PointId.parse(point.id))


def store(
    repository: Repository,
    known: Known,
    findings: Iterable[Finding],
    disks: Mapping[PointId, Sequence[DiskRecord]],
    dry: bool = False,
) -> bool:
    """Store what was found; whether that says anything new besides newer times.

    :param known: learns of it
    :param disks: what was found of the disks of points
    :param dry: only say so
    """
    found: dict[PointId, list[records.FileRecord]] = {point_id: [] for point_id in disks}
    for finding in findings:
        if finding.record is not None:
            found.setdefault(finding.part.point_id, []).append(finding.record)
    changed = False
    for point_id, of_point in found.items():
        directory = repository.point_directory(point_id)
        new, after = records.store(directory, of_point, disks.get(point_id, ()), dry)
        known.note(point_id, after)
        changed = changed or new
    return changed


def _is_same(entry: Entry, readable: Mapping[str, Point]) -> bool:
    return entry.point == readable.get(entry.id.time)
