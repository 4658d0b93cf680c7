# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: verify what was not verified for longest, as far as time and bytes go."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    damage,
    examining,
    images,
    manifest,
    points,
    records,
    verification,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.examining import (
    Finding,
    OutOfTime,
    Part,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.images import CheckImage
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.listing import Selected
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, Point, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry, Link
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import DiskRecord, Known
from ansible_collections.holdfast.backup.plugins.module_utils._repository.verification import ReadContent, Verifier

_STORE_EVERY = 5.0
"""Seconds: a run that is killed loses no more than that."""
_TURNS = 4


@dataclass(frozen=True)
class Wanted:
    """What to verify. ``max_seconds`` and ``max_bytes`` are no limits when 0.

    :param min_age: leave out what was verified at this level within this time
    """

    level: str
    max_seconds: float = 0
    max_bytes: int = 0
    min_age: timedelta = timedelta(0)


@dataclass(frozen=True)
class Unit:
    """What is verified as one: a file, or a disk of a point read back through its chain.

    :param size: bytes that are read, about
    :param last: when it was last verified at the level; empty when it never was
    """

    point_id: PointId
    name: str
    size: int
    last: str
    part: Part | None


@dataclass(frozen=True)
class Amount:
    """Files, disks read back, and bytes."""

    files: int = 0
    disks: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, units: Iterable[Unit]) -> Amount:
        """What some units come to."""
        all_of = list(units)
        of_files = sum(unit.part is not None for unit in all_of)
        return cls(of_files, len(all_of) - of_files, sum(unit.size for unit in all_of))


@dataclass
class Outcome:
    """What a batch did.

    :param examined: what was examined, with the bytes really read
    :param due: what there was to do, and how much of it is left
    :param problems: what is wrong of what was examined
    :param damage: all that is known to be damaged of the objects looked at
    :param known_before: the paths of what was known before
    :param oldest: since when all of it has been verified at this level; None when some never was
    :param unfinished: large files that were begun at once and not finished in time
    """

    changed: bool = False
    examined: Amount = field(default_factory=Amount)
    due: Amount = field(default_factory=Amount)
    remaining: Amount = field(default_factory=Amount)
    problems: list[dict[str, Any]] = field(default_factory=list)
    damage: list[dict[str, Any]] = field(default_factory=list)
    known_before: list[str] = field(default_factory=list)
    oldest: str | None = None
    unfinished: list[str] = field(default_factory=list)


