# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_config: tags and storage policies, which vCenter keeps beside the configuration. govc judges what is restored."""

from __future__ import annotations

import json

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.govc import govc
from ansible_collections.holdfast.backup.tests.integration.vm_config.support import MIB, unchanged

VSAN, VVOL, PMEM = (
    "vSAN Default Storage Policy",
    "VVol No Requirements Policy",
    "Host-local PMem Default Storage Policy",
)
TAGS = ["backup:nightly", "service level:a:b"]
FORBIDDEN = json.dumps({"error_type": "UNAUTHORIZED", "messages": [{"default_message": "no\nprivilege"}]})


class Tagged:
    """A VM with two tags, a policy of its home, one disk with another and one with none."""

    def __init__(self, lab, name):
        self.lab, self.name = lab, name
        self.ids = [lab.create_tag(*tag.split(":", 1)) for tag in (f"{name}-{TAGS[0]}", f"{name}-{TAGS[1]}")]
        self.tags = [f"{name}-{tag}" for tag in TAGS]
        disks = [{"size": MIB, "policy": VVOL}, {"size": MIB}]
        self.moid = lab.create_vm(name, disks=disks, policy=VSAN, nics=[])["moid"]
        modules.run("vm_tag", {**lab.module_args(), "moid": self.moid, "tags": self.tags})

    def govc_tags(self, name):
        return sorted(govc(self.lab, "tags.attached.ls", "-r", f"/DC0/vm/{name}").split("\n"))

    def govc_policies(self, name):
        entities = json.loads(govc(self.lab, "vm.policy.ls", "-json", "-vm", name))
        return [entity["policyName"] for entity in entities]


@pytest.fixture
def tagged(lab, name):
    lab.clear_faults()
    yield Tagged(lab, name)
    lab.clear_faults()
    lab.nfc(reset=True)


@pytest.fixture
def document(config, tagged, tmp_path):
    """Changes the captured document: ``document(lambda content: ...)``."""
    config("captured", moid=tagged.moid)
    path = tmp_path / "config.json"

    def change(edit):
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return change


def policies(document):
    return [(one["storage_policy"] or {}).get("name") for one in (document, *document["disks"])]


def warnings(result):
    """The texts, which newer releases of Ansible wrap."""
    return [one if isinstance(one, str) else one["event"]["msg"] for one in result.get("warnings", ())]


def rest(lab):
    """Requests to the Automation API."""
    return {what: count for what, count in lab.requests()["http"].items() if "/api/" in what}


def test_what_was_destroyed_gets_its_tags_and_policies_back(config, tagged, vcenter):
    before = config("captured", name=tagged.name)["config"]
    assert [f"{tag['category']}:{tag['name']}" for tag in before["tags"]] == tagged.tags
    assert [tag["id"] for tag in before["tags"]] == tagged.ids
    assert policies(before) == [VSAN, VVOL, None]
    assert before["notes"] == []
    vcenter.wait(vcenter.find(tagged.name).Destroy_Task())
    made = config("present", name=tagged.name)
    assert warnings(made) == []
    assert (made["plan"]["tags"], made["plan"]["storage_policy"]) == (tagged.tags, VSAN)
    assert [disk["storage_policy"] for disk in made["plan"]["disks"]] == [VVOL, None]
    after = config("captured", name=tagged.name)["config"]
    assert (after["tags"], policies(after)) == (before["tags"], policies(before))
    assert tagged.govc_policies(tagged.name) == [VSAN, VVOL, "None"]
    assert tagged.govc_tags(tagged.name) == sorted(["", "a:b", "nightly"])


def test_a_vm_has_what_was_renamed_and_what_was_made_anew(config, tagged, document):
    """The ID wins over the name, and the name counts where the ID is unknown."""

    def elsewhere(content):
        first, second = content["tags"]
        first.update(category="old name", name="of the same tag")
        second.pop("id")
        content["storage_policy"]["name"] = "old name of the same policy"
        content["disks"][0]["storage_policy"]["id"] = "of another vCenter"

    document(elsewhere)
    made = config("present", name=f"{tagged.name}-copy")
    assert warnings(made) == []
    assert made["plan"]["tags"] == tagged.tags
    assert tagged.govc_policies(f"{tagged.name}-copy") == [VSAN, VVOL, "None"]


