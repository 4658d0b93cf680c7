# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VDDK plugin and the lab's vCenter: who may open what, what is read, what becomes of open disks."""

from __future__ import annotations

import os
import random
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.holdfast.backup.tests.integration.running import wait_for
from ansible_collections.holdfast.backup.tests.lab.client import Lab
from ansible_collections.holdfast.backup.tests.lab.vddk.server import Server

MIB = 1 << 20
CAPACITY = 16 * MIB
DATA = random.Random(5).randbytes(4 * MIB)


class Guest:
    """A VM with one disk that holds data, and one snapshot of it."""

    def __init__(self, lab: Lab, run_module: Callable[..., dict[str, Any]], **spec: Any) -> None:
        self.lab, self._run = lab, run_module
        given = {"disks": [CAPACITY], "power": "poweredOn", "tracking": True, **spec}
        record = lab.create_vm(f"vddk-{uuid.uuid4().hex[:8]}", **given)
        self.moid, self.key = record["moid"], record["disks"][0]["key"]
        lab.write(self.moid, self.key, 2 * MIB, DATA)
        self.snapshot = self.run("vm_snapshot", state="present", snapshot_name="s")["snapshot"]

    def run(self, module: str, **args: Any) -> dict[str, Any]:
        return self._run(module, {**self.lab.module_args(), "moid": self.moid, **args})

    def serve(self, root: Path, **changes: Any) -> Server:
        """A server of the disk in the snapshot."""
        document = {
            "library_dir": self.lab.vddk_libdir,
            "server": self.lab.hostname,
            "port": self.lab.port,
            "username": self.lab.username,
            "password": self.lab.password,
            "thumbprint": self.lab.thumbprint,
            "vm": self.moid,
            "snapshot": self.snapshot["moid"],
            "path": self.snapshot["disks"][0]["path"],
            "capacity": CAPACITY,
        }
        return Server(root, {**document, **changes})

    def live_path(self) -> str:
        return self.lab.vm(self.moid)["disks"][0]["path"]


@pytest.fixture
def guest(lab, run_module):
    return Guest(lab, run_module)


def start_slow_copy(lab: Lab, server: Server) -> subprocess.Popen[str]:
    """A copy that is in the middle of its work when this returns."""
    lab.vddk(latency_ms=100, in_flight=1)
    command = ["nbdcopy", "--request-size=65536", "--", "[", *server.command(), "]", "null:"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: lab.vddk()["open"])
    time.sleep(0.3)
    return process


def test_a_snapshot_is_read_as_it_was_taken(lab, guest, tmp_path):
    lab.write(guest.moid, guest.key, 3 * MIB, b"later" * 1000)
    server = guest.serve(tmp_path)
    assert server.copy().stderr == ""
    content = (tmp_path / "copy.raw").read_bytes()
    assert content == bytes(2 * MIB) + DATA + bytes(CAPACITY - 2 * MIB - len(DATA))
    report = lab.vddk()
    assert (report["opens"], report["open"], report["violations"]) == (1, [], [])
    assert int(report["closed"][0]["bytes_read"]) < 6 * MIB


@pytest.mark.parametrize(
    ("change", "stage", "code", "hint"),
    [
        ({"thumbprint": "00:11:22"}, "open", 1, "thumbprint"),
        ({"password": "wrong"}, "connect", 3014, "password"),
        ({"username": "nobody"}, "connect", 3014, "password"),
        ({"server": "127.0.0.2"}, "connect", 18000, "443"),
        ({"vm": "vm-99999"}, "open", 4000, "has gone"),
        ({"snapshot": "snapshot-99999"}, "open", 13003, "has gone"),
        ({"path": "[LocalDS_0] nowhere/a.vmdk"}, "open", 4, "has gone"),
    ],
)
def test_what_may_not_be_opened_is_explained(lab, guest, tmp_path, change, stage, code, hint):
    server = guest.serve(tmp_path, retries=0, **change)
    assert server.copy().returncode != 0
    error = server.error()
    assert (error["stage"], error["code"]) == (stage, code)
    assert hint in error["hint"]
    assert lab.vddk()["open"] == []
    if "password" in change:
        assert change["password"] not in server.status_file.read_text()


def test_the_live_disk_of_a_running_vm_is_refused(guest, tmp_path):
    server = guest.serve(tmp_path, retries=0, snapshot=None, path=guest.live_path())
    assert server.copy().returncode != 0
    assert server.error()["stage"] == "open"


@pytest.mark.parametrize("loss", ["snapshot", "vm"])
def test_reading_ends_when_the_disk_is_gone(lab, guest, tmp_path, loss):
    server = guest.serve(tmp_path, retries=1)
    with start_slow_copy(lab, server) as process:
        if loss == "vm":
            lab.destroy_vm(guest.moid)
        else:
            guest.run("vm_snapshot", state="absent", snapshot_id=guest.snapshot["id"])
        assert process.wait(20) != 0
    assert server.error()["stage"] in ("read", "open")
    wait_for(lambda: not lab.vddk()["open"])


def test_a_broken_connection_is_made_again(lab, guest, tmp_path):
    server = guest.serve(tmp_path)
    with start_slow_copy(lab, server) as process:
        lab.vddk(break_handles=14011, latency_ms=0, in_flight=8)
        assert process.wait(20) == 0
    assert [each["generation"] for each in server.events("opened")] == [1, 2]
    assert lab.vddk()["opens"] == 2


def test_ordered_faults_are_counted_over_all_processes(lab, guest, tmp_path):
    lab.vddk(faults=[{"op": "read", "start": 2 * MIB, "length": 512, "code": 4, "count": 1}])
    assert guest.serve(tmp_path).copy().returncode != 0
    assert guest.serve(tmp_path).copy().returncode == 0


@pytest.mark.parametrize("ending", ["close", "kill"])
def test_what_is_written_is_tracked(lab, run_module, tmp_path, ending):
    guest = Guest(lab, run_module, power="poweredOff")
    since = [{"disk": guest.key, "change_id": guest.snapshot["disks"][0]["change_id"]}]
    guest.run("vm_snapshot", state="absent", snapshot_id=guest.snapshot["id"])
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(MIB))
    os.truncate(source, CAPACITY)
    server = guest.serve(tmp_path, read_only=False, snapshot=None, path=guest.live_path())
    target = ["[", *server.command(), "]"]
    if ending == "close":
        subprocess.run(["nbdcopy", "--destination-is-zero", "--flush", "--", str(source), *target], check=True)
    else:
        # There is more to write, and the process dies of it.
        source.write_bytes(os.urandom(2 * MIB))
        os.truncate(source, CAPACITY)
        lab.vddk(faults=[{"op": "write", "start": MIB, "length": MIB, "code": -1, "count": 1}])
        copy = ["nbdcopy", "--destination-is-zero", "--requests=1", "--request-size=1048576"]
        assert subprocess.run([*copy, "--", str(source), *target], stderr=subprocess.DEVNULL, check=False).returncode
    wait_for(lambda: not lab.vddk()["open"])
    lab.vddk(reset=True)
    guest.snapshot = guest.run("vm_snapshot", state="present", snapshot_name="s2")["snapshot"]
    (disk,) = guest.run("disk_changed_areas", snapshot=guest.snapshot["moid"], since=since)["disks"]
    assert (disk["kind"], disk["areas"], disk["changed_bytes"]) == ("incremental", 1, MIB)
    assert lab.read(guest.moid, guest.key, 0, MIB) == source.read_bytes()[:MIB]
