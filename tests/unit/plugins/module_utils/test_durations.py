# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lengths of time."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils import _durations
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3600", 3600), ("90m", 5400), ("36h", 129600), ("7d", 604800), ("2w", 1209600), ("1d12h", 129600), (" 5S ", 5)],
)
def test_duration(text, seconds):
    assert _durations.duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "h", "1x", "-1", "1.5h", "1h 2m", "h1", "1hh", "1d-1h", "99999999999w", "٣h"])
def test_what_is_no_duration(text):
    with pytest.raises(InvalidInput):
        _durations.duration(text)


@given(st.text())
def test_any_text_is_a_duration_or_refused(text):
    with contextlib.suppress(InvalidInput):
        assert _durations.duration(text) >= timedelta()
