# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What has to be done to a first class disk: nothing that was not asked for, and nothing twice."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd, fcd_plan
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd_plan import MARK, Wish
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20


def record(**values):
    return {**fcd_plan.blank("d", "ds1", "thin", None), "capacity": 4 * MIB, **values}


def todo(before, **wish):
    return fcd_plan.actions(before, fcd_plan.target(before, Wish(**wish)))


BEFORE = record(
    metadata={"a": "1", MARK: "restore 7"},
    tags=[{"category": "backup", "name": "daily"}],
    storage_policy="gold",
    control_flags={**dict.fromkeys(fcd.FLAGS, False), "keep_after_delete_vm": True},
)


@pytest.mark.parametrize(
    ("wish", "wanted"),
    [
        ({}, []),
        ({"name": "d", "capacity": 4 * MIB, "storage_policy": "gold"}, []),
        ({"control_flags": {"keep_after_delete_vm": True}, "metadata": {"a": "1", "b": None}}, []),
        ({"tags": [{"category": "backup", "name": "daily"}], "purge_tags": True}, []),
        ({"name": "e"}, ["rename"]),
        ({"capacity": 5 * MIB}, ["extend"]),
        ({"storage_policy": "silver"}, ["set_storage_policy"]),
        ({"control_flags": {"enable_changed_block_tracking": True}}, ["set_control_flags"]),
        ({"control_flags": {"keep_after_delete_vm": False}}, ["set_control_flags"]),
        ({"metadata": {"a": "2"}}, ["set_metadata"]),
        ({"metadata": {"a": None}}, ["set_metadata"]),
        ({"purge_metadata": True}, ["set_metadata"]),
        ({"tags": [{"category": "backup", "name": "weekly"}]}, ["set_tags"]),
        ({"purge_tags": True}, ["set_tags"]),
        ({"metadata": {"a": "2"}, "capacity": 5 * MIB, "name": "e"}, ["rename", "extend", "set_metadata"]),
    ],
)
def test_only_what_differs_is_done(wish, wanted):
    assert todo(BEFORE, **wish) == wanted


def test_a_disk_never_shrinks():
    with pytest.raises(InvalidInput, match="cannot shrink to 3145728"):
        todo(BEFORE, capacity=3 * MIB)


def test_the_mark_of_a_restore_is_not_purged_but_taken_off_by_name():
    purged = fcd_plan.target(BEFORE, Wish(metadata={"b": "2"}, purge_metadata=True))
    assert purged["metadata"] == {MARK: "restore 7", "b": "2"}
    assert MARK not in fcd_plan.target(BEFORE, Wish(metadata={MARK: None}))["metadata"]


def test_tags_on_a_server_without_tags_stay_unknown():
    assert fcd_plan.target(record(tags=None), Wish())["tags"] is None


def test_a_created_disk_still_lacks_what_creation_cannot_give():
    wish = Wish(
        capacity=8 * MIB,
        control_flags={"keep_after_delete_vm": True, "enable_changed_block_tracking": True},
        metadata={"a": "1"},
        storage_policy="gold",
        tags=[{"category": "backup", "name": "daily"}],
    )
    after = fcd_plan.target(fcd_plan.blank("d", "ds1", None, None), wish)
    assert fcd_plan.actions(fcd_plan.as_created(after), after) == ["set_control_flags", "set_tags"]


KEYS = st.sampled_from(["a", "b", MARK])
TAGS = st.lists(st.fixed_dictionaries({"category": KEYS, "name": KEYS}), max_size=3)
WISHES = st.builds(
    Wish,
    name=st.none() | st.sampled_from(["d", "e"]),
    capacity=st.none() | st.sampled_from([4 * MIB, 9 * MIB]),
    storage_policy=st.none() | st.just("gold"),
    control_flags=st.dictionaries(st.sampled_from(list(fcd.FLAGS)), st.booleans()),
    metadata=st.dictionaries(KEYS, st.none() | st.just("x")),
    purge_metadata=st.booleans(),
    tags=TAGS,
    purge_tags=st.booleans(),
)


@given(st.dictionaries(KEYS, st.just("y")), TAGS, WISHES)
def test_what_was_done_is_not_done_again(metadata, tags, wish):
    unique = sorted({(tag["category"], tag["name"]) for tag in tags})
    before = record(metadata=metadata, tags=[{"category": category, "name": name} for category, name in unique])
    after = fcd_plan.target(before, wish)
    assert fcd_plan.target(after, wish) == after
    assert all(after["metadata"].get(key) == value for key, value in wish.metadata.items())
    assert all(tag in after["tags"] for tag in wish.tags)
