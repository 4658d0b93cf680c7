# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Finding one virtual machine in the lab, and how many requests it takes."""

from __future__ import annotations

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Ambiguous, NotFound
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import connection, tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.inventory import find_vm, paths, vm_dict
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests.integration.vsphere import methods

FOLDER = "find/production/web"


@pytest.fixture(scope="module")
def places(_lab_of_file):
    """VMs in nested folders, two of one name, one with characters that vCenter escapes."""
    lab = _lab_of_file
    made = {
        "web": lab.create_vm("find-web", disks=[], folder=FOLDER),
        "twin1": lab.create_vm("find-twin", disks=[], folder="find/a"),
        "twin2": lab.create_vm("find-twin", disks=[], folder="find/b"),
        "odd": lab.create_vm("find-odd", disks=[], folder="find"),
    }
    with Connection(Endpoint(**lab.module_args())) as c:
        # vCenter stores "find 50%/50\\x" like this.
        odd = vim.VirtualMachine(made["odd"]["moid"], c.stub)
        tasks.wait(c, odd.Rename_Task("find 50%25%2f50%5cx"), timeout=10)
    yield made
    for record in made.values():
        lab.destroy_vm(record["moid"])


def path_of(c, record):
    return paths(c, [vim.VirtualMachine(record["moid"], c.stub)]).popitem()[1]


@pytest.mark.parametrize(
    ("selection", "requests"),
    [
        (lambda record, path: {"moid": record["moid"]}, 1),
        (lambda record, path: {"uuid": record["instance_uuid"], "use_instance_uuid": True}, 2),
        (lambda record, path: {"name": "find-web"}, 3),
        (lambda record, path: {"name": "find-web", "folder": path.rsplit("/", 1)[0]}, 2),
        (lambda record, path: {"name": "find-web", "folder": path.rsplit("/", 1)[0] + "/"}, 2),
        (lambda record, path: {"name": "find-web", "folder": FOLDER}, 3),
        (lambda record, path: {"name": "find-web", "folder": FOLDER, "datacenter": path.split("/")[1]}, 3),
        (lambda record, path: {"name": "find-web", "datacenter": path.split("/")[1]}, 4),
    ],
)
def test_one_vm_is_found_in_few_requests(lab, c, places, selection, requests):
    chosen = selection(places["web"], path_of(c, places["web"]))
    lab.requests(reset=True)
    vm, properties = find_vm(c, **chosen, properties=["runtime.powerState"])
    assert lab.requests()["total"] == requests
    assert vm_dict(vm, properties) == {
        "name": "find-web",
        "moid": places["web"]["moid"],
        "instance_uuid": places["web"]["instance_uuid"],
    }
    assert properties["runtime.powerState"] == "poweredOff"


def test_a_bios_uuid_is_no_instance_uuid(c, places):
    vm, properties = find_vm(c, moid=places["web"]["moid"], properties=["config.uuid"])
    assert find_vm(c, uuid=properties["config.uuid"])[0] == vm
    with pytest.raises(NotFound, match="with the BIOS UUID"):
        find_vm(c, uuid=places["web"]["instance_uuid"])


@pytest.mark.parametrize("name", ["find 50%/50\\x", "find 50%25%2f50%5cx"])
@pytest.mark.parametrize("folder", [None, "find"])
def test_names_that_vcenter_escapes(c, places, name, folder):
    vm, properties = find_vm(c, name=name, folder=folder)
    assert vm_dict(vm, properties)["name"] == "find 50%/50\\x"


def test_two_vms_of_one_name_are_listed(c, places):
    with pytest.raises(Ambiguous) as caught:
        find_vm(c, name="find-twin")
    candidates = caught.value.details["candidates"]
    assert [candidate["moid"] for candidate in candidates] == [places["twin1"]["moid"], places["twin2"]["moid"]]
    assert [candidate["path"].split("/vm/")[1] for candidate in candidates] == ["find/a/find-twin", "find/b/find-twin"]
    assert all(candidate["path"] in str(caught.value) for candidate in candidates)
    assert find_vm(c, name="find-twin", folder="find/b")[0]._GetMoId() == places["twin2"]["moid"]


def test_two_vms_of_one_bios_uuid_are_listed(c, places):
    """As a copy of a machine has it; instance UUIDs are kept apart by vCenter itself."""
    twins = [find_vm(c, moid=places[name]["moid"])[0] for name in ("twin1", "twin2")]
    uuid = "420f2a3c-0000-4000-8000-000000000001"
    for twin in twins:
        tasks.wait(c, c.call(twin.ReconfigVM_Task, vim.vm.ConfigSpec(uuid=uuid)), timeout=30)
    with pytest.raises(Ambiguous, match="with the BIOS UUID") as caught:
        find_vm(c, uuid=uuid)
    assert {candidate["moid"] for candidate in caught.value.details["candidates"]} == {
        twin._GetMoId() for twin in twins
    }