class Batch:
    """One run over some restore points of a repository.

    :param check: called often; what it raises ends the run
    :param tell: called with "verification", a word for what is done, and the bytes done, in all, and read
    """

    def __init__(
        self,
        repository: Repository,
        wanted: Wanted,
        check_image: CheckImage,
        read_content: ReadContent,
        check: Callable[[], None] = lambda: None,
        tell: Callable[[str, str, int, int, int], None] = lambda *told: None,
    ) -> None:
        self._repository = repository
        self._wanted = wanted
        self._outer_check = check
        self._tell = tell
        self._read, self._goal = 0, 1
        self._deadline = time.monotonic() + wanted.max_seconds if wanted.max_seconds else float("inf")
        self._stopped = False
        self._verifier = Verifier(repository, wanted.level, check_image, read_content, self._check)
        self._known = Known(repository)
        # By point and name. Threads add to them.
        self._findings: dict[tuple[PointId, str], Finding] = {}
        self._unstored_findings: dict[tuple[PointId, str], Finding] = {}
        self._disks: dict[tuple[PointId, str], DiskRecord] = {}
        self._unstored: dict[tuple[PointId, str], DiskRecord] = {}
        self._bytes_back: dict[tuple[PointId, str], int] = {}
        self._stored_at = time.monotonic()
        self.outcome = Outcome()

    def due(self, selected: Sequence[Selected], now: datetime) -> list[Unit]:
        """What is to be verified, the longest not verified first."""
        limit = manifest.format_time(now - self._wanted.min_age) if self._wanted.min_age else "9"
        return [unit for unit in self._units(selected) if unit.last < limit]

    def run(self, selected: Sequence[Selected], now: datetime, dry: bool = False) -> Outcome:
        """Verify what is due, within the limits, and store what was found.

        :param dry: only say what is due, and which damage is known
        """
        units = self.due(selected, now)
        self.outcome.due = self.outcome.remaining = Amount.of(units)
        self._goal = max(1, min(self.outcome.due.bytes, self._wanted.max_bytes or self.outcome.due.bytes))
        self.outcome.known_before = [one["path"] for one in self._damage(selected)]
        if not dry:
            self._verify(units)
            self._tell("verification", self._wanted.level, self._goal, self._goal, self._read)
        self._sum_up(selected)
        return self.outcome

    def _units(self, selected: Sequence[Selected]) -> list[Unit]:
        units: dict[tuple[PointId, str, bool], Unit] = {}
        for one, readable in _with_readable(selected):
            point = readable[one.entry.id.time]
            for part in examining.needed(readable, point):
                key = part.point_id, part.name, True
                if key not in units:
                    units[key] = self._file_unit(readable, part)
            for disk in point.disks if self._wanted.level == records.RESTORE else ():
                units[one.entry.id, disk.image, False] = self._disk_unit(readable, point, disk)
        return sorted(units.values(), key=lambda unit: (unit.last, unit.point_id.time, str(unit.point_id), unit.name))

    def _file_unit(self, readable: Mapping[str, Point], part: Part) -> Unit:
        level = min(self._wanted.level, records.CONTENT, key=records.LEVELS.index)
        of_file = self._known.of(readable[part.point_id.time]).of_file(part.name, part.sha256)
        size = 0 if level == records.STRUCTURE else part.size
        return Unit(part.point_id, part.name, size, records.latest(of_file, level) or "", part)

    def _disk_unit(self, readable: Mapping[str, Point], point: Point, disk: Disk) -> Unit:
        chain = examining.images_below(readable, Link(point, disk))
        record = self._known.of(point).of_disk(disk.image)
        size = sum(link.disk.size for link in chain)
        return Unit(PointId.parse(point.id), disk.image, size, "" if record is None else record.time, None)

    def _verify(self, units: Sequence[Unit]) -> None:
        running: dict[Future[None], Unit] = {}
        done: set[Unit] = set()
        with ThreadPoolExecutor(examining.AT_A_TIME) as pool:
            try:
                for unit in self._admitted(units):
                    running[pool.submit(self._examine, unit)] = unit
                    if len(running) >= examining.AT_A_TIME:
                        self._collect(running, done)
                while running:
                    self._collect(running, done)
            except BaseException:
                self._stopped = True
                raise
            finally:
                wait(running)
                self._store()
        self.outcome.remaining = Amount.of(unit for unit in units if unit not in done)
        self.outcome.unfinished = [
            f"{one.point_id}/{one.name}" for one in units[: examining.AT_A_TIME] if one not in done
        ]

    def _admitted(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """The units that are to be begun: at least one, however large."""
        begun = 0
        for unit in units:
            too_large = self._wanted.max_bytes and begun + unit.size > self._wanted.max_bytes
            if self._stopped or (begun and too_large):
                return
            begun += max(unit.size, 1)
            yield unit

    def _collect(self, running: dict[Future[None], Unit], done: set[Unit]) -> None:
        """Wait for one of the running, and store what has gathered."""
        finished, _unfinished = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            unit = running.pop(future)
            try:
                future.result()
                done.add(unit)
            except OutOfTime:
                self._stopped = True
        if time.monotonic() - self._stored_at > _STORE_EVERY:
            self._store()

    def _check(self, count: int) -> None:
        if self._stopped or time.monotonic() >= self._deadline:
            raise OutOfTime("The time that was given is over.")
        self._outer_check()
        self._read += count
        self._tell("verification", self._wanted.level, min(self._read, self._goal - 1), self._goal, self._read)

    def _examine(self, unit: Unit) -> None:
        if unit.part is not None:
            self._note(self._verifier.examiner.examine(unit.part))
            return
        for _turn in range(_TURNS):
            entries = points.ancestry(self._repository, unit.point_id)
            found = self._read_back(points.readable(entries), unit)
            if found is None or found.ok or points.ancestry(self._repository, unit.point_id) == entries:
                break
        if found is not None:
            self._disks[unit.point_id, unit.name] = found
            self._unstored[unit.point_id, unit.name] = found

    def _read_back(self, readable: Mapping[str, Point], unit: Unit) -> DiskRecord | None:
        """What was found of a disk; None when its files do not let it be read back, or it is no more."""
        point = readable.get(unit.point_id.time)
        disks = [] if point is None else [one for one in point.disks if one.image == unit.name]
        if point is None or not disks:
            return None
        try:
            links = points.chain(readable, point, disks[0])
        except Damaged:
            return None
        found = [self._verifier.examiner.examine(Part.of_link(link)) for link in links]
        for finding in found:
            self._note(finding)
        if any(finding.error is not None or finding.vanished for finding in found):
            return None
        record, count = self._verifier.read_back(readable, point, disks[0])
        self._bytes_back[unit.point_id, unit.name] = count
        return record

    def _note(self, finding: Finding) -> None:
        key = finding.part.point_id, finding.part.name
        if self._findings.get(key) is not finding:
            self._findings[key] = self._unstored_findings[key] = finding

    def _store(self) -> None:
        """Store what has gathered."""
        self._stored_at = time.monotonic()
        findings, disks = list(self._unstored_findings.values()), dict(self._unstored)
        for key in [(one.part.point_id, one.part.name) for one in findings]:
            self._unstored_findings.pop(key, None)
        of_points: dict[PointId, list[DiskRecord]] = defaultdict(list)
        for (point_id, image), record in disks.items():
            of_points[point_id].append(record)
            self._unstored.pop((point_id, image), None)
        if verification.store(self._repository, self._known, findings, of_points):
            self.outcome.changed = True

    def _sum_up(self, selected: Sequence[Selected]) -> None:
        """What all of it means, for the restore points as they are now."""
        ids = {one.entry.id for one in selected}
        fresh: list[Selected] = []
        for object_id in dict.fromkeys(one.entry.id.object_id for one in selected):
            entries = points.read_entries(self._repository, object_id)
            fresh += [Selected(entry, entries) for entry in entries if entry.id in ids]
            self._sum_up_object(object_id, entries)
        units = self._units(fresh)
        self.outcome.oldest = min((unit.last for unit in units), default="") or None
        sound = [one for one in self._findings.values() if not one.vanished]
        read = sum(one.bytes_read for one in sound) + sum(self._bytes_back.values())
        self.outcome.examined = Amount(len(sound), len(self._bytes_back), read)

    def _sum_up_object(self, object_id: str, entries: Sequence[Entry]) -> None:
        present = {part for entry in entries for part in examining.parts_of_entry(entry)}
        unreadable = {entry.id for entry in entries if entry.point is None}
        for (point_id, name), one in self._findings.items():
            if point_id.object_id != object_id or one.error is None or one.vanished:
                continue
            if one.part in present or point_id in unreadable:
                self._problem(point_id, name, one.error.message, one.error.next_step)
        for (point_id, name), record in self._disks.items():
            if point_id.object_id == object_id and not record.ok and any(entry.id == point_id for entry in entries):
                self._problem(point_id, name, record.what or "", images.NEXT_STEP)
        self.outcome.damage += damage.report(self._repository, entries, damage.faults(entries, self._known))

    def _damage(self, selected: Iterable[Selected]) -> list[dict[str, Any]]:
        of_objects = {one.entry.id.object_id: one.entries for one in selected}
        known = ((entries, damage.faults(entries, self._known)) for entries in of_objects.values())
        return [one for entries, faults in known for one in damage.report(self._repository, entries, faults)]

    def _problem(self, point_id: PointId, name: str, what: str, next_step: str) -> None:
        self.outcome.problems.append(
            {
                "restore_point": str(point_id),
                "file": name,
                "path": os.path.join(self._repository.point_directory(point_id), name),
                "what": what,
                "next_step": next_step,
            }
        )


def _with_readable(selected: Iterable[Selected]) -> Iterator[tuple[Selected, dict[str, Point]]]:
    """The selected with a readable manifest, and the readable points of their object."""
    of_object: dict[str, dict[str, Point]] = {}
    for one in selected:
        if one.entry.point is not None:
            object_id = one.entry.id.object_id
            if object_id not in of_object:
                of_object[object_id] = points.readable(one.entries)
            yield one, of_object[object_id]
