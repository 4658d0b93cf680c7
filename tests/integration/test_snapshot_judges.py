# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Others' software judges our snapshots: govc and the peers' own modules read what ours leave, and ours take over
what they leave.

The peers are community.vmware and vmware.vmware; `make setup` brings them and govc. Their modules run as programs of
their own, without Ansible around them, because they keep sessions open until their process ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import stamps
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.govc import govc
from ansible_collections.holdfast.backup.tests.lab.client import BUILD, REPOSITORY, Lab

MIB = 1 << 20
RUNNER = REPOSITORY / "tests" / "benchmarks" / "module_main.py"
COMMUNITY, VMWARE = "community.vmware.vmware_guest_snapshot", "vmware.vmware.vm_snapshot"
NAMES = {
    "slashes": "VM Snapshot 11/26/2026, 3:40 PM",
    "percent": "100% done, 50 %",
    "backslash": "c:\\temp \\\\ 'x' \"y\" <&>",
    "letters": "Größe ✓ 快照 ñ",
}


class Machine:
    """A VM of the lab, and everybody's way to its snapshots."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name = lab, name
        spec = {"disks": [MIB], "power": "poweredOn", "tools": "running", "memory_mb": 8}
        self.moid: str = lab.create_vm(name, **spec)["moid"]

    # everybody's tools

    def ours(self, module: str = "vm_snapshot", **options: Any) -> dict[str, Any]:
        return modules.run(module, {**self.lab.module_args(), "moid": self.moid, **options})

    def peer(self, module: str, **options: Any) -> dict[str, Any]:
        connection = {key: value for key, value in self.lab.module_args().items() if key != "ca_path"}
        collection, dummy, name = module.rpartition(".")
        place = (
            {"datacenter": "DC0"} if name == "vmware_all_snapshots_info" else {"datacenter": "DC0", "moid": self.moid}
        )
        args = {**connection, **place, **options}
        task = {"module": f"ansible_collections.{collection}.plugins.modules.{name}", "args": args}
        path = os.pathsep.join(str(BUILD / name) for name in ("collections", "peers"))
        environment = {**os.environ, "PYTHONPATH": path, "SSL_CERT_FILE": self.lab.ca_file}
        command = [sys.executable, str(RUNNER)]
        done = subprocess.run(
            command, input=json.dumps(task), env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    def govc(self, command: str, *words: str) -> str:
        return govc(self.lab, command, "-vm", self.name, *words)

    # what each says

    def agreed(self) -> list[dict[str, Any]]:
        """Our snapshots, when all judges see the same; parents come first."""
        with ThreadPoolExecutor() as pool:
            community = pool.submit(self.peer, f"{COMMUNITY}_info")
            vmware = pool.submit(self.peer, f"{VMWARE}_info")
            tree = pool.submit(self.govc, "snapshot.tree", "-json", "-i", "-d", "-D")
            ours = self.ours("vm_snapshot_info")["snapshots"]
        assert _flat(json.loads(tree.result() or "[]")) == _as_govc(ours)
        simple = [_as_peers(one) for one in ours]
        current = [_as_peers(one) for one in ours if one["current"]]
        kin = [(one["parent_id"], one["child_ids"]) for one in ours]
        said = community.result()["guest_snapshots"]
        assert [_as_peers(one) for one in said.get("snapshots", [])] == simple
        assert [_as_peers(one) for one in [said.get("current_snapshot")] if one] == current
        said = vmware.result()
        assert [_as_peers(one) for one in said["snapshots"]] == simple
        assert [_as_peers(one) for one in [said["current_snapshot"]] if one] == current
        assert [(one["parent_id"], one["child_ids"]) for one in said["snapshots"]] == kin
        return ours


def _flat(tree: list[dict[str, Any]], parent: str | None = None) -> list[tuple[Any, ...]]:
    """What govc says, as :func:`_as_govc`."""
    found: list[tuple[Any, ...]] = []
    for one in tree:
        text = stamps.split(one["description"])[0]
        found.append((parent, one["id"], one["name"], text, one["current"], _seconds(one["createTime"])))
        found += _flat(one["childSnapshotList"] or [], one["id"])
    return found


def _as_govc(ours: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Each snapshot with its parent's and its own managed object ID."""
    moids = {one["id"]: one["moid"] for one in ours}
    return [
        (
            moids.get(one["parent_id"]),
            one["moid"],
            one["name"],
            one["description"],
            one["current"],
            _seconds(one["creation_time"]),
        )
        for one in ours
    ]


