# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which snapshots are meant, and their sums."""

from __future__ import annotations

from datetime import timedelta

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.snapshot_filters import Filter, totals
from hypothesis import given
from hypothesis import strategies as st

VM = {"vm_name": "web01", "folder": "production"}
RECORDS = st.fixed_dictionaries(
    {
        "id": st.integers(min_value=1, max_value=99),
        "name": st.text(max_size=8),
        "description": st.text(max_size=8),
        "creation_time": st.just("2026-11-20T02:00:04Z"),
        "state": st.sampled_from(["poweredOff", "poweredOn"]),
        "quiesced": st.booleans(),
        "age_seconds": st.integers(min_value=0, max_value=10**7),
        "size_bytes": st.none() | st.integers(min_value=0, max_value=10**12),
        "depth": st.integers(min_value=1, max_value=32),
        "owner": st.sampled_from(["ours", "foreign"]),
        "expired": st.booleans(),
    }
)
FILTERS = st.builds(
    Filter,
    older_than=st.none() | st.integers(min_value=0, max_value=10**7).map(lambda seconds: timedelta(seconds=seconds)),
    larger_than=st.none() | st.integers(min_value=0, max_value=10**12),
    deeper_than=st.none() | st.integers(min_value=0, max_value=32),
    owner=st.sampled_from(["any", "ours", "foreign"]),
    expired=st.none() | st.booleans(),
)


def record(**values):
    given = {"id": 7, "name": "before update", "description": "", "creation_time": "2026-11-20T02:00:04Z"}
    given |= {"state": "poweredOff", "quiesced": True, "age_seconds": 3600, "size_bytes": 100, "depth": 2}
    return {**given, "owner": "foreign", "expired": False, **values}


@given(one=RECORDS, wanted=FILTERS)
def test_a_filter_keeps_exactly_what_fits_each_of_its_conditions(one, wanted):
    fits = True
    if wanted.older_than is not None:
        fits &= one["age_seconds"] > wanted.older_than.total_seconds()
    if wanted.larger_than is not None:
        fits &= one["size_bytes"] is not None and one["size_bytes"] > wanted.larger_than
    if wanted.deeper_than is not None:
        fits &= one["depth"] > wanted.deeper_than
    if wanted.owner != "any":
        fits &= one["owner"] == wanted.owner
    if wanted.expired is not None:
        fits &= one["expired"] is wanted.expired
    assert wanted.matches(one, VM) is fits


@given(one=RECORDS, limit=st.integers(min_value=0, max_value=10**7))
def test_limits_exclude_their_own_value(one, limit):
    assert Filter(older_than=timedelta(seconds=limit)).matches(one, VM) == (one["age_seconds"] > limit)
    assert Filter(deeper_than=one["depth"]).matches(one, VM) is False
    assert Filter(deeper_than=one["depth"] - 1).matches(one, VM) is True


@given(one=RECORDS)
def test_nothing_asked_for_keeps_everything(one):
    assert Filter().matches(one, VM)


def test_an_unknown_size_is_not_larger_but_one_that_was_not_read_yet_may_be():
    wanted = Filter(larger_than=0)
    assert not wanted.matches(record(size_bytes=None), VM)
    assert not wanted.matches(record(size_bytes=0), VM)
    unread = record()
    del unread["size_bytes"]
    assert wanted.matches(unread, VM)


@pytest.mark.parametrize(
    ("pattern", "fits"), [("before *", True), ("Before *", False), ("*[!e]", False), ("update", False)]
)
def test_patterns_are_of_the_shell_and_of_the_whole_name(pattern, fits):
    assert Filter(name_pattern=pattern).matches(record(), VM) is fits


@pytest.mark.parametrize(
    ("fields", "match_type", "fits"),
    [
        ({"name": "BEFORE UPDATE"}, "exact", True),
        ({"name": "before"}, "exact", False),
        ({"name": "before"}, "includes", True),
        ({"vm_name": "web01", "folder": "Production"}, "exact", True),
        ({"vm_name": "web01", "folder": "test"}, "exact", False),
        ({"quiesced": True}, "exact", True),
        ({"id": "7"}, "exact", True),
        ({"creation_time": "2026-11"}, "includes", True),
    ],
)
def test_fields_are_those_of_the_peer(fields, match_type, fits):
    assert Filter(fields=fields, match_type=match_type).matches(record(), VM) is fits


def test_a_field_that_nobody_knows_is_an_error():
    with pytest.raises(InvalidInput, match="no filter vmname"):
        Filter(fields={"vmname": "web01"})


@given(records=st.lists(RECORDS, max_size=20))
def test_totals_add_up(records):
    sums = totals(records)
    assert sums["snapshots"] == sums["ours"] + sums["foreign"] == len(records)
    assert sums["size_bytes"] == sum(one["size_bytes"] or 0 for one in records)
    assert sums["size_unknown"] == len([one for one in records if one["size_bytes"] is None])
    assert sums["deepest"] == max([one["depth"] for one in records], default=0)
    assert (sums["oldest"] is None) == (not records)
