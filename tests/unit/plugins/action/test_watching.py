# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lines that people see of a long copy."""

from __future__ import annotations

import re

import pytest
from ansible_collections.holdfast.backup.plugins.plugin_utils import _watching as subject
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
MIB = 1 << 20


def event(time, done, total=10 * GIB, stage="copy", passed=None):
    passed = done if passed is None else passed
    return {"time": time, "disk": "web01 Hard disk 1", "stage": stage, "done": done, "total": total, "passed": passed}


def test_line():
    meter = subject.Meter(0)
    assert meter.feed(event(1000, 0)) is None
    assert meter.feed(event(1010, 2 * GIB)) is None
    assert meter.due(5) is None
    assert meter.due(8) == "web01 Hard disk 1: 20 % 2.0 of 10.0 GiB, 205 MiB/s, 0:40 left"
    assert meter.due(9) is None
    meter.feed(event(1020, 3 * GIB))
    assert meter.due(17) == "web01 Hard disk 1: 30 % 3.0 of 10.0 GiB, 102 MiB/s, 1:10 left"
    assert meter.due(26) == "web01 Hard disk 1: 30 % 3.0 of 10.0 GiB, waiting"
    assert meter.feed(event(1090, 10 * GIB)) == "web01 Hard disk 1: 100 % 10.0 of 10.0 GiB, 102 MiB/s"
    assert meter.due(60) is None


def test_rate_is_of_what_passed_and_not_of_holes():
    meter = subject.Meter(0)
    meter.feed(event(0, 0))
    meter.feed(event(10, 5 * GIB, passed=100 * MIB))
    assert meter.due(10) == "web01 Hard disk 1: 50 % 5.0 of 10.0 GiB, 10 MiB/s, 0:10 left"


def test_stages():
    meter = subject.Meter(0)
    meter.feed(event(0, 10 * GIB))
    assert meter.feed(event(1, 0, stage="hash", passed=0)) is None
    meter.feed(event(9, 4 * GIB, stage="hash", passed=0))
    assert meter.due(9) == "web01 Hard disk 1: 40 % hashed 4.0 of 10.0 GiB, 512 MiB/s, 0:12 left"
    assert meter.feed(event(20, 10 * GIB, stage="hash", passed=0)) is None


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1 << 43)), min_size=1),
    st.integers(0, 1 << 43),
)
def test_any_history_gives_lines_that_can_be_read(steps, total):
    meter, time = subject.Meter(0), 0.0
    for seconds, done in steps:
        time += seconds
        lines = [meter.feed(event(time, min(done, total), total)), meter.due(time)]
        for line in filter(None, lines):
            assert re.fullmatch(
                r"web01 Hard disk 1: \d+ % [\d.]+ of [\d.]+ (bytes|[KMGT]iB)"
                r"(, -?[\d.]+ (bytes|[KMGT]iB)/s)?(, (waiting|[\d:]+ left))?",
                line,
            )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (5 * MIB, "5 MiB"),
        (GIB, "1.0 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_amount(size, text):
    assert subject.amount(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7322, "2:02:02")])
def test_clock(seconds, text):
    assert subject.clock(seconds) == text
