# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Places in the inventory and which VMs a selection means."""

from __future__ import annotations

from datetime import datetime, timezone
from types import SimpleNamespace

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, InvalidInput, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fleet
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.fleet import Machine, Places, Survey
from pyVmomi import vim

C = SimpleNamespace(endpoint=SimpleNamespace(address="vcenter:443"))
ROOT, EAST, WEST = vim.Folder("root"), vim.Datacenter("east"), vim.Datacenter("west")
FOLDERS = {
    name: vim.Folder(name) for name in ("east-vm", "west-vm", "east-web", "west-web", "deep", "east-host", "site")
}
TREE = {
    ROOT: {"name": "Datacenters"},
    FOLDERS["site"]: {"name": "site", "parent": ROOT},
    EAST: {"name": "east", "parent": FOLDERS["site"]},
    WEST: {"name": "west", "parent": ROOT},
    FOLDERS["east-vm"]: {"name": "vm", "parent": EAST},
    FOLDERS["west-vm"]: {"name": "vm", "parent": WEST},
    FOLDERS["east-web"]: {"name": "web", "parent": FOLDERS["east-vm"]},
    FOLDERS["west-web"]: {"name": "web", "parent": FOLDERS["west-vm"]},
    FOLDERS["deep"]: {"name": "a%2fb", "parent": FOLDERS["west-web"]},
    FOLDERS["east-host"]: {"name": "host", "parent": EAST},
    vim.ClusterComputeResource("c1"): {"name": "blades", "parent": FOLDERS["east-host"]},
    vim.ClusterComputeResource("c2"): {"name": "blades", "parent": WEST},
    vim.ComputeResource("h1"): {"name": "esx9", "parent": WEST},
}
PLACES = Places(C, TREE)


def machine(name="web01", moid="vm-1", folder="/west/vm/web", **properties):
    given = {"name": name, "config.instanceUuid": f"50-{moid}", "config.uuid": f"42-{moid}", **properties}
    return Machine(vim.VirtualMachine(moid), given, folder)


def test_paths_are_as_people_see_them():
    assert PLACES.path(FOLDERS["east-web"]) == "/site/east/vm/web"
    assert PLACES.path(FOLDERS["deep"]) == "/west/vm/web/a/b"
    assert PLACES.path(None) is None
    assert PLACES.path(vim.Folder("hidden")) is None


@pytest.mark.parametrize(
    ("wanted", "datacenter", "names"),
    [
        ("web", None, {"east-web", "west-web"}),
        ("web", WEST, {"west-web"}),
        ("/west/vm/web", None, {"west-web"}),
        ("west/vm/web/", None, {"west-web"}),
        ("web/a/b", None, {"deep"}),
        ("vm/web", WEST, {"west-web"}),
        ("/site/east/vm", None, {"east-vm"}),
    ],
)
def test_folders(wanted, datacenter, names):
    assert {one._GetMoId() for one in PLACES.folders(wanted, datacenter)} == names


@pytest.mark.parametrize("wanted", ["/web", "/west/web", "WEB", "/east/vm/web"])
def test_folders_that_are_not_there(wanted):
    with pytest.raises(NotFound, match="no folder"):
        PLACES.folders(wanted)


def test_clusters_and_datacenters_by_name_or_path():
    assert PLACES.named(vim.Datacenter, "/site/east") == PLACES.named(vim.Datacenter, "east") == EAST
    assert PLACES.named(vim.ComputeResource, "esx9")._GetMoId() == "h1"
    assert PLACES.named(vim.ComputeResource, "blades", EAST)._GetMoId() == "c1"
    with pytest.raises(Ambiguous, match="/site/east/host/blades, /west/blades"):
        PLACES.named(vim.ComputeResource, "blades")
    with pytest.raises(NotFound, match="no cluster esx9"):
        PLACES.named(vim.ComputeResource, "esx9", EAST)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ("web01", True),
        ("vm-1", True),
        ("50-VM-1", True),
        ("web", False),
        ({"name": "web01", "folder": "web"}, True),
        ({"name": "web01", "folder": "vm/web"}, True),
        ({"name": "web01", "folder": "/west/vm"}, False),
        ({"name": "web01", "moid": "vm-2"}, False),
        ({"instance_uuid": "42-vm-1"}, False),
        ({"uuid": "42-vm-1", "name": None}, True),
        ({}, False),
        ({"nom": "web01"}, False),
    ],
)
def test_selections(wanted, fits):
    assert fleet._is(machine(), wanted) is fits


def test_all_of_a_name_are_meant_and_each_once():
    found = Survey(datetime.now(timezone.utc))
    machines = [machine(), machine(moid="vm-2"), machine("db", "vm-3")]
    chosen = fleet._pick(machines, ["web01", "vm-2", "none"], found)
    assert [one.vm._GetMoId() for one in chosen] == ["vm-1", "vm-2"]
    assert [one["vm"]["name"] for one in found.unreadable] == ["none"]


@pytest.mark.parametrize(
    ("properties", "refused", "reason", "listed"),
    [
        ({}, None, None, 1),
        ({"runtime.connectionState": "orphaned"}, None, "orphaned", 1),
        ({}, "NoPermission", "some of it cannot be read (NoPermission)", 1),
        ({"name": None}, "NoPermission", "it cannot be read (NoPermission)", 0),
        ({"name": None}, None, "it cannot be read (no reason given)", 0),
    ],
)
def test_what_cannot_be_read_is_said(properties, refused, reason, listed):
    one = machine(**{key: value for key, value in properties.items() if value})
    for key in (key for key, value in properties.items() if value is None):
        del one.properties[key]
    found = Survey(datetime.now(timezone.utc))
    fleet._take(found, one, refused)
    assert len(found.machines) == listed
    assert [reason in entry["reason"] for entry in found.unreadable] == ([True] if reason else [])


def test_a_machine_in_a_vapp_has_no_folder():
    assert machine(folder=None).as_dict()["folder"] is None
    assert not fleet._is(machine(folder=None), {"name": "web01", "folder": "web"})


def given(*vms):
    return fleet.Choice.from_options(C, {"folder": None, "cluster": None, "datacenter": None, "tags": None, "vms": vms})


def test_what_vms_may_hold():
    wanted = {"name": 7, "folder": "", "moid": None}
    assert given("web01", 1001, wanted).selections == ["web01", "1001", {"name": "7"}]


@pytest.mark.parametrize("nothing", [None, "", {}, {"nmae": "web01"}, {"name": ""}, ["web01"]])
def test_what_names_no_machine_is_refused(nothing):
    with pytest.raises(InvalidInput, match="among the virtual machines"):
        given("web01", nothing)
