# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other programs' snapshots of the same disk are never taken for ours."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd_snapshots
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fcd import Snapshot
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.stamps import Stamp
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 20, tzinfo=timezone.utc)
NOTHING = dict.fromkeys(("snapshot_id", "description", "job", "run", "expired_at"))


def snapshot(number, description="", stamp=None):
    return Snapshot(f"s{number}", description, NOW + timedelta(hours=number), None, stamp)


FOREIGN = snapshot(1, "velero")
OLD = snapshot(2, "", Stamp("nightly", "r1", NOW - timedelta(hours=1)))
NEW = snapshot(3, "", Stamp("nightly", "r2", NOW + timedelta(hours=1)))
OTHER = snapshot(4, "velero", Stamp("hourly", "r1"))
ALL = [FOREIGN, OLD, NEW, OTHER]


def chosen(**given_):
    return fcd_snapshots.choose(ALL, **{**NOTHING, **given_})


@pytest.mark.parametrize(
    ("by", "wanted"),
    [
        ({"snapshot_id": "s1"}, [FOREIGN]),
        ({"snapshot_id": "s9"}, []),
        ({"job": "nightly"}, [OLD, NEW]),
        ({"job": "nightly", "run": "r2"}, [NEW]),
        ({"job": "nightly", "expired_at": NOW}, [OLD]),
        ({"job": "night"}, []),
        ({"snapshot_id": "s1", "job": "nightly"}, []),
        ({"description": "velero", "job": "hourly"}, [OTHER]),
    ],
)
def test_what_is_chosen(by, wanted):
    assert chosen(**by) == wanted


def test_nothing_said_chooses_nothing():
    with pytest.raises(InvalidInput):
        chosen()
    with pytest.raises(InvalidInput):
        chosen(expired_at=NOW)


def test_a_description_that_several_have_needs_the_id():
    with pytest.raises(Ambiguous, match="s1, s4") as raised:
        chosen(description="velero")
    assert [one["id"] for one in raised.value.details["candidates"]] == ["s1", "s4"]


def to_revert(snapshots=None, **given_):
    return fcd_snapshots.choose_to_revert(ALL if snapshots is None else snapshots, **{**NOTHING, **given_})


def test_a_foreign_snapshot_is_reverted_to_by_its_id_only():
    assert to_revert(snapshot_id="s1") == FOREIGN
    assert to_revert(description="velero") == OTHER
    with pytest.raises(NotFound, match="only reverted to by snapshot_id"):
        to_revert([FOREIGN], description="velero")


def test_there_is_one_to_revert_to_or_none_at_all():
    assert to_revert(job="nightly", run="r1") == OLD
    with pytest.raises(Ambiguous):
        to_revert(job="nightly")
    with pytest.raises(NotFound):
        to_revert(snapshot_id="s9")
    with pytest.raises(NotFound):
        to_revert([], job="nightly")


WORDS = st.sampled_from(["", "velero", "nightly"])
STAMPS = st.none() | st.builds(Stamp, job=WORDS, run=WORDS, expires=st.none() | st.just(NOW))
SNAPSHOTS = st.lists(st.tuples(WORDS, STAMPS), max_size=6).map(
    lambda drawn: [snapshot(number, text, stamp) for number, (text, stamp) in enumerate(drawn)]
)


@given(SNAPSHOTS, st.none() | WORDS, WORDS, st.none() | WORDS, st.none() | st.just(NOW))
def test_by_a_stamp_only_snapshots_with_that_very_stamp(snapshots, description, job, run, expired_at):
    by = {**NOTHING, "description": description, "job": job, "run": run, "expired_at": expired_at}
    for one in fcd_snapshots.choose(snapshots, **by):
        assert one.stamp is not None
        assert one.stamp.job == job
        assert run in (None, one.stamp.run)
    with contextlib.suppress(NotFound, Ambiguous):
        assert fcd_snapshots.choose_to_revert(snapshots, **by).stamp is not None
