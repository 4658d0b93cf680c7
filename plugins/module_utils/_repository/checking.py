# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: verify one restore point, store what was found, and say what damage means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, Damaged, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import damage, examining, points, verification
from ansible_collections.holdfast.backup.plugins.module_utils._repository.images import CheckImage
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.listing import Selection, select
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import PointId
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import Known
from ansible_collections.holdfast.backup.plugins.module_utils._repository.verification import (
    ReadContent,
    Report,
    Verifier,
)

Tell = Callable[[str, str, int, int, int], None]


@dataclass(frozen=True)
class Checked:
    """What was found, and what is stored of the restore point before and after.

    :param changed: whether that says anything new besides a newer time
    :param unstored: what kept it from being stored
    :param damage: all that is known to be damaged of the object, when the restore point has problems
    """

    changed: bool
    entry: Entry
    report: Report
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    damage: list[dict[str, Any]]
    unstored: BackupError | None = None

    @property
    def error(self) -> BackupError | None:
        """The error that the problems amount to."""
        problems = self.report.problems
        if not problems:
            return self.unstored
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        more += f" {self.unstored.message}" if self.unstored is not None else ""
        sure = self.report.broken or any(one.record and not one.record.ok for one in self.report.findings)
        if sure or any(not one.ok for one in self.report.disks):
            return Damaged(
                f"Restore point {self.entry.id} is damaged: {problems[0].what}{more}",
                "See 'damage' for what can still be restored. Restore the files from a copy of the repository; the next"
                " backup copies the disks in full.",
            )
        return RepositoryError(
            f"Restore point {self.entry.id} could not be verified: {problems[0].what}{more}", problems[0].next_step
        )


def verify(
    repository: Repository,
    point_id: PointId,
    level: str,
    check_image: CheckImage,
    read_content: ReadContent,
    watch: tuple[Callable[[], None], Tell],
    dry: bool = False,
) -> Checked:
    """Examine a restore point with all that it stands on, and store what was found.

    :param watch: a function to call often, which may raise to end it; and one to tell how far it is: a name, a word for
        what is done, and the bytes of files done, in all, and read
    :param dry: store nothing
    :raises NotFound: there is no such restore point
    """
    selected = select(repository, Selection(id=point_id))[0][0]
    check, tell = watch
    point, readable, done = selected.entry.point, points.readable(selected.entries), 0
    total = 0 if point is None else sum(part.size for part in examining.needed(readable, point))

    def passed(count: int) -> None:
        nonlocal done
        done += count
        check()
        tell(str(point_id), level, min(done, max(total - 1, 0)), total, done)

    verifier = Verifier(repository, level, check_image, read_content, passed)
    before = _stored(Known(repository), selected.entries, selected.entry)
    report = verifier.examine(selected.entries, selected.entry)
    tell(str(point_id), level, total, total, done)
    entries = points.read_entries(repository, point_id.object_id)  # as they are now
    entry = next((one for one in entries if one.id == point_id), None)
    if report is None or entry is None:
        raise points.no_point(point_id)
    known = Known(repository)
    changed, unstored = verification.store(repository, known, report.findings, {point_id: report.disks}, dry)
    damaged = damage.faults(entries, known) if report.problems else {}
    after, lost = _stored(known, entries, entry), damage.report(repository, entries, damaged)
    return Checked(changed, entry, report, before, after, lost, unstored)


def _stored(known: Known, entries: list[Entry], entry: Entry) -> dict[str, Any] | None:
    return None if entry.point is None else known.verification(points.readable(entries), entry.point)
