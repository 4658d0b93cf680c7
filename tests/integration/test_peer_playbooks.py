# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Playbooks written for the peers' snapshot modules run with ours: their documented options are taken, and their own
examples do what they are meant to do, with only the name of the module changed.

`make setup` brings the peers. What differs on purpose is in docs/porting.md, and no more than that here.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.holdfast.backup.tests.lab.client import BUILD

PEERS = {"community.vmware": "vmware_guest_snapshot", "vmware.vmware": "vm_snapshot"}
REVERT = ("vmware.vmware", "vm_snapshot_revert")
# Where the default is another one, or an option is not required, because that is the safer way.
OTHER_DEFAULTS = {"name_match": None, "description": None}
# Their examples in an order in which one run does them all, with what each must lead to: changed, snapshots then.
ORDER = [
    ("Remove a snapshot and snapshot subtree", True, ["current_snap_name", "tenth"]),
    ("Create a snapshot", True, ["current_snap_name", "snap1", "tenth"]),
    ("Rename a snapshot", True, ["im_renamed", "snap1", "tenth"]),
    (
        "Take snapshot of a VM using quiesce and memory flag on",
        True,
        ["dummy_vm_snap_0001", "im_renamed", "snap1", "tenth"],
    ),
    ("Revert to a snapshot", True, ["dummy_vm_snap_0001", "im_renamed", "snap1", "tenth"]),
    ("Remove a snapshot with a snapshot id", True, ["dummy_vm_snap_0001", "im_renamed", "snap1"]),
    ("Remove a snapshot", True, ["dummy_vm_snap_0001", "im_renamed"]),
    ("Remove all snapshots of a VM", True, []),
    ("Remove all snapshots of a VM using MoID", False, []),  # the peers call that changed
]


def constants(collection: str, module: str, place: str = "modules") -> dict[str, Any]:
    """The documents in a plugin's source."""
    path = BUILD / "peers" / "ansible_collections" / Path(*collection.split(".")) / "plugins" / place / f"{module}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.targets[0].id: yaml.safe_load(node.value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("DOCUMENTATION", "EXAMPLES")
        and isinstance(node.value, ast.Constant)
    }


def ours() -> dict[str, Any]:
    from ansible_collections.holdfast.backup.plugins.doc_fragments.vcenter import ModuleDocFragment as Vcenter
    from ansible_collections.holdfast.backup.plugins.doc_fragments.vm import ModuleDocFragment as Vm
    from ansible_collections.holdfast.backup.plugins.modules.vm_snapshot import DOCUMENTATION

    return {
        name: option
        for text in (DOCUMENTATION, Vm.DOCUMENTATION, Vcenter.DOCUMENTATION)
        for name, option in yaml.safe_load(text)["options"].items()
    }


@pytest.mark.parametrize(("collection", "module"), [*PEERS.items(), REVERT])
def test_every_option_alias_and_choice_is_taken(collection, module):
    fragment = constants("vmware.vmware", "base_options", "doc_fragments")
    theirs = {**constants(collection, module)["DOCUMENTATION"]["options"], **fragment["DOCUMENTATION"]["options"]}
    here = ours()
    assert set(theirs) <= set(here)
    for name, option in theirs.items():
        mine = here[name]
        assert mine["type"] == option["type"], name
        assert set(option.get("aliases", ())) <= set(mine.get("aliases", ())), name
        assert set(option.get("choices", ())) <= set(mine.get("choices", ())), name
        default = OTHER_DEFAULTS[name] if name in OTHER_DEFAULTS else option.get("default")
        assert mine.get("default") == default, name


