# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: which restore points of an object stay, and why.

The rules of :mod:`retention` judge the sound points. Besides what they keep, stay: what is pinned; the newest sound
point, always; what is damaged, unless it is asked to go; and what a damaged one stands on, as far as can be known.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    files,
    manifest,
    pins,
    points,
    qcow2,
    retention,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, Point
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry, Link
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import Known
from ansible_collections.holdfast.backup.plugins.module_utils._repository.retention import Candidate, Rules, Span

_GOES = "no rule keeps it"


@dataclass(frozen=True)
class Wishes:
    """What is asked for one object.

    :param merge: delete also what others stand on, by merging
    :param max_chain: make the newest point's disk full when its chain has so many images; 0 never
    :param max_age: the same when its full image's point is so much older
    :param remove_damaged: delete also what is damaged
    """

    rules: Rules = field(default_factory=Rules)
    merge: bool = True
    max_chain: int = 0
    max_age: Span | None = None
    remove_damaged: bool = False


@dataclass
class Verdict:
    """Whether one restore point stays, and why or why not.

    ``point`` is what its manifest says, ``problem`` what is wrong with it.
    """

    entry: Entry
    point: Point | None
    keep: bool
    reasons: list[str]
    problem: str | None = None
    pinned: bool = False

    def stay(self, reason: str) -> bool:
        """Have it stay for a further reason; whether it was to go before."""
        went = not self.keep
        self.reasons = [reason] if went else [*self.reasons, reason]
        self.keep = True
        return went

    def as_dict(self) -> dict[str, Any]:
        """What a result says."""
        return {
            "id": str(self.entry.id),
            "time": manifest.format_time(self.entry.moment if self.point is None else self.point.moment),
            "keep": self.keep,
            "reasons": self.reasons,
            "pinned": self.pinned,
            "problem": self.problem,
            "size": None if self.point is None else self.point.size,
        }


def readable(entries: Iterable[Entry]) -> dict[str, Point]:
    """The points by their times, as they are once every merge that was committed is in place."""
    found = {one.id.time: one.merging or one.point for one in entries}
    return {time: point for time, point in found.items() if point is not None}


def decide(entries: Sequence[Entry], known: Known, wishes: Wishes, now: datetime) -> dict[str, Verdict]:
    """The verdict on every restore point of an object, by its time.

    :param known: what verifications have found
    :param now: see :func:`retention.judge`
    """
    current = readable(entries)
    problems = _problems(entries, current, known)
    pinned = {entry.id.time for entry in entries if pins.read(entry.path) is not None}
    sound = [Candidate(time, point.moment, time in pinned) for time, point in current.items() if problems[time] is None]
    reasons = retention.judge(sound, wishes.rules, now)
    verdicts = {}
    for entry in entries:
        time, problem = entry.id.time, problems[entry.id.time]
        found = reasons.get(time, [retention.PINNED] if time in pinned else [])
        verdicts[time] = Verdict(entry, current.get(time), bool(found), found or [_GOES], problem, time in pinned)
    _keep_newest(verdicts, sound)
    _keep_damaged(verdicts, wishes, any_sound=bool(sound))
    _keep_parents_of_damaged(verdicts, current)
    if not wishes.merge:
        _keep_parents(verdicts, current)
    return verdicts


def due_synthetics(verdicts: Mapping[str, Verdict], wishes: Wishes) -> list[tuple[str, str]]:
    """Time and image of each disk that is to become full: of the newest point, when nothing is wrong with that."""
    newest = verdicts[max(verdicts)] if verdicts else None
    wanted = wishes.merge and (wishes.max_chain or wishes.max_age)
    if not wanted or newest is None or newest.problem is not None or not newest.keep:
        return []
    current = readable(verdict.entry for verdict in verdicts.values())
    point = current[newest.entry.id.time]
    oldest_age = None if wishes.max_age is None else wishes.max_age.before(point.moment.astimezone(wishes.rules.zone))
    due = []
    for disk in point.disks:
        staying = [link.point for link in points.chain(current, point, disk) if verdicts[link.point.time].keep]
        long = bool(wishes.max_chain) and len(staying) >= wishes.max_chain
        old = oldest_age is not None and staying[0].moment <= oldest_age
        if disk.parent is not None and (long or old):
            due.append((newest.entry.id.time, disk.image))
    return due


