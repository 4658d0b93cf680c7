# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a report says of snapshots."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.holdfast.backup.plugins.filter.snapshot_digest import AGES, DAY, MANY, snapshot_digest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_filters import totals
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30


def snapshot(number, parent=None, depth=1, **values):
    given = {
        "id": number,
        "moid": f"snapshot-{number}",
        "name": f"s{number}",
        "description": "",
        "creation_time": f"2026-11-{number % 28 + 1:02d}T00:00:00Z",
        "quiesced": False,
        "parent_id": parent,
        "depth": depth,
        "current": False,
        "stamp": None,
        "age_seconds": 60,
        "owner": "foreign",
        "expired": False,
        "size_bytes": 100,
        "memory_bytes": 0,
        "datastores": {"ds1": 100},
        "size_problem": None,
        "creator": None,
    }
    return {**given, **values}


def machine(name, *snapshots, consolidation_needed=False):
    vm = {"name": name, "moid": f"vm-{name}", "instance_uuid": None}
    return {"vm": vm, "folder": "/dc/vm", "snapshots": list(snapshots), "consolidation_needed": consolidation_needed}


def found(*machines):
    chosen = [one for entry in machines for one in entry["snapshots"]]
    return {
        "virtual_machines": list(machines),
        "unreadable": [],
        "needs_consolidation": [],
        "totals": {"virtual_machines": len(machines), **totals(chosen)},
    }


SNAPSHOTS = st.builds(
    snapshot,
    st.integers(min_value=1, max_value=10**6),
    depth=st.integers(min_value=1, max_value=32),
    age_seconds=st.integers(min_value=0, max_value=10**9),
    size_bytes=st.none() | st.integers(min_value=0, max_value=10**15),
    owner=st.sampled_from(["ours", "foreign"]),
    expired=st.booleans(),
)


@given(snapshots=st.lists(SNAPSHOTS, max_size=30, unique_by=lambda one: one["id"]))
def test_every_snapshot_is_counted_once_everywhere(snapshots):
    digest = snapshot_digest(found(machine("a", *snapshots[::2]), machine("b", *snapshots[1::2])))
    count, findings = len(snapshots), digest["findings"]
    assert len(digest["snapshots"]) == count == sum(one["count"] for one in digest["ages"])
    assert findings["ours"] + findings["foreign"] == count == sum(one["count"] for one in digest["machines"])
    known = [one for one in snapshots if one["size_bytes"] is not None]
    assert sum(point["count"] for point in digest["plot"]["points"]) == len(known)
    assert all(0 <= point[axis] <= 1 for point in digest["plot"]["points"] for axis in "xy")
    assert sum(one["size_bytes"] for one in digest["ages"]) == digest["totals"]["size_bytes"]
    for chain in digest["chains"]:
        assert len(chain["rows"]) == next(one["count"] for one in digest["machines"] if one["name"] == chain["vm"])


def test_reasons():
    given = machine(
        "a",
        snapshot(1, age_seconds=3 * DAY, size_bytes=20 * GIB, depth=3),
        snapshot(2, age_seconds=3 * DAY + 1, size_bytes=20 * GIB + 1, depth=4),
        snapshot(3, expired=True, owner="ours", stamp={"job": "j", "run": "r", "expires": None}),
        snapshot(4, size_bytes=None),
    )
    rows = {row["id"]: row for row in snapshot_digest(found(given))["snapshots"]}
    assert [rows[number]["reasons"] for number in (1, 2, 3, 4)] == [[], ["old", "large", "deep"], ["expired"], []]
    assert (rows[3]["job"], rows[3]["run"]) == ("j", "r")


def test_what_has_the_most_reasons_comes_first_then_what_is_large():
    given = machine("a", snapshot(1), snapshot(2, size_bytes=200), snapshot(3, expired=True))
    assert [row["id"] for row in snapshot_digest(found(given))["snapshots"]] == [3, 2, 1]


def test_ages_are_old_from_the_limit_on():
    ages = snapshot_digest(found(machine("a", snapshot(1, age_seconds=7 * DAY))), old="7d")["ages"]
    assert [one["old"] for one in ages] == [False] * 4 + [True] * 4
    assert [one["label"] for one in ages if one["count"]] == ["7 to 30 days"]
    assert len(ages) == len(AGES)


def test_sums_are_sorted_by_bytes():
    first = snapshot(1, datastores={"small": 1, "large": 99}, creator="anna")
    second = snapshot(2, datastores={"large": 100}, creator="anna")
    digest = snapshot_digest(found(machine("a", first), machine("b", second)))
    assert digest["datastores"] == [
        {"name": "large", "count": 2, "size_bytes": 199},
        {"name": "small", "count": 1, "size_bytes": 1},
    ]
    assert digest["creators"] == [{"name": "anna", "count": 2, "size_bytes": 200}]


def test_a_tree_is_laid_out_with_the_way_to_the_current_one_in_its_first_column():
    given = machine(
        "a",
        snapshot(1),
        snapshot(2, parent=1, depth=2),
        snapshot(3, parent=1, depth=2),
        snapshot(4, parent=2, depth=3, current=True),
        snapshot(5, parent=3, depth=3),
        snapshot(6, parent=3, depth=3),
    )
    (chain,) = snapshot_digest(found(given, machine("b", snapshot(7))))["chains"]
    drawn = [(row["name"], row["column"], row["parent"]) for row in chain["rows"]]
    assert drawn == [("s1", 0, None), ("s3", 1, 0), ("s5", 2, 1), ("s6", 1, 1), ("s2", 0, 0), ("s4", 0, 4)]
    assert (chain["columns"], chain["depth"]) == (3, 3)


def test_a_parent_that_a_filter_left_out_makes_its_children_roots():
    given = machine("a", snapshot(2, parent=1, depth=2), snapshot(3, parent=2, depth=3, name="n" * 100))
    (chain,) = snapshot_digest(found(given))["chains"]
    assert [row["parent"] for row in chain["rows"]] == [None, 0]
    assert chain["rows"][1]["label"] == "n" * 43 + "…"


def test_a_row_of_32_needs_no_more_than_one_column():
    chain = [snapshot(number, parent=number - 1 or None, depth=number) for number in range(1, 33)]
    (drawn,) = snapshot_digest(found(machine("a", *chain)))["chains"]
    assert (drawn["columns"], drawn["depth"], len(drawn["rows"])) == (1, 32, 32)


def test_many_snapshots_are_drawn_in_few_points():
    many = [snapshot(n, age_seconds=n * 977, size_bytes=n * 9_999_991) for n in range(1, MANY * 8)]
    digest = snapshot_digest(found(machine("a", *many)))
    assert len(digest["plot"]["points"]) < MANY


@pytest.mark.parametrize("limits", [{"old": "soon"}, {"large": "huge"}])
def test_limits_that_mean_nothing_are_refused(limits):
    with pytest.raises(AnsibleFilterError):
        snapshot_digest(found(), **limits)
