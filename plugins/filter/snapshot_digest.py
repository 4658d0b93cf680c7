# Copyright (c) 2026 the holdfast.backup authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role snapshot_report says of snapshots, from what vm_snapshot_info found. Pure."""

from __future__ import annotations

DOCUMENTATION = r"""
name: snapshot_digest
short_description: Judge the snapshots of many virtual machines, for a report
version_added: 1.0.0
author:
  - The holdfast.backup authors (@holdfast)
description:
  - Takes what M(holdfast.backup.vm_snapshot_info) returns for many virtual machines. Says which snapshots are old,
    large, deep, or expired, and sums them up by age, datastore, virtual machine, and who made them.
options:
  _input:
    description: The result of M(holdfast.backup.vm_snapshot_info).
    type: dict
    required: true
  old:
    description: A snapshot that is older than this is old, for example V(3d).
    type: str
    default: 3d
  large:
    description: A snapshot that occupies more than this is large, for example V(20G).
    type: str
    default: 20G
  deep:
    description: A snapshot with more than this many in its chain, counting itself, is deep.
    type: int
    default: 3
  chains:
    description: Of how many virtual machines, those with the longest chains, the tree is laid out.
    type: int
    default: 3
"""

EXAMPLES = r"""
- name: Look at all snapshots
  holdfast.backup.vm_snapshot_info:
    disks: false
  register: found

- name: Say how many are older than a week
  ansible.builtin.debug:
    msg: "{{ (found | holdfast.backup.snapshot_digest(old='7d')).findings.old }}"
"""

RETURN = r"""
_value:
  description:
    - C(limits), C(totals), C(findings) (how many snapshots are C(old), C(large), C(deep), C(expired), C(foreign),
      C(ours); how many virtual machines need C(consolidation) or are C(unreadable)).
    - C(snapshots), one row each, with C(reasons), those with the most reasons and then the largest first.
    - C(ages), C(datastores), C(machines), C(jobs), C(creators) with counts and bytes.
    - C(chains), trees laid out for drawing, and C(plot), the snapshots as points in a square by age and size.
    - C(needs_consolidation) and C(unreadable) as they were given.
  type: dict
"""

import math
from collections import defaultdict
from typing import Any, Callable, Iterable, Mapping

from ansible.errors import AnsibleFilterError
from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.plugins.module_utils._quantities import duration, in_bytes

HOUR = 3600
DAY = 24 * HOUR
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
AGE_TICKS = (
    (HOUR, "1 h"),
    (DAY, "1 d"),
    (7 * DAY, "7 d"),
    (30 * DAY, "30 d"),
    (365 * DAY, "1 y"),
    (3650 * DAY, "10 y"),
)
SIZE_TICKS = (
    (MIB, "1 MiB"),
    (32 * MIB, "32 MiB"),
    (GIB, "1 GiB"),
    (32 * GIB, "32 GiB"),
    (TIB, "1 TiB"),
    (32 * TIB, "32 TiB"),
)
# Upper limits of the classes of age, in seconds, and how they are called.
AGES = (
    (HOUR, "below 1 hour"),
    (DAY, "1 hour to 1 day"),
    (3 * DAY, "1 to 3 days"),
    (7 * DAY, "3 to 7 days"),
    (30 * DAY, "7 to 30 days"),
    (90 * DAY, "30 to 90 days"),
    (365 * DAY, "90 days to 1 year"),
    (float("inf"), "above 1 year"),
)
LABEL = 44  # characters of a name in a drawing
MANY = 500  # snapshots above which points are drawn on a coarser grid


