# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: let restore points go by rules, object by object.

Each object is planned, then, under its lock, planned again and done step by step; after each step every restore point
that is left is whole. What fails for one object is told and hinders no other.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Callable, Mapping, Sequence

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    CopyFailed,
    Locked,
    NotSupported,
    RepositoryError,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    files,
    layout,
    locks,
    manifest,
    owners,
    points,
    pruning_plan,
    records,
    switching,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.keeping import Wishes
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Owner, PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.merging import DiskMerge, Merge
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry
from ansible_collections.holdfast.backup.plugins.module_utils._repository.pruning_plan import Costs, Plan, Removal
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import FileRecord
from ansible_collections.holdfast.backup.plugins.module_utils._repository.switching import Made, MakeImage


@dataclass(frozen=True)
class How:
    """How to prune. Bytes and seconds.

    :param make_image: makes one merged image
    :param reflink: whether the file system can share blocks between files
    :param dry: only say what would be done
    """

    make_image: MakeImage
    now: datetime
    reflink: bool = False
    min_free: int = 0
    lock_timeout: float = 0
    lease: int = locks.DEFAULT_LEASE
    dry: bool = False


@dataclass
class Report:
    """What became, or would become, of the restore points of one object.

    ``merges`` has a record per image. ``problem`` is what kept it from being done, or done to its end.
    """

    object_id: str
    owner: Owner
    restore_points: list[dict[str, Any]] = field(default_factory=list)
    planned: Costs = field(default_factory=Costs)
    merges: list[dict[str, Any]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    costs: Costs = field(default_factory=Costs)
    problem: BackupError | None = None

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, done."""
        return bool(self.merges or self.removed or self.swept)

    @property
    def is_locked_out(self) -> bool:
        """Whether another run had the lock, so that nothing was done."""
        return isinstance(self.problem, Locked) and not self.changed

    @property
    def name(self) -> str:
        """What messages call the object."""
        return self.owner.name or self.object_id

    def as_dict(self) -> dict[str, Any]:
        """What a result says."""
        problem = self.problem
        return {
            **{kind: one and one.as_dict() for kind, one in manifest.by_kind(self.owner).items()},
            "restore_points": self.restore_points,
            "merges": [merge for merge in self.merges if not merge["synthetic"]],
            "synthetic": [merge for merge in self.merges if merge["synthetic"]],
            "removed": self.removed,
            "swept": self.swept,
            "planned": asdict(self.planned),
            "cost": asdict(self.costs),
            "problem": None
            if problem is None
            else {
                "msg": problem.message,
                "error_type": type(problem).__name__,
                "next_step": problem.next_step,
                **problem.details,
            },
        }


@dataclass(frozen=True)
class Outcome:
    """The reports on the objects that were looked at; how many were not, and what ended the work before them."""

    reports: list[Report]
    undone: int = 0
    stopped: BackupError | None = None


def prune(repository: Repository, object_ids: Sequence[str], wishes: Callable[[Owner], Wishes], how: How) -> Outcome:
    """Let restore points go.

    :param object_ids: the objects to do, in this order; those without a restore point are passed over
    :param wishes: what is asked for an object
    """
    reports: dict[str, Report] = {}
    waiting, promised = list(object_ids), 0
    # Nobody waits for one run while there is other work.
    for timeout in (0.0, how.lock_timeout):
        for number, object_id in enumerate(waiting, 1):
            report = Report(object_id, manifest.unnamed(object_id, None))
            try:
                entries = points.read_entries(repository, object_id)
                if not entries:
                    continue
                report.owner = points.owner(entries) or report.owner
                one = _Object(repository, report, wishes(report.owner), how)
                promised += one.plan_only(entries, promised) if how.dry else one.carry_out(entries, timeout)
            except (RepositoryError, CopyFailed, NotSupported) as error:
                report.problem = error
            except BackupError as error:
                # Nothing about this object: the work is to end.
                report.problem = error
                reports[object_id] = report
                return Outcome(_in_order(object_ids, reports), len(waiting) - number, error)
            reports[object_id] = report
        waiting = [one for one in object_ids if one in reports and reports[one].is_locked_out]
        if how.dry or not how.lock_timeout:
            break
    return Outcome(_in_order(object_ids, reports))


def _in_order(object_ids: Sequence[str], reports: Mapping[str, Report]) -> list[Report]:
    return [reports[object_id] for object_id in object_ids if object_id in reports]


class _Object:
    """Prunes one object."""

    def __init__(self, repository: Repository, report: Report, wishes: Wishes, how: How) -> None:
        self.report = report
        self._repository = repository
        self._object_id = report.object_id
        self._directory = repository.object_directory(report.object_id)
        self._wishes = wishes
        self._how = how

    def plan_only(self, entries: Sequence[Entry], promised: int) -> int:
        """Report what would be done.

        :param promised: bytes that would be free besides, from objects that would be done before
        :return: how many this one would add to them
        """
        report, how, plan = self.report, self._how, self._plan(entries)
        try:
            locks.check_free(self._directory, "")
            if plan.steps or self._is_left():
                report.swept = layout.leftovers(self._directory)
        except Locked as error:
            if plan.steps:
                report.problem = error
        plan.check_space(report.name, self._repository.free() + promised, how.min_free)
        report.costs = plan.costs
        for step in plan.steps:
            if isinstance(step, Removal):
                report.removed.append(self._id(step.time))
            else:
                report.merges += [self._describe(step, disk, None) for disk in step.disks]
        return plan.gained

    def carry_out(self, entries: Sequence[Entry], timeout: float) -> int:
        """Do it, and report what was done.

        :param timeout: seconds to wait for a run that has the lock
        """
        report, how, plan = self.report, self._how, self._plan(entries)
        if not plan.steps and not self._is_left():
            return 0
        run = uuid.uuid4().hex
        locks.acquire(self._directory, run, how.lease, timeout if plan.steps else 0, owners.this_process())
        try:
            report.swept = switching.recover(self._directory)
            # Only now nobody else changes them.
            plan = self._plan(points.read_entries(self._repository, self._object_id))
            plan.check_space(report.name, self._repository.free(), how.min_free)
            for step in plan.steps:
                if isinstance(step, Removal):
                    self._remove(step, run)
                else:
                    self._merge(step, run)
        finally:
            locks.release(self._directory, run)
        return 0

    def _plan(self, entries: Sequence[Entry]) -> Plan:
        known = records.Known(self._repository)
        plan = pruning_plan.plan(entries, known, self._wishes, self._how.now, self._how.reflink)
        self.report.restore_points = [verdict.as_dict() for verdict in plan.verdicts.values()]
        self.report.planned = plan.costs
        return plan

    def _is_left(self) -> bool:
        """Whether a dead run may have left something that only this would clear up before the next backup."""
        left = [name for name in layout.leftovers(self._directory) if not name.endswith(layout.PARTIAL)]
        held = locks.holder(self._directory)
        return bool(left) and (held is None or self._is_free())

    def _is_free(self) -> bool:
        try:
            locks.check_free(self._directory, "")
        except Locked:
            return False
        return True

    def _merge(self, merge: Merge, run: str) -> None:
        try:
            carried = switching.carry_out(self._repository, merge, run, self._how.make_image)
        except RepositoryError as error:
            self._note_damage(error)
            raise
        report = self.report
        for disk, made in zip(merge.disks, carried.made):
            report.merges.append(self._describe(merge, disk, made))
            report.costs += Costs(made.bytes_read, made.bytes_written, disk.disk.size)

    def _remove(self, removal: Removal, run: str) -> None:
        target = os.path.join(self._directory, removal.time)
        locks.renew(self._directory, run)
        with files.reporting("delete a restore point"):
            # Out of sight first, at once: a reader never sees half of it.
            os.rename(target, target + layout.DELETED)
            files.sync_directory(self._directory)
            files.remove(target + layout.DELETED)
            files.sync_directory(self._directory)
        self.report.removed.append(self._id(removal.time))
        self.report.costs += Costs(bytes_freed=removal.size)

    def _note_damage(self, error: BackupError) -> None:
        """Store which image was found damaged: the next backup stands on it no more, nor does a merge try it again."""
        now = manifest.format_time(self._how.now)
        for found in error.details.get("damaged", ()):
            point_id = PointId.parse(found["id"])
            entry = points.read_entry(self._repository, point_id)
            for disk in () if entry is None or entry.point is None else entry.point.disks:
                if disk.image == found["image"]:
                    record = FileRecord(disk.image, disk.sha256, records.CONTENT, now, False, error.message)
                    records.store(self._repository.point_directory(point_id), [record])

    def _describe(self, merge: Merge, disk: DiskMerge, made: Made | None) -> dict[str, Any]:
        return {
            "id": merge.point.id,
            "label": disk.disk.label,
            "image": disk.disk.image,
            "from": [link.point.id for link in disk.run],
            "parent": None if disk.parent is None else disk.parent.point.id,
            "reason": disk.reason,
            "synthetic": disk.fresh,
            "way": pruning_plan.way(disk, self._how.reflink) if made is None else made.way,
            "size_before": disk.disk.size,
            "size": None if made is None else made.size,
            "bytes_read": disk.cost.bytes_read if made is None else made.bytes_read,
            "bytes_written": disk.cost.bytes_written if made is None else made.bytes_written,
        }

    def _id(self, time: str) -> str:
        return str(PointId(self._object_id, time))
