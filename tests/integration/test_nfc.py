# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vddk_copy by the native access, when hosts, networks and snapshots do what they should not.

What it does on good days is in test_vddk_copy.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import nfc_disk
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.nfc_interface import NfcError, Ticket
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import (
    changed_areas,
    disk_owners,
    nfc_tickets,
    tasks,
)
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.running import once
from ansible_collections.holdfast.backup.tests.lab.client import BUILD

MIB = 1 << 20


class Machine:
    """A running VM of the lab with one disk, a snapshot of it, and the way to copy that."""

    def __init__(self, lab, run_module, directory: Path, name: str, **spec: Any) -> None:
        self.lab, self.run_module, self.directory = lab, run_module, directory
        vm = lab.create_vm(name, disks=[24 * MIB + 512], tracking=True, power="poweredOn", **spec)
        self.name, self.moid, self.key = name, vm["moid"], vm["disks"][0]["key"]
        lab.write(self.moid, self.key, 0, os.urandom(16 * MIB))
        lab.write(self.moid, self.key, 24 * MIB, b"the end")
        stamp = {"snapshot_name": "s", "stamp": {"job": "nfc"}}
        self.snapshot = run_module("vm_snapshot", self.args(**stamp))["snapshot"]["moid"]

    def args(self, **options: Any) -> dict[str, Any]:
        return {**self.lab.module_args(), "moid": self.moid, **options}

    def copy(self, fail: bool = False, **options: Any) -> dict[str, Any]:
        given = {
            "snapshot": self.snapshot,
            "access": "native",
            "image_dir": str(self.directory),
            "disks": [{"disk": self.key}],
            **options,
        }
        return self.run_module("vddk_copy", self.args(**given), fail=fail)

    def is_copied(self, result: dict[str, Any]) -> bool:
        """Whether the image holds what the snapshot holds."""
        raw = self.directory / "content.raw"
        command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", result["disks"][0]["image"], raw]
        subprocess.run(command, check=True)
        return raw.read_bytes()[: 24 * MIB + 512] == self.lab.read(self.moid, self.key, snapshot=self.snapshot)


@pytest.fixture
def machine(lab, run_module, tmp_path, request):
    return Machine(lab, run_module, tmp_path, f"vm {len(request.node.name)} {time.monotonic_ns()}")


def test_without_a_library_the_native_way_is_taken(machine, monkeypatch):
    """By TLS, whatever stands behind it in transports."""
    monkeypatch.delenv("VDDK_LIBDIR", raising=False)
    result = machine.copy(access="auto")
    disk = result["disks"][0]
    assert (disk["access"], disk["transport"], disk["allocation"]) == ("native", "nbdssl", "change_tracking")
    assert machine.is_copied(result)
    assert disk["bytes_read"] < 20 * MIB
    assert machine.lab.sessions() == []
    audit, copy = machine.lab.nfc()["closed"]
    for session in (audit, copy):
        assert (session["orderly"], session["transport"], session["write"]) == (True, "nbdssl", False)
        assert "password" not in str(session)
    assert audit["bytes_read"] <= MIB
    assert copy["bytes_packed"] == 0


@pytest.mark.parametrize("transports", [["hotadd"], ["nbdssl", "san"], []])
def test_transports_that_only_vddk_has(machine, transports):
    failed = machine.copy(transports=transports, fail=True)
    assert failed["error_type"] == "InvalidInput"
    assert "native access" in failed["msg"]


def test_nothing_is_known_of_areas_in_use(lab, run_module, tmp_path):
    """Without change tracking all is read, and zeros take no room."""
    vm = lab.create_vm("untracked", disks=[24 * MIB + 512], power="poweredOn")
    moid, key = vm["moid"], vm["disks"][0]["key"]
    lab.write(moid, key, MIB, b"something")
    args = {**lab.module_args(), "moid": moid}
    taken = run_module("vm_snapshot", {**args, "snapshot_name": "s", "stamp": {"job": "nfc"}})["snapshot"]["moid"]
    copied = run_module(
        "vddk_copy",
        {**args, "snapshot": taken, "access": "native", "image_dir": str(tmp_path), "disks": [{"disk": key}]},
    )["disks"][0]
    assert (copied["allocation"], copied["bytes_read"]) == ("none", 24 * MIB + 512)
    assert copied["bytes_stored"] < MIB


@pytest.fixture
def forgetful(machine, monkeypatch):
    """The query for the areas in use leaves out the first 16 MiB, which are."""
    real = changed_areas.in_use
    monkeypatch.setattr(changed_areas, "in_use", lambda *asked: [area for area in real(*asked) if area[0] >= 16 * MIB])
    return machine