@pytest.mark.parametrize(
    "folder",
    [
        "DC0/vm/find/production/web",
        "/DC0/vm/find/production/web/",
        "find/production/web",
        "/find/production/web/",
        "vm/find/production/web",
        "/vm/find/production/web",
        "/DC0/vm/",
        "DC0/vm/find",
        "find/production",
        "vm",
        "/",
    ],
)
@pytest.mark.parametrize("datacenter", [None, "", "DC0", "/DC0/"])
def test_a_folder_in_the_spellings_of_others(c, places, folder, datacenter):
    """A machine may also be below the folder: both peers look there too."""
    assert find_vm(c, name="find-web", folder=folder, datacenter=datacenter)[0]._GetMoId() == places["web"]["moid"]


@pytest.mark.parametrize("folder", ["web", "/production", "production/web/", "/DC0", "DC0/"])
def test_a_folder_that_is_a_part_of_the_path(c, places, folder):
    """Both peers take the datacenter for a folder, and community.vmware any part of the path."""
    assert find_vm(c, name="find-web", folder=folder, datacenter="DC0")[0]._GetMoId() == places["web"]["moid"]


@pytest.mark.parametrize("folder", ["we", "find/web", "web/production", "/find/production/web/more"])
def test_a_folder_that_is_not_on_the_way(c, places, folder):
    with pytest.raises(NotFound, match="find/production/web/find-web"):
        find_vm(c, name="find-web", folder=folder)


def test_a_folder_that_is_a_part_of_several_paths(c, places):
    with pytest.raises(Ambiguous):
        find_vm(c, name="find-twin", folder="DC0")
    assert find_vm(c, name="find-twin", folder="b")[0]._GetMoId() == places["twin2"]["moid"]


def test_a_folder_that_must_be_absolute(c, places):
    absolute = {"name": "find-web", "folder_paths_are_absolute": True}
    assert find_vm(c, folder="DC0/vm/find", **absolute)[0]._GetMoId() == places["web"]["moid"]
    for folder in ("find", "DC0"):
        with pytest.raises(NotFound):
            find_vm(c, folder=folder, **absolute)


def test_a_machine_in_the_folder_itself_comes_first(c, lab, places):
    deeper = lab.create_vm("find-web", disks=[], folder=f"{FOLDER}/deeper")
    try:
        assert find_vm(c, name="find-web", folder=FOLDER)[0]._GetMoId() == places["web"]["moid"]
        with pytest.raises(Ambiguous):
            find_vm(c, name="find-web", folder="find")
    finally:
        lab.destroy_vm(deeper["moid"])


def test_which_of_several(c, places):
    for match, twin in (("first", "twin1"), ("last", "twin2")):
        assert find_vm(c, name="find-twin", name_match=match)[0]._GetMoId() == places[twin]["moid"]


@pytest.mark.parametrize("path", ["/DC0/vm/find/find 50%25%2f50%5cx", "DC0/vm/find/find 50%25%2f50%5cx/"])
def test_an_inventory_path(c, places, path):
    assert find_vm(c, inventory_path=path)[0]._GetMoId() == places["odd"]["moid"]
    with pytest.raises(NotFound, match="at /DC0/vm/find"):
        find_vm(c, inventory_path="/DC0/vm/find")


def test_all_that_is_given_must_fit(c, places):
    web = places["web"]
    both = {"moid": web["moid"], "uuid": web["instance_uuid"].upper(), "use_instance_uuid": True}
    assert find_vm(c, name="find-web", **both)[0]._GetMoId() == web["moid"]
    with pytest.raises(NotFound, match="find-web is not named find-twin"):
        find_vm(c, name="find-twin", **both)
    with pytest.raises(NotFound, match="find-twin has the UUID"):
        find_vm(c, **{**both, "moid": places["twin1"]["moid"]})


@pytest.mark.parametrize(
    "selection", [{"name": "FIND-web"}, {"name": "find-web", "folder": "find/a"}, {"name": "find-web", "folder": "no"}]
)
def test_the_error_tells_where_it_is(c, places, selection):
    with pytest.raises(NotFound, match=f"There is /DC0/vm/{FOLDER}/find-web"):
        find_vm(c, **selection)


@pytest.mark.parametrize(
    "selection",
    [
        {"name": "find-nothing"},
        {"name": "find-we"},
        {"name": "find-web", "folder": "find/a"},
        {"name": "find-web", "folder": "/nowhere/vm"},
        {"name": "production", "folder": "find"},
        {"uuid": "00000000-0000-0000-0000-000000000000"},
        {"moid": "vm-0"},
        {"name": "find-web", "datacenter": "nowhere"},
    ],
)
def test_what_is_not_there(c, places, selection):
    with pytest.raises(NotFound) as caught:
        find_vm(c, **selection)
    assert "cannot be read" not in caught.value.message
    assert caught.value.next_step


def test_an_unset_property_is_a_missing_key(c, places):
    properties = find_vm(c, moid=places["web"]["moid"], properties=["snapshot", "runtime.powerState"])[1]
    assert "snapshot" not in properties
    assert properties["runtime.powerState"] == "poweredOff"


def test_a_large_answer_comes_in_pages(c, lab, monkeypatch, places):
    options = connection.vmodl.query.PropertyCollector.RetrieveOptions
    monkeypatch.setattr(connection.vmodl.query.PropertyCollector, "RetrieveOptions", lambda: options(maxObjects=1))
    assert find_vm(c, name="find-web")[0]._GetMoId() == places["web"]["moid"]
    assert methods(lab)["ContinueRetrievePropertiesEx"] >= 3
