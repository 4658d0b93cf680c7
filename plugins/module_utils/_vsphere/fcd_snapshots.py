# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: choosing among the snapshots of a first class disk.

The disks of Kubernetes volumes have snapshots of other programs. Nothing here ever takes one of those for
ours: only an exact stamp makes a snapshot ours, and position in a list says nothing. Pure functions.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Iterable

from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Snapshot


def select(
    snapshots: Iterable[Snapshot],
    *,
    snapshot_id: str | None = None,
    description: str | None = None,
    job: str | None = None,
    run: str | None = None,
    expired_at: datetime | None = None,
) -> list[Snapshot]:
    """The snapshots that fit everything given; with ``job``, only those with a stamp of it."""
    return [
        one
        for one in snapshots
        if snapshot_id in (None, one.id)
        and description in (None, one.description)
        and (job is None or (one.stamp is not None and one.stamp.job == job and run in (None, one.stamp.run)))
        and (expired_at is None or (one.stamp is not None and one.stamp.expired(expired_at)))
    ]


def choose(snapshots: Iterable[Snapshot], **given: Any) -> list[Snapshot]:
    """What to delete: by the arguments of :func:`select`, of which one must choose.

    :raises InvalidInput: nothing was said that chooses
    :raises Ambiguous: several have the description, and it is all that was said
    """
    if all(given[key] is None for key in ("snapshot_id", "description", "job")):
        raise InvalidInput("No snapshot was chosen.", "Give one of snapshot_id, description and stamp.")
    found = select(snapshots, **given)
    if len(found) > 1 and given["job"] is None:
        raise _ambiguous(found)
    return found


def choose_to_revert(snapshots: Iterable[Snapshot], **given: Any) -> Snapshot:
    """The one snapshot to revert to; one without a stamp only by its ID.

    :raises NotFound: there is none
    :raises Ambiguous: several fit
    """
    everything = list(snapshots)
    found = [one for one in select(everything, **given) if one.stamp is not None or given["snapshot_id"] is not None]
    if not found:
        raise NotFound(
            "The first class disk has no such snapshot to revert to.",
            "One of another program is only reverted to by snapshot_id. There are: "
            f"{', '.join(f'{one.id} ({one.description})' for one in everything) or 'none'}.",
        )
    if len(found) > 1:
        raise _ambiguous(found)
    return found[0]


def _ambiguous(found: list[Snapshot]) -> Ambiguous:
    return Ambiguous(
        f"{len(found)} snapshots fit: {', '.join(one.id for one in found)}.",
        "Say which by snapshot_id.",
        candidates=[one.as_dict() for one in found],
    )
