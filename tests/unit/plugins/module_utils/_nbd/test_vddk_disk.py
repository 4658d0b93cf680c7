# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The arithmetic on allocated blocks against a model; the rest of the disk is tested on the stand-in."""

from __future__ import annotations

from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_disk import allocated
from hypothesis import given
from hypothesis import strategies as st

END = 60


@st.composite
def blocks(draw):
    edges = sorted(draw(st.sets(st.integers(0, END), max_size=12)))
    pairs = list(zip(edges[::2], edges[1::2]))
    return [(start, end - start) for start, end in pairs]


@given(blocks(), st.integers(0, END - 1), st.integers(1, END))
def test_allocated_covers_the_range_once_and_tells_the_truth(known, start, length):
    end = min(END, start + length)
    truth = {byte for first, size in known for byte in range(first, first + size)}
    position = start
    for first, size, is_allocated in allocated(known, start, end):
        assert first == position
        assert size > 0
        assert all((byte in truth) == is_allocated for byte in range(first, first + size))
        position += size
    assert position == end
