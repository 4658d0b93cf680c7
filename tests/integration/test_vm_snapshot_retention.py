# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_snapshot removes by pattern, age and number, and takes a young snapshot for a new one."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import stamps
from ansible_collections.holdfast.backup.tests.integration.snapshot_machine import machines, planned

DAY = 86400


@pytest.fixture
def vm(lab, run_module):
    """release 1 (10 days) - theirs (8) - release 2 (3, ours) - release 3 (2 hours, ours): each below the one before."""
    for make in machines(lab, run_module):
        machine = make()
        for name, days, run in [
            ("release 1", 10, ""),
            ("theirs", 8, ""),
            ("release 2", 3, "r2"),
            ("release 3", 0, "r3"),
        ]:
            text = stamps.join("", stamps.Stamp("deploy", run)) if run else ""
            lab.take_snapshot(machine.moid, name, description=text, age=days * DAY or 7200)
        yield machine


ALL = ["release 1", "release 2", "release 3", "theirs"]


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"name_pattern": "release *"}, ["release 1", "release 2", "release 3"]),
        ({"name_pattern": "RELEASE *"}, []),
        ({"name_pattern": "release [12]", "older_than": "7d"}, ["release 1"]),
        ({"older_than": "1d"}, ["release 1", "release 2", "theirs"]),
        ({"older_than": "1d", "stamp": {"job": "deploy"}}, ["release 2"]),
        ({"keep_last": 3}, ["release 1"]),
        ({"keep_last": 0}, ALL),
        ({"keep_last": 9}, []),
        ({"keep_last": 1, "stamp": {"job": "deploy"}}, ["release 2"]),
        ({"keep_last": 1, "name_pattern": "release *", "older_than": "5d"}, ["release 1"]),
        # What is spared stays, although it is below what goes.
        ({"keep_last": 1, "remove_children": True}, ["release 1", "release 2", "theirs"]),
        ({"older_than": "9d", "remove_children": True}, ALL),
        ({"snapshot_name": "theirs", "older_than": "30d"}, []),
        ({"current": True}, ["release 3"]),
    ],
)
def test_what_goes(vm, options, gone):
    plan = vm.run(state="absent", check=True, **options)
    done = vm.run(state="absent", **options)
    assert planned(plan) == planned(done)
    assert sorted(one["name"] for one in done["removed"]) == gone
    assert vm.names() == sorted(set(ALL) - set(gone))
    if options.get("keep_last") and not options.get("current"):
        assert not vm.run(state="absent", **options)["changed"]


def test_nothing_more_is_chosen_than_was_asked_for(vm):
    for options in ({"older_than": "1d"}, {"keep_last": 1}, {"name_pattern": "*"}, {"stamp": {"job": "deploy"}}):
        assert "leaves nothing to choose" in vm.run(state="remove_all", fail=True, **options)["msg"]
    refused = vm.run(state="absent", keep_last=-1, fail=True)["msg"]
    assert refused.startswith(f"{vm.name}: keep_last is less than 0.")
    assert vm.names() == ALL


@pytest.mark.parametrize(
    ("options", "will_do"),
    [
        ({"name_pattern": "release *", "last_snapshot_min_age": "3h"}, "release 3"),
        ({"name_pattern": "release *", "last_snapshot_min_age": "1h"}, None),
        ({"stamp": {"job": "deploy"}, "last_snapshot_min_age": "1d"}, "release 3"),
        ({"stamp": {"job": "other"}, "last_snapshot_min_age": "1d"}, None),
        ({"snapshot_name": "release 2", "last_snapshot_min_age": "4d"}, "release 2"),
        # One of the same name is there from days ago: it will not do.
        ({"snapshot_name": "release 2", "last_snapshot_min_age": "2d"}, None),
    ],
)
def test_a_young_one_will_do(vm, options, will_do):
    result = vm.run(**{"snapshot_name": "new", **options})
    assert result["changed"] == (will_do is None)
    assert len(vm.names()) == 4 + result["changed"]
    if will_do:
        assert result["snapshot"]["name"] == will_do
