# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which places an audit of change tracking looks at."""

from __future__ import annotations

import math

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.audit import FEWEST, Finding, sample
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.servers import CLUSTER
from hypothesis import given
from hypothesis import strategies as st

SECTOR = 512


@st.composite
def disks(draw):
    """The size of a disk and its unchanged areas, on clusters but for the end of the disk."""
    capacity = draw(st.integers(1, 300 * 128)) * SECTOR
    spots = draw(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=12))
    inside = [(start * CLUSTER, length * CLUSTER) for start, length in spots if start * CLUSTER < capacity]
    changed = areas.normalise([(start, min(length, capacity - start)) for start, length in inside], capacity)
    return capacity, areas.subtract([(0, capacity)], changed)


def clusters(listed):
    return [start + offset for start, length in listed for offset in range(0, length, CLUSTER)]


@given(disks(), st.floats(0.01, 100), st.integers(0, 400 * CLUSTER), st.text())
def test_whole_clusters_of_what_is_unchanged(disk, percent, most, seed):
    capacity, unchanged = disk
    chosen = sample(unchanged, percent, most, seed)
    assert chosen == areas.normalise(chosen, capacity)
    assert areas.subtract(chosen, unchanged) == []
    assert all(start % CLUSTER == 0 for start, length in chosen)
    assert all(length % CLUSTER == 0 or start + length == capacity for start, length in chosen)
    there = len(clusters(unchanged))
    wanted = max(FEWEST, math.ceil(there * percent / 100))
    assert len(clusters(chosen)) == min(wanted, there, most // CLUSTER)
    assert areas.total(chosen) <= most
    assert chosen == sample(unchanged, percent, most, seed)


@given(disks())
def test_everything(disk):
    _capacity, unchanged = disk
    assert sample(unchanged, 100, 1 << 60, "x") == unchanged


def test_none_is_far():
    """Of 10,000 clusters 1 %: a hundred, one in each hundred."""
    chosen = clusters(sample([(0, 10_000 * CLUSTER)], 1, 1 << 60, "x"))
    assert [start // (100 * CLUSTER) for start in chosen] == list(range(100))


def test_every_cluster_comes_up():
    """Night after night another one."""
    nights = [sample([(3 * CLUSTER, 40 * CLUSTER)], 1, 1 << 60, str(night)) for night in range(100)]
    assert {start for night in nights for start in clusters(night)} == {n * CLUSTER for n in range(3, 43)}


def test_off():
    assert sample([(0, CLUSTER)], 0, 1 << 60, "x") == []
    assert sample([], 100, 1 << 60, "x") == []


def test_words():
    assert Finding(CLUSTER, 1, []).reason is None
    found = Finding(9 * CLUSTER, 9, [(65536, 65536), (327680, 65536)])
    assert found.reason == ("change tracking missed changes: at least 2 of 9 samples differ, the first at byte 65536")
    assert Finding(0, 9, [], "a.qcow2 cannot be read").reason == "a.qcow2 cannot be read"
