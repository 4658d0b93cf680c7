# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plans of merges: whatever goes, what stays still stands on all that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged
from ansible_collections.holdfast.backup.plugins.module_utils._repository import manifest, merging, points
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import (
    Disk,
    Parent,
    Point,
    PointId,
    Vm,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Link
from hypothesis import given
from hypothesis import strategies as st

OBJECT = "5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11"
Held = dict[tuple[str, str], frozenset[int]]
"""By time and image: the numbers that stand for the areas that it holds."""


def time(number: int) -> str:
    return f"202611{number // 24 + 1:02}T{number % 24:02}0000Z"


def image_of(key: int) -> str:
    return f"disk-{key}.qcow2"


def record(key: int, parent: int | None = None, size: int = 1000, **changes: Any) -> Disk:
    above = None
    if parent is not None:
        above = Parent(f"{OBJECT}/{time(parent)}", manifest.relative_image(time(parent), image_of(key)))
    values = {
        "key": key, "label": f"Hard disk {key}", "backing_uuid": f"uuid {key}", "capacity": 1 << 30,
        "change_id": f"52/{key}", "kind": "incremental" if above else "full", "reason": None if above else "asked for",
        "parent": above, "image": image_of(key), "size": size, "sha256": "a" * 64, "transport": "nbd",
        "bytes_read": size, "bytes_stored": size,
    }  # fmt: skip
    return Disk(**{**values, **changes})


def point(number: int, *disks: Disk) -> Point:
    moment = manifest.format_time(PointId(OBJECT, time(number)).moment)
    owner = Vm("web01", "vm-42", OBJECT)
    name = f"{OBJECT}/{time(number)}"
    return Point(name, f"run{number}", owner, None, moment, moment, None, "crash", disks, (), (), (), "1.0.0")


def known(*found: Point) -> dict[str, Point]:
    return {PointId.parse(one.id).time: one for one in found}


def line(length: int, size: int = 1000) -> dict[str, Point]:
    """One full image of 100,000 bytes and those upon it."""
    return known(
        point(0, record(0, size=100_000)), *(point(number, record(0, number - 1, size)) for number in range(1, length))
    )


def times(run: tuple[Link, ...]) -> list[str]:
    return [PointId.parse(link.point.id).time for link in run]


def test_nothing_goes_nothing_is_merged() -> None:
    assert merging.plan(line(5), line(5)) == []


def test_the_newest_can_go_without_a_merge() -> None:
    assert merging.plan(line(5), [time(number) for number in range(3)]) == []


def test_a_point_in_the_middle_goes_into_its_child() -> None:
    (merge,) = merging.plan(line(5), [time(number) for number in (0, 1, 3, 4)])
    (disk,) = merge.disks
    assert (merge.point.id, times(disk.run)) == (f"{OBJECT}/{time(3)}", [time(2), time(3)])
    assert disk.parent is not None
    assert disk.parent.point.id == f"{OBJECT}/{time(1)}"
    assert (disk.fresh, disk.reason) == (False, f"merged with {time(2)}")
    new = merging.merged(disk, disk.disk, 77, "b" * 64)
    assert (new.kind, new.parent, new.reason) == ("incremental", record(0, 1).parent, None)
    assert (new.size, new.bytes_stored, new.sha256, new.change_id) == (77, 77, "b" * 64, "52/0")


def test_the_oldest_goes_and_its_child_becomes_full() -> None:
    (merge,) = merging.plan(line(4), [time(2), time(3)])
    (disk,) = merge.disks
    assert times(disk.run) == [time(0), time(1), time(2)]
    new = merging.merged(disk, disk.disk, 77, "b" * 64)
    assert (new.kind, new.parent, new.reason) == ("full", None, f"merged with {time(0)}, {time(1)}")
    manifest.parse(manifest.render(merging.with_images(merge.point, {new.image: new})), PointId.parse(merge.point.id))


def test_a_synthetic_full_holds_what_earlier_merges_made() -> None:
    merges = merging.plan(line(6), [time(1), time(2), time(5)], [(time(5), image_of(0))])
    assert [(merge.point.id[-16:], times(disk.run), disk.fresh) for merge in merges for disk in merge.disks] == [
        (time(1), [time(0), time(1)], False),
        (time(5), [time(1), time(2), time(3), time(4), time(5)], True),
    ]
    assert merges[1].disks[0].run[0].disk.kind == "full"
    assert merges[1].disks[0].reason == merging.SYNTHETIC
    assert merging.plan(line(1), [time(0)], [(time(0), image_of(0))]) == []


def test_all_disks_of_a_point_come_into_force_at_once_and_only_those_that_must() -> None:
    found = known(
        point(0, record(0), record(1)),
        point(1, record(0, 0), record(1, 0), record(2)),
        point(2, record(0, 1), record(1), record(2, 1)),
    )
    (merge,) = merging.plan(found, [time(2)])
    assert [(disk.disk.key, times(disk.run)) for disk in merge.disks] == [
        (0, [time(0), time(1), time(2)]),
        (2, [time(1), time(2)]),
    ]


def test_the_cost_is_of_the_worst_case() -> None:
    (merge,) = merging.plan(line(2), [time(1)])
    assert merge.cost == merging.Cost(2 * 101_000 + 3 * 1000, 101_000)
    (merge,) = merging.plan(line(2), [time(1)], reflink=True)
    assert merge.cost.bytes_written == 1000
    (merge,) = merging.plan(line(2, size=60_000), [time(1)], reflink=True)
    assert merge.cost.bytes_written == 160_000
    assert merging.Cost(1, 2) + merging.Cost(3, 4) == merging.Cost(4, 6)


def test_a_broken_chain_is_no_reason_to_lose_what_is_left_of_it() -> None:
    found = line(5)
    del found[time(1)]
    with pytest.raises(Damaged, match="missing or unreadable"):
        merging.plan(found, [time(3), time(4)])  # point 2 would go
    with pytest.raises(Damaged, match="missing or unreadable"):
        merging.plan(found, [time(2)])  # point 0 too, and 1 is needed
    with pytest.raises(Damaged, match="missing or unreadable"):
        merging.plan(found, found, [(time(4), image_of(0))])
    assert merging.plan(found, [*found, time(1)]) == []


# --- whatever there is -----------------------------------------------------------------------------------------------


@st.composite
def repositories(draw: st.DrawFn) -> dict[str, Point]:
    """Points with disks that come, go and start anew; some stand on others than the newest."""
    found: list[Point] = []
    for number in range(draw(st.integers(1, 12))):
        disks = []
        for key in range(draw(st.integers(0, 3))):
            holders = [index for index, one in enumerate(found) if any(disk.key == key for disk in one.disks)]
            parent = draw(st.sampled_from([None, *holders[-3:], *holders[-1:], *holders[-1:]]))
            size = draw(st.integers(1, 10_000))
            capacity = 1 << 30
            if parent is None and draw(st.booleans()):
                capacity += number  # a grown disk
            elif parent is not None:
                capacity = next(disk.capacity for disk in found[parent].disks if disk.key == key)
            disks.append(record(key, parent, size, capacity=capacity))
        found.append(point(number, *disks))
    return known(*found)


def seen(found: Mapping[str, Point], held: Held, image: tuple[str, str]) -> dict[int, tuple[str, str]]:
    """What a chain shows: which image's content for each area."""
    areas: dict[int, tuple[str, str]] = {}
    one = found[image[0]]
    disk = next(disk for disk in one.disks if disk.image == image[1])
    for link in points.chain(found, one, disk):
        name = (PointId.parse(link.point.id).time, link.disk.image)
        areas.update(dict.fromkeys(held[name], name))
    return areas


@given(repositories(), st.data())
def test_whatever_goes_every_kept_point_shows_the_same(found: dict[str, Point], data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.sampled_from(sorted(found))))
    every = [(time, disk.image) for time, one in found.items() for disk in one.disks]
    synthetic = data.draw(st.sets(st.sampled_from(every))) if every else set()
    held: Held = {name: frozenset(data.draw(st.sets(st.integers(0, 5)))) for name in every}
    content = {name: dict.fromkeys(areas, name) for name, areas in held.items()}
    before = {name: seen(found, held, name) for name in every if name[0] in kept}

    merges = merging.plan(found, kept, [name for name in synthetic if name[0] in kept])

    current = dict(found)
    assert [merge.point.id for merge in merges] == sorted({merge.point.id for merge in merges})
    for merge in merges:
        own = PointId.parse(merge.point.id).time
        assert own in kept
        records = {}
        for disk in merge.disks:
            assert len(disk.run) > 1
            holds: dict[int, tuple[str, str]] = {}
            for link in disk.run:  # it must be the chain as it is after the merges before
                name = (PointId.parse(link.point.id).time, link.disk.image)
                now = next(one for one in current[name[0]].disks if one.image == name[1])
                assert now == link.disk
                holds.update(content[name])
            content[(own, disk.disk.image)] = holds
            records[disk.disk.image] = merging.merged(disk, disk.disk, link.disk.size, "c" * 64)
            records[disk.disk.image] = merging._expected(disk)
        current[own] = merging.with_images(current[own], records)
    left = {time: one for time, one in current.items() if time in kept}
    for time_name, one in left.items():
        manifest.parse(manifest.render(one), PointId(OBJECT, time_name))
        for disk_record in one.disks:
            chain = points.chain(left, one, disk_record)  # nothing that went is needed, and it begins with a full one
            assert chain[0].disk.kind == "full"
            if (time_name, disk_record.image) in synthetic:
                assert disk_record.kind == "full"
            shown: dict[int, tuple[str, str]] = {}
            for link in chain:
                shown.update(content[(PointId.parse(link.point.id).time, link.disk.image)])
            assert shown == before[(time_name, disk_record.image)]
    # Nothing is merged that could have stayed as it was.
    for merge in merges:
        for disk in merge.disks:
            assert disk.fresh or any(time_name not in kept for time_name in times(disk.run))