def snapshot_digest(
    found: Mapping[str, Any], old: str = "3d", large: str = "20G", deep: int = 3, chains: int = 3
) -> dict[str, Any]:
    """See DOCUMENTATION."""
    try:
        limits = {
            "old": old,
            "large": large,
            "deep": int(deep),
            "old_seconds": int(duration(old).total_seconds()),
            "large_bytes": in_bytes(large, "large"),
        }
    except (BackupError, ValueError) as error:
        raise AnsibleFilterError(f"snapshot_digest: {error}") from error
    rows = [_row(one, snapshot, limits) for one in found["virtual_machines"] for snapshot in one["snapshots"]]
    rows.sort(key=lambda row: (-len(row["reasons"]), -(row["size_bytes"] or 0), -row["age_seconds"], row["vm"]))
    machines = _machines(found["virtual_machines"])
    return {
        "limits": limits,
        "totals": dict(found["totals"]),
        "findings": {
            **{reason: sum(reason in row["reasons"] for row in rows) for reason in ("old", "large", "deep", "expired")},
            "foreign": sum(row["owner"] == "foreign" for row in rows),
            "ours": sum(row["owner"] == "ours" for row in rows),
            "consolidation": len(found["needs_consolidation"]),
            "unreadable": len(found["unreadable"]),
        },
        "snapshots": rows,
        "ages": _ages(rows, limits),
        "datastores": _sums(rows, lambda row: row["datastores"]),
        "jobs": _sums(rows, lambda row: {row["job"]: row["size_bytes"] or 0} if row["job"] else {}),
        "creators": _sums(rows, lambda row: {row["creator"]: row["size_bytes"] or 0} if row["creator"] else {}),
        "machines": machines,
        "plot": _plot(rows, limits),
        "chains": [_chain(one) for one in _deepest(found["virtual_machines"], chains)],
        "needs_consolidation": list(found["needs_consolidation"]),
        "unreadable": list(found["unreadable"]),
    }