def test_areas_in_use_that_are_left_out(forgetful):
    """What is said to be unused is looked at before it is taken for zeros."""
    result = forgetful.copy()
    disk = result["disks"][0]
    assert (disk["kind"], disk["allocation"], disk["bytes_read"]) == ("full", "none", 24 * MIB + 512)
    assert re.search(r"at least \d+ of 16 samples outside .* hold data, the first at byte \d+", disk["warnings"][0])
    assert (disk["audit"], bool(disk["change_id"])) == (None, True)
    assert forgetful.is_copied(result)
    assert forgetful.copy()["disks"] == [{**disk, "changed": False}]


def test_without_that_look_the_image_is_wrong(forgetful):
    """As the user chose."""
    result = forgetful.copy(audit=0)
    assert result["disks"][0]["allocation"] == "change_tracking"
    assert not forgetful.is_copied(result)


def test_interrupted_after_that_look(forgetful):
    """All of the disk is read in the end, too."""
    forgetful.lab.nfc(
        faults=[{"op": "read", "action": "error", "code": 7, "start": 24 * MIB, "length": 512, "count": 99}]
    )
    forgetful.copy(fail=True, audit_max=MIB, request_depth=1)
    forgetful.lab.nfc(faults=[])
    again = forgetful.copy(audit_max=MIB)
    assert (again["disks"][0]["resumed"], again["disks"][0]["allocation"]) == (True, "none")
    assert forgetful.is_copied(again)


def test_a_disk_above_another_snapshot_is_read_in_full(machine, run_module):
    """Tracking may have begun below it, and then knows nothing of what was written before."""
    machine.snapshot = run_module("vm_snapshot", machine.args(snapshot_name="second"))["snapshot"]["moid"]
    result = machine.copy()
    disk = result["disks"][0]
    assert (disk["allocation"], disk["bytes_read"]) == ("none", 24 * MIB + 512)
    assert "earlier snapshot" in disk["warnings"][0]
    assert machine.is_copied(result)


def test_paths_with_spaces_and_letters_of_all_kinds(lab, run_module, tmp_path):
    machine = Machine(lab, run_module, tmp_path, "Zürich 東京 (büro)")
    assert machine.is_copied(machine.copy())
    assert "東京" in machine.lab.nfc()["closed"][0]["path"]


@pytest.mark.parametrize("order", ["reversed", "mixed"])
@pytest.mark.parametrize("transport", ["nbd", "nbdssl"])
def test_fragments_in_any_order(machine, order, transport):
    machine.lab.nfc(order=order, fragment=16384, latency_ms=5)
    result = machine.copy(transports=[transport], request_size=MIB)
    assert machine.is_copied(result)
    assert machine.lab.nfc()["max_in_flight"] > 1


