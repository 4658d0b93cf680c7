# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshot trees of any shape: every branch counts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import snapshots, stamps
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshots import Snapshot
from ansible_collections.holdfast.backup.tests.unit.plugins.module_utils._vsphere.snapshot_trees import (
    BEGIN,
    BRANCHED,
    FORESTS,
    chain,
    forest,
    ids,
    info,
    node,
)
from hypothesis import given
from hypothesis import strategies as st


@given(FORESTS)
def test_flatten_finds_every_node_with_its_place(parents):
    flat = snapshots.flatten(forest(parents))
    assert {one.id: one.parent_id for one in flat} == parents
    by_id = {one.id: one for one in flat}
    seen = set()
    for one in flat:
        assert one.parent_id is None or one.parent_id in seen, "parents come first"
        assert one.depth == (1 if one.parent_id is None else by_id[one.parent_id].depth + 1)
        assert list(one.child_ids) == [child for child, parent in parents.items() if parent == one.id]
        seen.add(one.id)
    assert [one.id for one in flat if one.current] == [len(parents)]


@given(FORESTS)
def test_nest_gives_the_tree_back(parents):
    nested = snapshots.nest([one.as_dict() for one in snapshots.flatten(forest(parents))])
    found = {}

    def walk(records, parent):
        for record in records:
            found[record["id"]] = parent
            walk(record["children"], record["id"])

    walk(nested, None)
    assert found == parents


@given(FORESTS, st.sets(st.integers(1, 20)))
def test_descendants_and_tops(parents, drawn):
    flat = snapshots.flatten(forest(parents))
    chosen = drawn & set(parents)

    def ancestors(number):
        while number is not None:
            yield number
            number = parents[number]

    everything = snapshots.with_descendants(flat, [one for one in flat if one.id in chosen])
    assert set(ids(everything)) == {number for number in parents if chosen & set(ancestors(number))}
    tops = snapshots.topmost(everything)
    assert snapshots.with_descendants(flat, tops) == everything
    assert all(not set(ids(tops)) & set(ancestors(parents[one.id])) for one in tops)


def test_no_snapshots():
    assert snapshots.flatten(None) == []
    assert snapshots.nest([]) == []


def test_records_are_plain():
    stamp = stamps.Stamp("nightly", "r1")
    tree = info(node(7, "a%2fb", stamps.join("mine", stamp)), current=7)
    assert snapshots.flatten(tree)[0].as_dict() == {
        "id": 7,
        "moid": "snapshot-7",
        "name": "a/b",
        "description": "mine",
        "creation_time": "2026-11-01T07:00:00Z",
        "state": "poweredOff",
        "quiesced": False,
        "parent_id": None,
        "child_ids": [],
        "depth": 1,
        "current": True,
        "stamp": {"job": "nightly", "run": "r1", "expires": None},
    }


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({"snapshot_id": 4}, [4]),
        ({"moid": "snapshot-6"}, [6]),
        ({"name": "other"}, [6]),
        ({"name": "right"}, [3]),
        ({"name": "nothing"}, []),
        ({"snapshot_id": 99}, []),
        ({"moid": "snapshot"}, []),
        ({"name": "leaf", "duplicates": "newest"}, [5]),
        ({"name": "leaf", "duplicates": "oldest"}, [4]),
        ({"name": "leaf", "duplicates": "all"}, [4, 5]),
        ({}, []),
    ],
)
def test_choose(choice, found):
    assert ids(snapshots.choose(snapshots.flatten(BRANCHED), **choice)) == found


def test_choose_lists_the_candidates():
    with pytest.raises(Ambiguous) as caught:
        snapshots.choose(snapshots.flatten(BRANCHED), name="leaf")
    assert [candidate["id"] for candidate in caught.value.details["candidates"]] == [4, 5]
    assert "IDs 4, 5" in str(caught.value)


@pytest.mark.parametrize("stored", ["VM Snapshot 05/11/2024", "VM Snapshot 05%2f11%2f2024"])
@pytest.mark.parametrize("given_name", ["VM Snapshot 05/11/2024", "VM Snapshot 05%2f11%2f2024"])
def test_names_with_slashes_are_found_as_shown_and_as_stored(stored, given_name):
    flat = snapshots.flatten(info(node(1, stored), node(2, "VM Snapshot 05")))
    assert ids(snapshots.choose(flat, name=given_name)) == [1]


def test_a_name_that_was_escaped_twice_is_found_if_no_other_fits():
    """As the vSphere Client has it: what it escapes, vCenter escapes again."""
    twice, once = node(1, "05%252f11%252f2024"), node(2, "05%2f11%2f2024")
    for name in ("05/11/2024", "05%2f11%2f2024", "05%252f11%252f2024"):
        assert ids(snapshots.choose(snapshots.flatten(info(twice)), name=name)) == [1]
    assert ids(snapshots.choose(snapshots.flatten(info(twice, once)), name="05/11/2024")) == [2]


def test_owned_are_only_those_with_the_exact_stamp():
    expired, alive, other_run, other_job = (
        stamps.Stamp("nightly", "r1", BEGIN),
        stamps.Stamp("nightly", "r1", BEGIN + timedelta(days=1)),
        stamps.Stamp("nightly", "r2"),
        stamps.Stamp("nightly2", "r1", BEGIN),
    )
    descriptions = [stamps.join("", stamp) for stamp in (expired, alive, other_run, other_job)]
    names = ["nightly"] * 6
    tree = info(
        *(
            node(number, name, text)
            for number, (name, text) in enumerate(
                zip(names, [*descriptions, "nightly", 'holdfast.backup {"job": "nightly"}']), start=1
            )
        )
    )
    flat = snapshots.flatten(tree)
    assert ids(snapshots.owned(flat, "nightly")) == [1, 2, 3]
    assert ids(snapshots.owned(flat, "nightly", "r1")) == [1, 2]
    assert ids(snapshots.owned(flat, "nightly", expired_at=BEGIN)) == [1]
    assert snapshots.owned(flat, "night") == []


def test_a_chain_as_deep_as_vsphere_can_ever_have_it_is_no_recursion():
    assert len(snapshots.flatten(chain(255))) == 255


def test_snapshot_records_are_hashable():
    assert isinstance(snapshots.flatten(BRANCHED)[0], Snapshot)
    assert len(set(snapshots.flatten(BRANCHED))) == 6
