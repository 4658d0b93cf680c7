# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""native_access_info against the lab: how far it comes, whatever stands in the way, and what it leaves."""

from __future__ import annotations

import os

import pytest

MIB = 1 << 20


@pytest.fixture(scope="module")
def machine(_lab_of_file):
    vm = _lab_of_file.create_vm("checked", disks=[8 * MIB + 512])
    _lab_of_file.write(vm["moid"], vm["disks"][0]["key"], 0, os.urandom(MIB))
    return vm


@pytest.fixture
def check(lab, machine, run_module):
    lab.power(machine["moid"], "poweredOff")
    return lambda **options: run_module(
        "native_access_info", {**lab.module_args(), "moid": machine["moid"], **options}, check=True
    )


@pytest.mark.parametrize("transport", ["nbdssl", "nbd"])
def test_all_the_way(check, lab, transport):
    result = check(transport=transport)
    access = result["access"]
    assert not result["changed"]
    assert (result["esxi"]["name"][:4], result["esxi"]["version"][:2]) == ("DC0_", "8.")
    assert access.pop("rate") > 0
    assert access.pop("seconds") > 0
    assert access == {
        "works": True,
        "stage": "read",
        "problem": None,
        "next_step": None,
        "transport": transport,
        "host": lab.hostname,
        "port": lab.nfc_port,
        "nfc_version": 11,
        "buffer_size": 2 * MIB,
        "disk": "[LocalDS_0] checked/checked.vmdk",
        "capacity": 8 * MIB + 512,
        "bytes_read": 8 * MIB + 512,
    }
    assert lab.nfc()["closed"][0]["orderly"]
    assert lab.sessions() == []


def test_a_running_machine_without_a_snapshot(check, lab, machine):
    lab.power(machine["moid"], "poweredOn")
    access = check()["access"]
    assert (access["works"], access["stage"], access["bytes_read"]) == (True, "handshake", None)
    assert "snapshot" in access["problem"]


def test_a_running_machine_with_a_snapshot(check, lab, machine, run_module):
    lab.power(machine["moid"], "poweredOn")
    args = {**lab.module_args(), "moid": machine["moid"]}
    taken = run_module("vm_snapshot", {**args, "snapshot_name": "s", "stamp": {"job": "check"}})["snapshot"]["moid"]
    access = check(read_bytes=MIB)["access"]
    assert (access["works"], access["stage"], access["bytes_read"]) == (True, "read", MIB)
    run_module("vm_snapshot", {**args, "state": "absent", "snapshot_moid": taken})


def test_a_running_machine_whose_snapshots_are_none_of_its_past(check, lab, machine, run_module):
    """It was reverted to one that was removed then, so none is the current one."""
    lab.power(machine["moid"], "poweredOn")
    first, second = (lab.take_snapshot(machine["moid"], name) for name in ("first", "second"))
    args = {**lab.module_args(), "moid": machine["moid"]}
    run_module("vm_snapshot", {**args, "state": "revert", "snapshot_moid": first})
    lab.remove_snapshot(machine["moid"], first)
    lab.power(machine["moid"], "poweredOn")
    access = check(read_bytes=MIB)["access"]
    assert (access["works"], access["stage"], access["bytes_read"]) == (True, "read", MIB)
    lab.remove_snapshot(machine["moid"], second)


def test_a_machine_without_disks(check, lab):
    access = check(moid=lab.create_vm("no disks", disks=[])["moid"])["access"]
    assert (access["works"], access["stage"]) == (True, "handshake")
    assert access["problem"] == "Nothing was read: no disks has no disk that could be backed up."


@pytest.mark.parametrize(
    ("knobs", "stage", "words"),
    [
        ({"port_closed": True}, "connect", "refused"),
        ({"host": "no-such-host.invalid"}, "connect", "cannot be resolved"),
        ({"host": "esx01..example.com"}, "connect", "cannot be resolved"),
        ({"thumbprint": "AA:" * 19 + "AA"}, "thumbprint", "not AA:AA"),
        ({"no_ssl": True}, "authd", "nfcssl"),
        ({"maintenance": True}, "ticket", "The host DC0_"),
        ({"ticket_seconds": 0}, "authd", "530"),
        ({"capacity": 4 * MIB}, "capacity", "4194304"),
        ({"faults": [{"op": "read", "action": "drop", "count": 9}]}, "read", "512 bytes at 0"),
        ({"faults": [{"op": "open", "action": "error", "code": 3, "count": 9}]}, "open", "code 3"),
    ],
)
def test_what_stands_in_the_way_is_told(check, lab, knobs, stage, words):
    lab.nfc(**knobs)
    access = check()["access"]
    assert (access["works"], access["stage"], words in access["problem"]) == (False, stage, True), access
    assert access["next_step"]
    assert lab.sessions() == []


def test_playbook(lab, machine, playbook):
    lab.power(machine["moid"], "poweredOff")
    name = "holdfast.backup.connection_check"
    done = playbook(name, inventory="checked,", env=lab.env())
    for words in (
        '"VMware vCenter Server ',
        '"Host DC0_',
        f'"NFC of {lab.hostname}:{lab.nfc_port} by nbdssl: version 11, buffers of 2.00 MB"',
        '"Read 8.00 MB of [LocalDS_0] checked/checked.vmdk (8.00 MB) with ',
        '"The native access works. The last step: read"\n    ]',
    ):
        assert words in done.stdout
    lab.power(machine["moid"], "poweredOn")
    assert (
        "works as far as it was tried. The last step: handshake"
        in playbook(name, inventory="checked,", env=lab.env()).stdout
    )
    lab.nfc(no_ssl=True)
    failed = playbook(name, inventory="checked,", env=lab.env(), rc=2)
    assert "does not work. The last step: authd" in failed.stdout
    assert "transports: [nbd]" in failed.stdout
