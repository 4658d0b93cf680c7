# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan of a pruning as pure data: after each of its steps every restore point that is left is whole."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Damaged, NoSpace, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import (
    keeping,
    manifest,
    merging,
    points,
    pruning_plan,
    retention,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.keeping import Wishes
from ansible_collections.holdfast.backup.plugins.module_utils._repository.layout import Repository
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import (
    Disk,
    Parent,
    Point,
    PointId,
    Vm,
)
from ansible_collections.holdfast.backup.plugins.module_utils._repository.merging import Merge
from ansible_collections.holdfast.backup.plugins.module_utils._repository.points import Entry
from ansible_collections.holdfast.backup.plugins.module_utils._repository.pruning_plan import Removal
from ansible_collections.holdfast.backup.plugins.module_utils._repository.records import FileRecord, Known, Records
from ansible_collections.holdfast.backup.plugins.module_utils._repository.retention import Rules
from hypothesis import given
from hypothesis import strategies as some

UUID = "5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11"
START = datetime(2026, 1, 1, 2, 15, tzinfo=timezone.utc)
NOW = datetime(2027, 6, 1, tzinfo=timezone.utc)


class Stored(Known):
    """What verifications have found, without files."""

    def __init__(self, damaged: set[tuple[str, str]] | None = None) -> None:
        self.damaged = damaged or set()

    def of(self, point: Point) -> Records:
        found = [
            FileRecord(disk.image, disk.sha256, "content", "2026-12-01T00:00:00Z", False, "flipped")
            for disk in point.disks
            if (point.time, disk.image) in self.damaged
        ]
        return Records(tuple(found))


def name(number: int) -> str:
    return manifest.next_time(START + timedelta(days=number), [])


def disk(key: int, parent: int | None, size: int = 1000, epoch: int = 0) -> Disk:
    image = f"disk-{key}.qcow2"
    record = None if parent is None else Parent(f"{UUID}/{name(parent)}", f"../{name(parent)}/{image}")
    return Disk(
        key, f"Hard disk {key}", f"6000C295-{key}", 1 << 20 << epoch, "52/1", "incremental" if record else "full", None,
        record, image, size, "0" * 64, "nbd", size, size,
    )  # fmt: skip


def point(number: int, disks: list[Disk]) -> Point:
    moment = manifest.format_time(START + timedelta(days=number))
    vm = Vm("web01", "vm-1", UUID)
    return Point(
        f"{UUID}/{name(number)}", "run", vm, None, moment, moment, None, "crash", tuple(disks), (), (), (), "1.0.0"
    )


def entries(
    found: list[Point],
    broken: set[str] = frozenset(),  # type: ignore[assignment]
    root: Path = Path("/nowhere"),
) -> list[Entry]:
    listed = []
    for one in found:
        damaged = Damaged("It is torn.") if one.time in broken else None
        path = str(root / one.id)
        listed.append(Entry(PointId.parse(one.id), path, None if damaged else one, damaged))
    return listed


@some.composite
def histories(draw: some.DrawFn) -> list[Point]:
    """Restore points of a machine whose disks come, go, grow, and are copied in full now and then."""
    newest: dict[int, tuple[int, int]] = {}  # of each disk: the last point with it, and how often it grew
    found = []
    for number in range(draw(some.integers(1, 12))):
        disks = []
        for key in range(3):
            if draw(some.integers(0, 3)) == 0:
                continue
            parent, epoch = newest.get(key, (None, 0))
            how = draw(some.sampled_from(["incremental"] * 6 + ["full", "grown"]))
            epoch += how == "grown"
            disks.append(disk(key, parent if how == "incremental" else None, draw(some.integers(1, 5000)), epoch))
            newest[key] = (number, epoch)
        found.append(point(number, disks))
    return found


def apply(step: Merge | Removal, current: dict[str, Point]) -> None:
    """What a step does to the manifests."""
    if isinstance(step, Removal):
        del current[step.time]
        return
    disks = {}
    for one in step.disks:
        for link in [*one.run, *([one.parent] if one.parent else [])]:
            assert any(each.image == link.disk.image for each in current[link.point.time].disks)
        disks[one.disk.image] = merging.merged(one, one.disk, 1, "1" * 64)
    current[step.point.time] = merging.with_images(current[step.point.time], disks)


def check_whole(current: dict[str, Point]) -> None:
    for one in current.values():
        for each in one.disks:
            points.chain(current, one, each)  # raises Damaged


