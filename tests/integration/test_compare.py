# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vddk_copy with direction compare, through its main(): images against what disks hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.integration.copies import BLOCK, MIB, Copies

SIZES = (4 * MIB, 3 * MIB + 3 * 512)


BOTH = pytest.mark.parametrize("copies", ["vddk", "native"], indirect=True)


@pytest.fixture
def copies(lab, tmp_path: Path, request: pytest.FixtureRequest) -> Copies:
    """A full copy and an incremental one over it."""
    made = Copies(lab, tmp_path, *SIZES, access=getattr(request, "param", "vddk"))
    made.write(0, os.urandom(2 * MIB))
    made.write(SIZES[1] - 1000, os.urandom(1000), disk=1)
    made.night()
    made.write(MIB, os.urandom(BLOCK))
    made.night()
    return made


def compare(copies: Copies, disks: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return copies.copy(direction="compare", disks=disks, image_dir=None, **options)


def images(copies: Copies) -> list[dict[str, Any]]:
    return [{"disk": disk["key"], "image": disk["image"]} for disk in copies.last]


@BOTH
def test_the_same(copies: Copies):
    """Against the snapshot that they were copied from, nothing but read."""
    before = {path: path.stat().st_mtime_ns for path in copies.directory.rglob("*.qcow2")}
    result = compare(copies, images(copies))
    assert not result["changed"]
    assert [(disk["identical"], disk["differences"]) for disk in result["disks"]] == [(True, []), (True, [])]
    assert [disk["bytes_read"] for disk in result["disks"]] == list(SIZES)
    assert {path: path.stat().st_mtime_ns for path in copies.directory.rglob("*.qcow2")} == before
    # Its change ID is that of the copy's own snapshot, which need not be the one that is looked at.
    assert compare(copies, [{**copies.last[1], "change_id": "52 old/1"}])["disks"][0]["identical"]
    assert copies.lab.vddk()["prepared"] == []


@BOTH
def test_what_changed_since_is_left_out(copies: Copies):
    """Items of disk_changed_areas are taken as they are: the image is the parent."""
    copies.write(0, os.urandom(BLOCK + 1))
    copies.write(SIZES[1] - 512, os.urandom(512), disk=1)
    items = copies.look()
    result = compare(copies, items)
    assert [disk["image"] for disk in result["disks"]] == [disk["image"] for disk in copies.last]
    assert [disk["identical"] for disk in result["disks"]] == [True, True]
    assert [disk["bytes_read"] for disk in result["disks"]] == [SIZES[0] - 2 * BLOCK, SIZES[1] // BLOCK * BLOCK]
    failed = compare(copies, images(copies), fail=True)
    assert failed["error_type"] == "Damaged"


@BOTH
def test_all_of_it_changed(copies: Copies):
    copies.write(0, os.urandom(4 * MIB))
    item, _other = copies.look()
    [result] = compare(copies, [item])["disks"]
    assert (result["identical"], result["bytes_read"], result["transport"]) == (True, 0, None)


@pytest.mark.parametrize(("offset", "disk"), [(0, 0), (MIB + 7, 0), (4 * MIB - 1, 0), (SIZES[1] - 1, 1), (2 * MIB, 1)])
@BOTH
def test_one_byte(copies: Copies, offset: int, disk: int):
    """Wherever it is, whatever change tracking says; the other disk's result is told too."""
    old = copies.content(disk)[offset]
    copies.write_unnoticed(offset, bytes([old ^ 1]), disk)
    items = copies.look()
    assert [item["changed_bytes"] for item in items] == [0, 0]
    failed = compare(copies, items, fail=True)
    assert failed["error_type"] == "Damaged"
    [bad] = failed["failed_disks"]
    assert bad["image"] == copies.last[disk]["image"]
    assert bad["identical"] is False
    [[start, length]] = bad["differences"]
    assert start <= offset < start + length
    assert f"Hard disk {disk + 1}" in failed["msg"]
    [good] = failed["disks"]
    assert (good["key"], good["identical"]) == (copies.keys[1 - disk], True)


@BOTH
def test_damaged_image(copies: Copies):
    copies.write(2 * MIB, b"text " * 100_000)
    image = copies.night()[0]["image"]
    with open(image, "r+b") as damaged:
        damaged.seek(5 * BLOCK)
        damaged.write(os.urandom(os.path.getsize(image) - 5 * BLOCK))
    failed = compare(copies, images(copies), fail=True)
    assert failed["error_type"] == "Damaged"
    assert image in failed["msg"]


def test_check_mode(copies: Copies):
    told = compare(copies, images(copies), check=True)
    assert not told["changed"]
    assert [disk["identical"] for disk in told["disks"]] == [None, None]
    done = compare(copies, images(copies))
    assert [set(disk) for disk in told["disks"]] == [set(disk) for disk in done["disks"]]
    assert [disk["bytes_read"] for disk in told["disks"]] == [disk["bytes_read"] for disk in done["disks"]]
    assert set(copies.copy(check=True)["disks"][0]) == set(done["disks"][0])


def test_what_cannot_be_compared(copies: Copies, tmp_path: Path):
    key = copies.keys[0]
    image = copies.last[0]["image"]
    assert "no image" in compare(copies, [{"disk": key}], fail=True)["msg"]
    assert "cannot be opened" in compare(copies, [{"disk": key, "image": f"{tmp_path}/none"}], fail=True)["msg"]
    other = copies.last[1]["image"]
    assert "is of a disk of about" in compare(copies, [{"disk": key, "image": other}], fail=True)["msg"]
    items = copies.look()
    stale = {**items[0], "change_id": "52 other/1"}
    assert "not 52 other/1" in compare(copies, [{**stale, "image": image}], fail=True)["msg"]
    failed = copies.run("vddk_copy", direction="compare", disks=[{"disk": key, "image": image}], fail=True)
    assert "snapshot" in failed["msg"]