def test_a_host_that_packs(machine):
    """By FastLZ's own library it is unpacked to the same, whatever the size of the fragments."""
    text = b"".join(b"line %d of a file\n" % line for line in range(400_000))
    machine.lab.write(machine.moid, machine.key, MIB, text)
    machine.run_module("vm_snapshot", machine.args(state="absent", snapshot_moid=machine.snapshot))
    machine.snapshot = machine.run_module("vm_snapshot", machine.args(snapshot_name="t"))["snapshot"]["moid"]
    for fragment in (4096, 60 << 10, 2 << 20):
        machine.lab.nfc(reset=True, fragment=fragment)
        image_dir = machine.directory / str(fragment)
        image_dir.mkdir()
        library = str(BUILD / "fastlz" / "libfastlz.so")
        assert machine.is_copied(machine.copy(native_fastlz_library=library, image_dir=str(image_dir)))
        report = machine.lab.nfc()
        packed = sum(session["bytes_packed"] for session in report["closed"])
        assert (report["violations"], MIB < packed < len(text) // 2) == ([], True)


def test_no_library_to_unpack(machine):
    failed = machine.copy(native_fastlz_library="libno-such-library.so", fail=True)
    assert (failed["error_type"], "FastLZ library" in failed["msg"]) == ("InvalidInput", True)
    assert machine.lab.nfc()["connections"] == 0


@pytest.mark.parametrize("action", ["drop", "close", "torn", "garbage"])
@pytest.mark.parametrize("transport", ["nbd", "nbdssl"])
def test_connections_that_break(machine, action, transport):
    """A new ticket, a new connection, and the range again."""
    times = 1 if action == "garbage" else 2
    machine.lab.nfc(faults=[{"op": "read", "action": action, "start": 8 * MIB, "length": 65536, "count": times}])
    result = machine.copy(transports=[transport])
    assert machine.is_copied(result)
    assert machine.lab.nfc()["tickets"] >= 2
    assert result["disks"][0]["warnings"]


def test_connections_that_never_hold_end_the_copy(machine, monkeypatch):
    machine.lab.nfc(faults=[{"op": "read", "action": "error", "code": 7, "start": 8 * MIB, "length": 512, "count": 99}])
    failed = machine.copy(fail=True)
    assert (failed["error_type"], failed["failed_disks"][0]["code"]) == ("CopyFailed", 7)
    assert f"{machine.name}" in failed["msg"]
    machine.lab.nfc(faults=[])
    again = machine.copy()
    assert again["disks"][0]["resumed"]
    assert machine.is_copied(again)


def test_a_host_short_of_memory_gets_fewer_requests(machine):
    machine.lab.nfc(memory=MIB)
    result = machine.copy(request_size=512 << 10, request_depth=16)
    assert machine.is_copied(result)
    assert machine.lab.nfc()["closed"][-1]["max_in_flight"] <= 2


def test_buffers_step_down_to_what_the_host_accepts(machine):
    machine.lab.nfc(max_buffer=256 << 10)
    assert machine.is_copied(machine.copy())
    assert machine.lab.nfc()["closed"][-1]["buffer"] == 256 << 10


def test_silence_is_no_refusal_of_a_buffer(lab):
    """A host that hangs would be asked for six sizes each time, and get a small one when it comes to itself."""
    vm = lab.create_vm("silent", disks=[MIB])
    lab.nfc(faults=[{"op": "session", "action": "hang", "count": 9}])
    with Connection(Endpoint(**lab.module_args())) as c:
        tickets = nfc_tickets.NfcTickets(c)
        with pytest.raises(NfcError, match="did not answer in time"):
            nfc_disk.begin(lambda: Ticket.parse(tickets.get(vm["moid"])), "nbdssl", 0.5, 2 * MIB)
    assert lab.nfc()["connections"] == 1


def test_a_ticket_that_expires_before_its_use(machine):
    machine.lab.nfc(ticket_seconds=0)
    failed = machine.copy(fail=True)
    assert failed["error_type"] == "AuthenticationFailed"
    assert "530" in failed["msg"]
    assert 1 < machine.lab.nfc()["tickets"] < 9


@pytest.mark.parametrize(
    ("knobs", "kind", "words"),
    [
        ({"thumbprint": "AA:" * 19 + "AA"}, "CertificateRejected", "thumbprint"),
        ({"certificate_authd": True}, "CertificateRejected", "thumbprint"),
        ({"certificate_nfc": True}, "CertificateRejected", "thumbprint"),
        ({"no_ssl": True}, "NotSupported", "nfcssl"),
        ({"maintenance": True}, "VsphereFault", "maintenance mode"),
        ({"host": "no-such-host.invalid"}, "ConnectionFailed", "cannot be resolved"),
        ({"host": "esx01..example.com"}, "ConnectionFailed", "cannot be resolved"),
        ({"capacity": 16 * MIB}, "CopyFailed", "16777216 bytes instead of"),
    ],
)
def test_refusals(machine, knobs, kind, words):
    """Each with its kind and its next step, soon, and with no image left that looks like one."""
    machine.lab.nfc(**knobs)
    failed = machine.copy(fail=True)
    assert (failed["error_type"], words in failed["msg"]) == (kind, True), failed["msg"]
    assert failed["next_step"]
    assert machine.lab.sessions() == []


def test_a_host_without_tls_is_never_read_in_plain_text_unasked(machine):
    machine.lab.nfc(no_ssl=True)
    failed = machine.copy(transports=["nbdssl", "nbd"], fail=True)
    assert "transports: [nbd]" in failed["next_step"]
    assert machine.lab.nfc()["reads"] == 0
    assert machine.is_copied(machine.copy(transports=["nbd"]))


def test_a_ticket_with_a_certificate(machine):
    """Instead of its thumbprint; and it is looked at."""
    machine.lab.nfc(ticket_pem=True)
    assert machine.is_copied(machine.copy())
    machine.lab.nfc(certificate_nfc=True)
    other = machine.directory / "other"
    other.mkdir()
    assert machine.copy(image_dir=str(other), fail=True)["error_type"] == "CertificateRejected"


def test_a_standalone_host(machine):
    """Its tickets name no host, so it is the one that was logged in to, and another service."""
    machine.lab.nfc(esxi=True)
    assert machine.is_copied(machine.copy())


def test_a_port_that_is_closed(machine, monkeypatch):
    machine.lab.nfc(port_closed=True)
    began = time.monotonic()
    failed = machine.copy(fail=True, timeout=600)
    assert failed["error_type"] == "ConnectionFailed"
    assert "902" in failed["next_step"]
    assert time.monotonic() - began < 200


def test_a_snapshot_that_is_removed_in_the_middle(machine):
    """The cause is told, and the disk is not read on in another state."""
    machine.lab.nfc(latency_ms=50)

    def remove() -> None:
        with Connection(Endpoint(**machine.lab.module_args())) as c:
            c.call(vim.vm.Snapshot(machine.snapshot, c.stub).RemoveSnapshot_Task, True)

    with once(lambda: machine.lab.nfc()["reads"] > 10, remove):
        failed = machine.copy(fail=True, request_size=65536, request_depth=1)
    assert failed["error_type"] in ("CopyFailed", "NotFound")
    assert failed["next_step"]


def test_a_snapshot_that_went_before_the_end(machine, monkeypatch):
    """Hosts may read on in a file that others write to by then."""
    module = modules.load("vddk_copy")
    real = module.jobs.run_all

    def run_all(*arguments: Any) -> Any:
        results = real(*arguments)
        with Connection(Endpoint(**machine.lab.module_args())) as c:
            tasks.wait(c, c.call(vim.vm.Snapshot(machine.snapshot, c.stub).RemoveSnapshot_Task, True), timeout=300)
        return results

    monkeypatch.setattr(module.jobs, "run_all", run_all)
    failed = machine.copy(fail=True)
    assert failed["error_type"] == "NotFound"
    assert machine.snapshot in failed["msg"]


def test_what_is_killed_leaves_nothing_that_runs(machine, tmp_path):
    """The plugin ends with the module, and the host closes the disk."""
    machine.lab.nfc(latency_ms=100)
    code = (
        "import json, sys; from ansible_collections.holdfast.backup.tests import modules;"
        "modules.run('vddk_copy', json.loads(sys.argv[1]))"
    )
    options = {
        "snapshot": machine.snapshot,
        "access": "native",
        "image_dir": str(tmp_path),
        "disks": [{"disk": machine.key}],
        "request_size": 65536,
        "request_depth": 1,
    }
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(machine.args(**options))])
    deadline = time.monotonic() + 30
    while machine.lab.nfc()["reads"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while machine.lab.nfc()["open"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    machine.lab.nfc(latency_ms=0)
    assert machine.is_copied(machine.copy())


def test_a_session_that_ended_is_renewed_for_the_next_ticket(machine, monkeypatch):
    """A copy may take longer than vCenter keeps a session."""
    machine.lab.nfc(faults=[{"op": "read", "action": "drop", "start": 8 * MIB, "length": 65536, "count": 1}])
    real = nfc_tickets.NfcTickets.get

    def after_the_session_ended(self, *arguments):
        machine.lab.expire_sessions()
        return real(self, *arguments)

    monkeypatch.setattr(nfc_tickets.NfcTickets, "get", after_the_session_ended)
    assert machine.is_copied(machine.copy())
    assert machine.lab.sessions() == []


def test_the_session_is_used_in_the_middle_of_a_long_copy(machine, monkeypatch):
    """Else vCenter would end it, and who shares it would find it gone."""
    monkeypatch.setattr(nfc_tickets, "KEEP_ALIVE", 0.1)
    module = modules.load("vddk_copy")
    real = module.jobs.run_all

    def run_all(*arguments: Any) -> Any:
        results = real(*arguments)
        machine.lab.requests(reset=True)
        deadline = time.monotonic() + 30
        while not machine.lab.requests()["total"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return results

    monkeypatch.setattr(module.jobs, "run_all", run_all)
    assert machine.is_copied(machine.copy())


def test_a_live_disk_is_not_read(machine, monkeypatch):
    """Even if a snapshot were to name its file; a host would refuse it without saying why."""
    (live,) = (disk["path"] for disk in machine.lab.vm(machine.moid)["disks"])
    real = disk_owners.VmOwner.in_snapshot

    def in_snapshot(self, snapshot):
        disks, host = real(self, snapshot)
        return [replace(disk, path=live) for disk in disks], host

    monkeypatch.setattr(disk_owners.VmOwner, "in_snapshot", in_snapshot)
    failed = machine.copy(fail=True)
    assert failed["error_type"] == "NotSupported"
    assert f"{machine.name} Hard disk 1 is written to by the running virtual machine" in failed["msg"]
    assert machine.lab.nfc()["tickets"] == 0


def test_a_live_disk_is_refused_before_any_connection(lab, run_module, tmp_path):
    machine = Machine(lab, run_module, tmp_path, "live")
    machine.run_module("vm_snapshot", machine.args(state="absent", snapshot_moid=machine.snapshot))
    options = {"direction": "restore", "snapshot": None, "disks": [{"disk": machine.key, "image": "/nowhere.qcow2"}]}
    failed = machine.copy(fail=True, **options)
    assert "not powered off" in failed["msg"]
    assert machine.lab.nfc()["tickets"] == 0