@given(histories(), some.data(), some.booleans(), some.integers(0, 3), some.booleans())
def test_after_each_step_all_that_is_left_is_whole(
    found: list[Point], data: some.DataObject, merge: bool, max_chain: int, reflink: bool
) -> None:
    wishes = Wishes(
        Rules({"last": data.draw(some.integers(1, 4)), "weekly": data.draw(some.integers(0, 3))}, semantics="proxmox"),
        merge,
        max_chain,
    )
    plan = pruning_plan.plan(entries(found), Stored(), wishes, NOW, reflink)
    current = {one.time: one for one in found}
    for step in plan.steps:
        apply(step, current)
        check_whole(current)
    kept = {time for time, verdict in plan.verdicts.items() if verdict.keep}
    assert set(current) == kept
    assert all(verdict.reasons for verdict in plan.verdicts.values())
    newest = current[max(current)]
    if merge and max_chain:
        assert all(len(points.chain(current, newest, one)) <= max(max_chain - 1, 1) for one in newest.disks)
    again = pruning_plan.plan(entries(list(current.values())), Stored(), wishes, NOW, reflink)
    assert again.steps == []
    if not merge:
        assert not any(isinstance(step, Merge) for step in plan.steps)


@given(histories(), some.data(), some.booleans())
def test_damage_never_spreads(found: list[Point], data: some.DataObject, remove: bool) -> None:
    """Damaged points stay whole as far as they were, and so does all else."""
    images = [(one.time, each.image) for one in found for each in one.disks]
    damaged = data.draw(some.sets(some.sampled_from(images), max_size=2)) if images else set()
    torn = data.draw(some.sets(some.sampled_from([one.time for one in found]), max_size=1))
    wishes = Wishes(Rules({"last": 2}), max_chain=3, remove_damaged=remove)
    plan = pruning_plan.plan(entries(found, torn), Stored(damaged), wishes, NOW, reflink=False)
    current = {one.time: one for one in found if one.time not in torn}
    before = {one.time: _whole_disks(current, one) for one in current.values()}
    for step in plan.steps:
        if isinstance(step, Merge):
            assert not {(link.point.time, link.disk.image) for one in step.disks for link in one.run} & damaged
        if not (isinstance(step, Removal) and step.time in torn):
            apply(step, current)
        for one in current.values():
            assert _whole_disks(current, one) >= before[one.time]
    sound = [time for time, verdict in plan.verdicts.items() if verdict.problem is None]
    if sound:
        assert plan.verdicts[max(sound)].keep
    if not remove:
        assert all(verdict.keep for verdict in plan.verdicts.values() if verdict.problem is not None)
    if not sound:
        assert all(verdict.keep for verdict in plan.verdicts.values())


def _whole_disks(current: dict[str, Point], one: Point) -> set[str]:
    found = set()
    for each in one.disks:
        try:
            points.chain(current, one, each)
        except RepositoryError:
            continue
        found.add(each.image)
    return found


def chained(count: int, every: int, disks: int = 2) -> list[Point]:
    """Points a day apart, with a full image every so many."""
    return [
        point(number, [disk(key, None if number % every == 0 else number - 1) for key in range(disks)])
        for number in range(count)
    ]


def test_plain_deletions_come_first_and_points_go_as_soon_as_they_can() -> None:
    found = chained(9, every=3, disks=1)  # chains 0-2, 3-5, 6-8
    wishes = Wishes(Rules({"last": 1}, within_periods={}))
    plan = pruning_plan.plan(entries(found), Stored(), wishes, NOW, reflink=False)
    order = [step.time if isinstance(step, Removal) else f"merge {step.point.time}" for step in plan.steps]
    plain = [name(number) for number in (5, 4, 3, 2, 1, 0)]
    assert order == [*plain, f"merge {name(8)}", name(7), name(6)]


def test_space_is_that_of_new_images_beside_old_ones() -> None:
    found = [point(0, [disk(0, None, 10_000)]), point(1, [disk(0, 0, 300)]), point(2, [disk(0, 1, 200)])]
    wishes = Wishes(Rules({"last": 2}))
    copied = pruning_plan.plan(entries(found), Stored(), wishes, NOW, reflink=False)
    assert (copied.needed, copied.gained) == (10_300, -10_000)  # sizes of files are not to be seen here: 0
    shared = pruning_plan.plan(entries(found), Stored(), wishes, NOW, reflink=True)
    assert shared.needed == 300
    with pytest.raises(NoSpace):
        copied.check_space("web01", 10_299, 0)
    with pytest.raises(NoSpace):
        copied.check_space("web01", 20_000, 9_701)
    copied.check_space("web01", 20_000, 9_700)


