# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The stamp: what is written is read, and nothing else passes for one."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import stamps
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.stamps import Stamp
from hypothesis import given
from hypothesis import strategies as st

EXPIRES = datetime(2026, 11, 21, 2, tzinfo=timezone.utc)
LINE = 'holdfast.backup {"job": "nightly", "run": "r1", "expires": "2026-11-21T02:00:00Z"}'

# Anything an XML document can carry; what encodes a stamp's own line is among it.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")) | st.just(LINE)
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=timezone.utc)
)
STAMPS = st.builds(
    Stamp, job=st.text(), run=st.text(), expires=st.none() | MOMENTS, power=st.none() | st.sampled_from(stamps.POWER)
)


@given(TEXT, STAMPS)
def test_what_is_joined_is_split(text, stamp):
    assert stamps.split(stamps.join(text, stamp)) == (text, stamp)


@given(STAMPS)
def test_a_stamp_is_one_printable_line(stamp):
    line = stamps.join("", stamp)
    assert line.isascii()
    assert line.isprintable()


def test_the_form_is_what_the_documentation_says():
    assert stamps.join("Before the update.", Stamp("nightly", "r1", EXPIRES)) == f"Before the update.\n{LINE}"


def test_text_that_somebody_added_below_changes_nothing():
    assert stamps.split(f"above\n{LINE}\nbelow") == ("above\nbelow", Stamp("nightly", "r1", EXPIRES))


@pytest.mark.parametrize(
    "description",
    [
        "",
        "holdfast.backup",
        f" {LINE}",
        f"{LINE} ",
        LINE.lower().replace("holdfast", "Holdfast"),
        LINE.replace('": "', '":"'),
        LINE.replace(", ", ","),
        LINE.replace('"job": "nightly", "run": "r1"', '"run": "r1", "job": "nightly"'),
        LINE.replace('"r1"', "1"),
        LINE.replace('"r1"', "null"),
        LINE.replace("}", ', "more": 1}'),
        LINE.replace("}", ', "power": null}'),
        LINE.replace("}", ', "power": "on"}'),
        LINE.replace('"expires": "2026-11-21T02:00:00Z"', '"expires": "tomorrow"'),
        LINE.replace('"expires": "2026-11-21T02:00:00Z"', '"expires": 0'),
        LINE.replace(', "expires": "2026-11-21T02:00:00Z"', ""),
        "holdfast.backup []",
        "holdfast.backup 7",
        "holdfast.backup {",
    ],
)
def test_what_is_not_exactly_a_stamp_is_none(description):
    assert stamps.split(description) == (description, None)


def test_expiry():
    stamp = Stamp("j", "r", EXPIRES)
    assert stamp.expired(EXPIRES)
    assert not stamp.expired(EXPIRES - timedelta(seconds=1))
    assert not Stamp("j", "r").expired(EXPIRES)


def test_times_are_told_in_utc():
    assert stamps.timestamp(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:00:00Z"
