# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""fcd and fcd_info through their main() against the lab, by both APIs."""

from __future__ import annotations

import time

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd_plan

MIB = 1 << 20
DATASTORE = "LocalDS_0"
OTHER = "LocalDS_1"
APIS = ["auto", "vim", "vslm"]
WITH_CATALOG = ["auto", "vslm"]  # vim has no way to search
RECORD = {
    *("id", "name", "datastore", "datastore_moid", "capacity", "path", "backing_object_id", "provisioning"),
    *("create_time", "consumers", "attached_to", "control_flags", "metadata", "tags", "storage_policy"),
}


class Disks:
    """The lab's first class disks, and the modules run on them."""

    def __init__(self, lab, run_module, api):
        self.lab, self.api, self._run_module = lab, api, run_module

    def run(self, module="fcd", check=False, diff=False, fail=False, **args):
        given = {**self.lab.module_args(), "api": self.api, **args}
        return self._run_module(module, given, check=check, diff=diff, fail=fail)

    def create(self, name, **spec):
        return self.lab.create_fcd(name, 2 * MIB, **spec)

    def named(self, name):
        return [disk for disk in self.lab.fcds() if disk["name"] == name]

    def names(self, **args):
        return [disk["name"] for disk in self.run("fcd_info", **args)["fcds"]]

    def cost(self, module="fcd", **args):
        self.lab.requests(reset=True)
        self.run(module, **args)
        return self.lab.requests(reset=True)["total"]


@pytest.fixture(params=APIS)
def api(request):
    return request.param


@pytest.fixture
def disks(lab, run_module, api):
    yield Disks(lab, run_module, api)
    lab.clear_faults()
    for disk in lab.fcds():
        lab.destroy_fcd(disk["id"])
    assert lab.sessions() == []


@pytest.fixture
def vm(lab):
    made = lab.create_vm(f"web-{time.monotonic_ns()}", disks=[MIB])
    yield made
    lab.destroy_vm(made["moid"])


WISH = {
    "name": "data01",
    "datastore": DATASTORE,
    "capacity": "3MB",
    "provisioning": "thin",
    "control_flags": {"keep_after_delete_vm": True, "enable_changed_block_tracking": True},
    "metadata": {"owner": "accounting"},
    "tags": [{"category": "backup", "name": "daily"}],
}


@pytest.fixture(scope="module")
def tagged(_lab_of_file):
    for name in ("daily", "weekly"):
        _lab_of_file.create_tag("backup", name)


# present


def test_a_disk_is_created_once(disks, tagged):
    planned = disks.run(**WISH, check=True, diff=True)
    assert disks.lab.fcds() == []
    made = disks.run(**WISH, diff=True)
    record = made["fcd"]
    assert set(record) == RECORD
    assert made["actions"] == planned["actions"] == ["create", "set_control_flags", "set_tags"]
    known = {key: value for key, value in planned["fcd"].items() if value is not None}
    assert {key: record[key] for key in known} == known
    assert record["capacity"] == 3 * MIB
    assert record["tags"] == WISH["tags"]
    assert record["control_flags"] == {
        "keep_after_delete_vm": True,
        "disable_relocation": False,
        "enable_changed_block_tracking": True,
    }
    assert made["diff"] == {"before": {}, "after": record}
    there = disks.lab.fcds()
    assert [one["id"] for one in there] == [record["id"]]
    assert there[0]["metadata"] == {"owner": "accounting"}
    again = disks.run(**WISH)
    assert (again["changed"], again["actions"], again["fcd"]) == (False, [], record)


def test_only_what_differs_is_changed(disks, tagged):
    disk = disks.create("old", metadata={"a": "1", "b": "2"}, keep=True)
    wish = {
        "id": disk["id"],
        "new_name": "new",
        "capacity": str(5 * MIB),
        "metadata": {"a": None, "c": "3"},
        "control_flags": {"disable_relocation": True, "keep_after_delete_vm": False},
        "tags": [{"category": "backup", "name": "weekly"}],
    }
    todo = ["rename", "extend", "set_control_flags", "set_tags", "set_metadata"]
    planned = disks.run(**wish, check=True)
    assert (planned["changed"], planned["actions"]) == (True, todo)
    assert disks.lab.fcd(disk["id"]) == disk
    done = disks.run(**wish, diff=True)
    assert done["actions"] == todo
    assert done["fcd"] == planned["fcd"]
    there = disks.lab.fcd(disk["id"])
    assert (there["name"], there["capacity"], there["metadata"]) == ("new", 5 * MIB, {"b": "2", "c": "3"})
    assert there["control_flags"]["disable_relocation"] is True
    assert there["control_flags"]["keep_after_delete_vm"] is False
    assert done["diff"]["before"]["name"] == "old"
    assert disks.run(**wish)["changed"] is False


