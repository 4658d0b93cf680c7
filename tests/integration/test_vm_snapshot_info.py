# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_snapshot_info for many virtual machines, through its main() against the lab."""

from __future__ import annotations

import json

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fleet, sdk, stamps
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.lab.client import Lab

MIB = 1 << 20
HOUR = 3600
DAY = 24 * HOUR
EXPIRED = stamps.join("", stamps.Stamp("nightly", "r1", stamps.datetime(2026, 1, 1, tzinfo=stamps.timezone.utc)))


class Fleet:
    """Some VMs with snapshots:

    web: "old" (10 days, 64 KiB) - "memory" (1 hour); db: "ours" (2 days, expired); lone: one taken by a task; empty.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.vms = {
            name: lab.create_vm(name, disks=[MIB], power="poweredOn", tracking=True, folder=folder)
            for name, folder in (
                ("web", "production/web"),
                ("db", "production"),
                ("lone", ""),
                ("empty", "production"),
            )
        }
        self.take("web", "old", age=10 * DAY)
        lab.write(self.moid("web"), 2000, 0, b"x")
        self.take("web", "memory", age=HOUR, memory=True)
        self.take("db", "ours", description=EXPIRED, age=2 * DAY)
        self.run("vm_snapshot", moid=self.moid("lone"), snapshot_name="by a task")
        with Connection(Endpoint(**lab.module_args())) as c:
            for vm in self.vms.values():
                c.call(sdk.vim.VirtualMachine(vm["moid"], c.stub).RefreshStorageInfo)

    def moid(self, name: str) -> str:
        return self.vms[name]["moid"]

    def take(self, name, snapshot, **options):
        self.lab.take_snapshot(self.moid(name), snapshot, **options)

    def run(self, module="vm_snapshot_info", fail=False, **args):
        self.lab.requests(reset=True)
        return modules.run(module, {**self.lab.module_args(), **args}, fail=fail)

    def found(self, **args):
        """Names of the snapshots by name of the VM."""
        machines = self.run(**args)["virtual_machines"]
        return {one["vm"]["name"]: [snapshot["name"] for snapshot in one["snapshots"]] for one in machines}

    def requests(self):
        return self.lab.requests()["total"]


@pytest.fixture(scope="module")
def stock():
    with Lab.start(vms=3, datastores=2) as lab:
        yield Fleet(lab)


ALL = {"web": ["old", "memory"], "db": ["ours"], "lone": ["by a task"]}


def only(*names):
    return {name: ALL[name] for name in names}


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({}, ALL),
        ({"folder": "/DC0/vm/production"}, only("web", "db")),
        ({"folder": "production"}, only("web", "db")),
        ({"folder": "production", "folder_recursive": False}, only("db")),
        ({"folder": "production/web/", "datacenter": "DC0"}, only("web")),
        ({"folder": "production", "cluster": "DC0_C0"}, only("web", "db")),
        ({"cluster": "/DC0/host/DC0_C0", "datacenter": "DC0"}, ALL),
        ({"datacenter": "DC0"}, ALL),
        ({"folder_recursive": False}, ALL),
        ({"vms": ["web", "lone"]}, only("web", "lone")),
        ({"vms": [{"name": "web", "folder": "production/web"}, {"name": "db", "folder": "test"}]}, only("web")),
        ({"vms": ["web", "db"], "folder": "production", "folder_recursive": False}, only("db")),
    ],
)
def test_which_virtual_machines(stock, choice, found):
    assert stock.found(**choice) == found


def test_all_conditions_on_the_place_must_fit(stock, monkeypatch):
    web = sdk.vim.VirtualMachine(stock.moid("web"))
    monkeypatch.setattr(fleet, "_inside", lambda c, views: {web})  # as if nothing else were on the cluster
    assert stock.found(folder="production", cluster="DC0_C0") == only("web")


def test_virtual_machines_by_any_of_their_ids(stock):
    web, db, lone = (stock.vms[name] for name in ("web", "db", "lone"))
    by_text = [web["moid"], db["instance_uuid"].upper(), lone["uuid"]]
    by_key = [{"moid": web["moid"]}, {"instance_uuid": db["instance_uuid"]}, {"uuid": lone["uuid"]}]
    assert stock.found(vms=by_text) == stock.found(vms=by_key) == ALL


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"older_than": "1d"}, {"web": ["old"], "db": ["ours"]}),
        ({"older_than": "9d"}, {"web": ["old"]}),
        ({"larger_than": "32K"}, {"web": ["old", "memory"]}),
        ({"larger_than": "1M"}, {"web": ["memory"]}),
        ({"deeper_than": 1}, {"web": ["memory"]}),
        ({"owner": "ours"}, {"db": ["ours"]}),
        ({"owner": "foreign"}, {"web": ["old", "memory"], "lone": ["by a task"]}),
        ({"expired": True}, {"db": ["ours"]}),
        ({"expired": False, "older_than": "1d"}, {"web": ["old"]}),
        ({"name_pattern": "*o*"}, {"web": ["old", "memory"], "db": ["ours"]}),
        ({"snapshot_name": "old"}, {"web": ["old"]}),
        ({"filters": {"vm_name": "WEB", "state": "poweredOn"}}, {"web": ["memory"]}),
        ({"filters": {"folder": "prod"}, "match_type": "includes"}, {"db": ["ours"]}),
    ],
)
def test_which_snapshots(stock, wanted, found):
    assert stock.found(**wanted) == found


def test_all_there_is_to_know(stock):
    result = stock.run(creators=True)
    entry = next(one for one in result["virtual_machines"] if one["vm"]["name"] == "web")
    assert {key: entry[key] for key in entry if key not in ("snapshots", "current_snapshot")} == {
        "vm": {key: stock.vms["web"][key] for key in ("name", "moid", "instance_uuid")},
        "folder": "/DC0/vm/production/web",
        "template": False,
        "power_state": "poweredOn",
        "connection_state": "connected",
        "consolidation_needed": False,
    }
    old, memory = entry["snapshots"]
    assert entry["current_snapshot"] == memory
    assert 10 * DAY <= old["age_seconds"] < 10 * DAY + HOUR
    assert (old["depth"], memory["depth"]) == (1, 2)
    assert old["size_bytes"] == (64 << 10) + 512 + 5  # what was written, its descriptor, the state
    assert memory["memory_bytes"] == 32 * MIB
    assert memory["size_bytes"] == memory["memory_bytes"] + 512 + 5
    assert sum(old["datastores"].values()) == old["size_bytes"]
    assert (old["creator"], old["creator_problem"]) == (None, "vCenter remembers no task that made it")
    assert (old["owner"], old["expired"]) == ("foreign", False)
    assert [disk["change_id"] for disk in memory["disks"]] != [None]
    by_name = {snapshot["name"]: snapshot for one in result["virtual_machines"] for snapshot in one["snapshots"]}
    assert by_name["by a task"]["creator"] == "backup@vsphere.local"
    assert (by_name["ours"]["owner"], by_name["ours"]["expired"]) == ("ours", True)
    assert by_name["ours"]["stamp"]["job"] == "nightly"


def test_disks_of_snapshots_at_any_depth(stock):
    tower = stock.lab.create_vm("tower", disks=[MIB, MIB])
    for name in "abcd":
        stock.lab.take_snapshot(tower["moid"], name)
    result = stock.run(moid=tower["moid"], name="tower")
    stock.lab.destroy_vm(tower["moid"])
    assert [(one["depth"], len(one["disks"])) for one in result["snapshots"]] == [(1, 2), (2, 2), (3, 2), (4, 2)]


def test_an_empty_name_is_not_all_machines(stock):
    assert "No virtual machine was named" in stock.run(name="", folder="", fail=True)["msg"]


def test_totals_and_rows(stock):
    result = stock.run(disks=False)
    snapshots = [snapshot for one in result["virtual_machines"] for snapshot in one["snapshots"]]
    assert result["totals"] == {
        "virtual_machines": 7,
        "with_snapshots": 3,
        "needs_consolidation": 0,
        "unreadable": 0,
        "snapshots": 4,
        "ours": 1,
        "foreign": 3,
        "expired": 1,
        "size_bytes": sum(one["size_bytes"] for one in snapshots),
        "size_unknown": 0,
        "deepest": 2,
        "oldest": snapshots[2]["creation_time"],
    }
    assert {json.dumps(one["disks"]) for one in snapshots} == {"null"}
    rows = result["vmware_all_snapshots_info"]
    assert [(row["vm_name"], row["folder"], row["name"]) for row in rows] == [
        ("db", "production", "ours"),
        ("lone", "vm", "by a task"),
        ("web", "web", "old"),
        ("web", "web", "memory"),
    ]
    assert set(rows[0]) == {"vm_name", "folder", "name", "description", "creation_time", "state", "id", "quiesced"}


def test_what_was_not_asked_for_is_said(stock):
    (one,) = stock.run(vms=["db"], sizes=False, disks=False)["virtual_machines"][0]["snapshots"]
    assert (one["size_bytes"], one["size_problem"]) == (None, "not asked for")
    assert (one["creator"], one["creator_problem"]) == (None, "not asked for")


def test_those_without_snapshots_are_listed_if_asked_for(stock):
    listed = stock.found(include_empty=True, folder="production")
    assert listed == {**only("web", "db"), "empty": []}


def test_the_number_of_requests_grows_with_nothing(stock):
    budget = {"": 6, "folder": 7}
    stock.run()
    assert stock.requests() == budget[""]
    stock.run(folder="production")
    assert stock.requests() == budget["folder"]
    stock.run(disks=False, sizes=False)
    assert stock.requests() == budget[""] - 1
    stock.run(creators=True)
    assert stock.requests() == budget[""] + 3
    stock.run(moid=stock.moid("web"))
    assert stock.requests() <= 5
    stock.run(name="web")
    assert stock.requests() <= 7


def test_in_a_session_of_the_play_nothing_of_it_stays(stock):
    session = stock.run("vcenter_session")["session"]
    try:
        stock.run(session=session, creators=True, folder="production")
        methods = stock.lab.requests()["methods"]
    finally:
        stock.run("vcenter_session", session=session, state="absent")
    assert not {"Login", "Logout"} & set(methods)
    assert methods["CreateContainerView"] == methods["DestroyView"] == 1
    assert methods["CreateCollectorForTasks"] == methods["DestroyCollector"] == 1


def test_pages(stock, monkeypatch):
    whole = stock.run()
    monkeypatch.setattr(fleet, "PAGE", 2)
    paged = stock.run()
    assert _without_ages(paged["virtual_machines"]) == _without_ages(whole["virtual_machines"])
    assert stock.lab.requests()["methods"]["ContinueRetrievePropertiesEx"] > 4


def _without_ages(machines):
    for one in machines:
        for snapshot in [*one["snapshots"], one["current_snapshot"]]:
            snapshot.pop("age_seconds", None)
    return machines


# bad days


@pytest.mark.parametrize("state", ["disconnected", "inaccessible", "invalid", "orphaned"])
def test_a_machine_in_a_bad_state_is_listed_with_what_is_known(stock, state):
    stock.lab.connection(stock.moid("db"), state)
    try:
        result = stock.run()
    finally:
        stock.lab.connection(stock.moid("db"), "connected")
    (one,) = result["unreadable"]
    assert one["vm"] == {key: stock.vms["db"][key] for key in ("name", "moid", "instance_uuid")}
    assert {"disconnected": "does not answer"}.get(state, state) in one["reason"]
    assert len(result["virtual_machines"]) == 3


def test_a_machine_that_is_not_there_keeps_nobody_from_being_read(stock):
    result = stock.run(vms=["web", "nobody", {"moid": "vm-9999", "name": "gone"}])
    assert [one["vm"]["name"] for one in result["virtual_machines"]] == ["web"]
    assert [(one["vm"]["name"], one["vm"]["moid"]) for one in result["unreadable"]] == [
        ("nobody", None),
        ("gone", "vm-9999"),
    ]
    assert result["totals"]["unreadable"] == 2


def test_a_machine_that_goes_while_it_is_read_is_left_out(stock, monkeypatch):
    doomed = stock.lab.create_vm("doomed", disks=[MIB])
    stock.lab.take_snapshot(doomed["moid"], "s")
    survey = fleet.survey

    def then_it_goes(*args):
        found = survey(*args)
        stock.lab.destroy_vm(doomed["moid"])
        return found

    monkeypatch.setattr(fleet, "survey", then_it_goes)
    result = stock.run()
    assert [one["vm"]["name"] for one in result["virtual_machines"]] == ["db", "lone", "web"]
    assert result["unreadable"] == [
        {
            "vm": {key: doomed[key] for key in ("name", "moid", "instance_uuid")},
            "reason": "it went while it was read",
        }
    ]


def test_machines_that_need_consolidation_are_named_though_they_have_no_snapshot(stock):
    needy = stock.lab.create_vm("needy", disks=[MIB])
    stock.lab.take_snapshot(needy["moid"], "s")
    stock.lab.tracking(fail_consolidation=2)
    stock.lab.fault(task="consolidateDisks", fault="FileFault")
    try:
        stock.run("vm_snapshot", moid=needy["moid"], snapshot_name="s", state="absent")
        result = stock.run()
    finally:
        stock.lab.clear_faults()
        stock.lab.destroy_vm(needy["moid"])
    assert [one["name"] for one in result["needs_consolidation"]] == ["needy"]
    assert result["totals"]["needs_consolidation"] == 1


def test_creators_that_cannot_be_told_have_a_reason(stock):
    stock.lab.fault(method="CreateCollectorForTasks", fault="NotSupported")
    (one,) = stock.run(vms=["lone"], creators=True)["virtual_machines"][0]["snapshots"]
    assert one["creator"] is None
    assert "history of tasks cannot be read" in one["creator_problem"]


def test_a_host_on_its_own_has_no_history_of_tasks_and_no_tags(stock):
    stock.lab.nfc(esxi=True)
    try:
        (one,) = stock.run(vms=["lone"], creators=True)["virtual_machines"][0]["snapshots"]
        refused = stock.run(tags=["backup:nightly"], fail=True)
    finally:
        stock.lab.nfc(reset=True)
    assert (one["creator"], one["creator_problem"]) == (None, "a host without vCenter keeps no history of tasks")
    assert "is a host on its own, which has no Automation API" in refused["msg"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"folder": "nowhere"}, "There is no folder nowhere"),
        ({"cluster": "DC0_C9"}, "There is no cluster DC0_C9"),
        ({"datacenter": "DC9"}, "There is no datacenter DC9"),
        ({"larger_than": "much"}, "larger_than is no size: much"),
        ({"older_than": "long"}, "'long' is not a length of time"),
        ({"filters": {"vm": "x"}}, "There is no filter vm"),
        ({"vms": ["a"], "moid": "vm-1"}, "mutually exclusive"),
        ({"cluster": "a", "name": "b"}, "mutually exclusive"),
    ],
)
def test_what_cannot_be_meant_is_refused(stock, choice, message):
    assert message in stock.run(fail=True, **choice)["msg"]


def test_no_session_stays(stock):
    assert stock.lab.sessions() == []