def _strange(content):
    content["tags"][1] = {"category": "strange", "name": "tag", "id": "urn:vmomi:InventoryServiceTag:0:GLOBAL"}
    for holder in (content, content["disks"][0]):
        holder["storage_policy"] = {"name": "Strange", "id": "strange"}


def test_what_does_not_exist_is_told_and_left_out(config, tagged, document, vcenter):
    document(_strange)
    with unchanged(vcenter):
        planned = config("present", name=f"{tagged.name}-copy", check=True)
    made = config("present", name=f"{tagged.name}-copy")
    assert warnings(planned) == warnings(made)
    policy, tags = warnings(made)
    assert "Strange of the VM's home, Hard disk 1 is not applied" in policy
    assert "strange:tag are not attached" in tags
    assert tagged.govc_policies(f"{tagged.name}-copy") == ["None", "None", "None"]
    assert made["plan"]["tags"] == tagged.tags[:1]


@pytest.mark.parametrize("meanwhile", [None, "made", "another"])
def test_missing_tags_are_made_if_wished(config, tagged, document, lab, meanwhile):
    """Also if another restore makes the category in between, with this tag or with another one."""
    names = {"category": f"{tagged.name} new", "name": "made"}

    def unknown(content):
        content["tags"] = [names]

    document(unknown)
    if meanwhile:
        lab.before("POST /api/cis/tagging/category", "create_tag", category=names["category"], name=meanwhile)
    made = config("present", name=f"{tagged.name}-copy", tags="create")
    assert warnings(made) == []
    assert tagged.govc_tags(f"{tagged.name}-copy") == ["", "made"]


def test_who_may_make_none_has_those_that_are_there(config, tagged, document, lab):
    document(_strange)
    lab.fault(method="POST /api/cis/tagging/category", status=403, message=FORBIDDEN)
    made = config("present", name=f"{tagged.name}-copy", tags="create", storage_policies="ignore")
    [warning] = warnings(made)
    assert "may not POST /api/cis/tagging/category" in warning
    assert tagged.govc_tags(f"{tagged.name}-copy") == ["", "nightly"]


def test_policies_are_replaced_by_name(config, tagged, document, vcenter):
    document(_strange)
    mapping = {"Strange": PMEM}
    made = config("present", name=f"{tagged.name}-copy", storage_policy_map=mapping, tags="ignore")
    assert warnings(made) == []
    assert tagged.govc_policies(f"{tagged.name}-copy") == [PMEM, PMEM, "None"]
    with unchanged(vcenter):
        refused = config("present", name=f"{tagged.name}-2", storage_policy_map={"Strange": "Nope"}, fail=True)
    assert "no storage policy Nope" in refused["msg"]
    assert VSAN in refused["next_step"]


def test_a_policy_that_vsphere_refuses_is_told_with_the_way_out(config, tagged, document, lab):
    lab.fault(task="createVm", fault="NoDiskSpace")
    refused = config("present", name=f"{tagged.name}-copy", fail=True)
    assert "storage_policies=ignore" in refused["next_step"]
    lab.fault(task="createVm", fault="NoDiskSpace")
    refused = config("present", name=f"{tagged.name}-copy", storage_policies="ignore", fail=True)
    assert "storage_policies" not in refused["next_step"]


def test_switched_off_nothing_is_asked(config, tagged, lab):
    off = {"tags": "ignore", "storage_policies": "ignore"}
    lab.requests(reset=True)
    captured = config("captured", moid=tagged.moid, **off)
    assert rest(lab) == {}
    assert not {"tags", "storage_policy", "notes"} & {key for key, value in captured["config"].items() if value}
    config("captured", moid=tagged.moid)
    lab.requests(reset=True)
    config("present", name=f"{tagged.name}-copy", **off)
    assert rest(lab) == {}
    assert "PbmQueryProfile" not in lab.requests()["methods"]
    assert tagged.govc_policies(f"{tagged.name}-copy") == ["None", "None", "None"]
    assert tagged.govc_tags(f"{tagged.name}-copy") == [""]


def test_the_cost_does_not_depend_on_the_inventory(config, tagged, lab):
    lab.requests(reset=True)
    config("captured", moid=tagged.moid)
    assert lab.requests()["total"] <= 8
    assert sum(rest(lab).values()) == 3 + 2 * len(TAGS)  # log-in, list, log-out; each tag and its category
    for number in range(3):
        lab.create_tag(f"{tagged.name} more {number}", "tag")
    lab.requests(reset=True)
    config("present", name=f"{tagged.name}-copy")
    assert sum(rest(lab).values()) == 2 + 2 * len(TAGS) + 3


