# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: is a restore point still what was written?

Every problem is found and named; nothing raises, so that one damaged restore point never hides
another. An image that several points share is examined once.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Callable, Iterable, Mapping

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError, Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._repository import files, images, incremental, points
from ansible_collections.holdfast.backup.plugins.module_utils._repository.images import CheckImage
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import Disk, File, Point
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry, Link

NONE, STRUCTURE, CONTENT = LEVELS = ("none", "structure", "content")


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
    """A restore point's chain and what was found. ``chain`` holds point IDs, oldest first, itself included."""

    chain: list[str]
    chain_length: int
    broken: bool
    level: str
    problems: list[Problem]

    def verified(self) -> dict[str, Any]:
        """The outcome in JSON values."""
        return {
            "level": self.level,
            "ok": not self.problems,
            "problems": [asdict(problem) for problem in self.problems],
        }


class Verifier:
    """Examines the restore points of one repository, each image at most once."""

    def __init__(self, repository: Repository, level: str, check_image: CheckImage) -> None:
        self._repository = repository
        self._level = level
        self._check_image = check_image
        self._seen: dict[str, list[Problem]] = {}

    def examine(self, entries: Iterable[Entry], entry: Entry) -> Report:
        """Examine one of the entries of an object."""
        if entry.problem is not None:
            return Report([], 0, True, self._level, [Problem.of(entry.problem)])
        readable = points.readable(entries)
        return self._examine_point(readable, readable[entry.id.time], entry.path)

    def _examine_point(self, readable: Mapping[str, Point], point: Point, path: str) -> Report:
        problems: list[Problem] = []
        members, longest, broken = {point.id}, 0, False
        for disk in point.disks:
            try:
                links = points.chain(readable, point, disk)
            except Damaged as error:
                problems.append(Problem.of(error, os.path.join(path, disk.image)))
                broken = True
                continue
            members.update(link.point.id for link in links)
            longest = max(longest, len(links))
            problems.extend(self._examine_chain(links))
        problems.extend(self._examine_files(path, point.files))
        return Report(sorted(members), longest, broken, self._level, problems)

    def _examine_chain(self, links: Iterable[Link]) -> list[Problem]:
        if self._level == NONE:
            return []
        found: list[Problem] = []
        for link in links:
            path = incremental.image_path(self._repository, link)
            found += self._once(path, self._examine_image, path, link.disk)
        return found

    def _examine_image(self, path: str, disk: Disk) -> None:
        images.check(path, disk)
        images.check_structure(path, self._check_image)
        self._check_content(path, disk.sha256)

    def _examine_files(self, path: str, named: Iterable[File]) -> list[Problem]:
        if self._level == NONE:
            return []
        found: list[Problem] = []
        for file in named:
            inner = os.path.join(path, file.name)
            found += self._once(inner, self._examine_file, inner, file)
        return found

    def _examine_file(self, path: str, file: File) -> None:
        with files.reporting("read a file of the restore point"):
            if not files.is_plain(path) or os.lstat(path).st_size != file.size:
                raise Damaged(
                    f"{path} is missing or not {file.size} bytes long.", "Restore it from a copy of the repository."
                )
        self._check_content(path, file.sha256)

    def _check_content(self, path: str, sha256: str) -> None:
        if self._level != CONTENT:
            return
        with files.reporting("read a file of the restore point"):
            if files.digest(path)[1] != sha256:
                raise Damaged(f"The content of {path} is not what was written.", images.NEXT_STEP)

    def _once(self, path: str, examine: Callable[..., None], *args: Any) -> list[Problem]:
        if path not in self._seen:
            self._seen[path] = []
            try:
                examine(*args)
            except BackupError as error:
                self._seen[path].append(Problem.of(error, path))
        return self._seen[path]