def _problems(entries: Sequence[Entry], current: Mapping[str, Point], known: Known) -> dict[str, str | None]:
    """What is wrong with each point or what it stands on. Every image is looked at once."""
    found: dict[str, str | None] = {}
    of_images: dict[tuple[str, str], str | None] = {}
    for entry in entries:  # the oldest first: so what an image stands on is known before it
        time = entry.id.time
        if time not in current:
            problem = "" if entry.problem is None else entry.problem.message
            found[time] = f"unreadable: {problem.rstrip('.')}"
            continue
        point = current[time]
        for disk in point.disks:
            of_images[time, disk.image] = _image_problem(current, known, of_images, Link(point, disk))
        others = (_fault(known, point, file.name, file.sha256) for file in point.files)
        contents = (known.of(point).of_disk(disk.image) for disk in point.disks)
        all_problems = [
            *(of_images[time, disk.image] for disk in point.disks),
            *others,
            *(f"damaged: {one.what or one.image}" for one in contents if one is not None and not one.ok),
        ]
        found[time] = next((problem for problem in all_problems if problem is not None), None)
    return found


def _image_problem(
    current: Mapping[str, Point], known: Known, of_images: Mapping[tuple[str, str], str | None], link: Link
) -> str | None:
    try:
        parent = points.below(current, link)
    except Damaged as error:
        return f"broken: {error.message.rstrip('.')}"
    below = None if parent is None else of_images[parent.point.time, parent.disk.image]
    return below or _fault(known, link.point, link.disk.image, link.disk.sha256)


def _fault(known: Known, point: Point, name: str, sha256: str) -> str | None:
    for record in known.of(point).of_file(name, sha256):
        if not record.ok:
            return f"damaged: verification of {record.time} found {point.time}/{name} damaged"
    return None


def _keep_newest(verdicts: Mapping[str, Verdict], sound: Sequence[Candidate]) -> None:
    if sound:
        newest = verdicts[max(sound, key=lambda one: (one.moment, one.id)).id]
        if len(sound) == 1:
            newest.stay("the only complete one")
        elif not newest.keep:
            newest.stay("the newest complete one")


def _keep_damaged(verdicts: Mapping[str, Verdict], wishes: Wishes, any_sound: bool) -> None:
    for verdict in verdicts.values():
        if verdict.problem is None:
            continue
        problem = verdict.entry.problem
        if not wishes.remove_damaged:
            verdict.stay(verdict.problem)
        elif problem is not None and not isinstance(problem, Damaged):
            # Of a newer release, or the storage does not answer now: that is no damage.
            verdict.stay(verdict.problem)
        elif not any_sound:
            verdict.stay(f"{verdict.problem}; but there is no complete one")
        elif not verdict.keep:
            verdict.reasons = [verdict.problem]


def _keep_parents_of_damaged(verdicts: Mapping[str, Verdict], current: Mapping[str, Point]) -> None:
    """What a damaged point stands on directly may be needed to mend it, and cannot be merged into it."""
    waiting = [time for time, verdict in verdicts.items() if verdict.keep and verdict.problem is not None]
    while waiting:
        time = waiting.pop()
        for parent in _parents(time, verdicts, current):
            if parent in verdicts and verdicts[parent].stay(f"may be needed by damaged {time}"):
                # One that is damaged itself and was to go for it.
                waiting += [parent] if verdicts[parent].problem is not None else []


def _parents(time: str, verdicts: Mapping[str, Verdict], current: Mapping[str, Point]) -> set[str]:
    if time in current:
        return {disk.parent.time for disk in current[time].disks if disk.parent is not None}
    return _parents_by_headers(verdicts[time].entry.path, time, current)


def _parents_by_headers(directory: str, time: str, current: Mapping[str, Point]) -> set[str]:
    """The points that the images of a point without a readable manifest name in their headers.

    Where a header cannot be read, the newest older point with an image of that name: a backup would have taken that.
    """
    if not files.is_directory(directory):
        return set()
    found = set()
    with files.reporting("read the images of an unreadable restore point"):
        names = [name for name in os.listdir(directory) if manifest.is_image(name)]
    for name in names:
        try:
            with files.reporting("read an image"):
                backing = qcow2.read_header(os.path.join(directory, name)).backing_file
        except BackupError:
            older = (one for one in sorted(current, reverse=True) if one < time)
            found.update([one for one in older if _has_image(current[one], name)][:1])
            continue
        parts = (backing or "").split("/")
        if len(parts) == 3 and parts[0] == ".." and manifest.is_time(parts[1]):
            found.add(parts[1])
    return found


def _has_image(point: Point, name: str) -> bool:
    return any(disk.image == name for disk in point.disks)


def _keep_parents(verdicts: Mapping[str, Verdict], current: Mapping[str, Point]) -> None:
    """Without merging, all stays that others stand on."""
    for time in sorted(current, reverse=True):  # the newest first: parents are older
        if verdicts[time].keep:
            disks: tuple[Disk, ...] = current[time].disks
            for parent in sorted({disk.parent.time for disk in disks if disk.parent is not None}):
                if parent in verdicts and not verdicts[parent].keep:
                    verdicts[parent].stay(f"needed by {time}")
