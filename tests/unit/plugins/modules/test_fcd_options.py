# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of fcd, fcd_info and fcd_snapshot that cannot be right are refused before anything is asked of a server."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.tests import modules

# Nothing answers there, so whatever gets past the options fails with another message.
SERVER = {"hostname": "192.0.2.1", "port": 1, "username": "u", "password": "never-in-a-message"}


def refused(name, /, **args):
    return modules.run(name, {**SERVER, **args}, fail=True)["msg"]


@pytest.mark.parametrize("name", ["fcd", "fcd_snapshot"])
@pytest.mark.parametrize(
    ("args", "message"),
    [({}, "one of the following is required: id, name"), ({"id": "i", "name": "n"}, "mutually exclusive: id|name")],
)
def test_one_disk_is_chosen_once(name, args, message):
    assert message in refused(name, **args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"state": "attached"}, "vm"),
        ({"state": "attached", "vm": {}}, "one of the following is required: name, uuid, moid"),
        (
            {"state": "attached", "vm": {"name": "a", "moid": "vm-1"}},
            "mutually exclusive: name|uuid|moid|inventory_path",
        ),
        ({"capacity": "lots"}, "capacity is no size: lots"),
        ({"capacity": "0"}, "more than nothing"),
        ({"provisioning": "fat"}, "value of provisioning must be one of"),
        ({"tags": [{"name": "daily"}]}, "missing required arguments: category"),
        ({"control_flags": {"keepAfterDeleteVm": True}}, "Unsupported parameters"),
        ({"api": "soap"}, "value of api must be one of: auto, vim, vslm"),
    ],
)
def test_fcd(args, message):
    assert message in refused("fcd", id="i", **args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "needs a description or a stamp"),
        ({"description": ""}, "needs a description or a stamp"),
        ({"snapshot_id": "s"}, "needs a description or a stamp"),
        ({"state": "absent"}, "any of the following are missing: snapshot_id, description, stamp"),
        ({"state": "revert"}, "any of the following are missing: snapshot_id, description, stamp"),
        ({"stamp": {"run": "r"}}, "missing required arguments: job"),
    ],
)
def test_fcd_snapshot(args, message):
    assert message in refused("fcd_snapshot", id="i", **args)


@pytest.mark.parametrize(
    ("args", "message"),
    [({"id": "i", "name": "n"}, "mutually exclusive: id|name"), ({"tag": {"name": "t"}}, "arguments: category")],
)
def test_fcd_info(args, message):
    assert message in refused("fcd_info", **args)