def test_nothing_to_merge_needs_no_space() -> None:
    found = chained(6, every=3)
    plan = pruning_plan.plan(entries(found), Stored(), Wishes(Rules({"last": 3})), NOW, reflink=False)
    assert len(plan.steps) == 3
    plan.check_space("web01", 0, 1 << 40)


def test_parent_of_a_damaged_one_stays() -> None:
    found = chained(6, every=9, disks=1)
    wishes = Wishes(Rules({"last": 1}))
    plan = pruning_plan.plan(entries(found), Stored({(name(3), "disk-0.qcow2")}), wishes, NOW, reflink=False)
    reasons = {time: verdict.reasons for time, verdict in plan.verdicts.items()}
    problem = f"damaged: verification of 2026-12-01T00:00:00Z found {name(3)}/disk-0.qcow2 damaged"
    assert reasons == {
        name(0): ["no rule keeps it"],
        name(1): ["no rule keeps it"],
        name(2): ["last", f"may be needed by damaged {name(3)}"],
        name(3): [problem, f"may be needed by damaged {name(4)}"],
        name(4): [problem, f"may be needed by damaged {name(5)}"],
        name(5): [problem],
    }


def test_pinned_damage_keeps_what_it_stands_on(tmp_path: Path) -> None:
    found = chained(6, every=9, disks=1)
    pinned = tmp_path / found[3].id
    pinned.mkdir(parents=True)
    (pinned / "pin.json").touch()  # a damaged pin is a pin
    sound = point(6, [disk(0, None)])
    wishes = Wishes(Rules({"last": 1}), remove_damaged=True)
    listed = entries([*found, sound], root=tmp_path)
    plan = pruning_plan.plan(listed, Stored({(name(1), "disk-0.qcow2")}), wishes, NOW, reflink=False)
    kept = [time for time, verdict in plan.verdicts.items() if verdict.keep]
    # 1 to 3 are damaged and 0 is not: what 1 stands on may be needed to mend it. 4 and 5 are damaged, and go.
    assert kept == [name(number) for number in (0, 1, 2, 3, 6)]


def test_only_complete_one_stays() -> None:
    plan = pruning_plan.plan(entries([point(0, [])]), Stored(), Wishes(Rules({"last": 1})), NOW, reflink=False)
    assert plan.verdicts[name(0)].reasons == ["last", "the only complete one"]
    torn = pruning_plan.plan(
        entries([point(0, [])], {name(0)}), Stored(), Wishes(remove_damaged=True), NOW, reflink=False
    )
    assert torn.verdicts[name(0)].reasons == ["unreadable: It is torn; but there is no complete one"]


def test_newest_stays_full_only_when_its_chain_is_long_or_old() -> None:
    found = chained(6, every=9, disks=1)

    def due(**wishes: object) -> bool:
        plan = pruning_plan.plan(entries(found), Stored(), Wishes(**wishes), NOW, reflink=False)  # type: ignore[arg-type]
        return bool(plan.steps)

    assert due(max_chain=6)
    assert not due(max_chain=7)
    assert not due(max_chain=6, merge=False)
    assert due(max_age=retention.span("5d"))
    assert not due(max_age=retention.span("6d"))
    # The points that go do not count: they are merged away.
    assert not any(
        one.fresh
        for step in pruning_plan.plan(
            entries(found), Stored(), Wishes(Rules({"last": 2}), max_chain=3), NOW, reflink=False
        ).steps
        if isinstance(step, Merge)
        for one in step.disks
    )


@pytest.mark.parametrize("every", [20, 1001])
def test_thousand_points_take_about_a_second(every: int, tmp_path: Path) -> None:
    found = chained(1000, every)
    wishes = Wishes(Rules({"daily": 14, "weekly": 8, "monthly": 24}), max_chain=20)
    taken = []
    for count in (500, 1000):
        started = time.process_time()
        plan = pruning_plan.plan(entries(found[:count]), Stored(), wishes, NOW, reflink=False)
        taken.append(time.process_time() - started)
        assert len(plan.steps) > 100
    print(f"planning 500 and 1,000 points in memory: {taken[0]:.3f} and {taken[1]:.3f} s")
    assert taken[1] < 5


def test_known_reads_each_record_once() -> None:
    # So that planning stays linear; the repository itself is not needed for it.
    known = Known(Repository("/nowhere", "id", 1, ""))
    one = point(0, [disk(0, None)])
    assert known.of(one) is known.of(one)
    assert keeping.readable(entries([one])) == {one.time: one}
