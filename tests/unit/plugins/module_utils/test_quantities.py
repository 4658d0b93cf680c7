# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lengths of time and sizes."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils import _quantities
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3600", 3600), ("90m", 5400), ("36h", 129600), ("7d", 604800), ("2w", 1209600), ("1d12h", 129600), (" 5S ", 5)],
)
def test_duration(text, seconds):
    assert _quantities.duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "h", "1x", "-1", "1.5h", "1h 2m", "h1", "1hh", "1d-1h", "99999999999w", "٣h"])
def test_what_is_no_duration(text):
    with pytest.raises(InvalidInput):
        _quantities.duration(text)


@given(st.text())
def test_any_text_is_a_duration_or_refused(text):
    with contextlib.suppress(InvalidInput):
        assert _quantities.duration(text) >= timedelta()


@pytest.mark.parametrize(("text", "size"), [("1048576", 1048576), ("500M", 500 << 20), ("20GB", 20 << 30)])
def test_in_bytes(text, size):
    assert _quantities.in_bytes(text, "min_free_space") == size


def test_what_is_no_size():
    with pytest.raises(InvalidInput, match="min_free_space is no size: much"):
        _quantities.in_bytes("much", "min_free_space")