@pytest.mark.parametrize("collection", PEERS)
def test_their_examples_run_with_only_the_name_of_the_module_changed(collection, lab, playbook, tmp_path):
    vm = lab.create_vm(
        f"ported-{collection}",
        disks=[1 << 20],
        folder="nested/folder/path",
        power="poweredOn",
        tools="running",
        memory_mb=8,
    )
    lab.take_snapshot(vm["moid"], "current_snap_name", description="old")
    for name in ("tenth", "snap1", "child"):
        lab.take_snapshot(vm["moid"], name)
    tenth = next(one["id"] for one in lab.snapshots(vm["moid"]) if one["name"] == "tenth")
    examples = {task["name"]: task for task in constants(collection, PEERS[collection])["EXAMPLES"]}
    order = [step for step in ORDER if step[0] in examples]
    assert {name for name, _changed, _left in order} == set(examples)

    tasks: list[dict[str, Any]] = []
    for number, (name, _changed, _left) in enumerate(order):
        options = dict(examples[name][f"{collection}.{PEERS[collection]}"])
        # An example invents its IDs.
        options.update({key: value for key, value in (("moid", vm["moid"]), ("snapshot_id", tenth)) if key in options})
        tasks.append({"name": name, "holdfast.backup.vm_snapshot": options, "register": f"step_{number}"})
    answer = tmp_path / "answer.json"
    results = "{{ [" + ", ".join(f"step_{number}" for number in range(len(order))) + "] | to_json }}"
    tasks.append({"ansible.builtin.copy": {"content": results, "dest": str(answer), "mode": "0600"}})
    playbook(
        [{"hosts": "localhost", "gather_facts": False, "tasks": tasks}],
        {
            "vcenter_hostname": lab.hostname,
            "vcenter_username": lab.username,
            "vcenter_password": lab.password,
            "datacenter_name": "DC0",
            "guest_name": vm["name"],
            "new_snapshot_description": "new",
        },
        env=lab.env(),
    )

    done = json.loads(answer.read_text(encoding="utf-8"))
    told = [(result["changed"], sorted(one["name"] for one in result["snapshots"])) for result in done]
    assert told == [(changed, left) for _name, changed, left in order]
    assert lab.snapshots(vm["moid"]) == []
    by_name = dict(zip((name for name, _changed, _left in order), done))
    assert by_name["Rename a snapshot"]["snapshot"]["description"] == "new"
    assert by_name["Create a snapshot"]["snapshot"]["description"] == "snap1_description"
    memory = by_name["Take snapshot of a VM using quiesce and memory flag on"]
    assert memory["snapshot"]["state"] == "poweredOn"
    # The forms in which they return it.
    assert memory["vm"].items() >= {"moid": vm["moid"], "name": vm["name"]}.items()
    assert set(memory["result"]) == {"completion_time", "entity_name", "error", "state"}
    assert (memory["result"]["state"], memory["result"]["entity_name"]) == ("success", vm["name"])
    assert memory["snapshot_results"]["current_snapshot"]["name"] == "dummy_vm_snap_0001"
    assert set(memory["snapshot_results"]["snapshots"][0]) == {
        "creation_time",
        "description",
        "id",
        "name",
        "quiesced",
        "state",
    }


def test_what_playbooks_of_users_do_with_the_answers(lab, playbook):
    """Ways of dealing with empty options, with a machine without snapshots and with times that were met in public."""
    vm = lab.create_vm("met-in-public", disks=[1 << 20], folder="linux/patched")
    snapshot, info = "holdfast.backup.vm_snapshot", "holdfast.backup.vm_snapshot_info"
    esxi = {"name": vm["name"], "folder": "", "datacenter": ""}
    lowest_folder = {"name": vm["name"], "folder": "patched", "datacenter": "DC0", "uuid": "", "moid": ""}
    unset = {"new_snapshot_name": "", "new_description": ""}
    age = "to_datetime('%Y-%m-%dT%H:%M:%S.%f%z')).tzinfo is defined"
    day = "{{ all.vmware_all_snapshots_info[0].creation_time[:10] }}"
    checks = [
        "first.guest_snapshots.current_snapshot is not defined",
        "made.snapshot_results.current_snapshot.description == 'before'",
        f"(made.snapshot_results.current_snapshot.creation_time | {age}",
        f"(made.result.completion_time | {age}",
        f"(one.guest_snapshots.snapshots[0].creation_time | {age}",
        f"(all.vmware_all_snapshots_info[0].creation_time | {age}",
        "there.msg is truthy and there is not changed",
        "exactly.totals.snapshots == 1 and that_day.totals.snapshots == 1",
        "gone.snapshot_results | length == 0 and gone.msg is falsy",
    ]
    tasks = [
        {info: esxi, "register": "first"},
        {snapshot: {**lowest_folder, **unset, "snapshot_name": "a", "description": "before"}, "register": "made"},
        {snapshot: {**esxi, **unset, "snapshot_name": "a", "description": "before"}, "register": "there"},
        {info: lowest_folder, "register": "one"},
        {info: {"datacenter": "DC0", "filters": {"vm_name": vm["name"]}}, "register": "all"},
        {
            info: {"filters": {"creation_time": "{{ all.vmware_all_snapshots_info[0].creation_time }}"}},
            "register": "exactly",
        },
        {info: {"match_type": "includes", "filters": {"creation_time": f"{day} "}}, "register": "that_day"},
        {snapshot: {**lowest_folder, "folder": "/DC0", "state": "remove_all"}, "register": "gone"},
        {"ansible.builtin.assert": {"that": checks}},
    ]
    playbook([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], env=lab.env())
    assert lab.snapshots(vm["moid"]) == []
