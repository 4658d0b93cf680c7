# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Items of vddk_copy's disks, checked against the disk before anything is touched."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import InvalidInput
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, jobs, plans, state

SIZE = 1 << 20


@pytest.fixture
def listed(tmp_path):
    path = str(tmp_path / "areas")
    areas.write_file(path, SIZE, [(0, 4096)])
    return path


def read(item, direction="backup", size=SIZE, image="/i.qcow2"):
    return plans.read_item(item, image, "web01 Hard disk 1", direction, size, "52 aa/7")


def test_full_needs_nothing_more():
    assert read({}) == plans.Wanted("/i.qcow2", "full", SIZE, None, None)


def test_incremental(listed):
    item = {"kind": "incremental", "parent": "/p.qcow2", "areas_file": listed, "change_id": "52 aa/7", "thin": True}
    assert read(item) == plans.Wanted("/i.qcow2", "incremental", SIZE, [(0, 4096)], "/p.qcow2")


def test_full_looks_at_no_areas():
    """A map of what is in use is a hint at best; what the disk itself says goes."""
    assert read({"kind": "full", "areas_file": "/none", "parent": "/none"}).work is None


def test_restore_takes_the_size_of_the_image(listed):
    assert read({"image": "/o.qcow2", "capacity": SIZE - 512}, "restore") == plans.Wanted(
        "/o.qcow2", "full", SIZE - 512, None, None
    )
    assert read({"areas_file": listed}, "restore").work == [(0, 4096)]


@pytest.mark.parametrize(
    ("item", "options", "message"),
    [
        ({}, {"image": None}, "no image for web01 Hard disk 1"),
        ({"kind": "differential"}, {}, "kind differential is unknown"),
        ({"capacity": SIZE + 512}, {}, f"has {SIZE} bytes in the snapshot, not {SIZE + 512}"),
        ({"capacity": "1 GiB"}, {}, "'1 GiB' is no number"),
        ({"change_id": "52 aa/6"}, {}, "not 52 aa/6"),
        ({"kind": "incremental"}, {}, "needs parent and areas_file"),
        ({"kind": "incremental", "parent": "/p"}, {}, "needs parent and areas_file"),
        ({"capacity": SIZE + 512}, {"direction": "restore"}, f"the image is of {SIZE + 512}"),
    ],
)
def test_contradictions(item, options, message):
    with pytest.raises(InvalidInput, match=message):
        read(item, **options)


def test_areas_of_a_disk_of_another_size(listed):
    item = {"kind": "incremental", "parent": "/p.qcow2", "areas_file": listed}
    with pytest.raises(InvalidInput, match="is of a disk of 1048576 bytes"):
        read(item, size=SIZE + 512)


def task(image, parent=None):
    return jobs.Task("d", None, str(image), SIZE, parent=parent and str(parent), facts={"label": "Hard disk 1"})


def test_images_have_a_place_each(tmp_path):
    plans.check_images([task(tmp_path / "1"), task(tmp_path / "2")], "backup")
    with pytest.raises(InvalidInput, match="Several disks"):
        plans.check_images([task(tmp_path / "1"), task(tmp_path / "1")], "backup")
    with pytest.raises(InvalidInput, match="no directory"):
        plans.check_images([task(tmp_path / "none" / "1")], "backup")


def test_nothing_makes_way_for_an_image(tmp_path):
    """Only what the module's own note speaks of is replaced, and never what the new image would stand on."""
    image, parent = tmp_path / "image", tmp_path / "parent"
    image.write_bytes(b"somebody's, or of a complete restore point")
    with pytest.raises(InvalidInput, match="image exists already"):
        plans.check_images([task(image)], "backup")
    plans.check_images([task(image)], "restore")
    for path in (image, parent):
        state.save(str(path), state.COMPLETE, {})
    plans.check_images([task(image, parent)], "backup")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InvalidInput, match="parent is the parent of a new one"):
        plans.check_images([task(parent, tmp_path / "link" / "parent")], "backup")


def test_what_is_foretold(tmp_path):
    plan = [plans.foretell(task(tmp_path / "1"), direction) for direction in ("backup", "restore")]
    assert [(disk["changed"], disk["bytes_read"], disk["bytes_written"]) for disk in plan] == [
        (True, SIZE, 0),
        (True, 0, SIZE),
    ]
    assert plans.diff(plan[:1])["after"] == {f"Hard disk 1 ({tmp_path}/1)": SIZE}
    assert plans.diff([{**plan[0], "changed": False}]) == {"before": {}, "after": {}}