def _as_peers(one: dict[str, Any]) -> dict[str, Any]:
    kept = {key: one[key] for key in ("id", "name", "state", "quiesced")}
    return {**kept, "description": stamps.split(one["description"])[0], "created": _seconds(one["creation_time"])}


def _seconds(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(microsecond=0)


@pytest.fixture
def machine(lab: Lab, request: pytest.FixtureRequest) -> Machine:
    return Machine(lab, request.node.name.removeprefix("test_"))


def test_what_ours_leave(machine: Machine) -> None:
    assert machine.agreed() == []
    for name, options in (
        ("base", {"description": "before: 50 % / ü", "memory_dump": True}),
        (NAMES["slashes"], {"quiesce": True}),
        (NAMES["percent"], {"description": "kept"}),
        (NAMES["backslash"], {}),
        (NAMES["letters"], {"description": "größer\nthan life", "stamp": {"job": "nightly", "expires_in": "1d"}}),
    ):
        assert machine.ours(snapshot_name=name, **options)["changed"]
    seen = machine.agreed()
    assert [one["name"] for one in seen] == ["base", *NAMES.values()]
    assert [one["depth"] for one in seen] == [1, 2, 3, 4, 5]
    assert [one["quiesced"] for one in seen] == [False, True, False, False, False]
    assert [one["state"] for one in seen] == ["poweredOn"] + ["poweredOff"] * 4
    assert seen[4]["description"] == "größer\nthan life"

    # Renamed, described and cleared.
    machine.lab.requests(reset=True)
    renamed = machine.ours(snapshot_name=NAMES["percent"], new_snapshot_name="50%/50\\")
    assert machine.lab.requests()["total"] <= 5
    assert renamed["snapshot"]["disks"] == seen[2]["disks"]
    assert renamed["snapshot"]["disks"] != seen[3]["disks"]
    machine.ours(snapshot_name=NAMES["backslash"], description="c:\\x / 100%")
    machine.ours(snapshot_name="base", description="")
    seen = machine.agreed()
    assert [one["name"] for one in seen[1:4]] == [NAMES["slashes"], "50%/50\\", NAMES["backslash"]]
    assert [one["description"] for one in seen[:4]] == ["", "", "kept", "c:\\x / 100%"]

    # Reverted to, with a second branch, and one that goes from the middle of the first.
    assert machine.ours(state="revert", snapshot_name="base")["changed"]
    assert machine.lab.vm(machine.moid)["power"] == "poweredOn"
    assert [one["name"] for one in machine.agreed() if one["current"]] == ["base"]
    machine.ours(snapshot_name="branch")
    machine.ours(state="absent", snapshot_name="50%/50\\")
    seen = machine.agreed()
    assert [(one["name"], one["depth"], one["current"]) for one in seen] == [
        ("base", 1, False),
        (NAMES["slashes"], 2, False),
        (NAMES["backslash"], 3, False),
        (NAMES["letters"], 4, False),
        ("branch", 2, True),
    ]

    # A branch goes, then everything.
    machine.ours(state="absent", snapshot_name=NAMES["slashes"], remove_children=True)
    assert [one["name"] for one in machine.agreed()] == ["base", "branch"]
    machine.ours(state="absent", remove_all=True)
    assert machine.agreed() == []


def test_as_deep_as_may_be_and_what_retention_leaves(machine: Machine) -> None:
    for number in range(30):
        machine.lab.take_snapshot(machine.moid, f"daily {number:02}", age=(30 - number) * 86400)
    machine.ours(snapshot_name="the 31st")
    assert machine.agreed()[-1]["depth"] == 31
    assert machine.peer(VMWARE, snapshot_name="the 32nd")["changed"]
    with pytest.raises(modules.ModuleFailed, match="32"):
        machine.ours(snapshot_name="one too many")
    machine.ours(state="absent", name_pattern="daily *", older_than="10d12h", keep_last=3)
    seen = machine.agreed()
    assert [one["name"] for one in seen] == [
        *(f"daily {number:02}" for number in range(20, 30)),
        "the 31st",
        "the 32nd",
    ]
    assert [one["depth"] for one in seen] == list(range(1, 13))


def test_what_others_leave(machine: Machine) -> None:
    assert machine.peer(COMMUNITY, snapshot_name="a/b 50%", description="theirs / ü")["changed"]
    assert machine.peer(VMWARE, snapshot_name=NAMES["letters"], memory_dump=True)["changed"]
    machine.govc("snapshot.create", "-m=false", "-d", "by govc", "c:\\d")
    seen = machine.agreed()
    assert [(one["name"], one["description"]) for one in seen] == [
        ("a/b 50%", "theirs / ü"),
        (NAMES["letters"], ""),
        ("c:\\d", "by govc"),
    ]
    for one in seen:  # ours know them, and change them
        assert not machine.ours(snapshot_name=one["name"])["changed"]
        assert machine.ours(snapshot_name=one["name"], new_snapshot_name=f"{one['name']}!")["renamed"]
    assert [(one["name"], one["description"]) for one in machine.agreed()] == [
        ("a/b 50%!", "theirs / ü"),
        (f"{NAMES['letters']}!", ""),
        ("c:\\d!", "by govc"),
    ]

    # They change ours, and ours see it.
    machine.ours(snapshot_name="mine", description="why")
    assert machine.peer(VMWARE, snapshot_name="mine", new_snapshot_name="yours / 2")["changed"]
    assert not machine.ours(snapshot_name="yours / 2", description="why")["changed"]
    assert machine.peer("vmware.vmware.vm_snapshot_revert", snapshot_name=f"{NAMES['letters']}!")["changed"]
    assert machine.ours("vm_snapshot_info")["current_snapshot"]["name"] == f"{NAMES['letters']}!"
    machine.ours(snapshot_name="branch", stamp={"job": "nightly", "run": "1"})
    machine.govc("snapshot.revert", "a/b 50%!")
    assert machine.peer(COMMUNITY, state="absent", snapshot_name="c:\\d!", remove_children=True)["changed"]
    assert [one["name"] for one in machine.agreed()] == ["a/b 50%!", f"{NAMES['letters']}!", "branch"]
    assert [one["name"] for one in machine.ours(state="absent", stamp={"job": "nightly"})["removed"]] == ["branch"]

    # A server that stores names as it stores those of VMs.
    machine.lab.tracking(escape_names=True)
    assert machine.peer(COMMUNITY, snapshot_name="x/y")["changed"]
    assert not machine.ours(snapshot_name="x/y")["changed"]
    assert "x%2fy" in machine.govc("snapshot.tree")
    everything = machine.peer("community.vmware.vmware_all_snapshots_info")["vmware_all_snapshots_info"]
    bulk = machine.ours("vm_snapshot_info", moid=None)["virtual_machines"]
    told = sorted((one["vm_name"], one["id"], one["name"].replace("%2f", "/")) for one in everything)
    assert told == sorted((vm["vm"]["name"], one["id"], one["name"]) for vm in bulk for one in vm["snapshots"])
    assert machine.ours(state="absent", snapshot_name="x/y")["changed"]
    assert machine.peer(COMMUNITY, state="remove_all")["changed"]
    assert not machine.ours(state="absent", remove_all=True)["changed"]