def test_purging(disks, tagged):
    made = disks.run(**WISH)["fcd"]
    wish = {
        "id": made["id"],
        "metadata": {"b": "2"},
        "purge_metadata": True,
        "tags": [{"category": "backup", "name": "weekly"}],
        "purge_tags": True,
    }
    after = disks.run(**wish)["fcd"]
    assert (after["metadata"], after["tags"]) == ({"b": "2"}, wish["tags"])
    assert disks.run(**wish)["changed"] is False


def test_a_disk_never_shrinks(disks):
    disk = disks.create("d")
    result = disks.run(id=disk["id"], capacity="1MB", fail=True)
    assert result["error_type"] == "InvalidInput"
    assert "cannot shrink" in result["msg"]
    assert disks.lab.fcd(disk["id"]) == disk


def test_renaming_by_name_is_done_once(disks):
    disk = disks.create("old")
    assert disks.run(name="old", new_name="new")["changed"] is True
    assert disks.run(name="old", new_name="new")["changed"] is False
    assert disks.lab.fcd(disk["id"])["name"] == "new"


@pytest.mark.parametrize("missing", ["datastore", "capacity"])
def test_a_new_disk_needs_a_place_and_a_size(disks, missing):
    result = disks.run(**{**WISH, missing: None}, fail=True)
    assert "needs a datastore and a capacity" in result["msg"]


def test_two_disks_of_one_name(disks):
    first, second = disks.create("twin", datastore=DATASTORE), disks.create("twin", datastore=OTHER)
    result = disks.run(name="twin", capacity="9MB", fail=True)
    assert result["error_type"] == "Ambiguous"
    assert [one["id"] for one in result["candidates"]] == [first["id"], second["id"]]
    assert disks.run(name="twin", datastore=OTHER)["fcd"]["id"] == second["id"]
    assert disks.run("fcd_info", name="twin")["fcds"] != []


def test_a_disk_on_another_datastore_is_another_disk(disks):
    disk = disks.create("d", datastore=OTHER)
    assert disks.run(id=disk["id"], datastore=DATASTORE, fail=True)["error_type"] == "NotFound"
    assert disks.run(id=disk["id"], datastore="nowhere", fail=True)["error_type"] == "NotFound"
    assert disks.run(name="d", datastore=DATASTORE, capacity="1MB")["actions"] == ["create"]


def test_a_virtual_disk_becomes_a_first_class_disk(disks, vm):
    path = disks.lab.vm(vm["moid"])["disks"][0]["path"]
    planned = disks.run(name="found", path=path, metadata={"a": "1"}, check=True)
    assert planned["actions"] == ["register", "set_metadata"]
    made = disks.run(name="found", path=path, metadata={"a": "1"})
    assert (made["fcd"]["path"], made["fcd"]["capacity"], made["fcd"]["metadata"]) == (path, MIB, {"a": "1"})
    assert disks.run(name="found", path=path)["changed"] is False
    assert "exists already" in disks.run(name="found", path="[LocalDS_0] other.vmdk", fail=True)["msg"]


# storage policies


def test_a_storage_policy_by_name(disks):
    policy = "vSAN Default Storage Policy"
    made = disks.run(name="d", datastore=DATASTORE, capacity="1MB", storage_policy=policy)
    assert (made["actions"], made["fcd"]["storage_policy"]) == (["create"], policy)
    plain = disks.create("plain")
    changed = disks.run(id=plain["id"], storage_policy=policy)
    assert (changed["actions"], changed["fcd"]["storage_policy"]) == (["set_storage_policy"], policy)
    assert disks.run(id=plain["id"], storage_policy=policy)["changed"] is False
    missing = disks.run(id=plain["id"], storage_policy="gold", fail=True)
    assert missing["error_type"] == "NotFound"
    assert policy in missing["msg"]


# attached, detached


def test_attached_where_there_is_room_and_detached_again(disks, vm):
    disk = disks.create("d")
    given = {"id": disk["id"], "state": "attached", "vm": {"moid": vm["moid"]}}
    planned = disks.run(**given, check=True)
    assert planned["fcd"]["attached_to"]["controller"] == "scsi0:1"
    assert disks.lab.fcd(disk["id"])["vm"] == ""
    done = disks.run(**given)
    there = disks.lab.fcd(disk["id"])
    assert done["actions"] == ["attach"]
    assert done["fcd"]["attached_to"] == {
        "vm": {"name": vm["name"], "moid": vm["moid"], "instance_uuid": vm["instance_uuid"]},
        "key": there["key"],
        "controller": "scsi0:1",
    }
    assert disks.run(**given, controller="scsi0:1")["changed"] is False
    assert "and not at scsi0:2" in disks.run(**given, controller="scsi0:2", fail=True)["msg"]
    assert "Detach it first" in disks.run(id=disk["id"], state="absent", fail=True)["msg"]
    assert disks.run(id=disk["id"], state="detached", check=True)["actions"] == ["detach"]
    assert disks.run(id=disk["id"], state="detached")["fcd"]["attached_to"] is None
    assert disks.run(id=disk["id"], state="detached")["changed"] is False
    assert disks.lab.fcd(disk["id"])["vm"] == ""