def _row(one: Mapping[str, Any], snapshot: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
    stamp = snapshot["stamp"] or {}
    tests = {
        "expired": snapshot["expired"],
        "old": snapshot["age_seconds"] > limits["old_seconds"],
        "large": (snapshot["size_bytes"] or 0) > limits["large_bytes"],
        "deep": snapshot["depth"] > limits["deep"],
    }
    copied = (
        *("id", "name", "description", "creation_time", "age_seconds", "depth", "size_bytes", "memory_bytes"),
        *("size_problem", "datastores", "owner", "expired", "creator", "quiesced", "current", "moid"),
    )
    return {
        "vm": one["vm"]["name"],
        "vm_moid": one["vm"]["moid"],
        "folder": one["folder"],
        **{key: snapshot[key] for key in copied},
        "job": stamp.get("job"),
        "run": stamp.get("run"),
        "expires": stamp.get("expires"),
        "reasons": [reason for reason, true in tests.items() if true],
    }


def _ages(rows: Iterable[Mapping[str, Any]], limits: Mapping[str, Any]) -> list[dict[str, Any]]:
    classes = []
    lower: float = 0
    for upper, label in AGES:
        inside = [row for row in rows if lower <= row["age_seconds"] < upper]
        classes.append(
            {
                "label": label,
                "count": len(inside),
                "ours": sum(row["owner"] == "ours" for row in inside),
                "size_bytes": sum(row["size_bytes"] or 0 for row in inside),
                "old": lower >= limits["old_seconds"],
            }
        )
        lower = upper
    return classes


def _plot(rows: Iterable[Mapping[str, Any]], limits: Mapping[str, Any]) -> dict[str, Any]:
    """Points from 0 to 1, by age to the right and by size upwards, in logarithms; those on one spot are one point."""
    sized = [row for row in rows if row["size_bytes"] is not None]
    oldest = max([*(row["age_seconds"] for row in sized), limits["old_seconds"], 7 * DAY])
    largest = max([*(row["size_bytes"] for row in sized), limits["large_bytes"], GIB])

    def across(seconds: float) -> float:
        return round(_share(seconds, HOUR, oldest), 3)

    def up(size: float) -> float:
        return round(_share(size, MIB, largest), 3)

    fine = len(sized) <= MANY
    spots: dict[tuple[float, float, str, bool], list[Mapping[str, Any]]] = defaultdict(list)
    for row in sized:
        x, y = across(row["age_seconds"]), up(row["size_bytes"])
        spots[_snap(x, 0.01 if fine else 0.03), _snap(y, 0.02 if fine else 0.06), row["owner"], row["expired"]].append(
            row
        )
    return {
        "points": [
            {
                "x": x,
                "y": y,
                "owner": owner,
                "expired": expired,
                "count": len(there),
                "label": f"{there[0]['vm']}: {there[0]['name']}",
            }
            for (x, y, owner, expired), there in sorted(spots.items())
        ],
        "ages": [{"at": across(age), "label": label} for age, label in AGE_TICKS if age <= oldest],
        "sizes": [{"at": up(size), "label": label} for size, label in SIZE_TICKS if size <= largest],
        "old": across(limits["old_seconds"]),
        "large": up(limits["large_bytes"]),
    }


def _snap(value: float, step: float) -> float:
    return round(min(round(value / step) * step, 1), 3)


def _share(value: float, lowest: float, highest: float) -> float:
    return math.log(max(value, lowest) / lowest) / math.log(highest / lowest)


def _sums(
    rows: Iterable[Mapping[str, Any]], shares: Callable[[Mapping[str, Any]], Mapping[str, int]]
) -> list[dict[str, Any]]:
    """Counts and bytes by name, the largest first."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        for name, size in shares(row).items():
            sums[name][0] += 1
            sums[name][1] += size
    listed = [{"name": name, "count": count, "size_bytes": size} for name, (count, size) in sums.items()]
    return sorted(listed, key=lambda one: (-one["size_bytes"], -one["count"], one["name"]))


def _machines(machines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    listed = [
        {
            "name": one["vm"]["name"],
            "moid": one["vm"]["moid"],
            "folder": one["folder"],
            "count": len(one["snapshots"]),
            "size_bytes": sum(snapshot["size_bytes"] or 0 for snapshot in one["snapshots"]),
            "depth": max(snapshot["depth"] for snapshot in one["snapshots"]),
            "age_seconds": max(snapshot["age_seconds"] for snapshot in one["snapshots"]),
            "consolidation_needed": one["consolidation_needed"],
        }
        for one in machines
        if one["snapshots"]
    ]
    return sorted(listed, key=lambda one: (-one["size_bytes"], -one["count"], one["name"]))


def _deepest(machines: Iterable[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Those with the longest chains; one snapshot alone is no tree."""
    several = [one for one in machines if len(one["snapshots"]) > 1]
    depths = {id(one): max(snapshot["depth"] for snapshot in one["snapshots"]) for one in several}
    return sorted(several, key=lambda one: (-depths[id(one)], -len(one["snapshots"]), one["vm"]["name"]))[:count]


def _chain(one: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a VM in rows, the oldest first. What leads to the current snapshot stays in its column, at the end of
    its siblings; each other branch is one column to the right."""
    nodes = {snapshot["id"]: snapshot for snapshot in one["snapshots"]}
    children: dict[int | None, list[int]] = defaultdict(list)
    for number, snapshot in nodes.items():
        children[snapshot["parent_id"] if snapshot["parent_id"] in nodes else None].append(number)
    way = _way(nodes)
    rows: list[dict[str, Any]] = []
    left: list[tuple[int, int, int | None]] = []  # snapshot, column, row of the parent

    def queue(parent: int | None, column: int, row: int | None) -> None:
        kids = sorted(children[parent], key=lambda number: (number in way, nodes[number]["creation_time"], number))
        if kids:
            *others, main = kids
            left.append((main, column, row))
            left.extend((number, column + 1, row) for number in reversed(others))

    queue(None, 0, None)
    while left:
        number, column, parent = left.pop()
        snapshot = nodes[number]
        rows.append(
            {
                "label": snapshot["name"] if len(snapshot["name"]) <= LABEL else snapshot["name"][: LABEL - 1] + "…",
                "row": len(rows),
                "column": column,
                "parent": parent,
                "parent_column": rows[parent]["column"] if parent is not None else None,
                **{key: snapshot[key] for key in ("name", "age_seconds", "size_bytes", "owner", "expired", "current")},
            }
        )
        queue(number, column, len(rows) - 1)
    return {
        "vm": one["vm"]["name"],
        "columns": max(row["column"] for row in rows) + 1,
        "depth": max(snapshot["depth"] for snapshot in nodes.values()),
        "rows": rows,
    }


def _way(nodes: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """The snapshots from a root to the current one."""
    way: set[int] = set()
    number = next((number for number, snapshot in nodes.items() if snapshot["current"]), None)
    while number is not None and number in nodes:
        way.add(number)
        number = nodes[number]["parent_id"]
    return way


class FilterModule:
    """Filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"snapshot_digest": snapshot_digest}
