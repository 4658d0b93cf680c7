# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Areas against a model that cannot be wrong: the set of bytes they cover."""

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas as subject
from hypothesis import given
from hypothesis import strategies as st

CAPACITY = 200


@st.composite
def raw_areas(draw):
    starts = draw(st.lists(st.integers(0, CAPACITY), max_size=12))
    return [(start, draw(st.integers(0, CAPACITY - start))) for start in starts]


def normal():
    return raw_areas().map(lambda areas: subject.normalise(areas, CAPACITY))


def cover(areas):
    return {byte for start, length in areas for byte in range(start, start + length)}


def is_normal(areas):
    ends = [(start, start + length) for start, length in areas]
    return all(start < end for start, end in ends) and all(ends[i][1] < ends[i + 1][0] for i in range(len(ends) - 1))


@given(raw_areas())
def test_normalise_keeps_the_bytes(areas):
    result = subject.normalise(areas, CAPACITY)
    assert cover(result) == cover(areas)
    assert is_normal(result)


@given(raw_areas(), st.sampled_from([1, 2, 8, 64, 512]))
def test_normalise_rounds_outward_and_no_further(areas, granularity):
    result = subject.normalise(areas, CAPACITY, granularity)
    blocks = {byte // granularity for byte in cover(areas)}
    assert cover(result) == {byte for byte in range(CAPACITY) if byte // granularity in blocks}
    assert is_normal(result)


@pytest.mark.parametrize("area", [(-1, 1), (0, -1), (CAPACITY, 1), (0, CAPACITY + 1)])
def test_areas_off_the_disk_are_refused(area):
    with pytest.raises(InvalidInput, match="does not lie on a disk of 200 bytes"):
        subject.normalise([(0, 10), area], CAPACITY)


@given(normal(), normal())
def test_subtract_and_intersect(left, right):
    assert cover(subject.subtract(left, right)) == cover(left) - cover(right)
    assert cover(subject.intersect(left, right)) == cover(left) & cover(right)
    assert is_normal(subject.subtract(left, right))
    assert is_normal(subject.intersect(left, right))


@given(normal())
def test_total(areas):
    assert subject.total(areas) == len(cover(areas))


@given(normal(), st.sampled_from([1.0, 1.1, 2.0]))
def test_request_size_is_the_largest_that_reads_little_more(areas, over_read):
    sizes = [4, 8, 16, 32]
    touched = {size: size * len({byte // size for byte in cover(areas)}) for size in sizes}
    fitting = [size for size in sizes if touched[size] <= over_read * len(cover(areas))]
    assert subject.request_size(areas, 4, 32, over_read) == max(fitting, default=4)


@given(normal())
def test_file_round_trip(tmp_path_factory, areas):
    path = str(tmp_path_factory.getbasetemp() / "areas.json")
    subject.write_file(path, CAPACITY, areas)
    assert subject.read_file(path) == (CAPACITY, areas)


def test_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "areas.json"
    subject.write_file(str(path), 10, [(0, 5)])
    with pytest.raises(TypeError):
        subject.write_file(str(path), 10, [object()])
    assert subject.read_file(str(path)) == (10, [(0, 5)])
    assert os.listdir(tmp_path) == ["areas.json"]


GOOD = {"format": "holdfast.areas", "version": 1, "capacity": 10, "areas": [[0, 5]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "not an areas file"),
        ({"version": 2}, "version 2"),
        ({"capacity": "10"}, "damaged"),
        ({"capacity": None}, "damaged"),
        ({"areas": {}}, "damaged"),
        ({"areas": [[0]]}, "damaged"),
        ({"areas": [[0, True]]}, "damaged"),
        ({"areas": [[0, 11]]}, "does not lie"),
    ],
)
def test_untrusted_file(tmp_path, change, message):
    path = tmp_path / "areas.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(InvalidInput, match=message):
        subject.read_file(str(path))


@pytest.mark.parametrize("text", [None, "", "[]", "{"])
def test_no_areas_file_at_all(tmp_path, text):
    path = tmp_path / "areas.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInput, match=r"areas\.json"):
        subject.read_file(str(path))