def test_a_place_of_ones_choice(disks, vm):
    disk = disks.create("d")
    given = {"id": disk["id"], "state": "attached", "vm": {"name": vm["name"]}}
    assert "is taken" in disks.run(**given, controller="scsi0:0", fail=True)["msg"]
    assert disks.run(**given, controller="scsi0:5")["fcd"]["attached_to"]["controller"] == "scsi0:5"


@pytest.mark.parametrize("consumer", ["instance_uuid", "uuid"])
def test_another_vm_keeps_the_disk(disks, vm, consumer):
    disks.lab.tracking(consumer_id=consumer)
    disk = disks.create("d")
    other = disks.lab.create_vm(f"other-{time.monotonic_ns()}", disks=[MIB])
    disks.lab.attach_fcd(disk["id"], other["moid"])
    refused = disks.run(id=disk["id"], state="attached", vm={"moid": vm["moid"]}, fail=True)
    assert other["moid"] in refused["msg"]
    assert disks.run(id=disk["id"], state="detached", vm={"moid": vm["moid"]})["changed"] is False
    assert disks.run(id=disk["id"], state="detached", vm={"moid": other["moid"]})["changed"] is True
    disks.lab.destroy_vm(other["moid"])


def test_what_uses_a_disk_and_cannot_be_seen(disks):
    disk = disks.create("d", consumers=["11111111-2222-4333-8444-555555555555"])
    assert disks.run(id=disk["id"])["fcd"]["attached_to"] is None
    assert "cannot be seen" in disks.run(id=disk["id"], state="detached", fail=True)["msg"]


# absent


def test_a_disk_is_deleted_once(disks):
    disk = disks.create("d")
    assert disks.run(name="d", state="absent", check=True)["actions"] == ["delete"]
    assert disks.run(name="d", state="absent")["fcd"]["id"] == disk["id"]
    assert disks.run(name="d", state="absent")["changed"] is False
    assert disks.run(id=disk["id"], state="absent")["fcd"] is None
    assert disks.run(id=disk["id"], capacity="9MB", fail=True)["error_type"] == "NotFound"
    assert disks.lab.fcds() == []


def test_snapshots_do_not_go_with_a_disk_unasked(disks):
    disk = disks.create("d")
    snapshot = disks.lab.fcd_snapshot(disk["id"], "velero")
    refused = disks.run(id=disk["id"], state="absent", fail=True)
    assert [one["id"] for one in refused["snapshots"]] == [snapshot]
    assert disks.run(id=disk["id"], state="absent", delete_snapshots=True)["actions"] == ["delete_snapshots", "delete"]
    assert disks.lab.fcds() == []


# the disks of a restore


def test_a_restore_takes_up_its_own_disk_only(disks):
    given = {"name": "d", "datastore": DATASTORE, "capacity": "1MB", "restore_id": "r7"}
    made = disks.run(**given)
    assert made["fcd"]["metadata"] == {fcd_plan.MARK: "r7"}
    assert disks.run(**given)["changed"] is False
    refused = disks.run(**{**given, "restore_id": "r8"}, fail=True)
    assert "Choose another name" in refused["msg"]
    assert disks.run(name="d", state="absent", restore_id="r8", fail=True)["error_type"] == "NotSupported"
    refused = disks.run(id=made["fcd"]["id"], state="finished", restore_id="r8", fail=True)
    assert refused["error_type"] == "NotSupported"
    finished = disks.run(id=made["fcd"]["id"], state="finished", restore_id="r7", metadata={"a": "1"})
    assert finished["fcd"]["metadata"] == {"a": "1"}
    assert disks.run(id=made["fcd"]["id"], state="finished", restore_id="r7")["changed"] is False
    assert disks.run(**given, fail=True)["error_type"] == "NotSupported"
    assert disks.run(name="d", state="absent", restore_id="r7", fail=True)["error_type"] == "NotSupported"
    assert len(disks.named("d")) == 1


def test_a_disk_has_its_mark_from_the_first_moment(disks):
    disks.lab.fault(task="updateMetadata", fault="FileFault", fields={"file": "a"}, count=0)
    disks.run(name="d", datastore=DATASTORE, capacity="1MB", restore_id="r7")
    assert disks.named("d")[0]["metadata"] == {fcd_plan.MARK: "r7"}


# fcd_info


