# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: whether what change tracking calls unchanged is unchanged.

Before an incremental copy a few clusters outside the changed areas are read from the snapshot and compared with the
images below. What tracking forgot once it forgets for ever: no later copy would bring it either. Before a full copy
that goes by somebody's word of what is in use, a few clusters of the rest are compared with zeros.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, images, jobs
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.jobs import Settings, Task
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.servers import CLUSTER

FEWEST = 16  # samples, where there are so many clusters; a mere percentage of a small disk would be none


@dataclass(frozen=True)
class Finding:
    """What an audit found.

    :param checked: bytes that were compared
    :param samples: in how many places
    :param differ: those that are known to differ; it stops at the first ones
    :param unreadable: why the images below could not be read, if so
    """

    checked: int
    samples: int
    differ: list[areas.Area]
    unreadable: str | None = None

    @property
    def reason(self) -> str | None:
        """Why the disk must be copied in full, or None."""
        if self.unreadable:
            return self.unreadable
        if not self.differ:
            return None
        return (
            f"change tracking missed changes: at least {len(self.differ)} of {self.samples} samples differ, "
            f"the first at byte {self.differ[0][0]}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of the result."""
        return {
            "checked_bytes": self.checked,
            "samples": self.samples,
            "mismatches": len(self.differ),
            "areas": [list(area) for area in self.differ],
        }


def examine(task: Task, settings: Settings, watch: Watch, chain: Sequence[str]) -> Finding | None:
    """Audit one incremental copy; None when there is nothing to compare.

    The same copy has the same samples, so that one that is taken up again comes to the same conclusion.

    :param task: with work
    :param chain: the images below the new one
    """
    chosen = _outside(task, settings, task.work or ())
    if not chosen:
        return None
    samples = _count(chosen)
    try:
        found = jobs.compare(task, settings, watch, "audit", chain, chosen)
    except Damaged as error:
        return Finding(0, samples, [], error.message.rstrip("."))
    return Finding(areas.total(chosen), samples, found)


def examine_hints(task: Task, settings: Settings, watch: Watch) -> bool:
    """See whether what a full copy takes for zeros is zeros, as far as samples tell.

    :param task: a full copy; its hints are distrusted if they are wrong
    """
    hints = task.hints
    in_use = hints.known() if hints else None
    chosen = None if in_use is None else _outside(task, settings, in_use)
    if hints is None or not chosen:
        return True
    descriptor, zeros = tempfile.mkstemp(dir=settings.directory, suffix=".qcow2")
    os.close(descriptor)
    images.create(zeros, task.capacity)
    found = jobs.compare(task, settings, watch, "audit", [zeros], chosen)
    if not found:
        return True
    hints.distrust(
        f"at least {len(found)} of {_count(chosen)} samples outside the areas that are said to be in use hold data, "
        f"the first at byte {found[0][0]}; compare earlier full copies that were made natively (direction: compare)"
    )
    return False


def _outside(task: Task, settings: Settings, known: Sequence[areas.Area]) -> list[areas.Area]:
    """Samples outside some areas. The same copy has the same ones."""
    rest = areas.subtract([(0, task.capacity)], areas.normalise(known, task.capacity, CLUSTER))
    return sample(rest, settings.audit, settings.audit_max, json.dumps(task.identity, sort_keys=True))


def _count(chosen: Sequence[areas.Area]) -> int:
    return sum(-(-length // CLUSTER) for start, length in chosen)


def in_full(task: Task, finding: Finding) -> tuple[Task, dict[str, Any]]:
    """The full copy that a failed audit leads to, and the keys of its result that differ from the task's facts.

    Without a change ID nothing can ever be counted from it. Where only an image is broken, tracking is good.
    """
    told: dict[str, Any] = {"kind": "full", "reason": finding.reason, "parent_id": None}
    if finding.differ:
        told["change_id"] = None
    return distrusted(task), told


def distrusted(task: Task) -> Task:
    """The same task as a full copy, which is known as what a failed audit led to."""
    return replace(task, work=None, parent=None, identity={**task.identity, "audit": "failed"})


def sample(unchanged: Sequence[areas.Area], percent: float, most: int, seed: str) -> list[areas.Area]:
    """Choose clusters out of areas: one by chance in each of as many equal parts, so that none is far from a sample.

    :param unchanged: a normal list whose starts are on clusters
    :param percent: of all clusters
    :param most: bytes
    :returns: a normal list
    """
    if percent <= 0 or not unchanged:
        return []
    ends = list(accumulate(-(-length // CLUSTER) for start, length in unchanged))
    clusters = ends[-1]
    count = min(max(FEWEST, math.ceil(clusters * percent / 100)), most // CLUSTER, clusters)
    dice = random.Random(seed)
    chosen = []
    for part in range(count):
        number = dice.randrange(part * clusters // count, (part + 1) * clusters // count)
        place = bisect_right(ends, number)
        start, length = unchanged[place]
        offset = (number - (ends[place - 1] if place else 0)) * CLUSTER
        chosen.append((start + offset, min(CLUSTER, length - offset)))
    return areas.normalise(chosen, sum(unchanged[-1]))
