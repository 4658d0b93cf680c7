# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The manifest as a pure format: everything that is written is read back the same, nothing else is read."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import documents, manifest
from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import (
    Disk,
    Fcd,
    File,
    Parent,
    Point,
    PointId,
    Unprotected,
    Vm,
)
from hypothesis import given
from hypothesis import strategies as some

UUIDS = some.uuids().map(str)
MOMENTS = some.datetimes(datetime(2000, 1, 1), datetime(2999, 12, 30), timezones=some.just(timezone.utc))
TEXTS = some.text(some.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)
SIZES = some.integers(0, manifest.MAX_BYTES)
HASHES = some.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = MOMENTS.map(lambda moment: manifest.next_time(moment, []))


@some.composite
def disks(draw: some.DrawFn, point: PointId, key: int) -> Disk:
    older = draw(some.none() | NAMES.filter(lambda name: name < point.time))
    parent = older and Parent(f"{point.object_id}/{older}", f"../{older}/disk-{draw(some.integers(0, 9999))}.qcow2")
    return Disk(
        key=key,
        label=draw(TEXTS),
        backing_uuid=draw(UUIDS),
        capacity=draw(some.integers(1, manifest.MAX_BYTES)),
        change_id=draw(some.none() | TEXTS),
        kind="incremental" if parent else "full",
        reason=draw(some.none() | TEXTS),
        parent=parent,
        image=f"disk-{key}.qcow2",
        size=draw(SIZES),
        sha256=draw(HASHES),
        transport=draw(some.none() | TEXTS),
        bytes_read=draw(SIZES),
        bytes_stored=draw(SIZES),
        fcd_id=draw(some.none() | UUIDS),
    )


@some.composite
def owners(draw: some.DrawFn, point: PointId) -> Vm | Fcd:
    name, place = draw(some.none() | TEXTS), draw(some.none() | TEXTS)
    return draw(some.sampled_from([Vm(name, place, point.object_id), Fcd(point.object_id, name, place)]))


@some.composite
def points(draw: some.DrawFn) -> Point:
    point = PointId(draw(UUIDS), draw(NAMES))
    keys = draw(some.lists(some.integers(0, (1 << 31) - 1), max_size=4, unique=True))
    names = draw(some.lists(some.sampled_from(["config.json", "vm.nvram", "other"]), unique=True))
    return Point(
        id=str(point),
        run=draw(some.from_regex(manifest.RUN, fullmatch=True)),
        **manifest.by_kind(draw(owners(point))),
        started=manifest.format_time(point.moment),
        completed=manifest.format_time(draw(MOMENTS)),
        snapshot_time=draw(some.none() | MOMENTS.map(datetime.isoformat)),
        consistency=draw(some.sampled_from(manifest.CONSISTENCIES)),
        disks=tuple(draw(disks(point, key)) for key in keys),
        files=tuple(File(name, draw(SIZES), draw(HASHES)) for name in names),
        unprotected=tuple(
            draw(
                some.lists(
                    some.builds(
                        Unprotected, some.none() | TEXTS, some.none() | some.integers(0, 99), some.none() | TEXTS, TEXTS
                    ),
                    max_size=3,
                )
            )
        ),
        warnings=tuple(draw(some.lists(TEXTS, max_size=3))),
        collection_version="1.0.0",
    )


@given(points())
def test_what_is_written_is_read_back(point: Point) -> None:
    assert manifest.parse(manifest.render(point), PointId.parse(point.id)) == point


@given(points())
def test_a_point_is_of_a_vm_or_of_a_first_class_disk(point: Point) -> None:
    body = point.as_dict()
    vm, fcd = Vm("a", "vm-1", point.owner.object_id).as_dict(), Fcd(point.owner.object_id, "a", "ds").as_dict()
    for wrong in ({"vm": None, "fcd": None}, {"vm": vm, "fcd": fcd}):
        with pytest.raises(RepositoryError, match="only one of them"):
            manifest.parse(
                documents.render(manifest.FORMAT, manifest.VERSION, {**body, **wrong}), PointId.parse(point.id)
            )


@given(points(), some.data())
def test_cut_anywhere_it_is_refused(point: Point, data: some.DataObject) -> None:
    written = manifest.render(point)
    with pytest.raises(RepositoryError):
        manifest.parse(written[: data.draw(some.integers(0, len(written) - 1))], PointId.parse(point.id))


@given(some.binary(max_size=300))
def test_any_bytes_are_refused_and_never_crash(data: bytes) -> None:
    with pytest.raises(RepositoryError):
        manifest.parse(data, PointId("5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11", "20261120T021500Z"))


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@given(points(), some.data())
def test_any_other_value_anywhere_is_refused_or_means_the_same(point: Point, data: some.DataObject) -> None:
    """Whatever a sealed manifest holds: it parses into a point that is written the same, or is refused."""
    body = point.as_dict()
    target = body
    if body["disks"] and data.draw(some.booleans()):
        target = body["disks"][0]
    target[data.draw(some.sampled_from(sorted(target)))] = data.draw(JSON)
    try:
        sealed = documents.render(manifest.FORMAT, manifest.VERSION, body)
        read = manifest.parse(sealed, PointId.parse(point.id))
    except RepositoryError:
        return
    assert manifest.parse(manifest.render(read), PointId.parse(point.id)) == read
    for disk in read.disks:
        assert "/" not in disk.image
        assert disk.parent is None or disk.parent.time < read.id.partition("/")[2]


@given(MOMENTS, some.lists(NAMES, max_size=5))
def test_a_new_name_sorts_after_all_others(now: datetime, taken: list[str]) -> None:
    name = manifest.next_time(now, taken)
    assert manifest.is_time(name)
    assert all(name > other for other in taken)
    assert name >= now.strftime("%Y%m%dT%H%M%SZ")


@given(MOMENTS, some.integers(-14 * 60, 14 * 60))
def test_times_of_any_zone_are_understood(moment: datetime, minutes: int) -> None:
    elsewhere = moment.astimezone(timezone(timedelta(minutes=minutes)))
    assert manifest.parse_time(elsewhere.isoformat()) == moment


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-11-20T02:15:00Z", "2026-11-20T02:15:00Z"),
        ("2026-11-20T02:15:00", "2026-11-20T02:15:00Z"),
        ("2026-11-20T03:15:00.5+01:00", "2026-11-20T02:15:00Z"),
        ("2026-11-20T02:15:00.123456789Z", "2026-11-20T02:15:00Z"),
        ("2026-11-20 02:15", "2026-11-20T02:15:00Z"),
    ],
)
def test_times_as_people_and_vsphere_write_them(text: str, wanted: str) -> None:
    assert manifest.format_time(manifest.parse_time(text)) == wanted


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:59"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        manifest.parse_time(text)


def test_the_seal_can_be_checked_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_bytes(documents.render("holdfast.test", 1, {"a": "ä"}))
    by_hand = subprocess.run(f"head -n -2 {path} | sha256sum", shell=True, capture_output=True, text=True, check=True)
    assert by_hand.stdout.split()[0] in path.read_text()


def test_a_name_that_no_encoding_knows_does_not_fail_a_backup() -> None:
    assert documents.parse(documents.render("holdfast.test", 1, {"a": "\udcff"}), "holdfast.test", 1, "it")["a"] == "?"


def test_the_version_recorded_is_that_of_the_collection() -> None:
    from ansible_collections.holdfast.backup.plugins.module_utils import _version

    galaxy = Path(_version.__file__).parents[2] / "galaxy.yml"
    assert f"\nversion: {_version.VERSION}\n" in galaxy.read_text(encoding="utf-8")