def test_a_session_for_all_tasks_is_used(config, tagged, lab):
    args = lab.module_args()
    session = modules.run("vcenter_session", {**args, "automation": True})["session"]
    given = {"session": session, "username": None, "password": None}
    lab.requests(reset=True)
    captured = config("captured", moid=tagged.moid, **given)["config"]
    config("present", name=f"{tagged.name}-copy", **given)
    assert captured["notes"] == []
    assert not {"POST /api/session", "DELETE /api/session"} & set(rest(lab))
    modules.run("vcenter_session", {**args, "session": session, "state": "absent"})


@pytest.mark.parametrize(
    ("trouble", "lost", "said"),
    [
        (lambda lab: lab.fault(method="POST /api/session", status=503, count=0), "tags", "answered 503"),
        (lambda lab: lab.fault(method="POST /api/cis/tagging/tag-association", status=404, count=0), "tags", "7.0 Upd"),
        (
            lambda lab: lab.fault(
                method="POST /api/cis/tagging/tag-association", status=403, message=FORBIDDEN, count=0
            ),
            "tags",
            "no privilege",
        ),
        (
            lambda lab: lab.fault(
                method="PbmQueryAssociatedProfiles",
                fault="NoPermission",
                fields={"PrivilegeId": "StorageProfile.View"},
                count=0,
            ),
            "storage_policy",
            "lacks the privilege StorageProfile.View",
        ),
        (lambda lab: lab.fault(method="PbmRetrieveServiceContent", status=503, count=0), "storage_policy", "failed"),
    ],
    ids=["no service", "too old", "forbidden", "no privilege", "no policy service"],
)
def test_trouble_with_one_costs_nothing_else(config, tagged, lab, trouble, lost, said):
    whole = config("captured", moid=tagged.moid)["config"]
    trouble(lab)
    captured = config("captured", moid=tagged.moid)
    [note] = captured["config"]["notes"]
    assert said in note
    assert note in warnings(captured)
    assert lost not in captured["config"]
    assert {*whole} - {*captured["config"]} == {lost}


def test_a_disk_that_goes_meanwhile_is_told(config, tagged, lab):
    lab.before("PbmQueryAssociatedProfiles", "remove_disk", vm=tagged.moid, key=2001)
    captured = config("captured", moid=tagged.moid)["config"]
    assert captured["notes"] == ["The storage policy of Hard disk 2 is not captured: vCenter does not tell it."]
    assert captured["storage_policy"]["name"] == VSAN
    assert "storage_policy" not in captured["disks"][1]


@pytest.mark.parametrize("method", ["POST /api/session", "PbmQueryProfile", "POST /api/cis/tagging/tag-association"])
def test_trouble_costs_a_restore_no_more_than_a_warning(config, tagged, document, lab, method):
    lab.fault(method=method, status=503, count=0)
    made = config("present", name=f"{tagged.name}-copy")
    [warning] = warnings(made)
    assert ("storage policy" if method.startswith("Pbm") else tagged.tags[0]) in warning


def test_a_session_without_automation_is_told(config, tagged, lab):
    args = lab.module_args()
    session = modules.run("vcenter_session", args)["session"]
    captured = config("captured", moid=tagged.moid, session=session, username=None, password=None)["config"]
    [note] = captured["notes"]
    assert "automation: true" in note
    assert policies(captured) == [VSAN, VVOL, None]
    modules.run("vcenter_session", {**args, "session": session, "state": "absent"})


def test_a_host_on_its_own_has_neither(config, tagged, lab):
    config("captured", moid=tagged.moid)
    lab.nfc(esxi=True)
    made = config("present", name=f"{tagged.name}-copy")
    assert len(warnings(made)) == 2
    captured = config("captured", moid=tagged.moid)["config"]
    [note] = captured["notes"]
    assert note.startswith("Storage policies and tags are not captured")


def test_documents_of_before_ask_nothing(config, tagged, document, lab):
    def before(content):
        del content["tags"], content["storage_policy"], content["disks"][0]["storage_policy"]

    document(before)
    lab.requests(reset=True)
    assert warnings(config("present", name=f"{tagged.name}-copy")) == []
    assert rest(lab) == {}
    assert not [method for method in lab.requests()["methods"] if method.startswith("Pbm")]