def test_disks_by_all_that_tells_them_apart(disks, tagged):
    first = disks.create("one", metadata={"app": "db", "tier": "web"}, datastore=DATASTORE)
    disks.create("two", metadata={"app": "web"}, datastore=OTHER)
    disks.run(id=first["id"], tags=[{"category": "backup", "name": "daily"}])
    daily = {"category": "backup", "name": "daily"}
    assert disks.names() == ["one", "two"]
    assert disks.names(id=first["id"]) == ["one"]
    assert disks.names(id="00000000-0000-4000-8000-000000000000") == []
    assert disks.names(name="two") == ["two"]
    assert disks.names(name="three") == []
    assert disks.names(datastore=OTHER) == ["two"]
    assert disks.names(tag=daily) == ["one"]
    assert disks.names(tag=daily, datastore=OTHER) == []
    assert disks.names(tag={"category": "backup", "name": "weekly"}) == []
    assert disks.names(id=first["id"], tag=daily) == ["one"]
    assert disks.names(metadata={"app": None}) == ["one", "two"]
    assert disks.names(metadata={"app": "web"}) == ["two"]  # "web" is a value of the other one too
    assert disks.names(metadata={"app": "db", "tier": "web"}) == ["one"]


def test_all_that_is_known_of_a_disk(disks, vm, tagged):
    made = disks.run(**WISH)["fcd"]
    disks.run(id=made["id"], state="attached", vm={"moid": vm["moid"]})
    snapshot = disks.lab.fcd_snapshot(made["id"], "velero")
    found = disks.run("fcd_info", name="data01", snapshots=True)["fcds"][0]
    assert set(found) == {*RECORD, "snapshots"}
    assert found["attached_to"]["vm"]["moid"] == vm["moid"]
    assert found["tags"] == WISH["tags"]
    assert [(one["id"], one["own"]) for one in found["snapshots"]] == [(snapshot, False)]


def test_a_list_without_details(disks):
    disks.create("d", metadata={"a": "1"})
    found = disks.run("fcd_info", details=False)["fcds"][0]
    assert set(found) == RECORD
    assert (found["name"], found["capacity"], found["metadata"]) == ("d", 2 * MIB, {"a": "1"})
    assert (found["datastore"], found["tags"]) == (DATASTORE, None)


def test_the_catalog_is_read_in_pages(disks):
    disks.lab.tracking(vslm_page=2)
    names = [f"d{number}" for number in range(5)]
    for name in names:
        disks.create(name)
    assert disks.names(details=False) == names


def test_a_server_without_the_service(disks):
    disks.create("d")
    disks.lab.tracking(vslm=False)
    if disks.api == "vslm":
        assert disks.run("fcd_info", fail=True)["error_type"] == "NotSupported"
    else:
        assert disks.names(name="d") == ["d"]


@pytest.mark.parametrize("fault", ["NotFound", "InvalidArgument"])
def test_a_disk_that_the_service_does_not_know(disks, fault):
    disks.lab.tracking(vslm_unknown=fault)
    assert disks.run("fcd_info", id="00000000-0000-4000-8000-000000000000")["fcds"] == []


# what it costs


@pytest.mark.parametrize("api", WITH_CATALOG, indirect=True)
def test_the_cost_of_one_disk_does_not_depend_on_the_others(disks):
    disk = disks.create("d")

    def costs():
        return [
            disks.cost("fcd_info", id=disk["id"]),
            disks.cost("fcd_info", name="d"),
            disks.cost("fcd_info", id=disk["id"], datastore=DATASTORE),
            disks.cost(id=disk["id"]),
        ]

    alone = costs()
    for number in range(12):
        disks.create(f"other{number}", datastore=[DATASTORE, OTHER][number % 2])
    assert costs() == alone
    # Log-in 3, catalog 1, disk 1 (2 by name), datastore 1, tags 1, policies 2.
    assert alone[0] <= 9
    assert alone[1] <= 10
    assert alone[3] <= 9


@pytest.mark.parametrize("api", WITH_CATALOG, indirect=True)
def test_a_list_without_details_costs_the_same_for_many(disks):
    disks.create("d")
    few = disks.cost("fcd_info", details=False)
    for number in range(12):
        disks.create(f"other{number}")
    assert disks.cost("fcd_info", details=False) == few <= 7


def test_an_id_with_its_datastore_needs_no_catalog(lab, run_module):
    disks = Disks(lab, run_module, "auto")
    disk = disks.create("d")
    lab.requests(reset=True)
    disks.run("fcd_info", id=disk["id"], datastore=DATASTORE, details=False)
    methods = lab.requests()["methods"]
    assert methods["RetrieveVStorageObject"] == 1
    assert not [method for method in methods if method.startswith("Vslm")]
    lab.destroy_fcd(disk["id"])
