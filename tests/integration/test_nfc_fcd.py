# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""First class disks by the native access: through the VM that they are attached to, or a helper that is left clean."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import fcd_store, nfc_places
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim

MIB = 1 << 20
SIZE = 24 * MIB


class Volume:
    """A first class disk of the lab, a VM to help, and the shortest way to what tests need of them."""

    def __init__(self, lab, run_module, name: str, directory: Path) -> None:
        self.lab, self.run_module, self.directory = lab, run_module, directory
        self.id = lab.create_fcd(name, SIZE, tracking=True)["id"]
        self.helper = lab.create_vm(f"{name} helper", disks=[MIB])
        lab.fcd_write(self.id, 0, os.urandom(3 * MIB))
        lab.fcd_write(self.id, SIZE - 7, b"the end")
        self.before = self.stock()

    def stock(self) -> Any:
        """All that may not differ afterwards: the disks there are, and those of the helper."""
        return [disk["id"] for disk in self.lab.fcds()], self.lab.vm(self.helper["moid"])["disks"]

    def attach(self, power: str) -> str:
        vm = self.lab.create_vm(f"{self.id}-vm", disks=[MIB], tracking=True)["moid"]
        self.lab.attach_fcd(self.id, vm)
        self.lab.power(vm, power)
        return vm

    def copy(self, fail: bool = False, **options: Any) -> dict[str, Any]:
        args = {
            **self.lab.module_args(),
            "fcd_id": self.id,
            "access": "native",
            "native_helper_vm": self.helper["moid"],
            "disks": [{"disk": self.id}],
            "image_dir": str(self.directory),
            **options,
        }
        return self.run_module("vddk_copy", {key: value for key, value in args.items() if value is not None}, fail=fail)

    def compare(self, image: str, snapshot: str = "") -> None:
        """See by QEMU that an image with all below it is the disk, at a snapshot or now."""
        raw = str(self.lab.fcd_file(self.id, snapshot))
        subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, raw], check=True)


@pytest.fixture
def volume(lab, run_module, tmp_path, request):
    made = Volume(lab, run_module, re.sub(r"\W+", " ", request.node.name)[-50:].strip(), tmp_path)
    yield made
    assert made.stock() == made.before


@pytest.mark.parametrize("api", ["vim", "vslm"])
@pytest.mark.parametrize("where", ["detached", "poweredOff", "poweredOn"])
def test_full(volume, where, api):
    if where != "detached":
        volume.attach(where)
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    volume.lab.fcd_write(volume.id, 0, b"after the snapshot")
    result = volume.copy(snapshot=snapshot, fcd_api=api)
    (disk,) = result["disks"]
    assert (disk["access"], disk["allocation"], disk["transport"]) == ("native", "change_tracking", "nbdssl")
    assert disk["bytes_read"] < 8 * MIB
    volume.compare(disk["image"], snapshot)
    for session in volume.lab.nfc()["closed"]:
        assert (session["vm"] == volume.helper["moid"], session["write"]) == (where == "detached", False)
    assert volume.lab.sessions() == []
    assert "warnings" not in result


@pytest.mark.parametrize("whose", ["its own", "its VM's", "a later one"])
def test_a_disk_above_another_snapshot_is_read_in_full(volume, whose):
    """Tracking may have begun below it, and then knows nothing of what was written before."""
    if whose == "its VM's":
        args = {**volume.lab.module_args(), "moid": volume.attach("poweredOff"), "snapshot_name": "somebody's"}
        volume.run_module("vm_snapshot", args)
    elif whose == "its own":
        volume.lab.fcd_snapshot(volume.id, "of Velero")
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    volume.lab.fcd_write(volume.id, 0, b"after the snapshot")
    if whose == "a later one":
        volume.lab.fcd_snapshot(volume.id, "of Velero")
    (disk,) = volume.copy(snapshot=snapshot)["disks"]
    volume.compare(disk["image"], snapshot)
    if whose == "a later one":
        assert (disk["allocation"], disk["warnings"]) == ("change_tracking", [])
    else:
        assert (disk["allocation"], disk["bytes_read"]) == ("none", SIZE)
        assert "earlier snapshot" in disk["warnings"][0]


@pytest.mark.parametrize("where", ["detached", "poweredOn"])
def test_chain(volume, where, tmp_path):
    if where != "detached":
        volume.attach(where)
    since: list[dict[str, Any]] = []
    for number in range(3):
        volume.lab.fcd_write(volume.id, (number + 5) * MIB, os.urandom(MIB))
        snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
        directory = tmp_path / str(number)
        directory.mkdir()
        look = {"fcd_id": volume.id, "snapshot": snapshot, "since": since, "areas_dir": str(directory)}
        asked = volume.run_module("disk_changed_areas", {**volume.lab.module_args(), **look})["disks"]
        (disk,) = volume.copy(snapshot=snapshot, disks=asked, image_dir=str(directory))["disks"]
        assert disk["kind"] == ("incremental" if number else "full")
        volume.compare(disk["image"], snapshot)
        volume.lab.fcd_delete_snapshot(volume.id, snapshot)
        since = [{**disk, "reason": None, "parent": disk["image"], "parent_id": "earlier"}]


@pytest.mark.parametrize("where", ["detached", "poweredOff"])
def test_restore(volume, where, tmp_path):
    if where != "detached":
        volume.attach(where)
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    (disk,) = volume.copy(snapshot=snapshot)["disks"]
    volume.lab.fcd_delete_snapshot(volume.id, snapshot)
    volume.lab.fcd_write(volume.id, 0, os.urandom(20 * MIB))
    item = {"disk": volume.id, "image": disk["image"], "capacity": SIZE}
    listed = str(tmp_path / "areas")
    areas.write_file(listed, SIZE, [(0, 20 * MIB)])
    volume.copy(direction="restore", image_dir=None, disks=[{**item, "areas_file": listed}])
    volume.compare(disk["image"])
    volume.lab.fcd_write(volume.id, 0, os.urandom(20 * MIB))
    result = volume.copy(direction="restore", image_dir=None, disks=[item], verify=True)
    assert result["changed"]
    volume.compare(disk["image"])
    assert all(session["orderly"] for session in volume.lab.nfc()["closed"])


def test_no_helper(volume):
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    failed = volume.copy(snapshot=snapshot, native_helper_vm=None, fail=True)
    assert failed["error_type"] == "NotSupported"
    assert "native_helper_vm" in failed["next_step"]
    assert volume.lab.nfc()["tickets"] == 0


def test_a_helper_that_runs(volume):
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    volume.lab.power(volume.helper["moid"], "poweredOn")
    failed = volume.copy(snapshot=snapshot, fail=True)
    assert "is not powered off" in failed["msg"]


def test_a_helper_without_a_free_place(volume):
    """It is found out before anything is copied."""
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    full = volume.lab.create_vm(f"{volume.id} full", disks=[MIB] * 15)
    volume.lab.requests(reset=True)
    failed = volume.copy(snapshot=snapshot, native_helper_vm=full["moid"], fail=True)
    assert failed["error_type"] == "NotSupported"
    assert f"{full['name']}: The virtual machine has no free place" in failed["msg"]
    assert "CreateDiskFromSnapshot_Task" not in volume.lab.requests()["methods"]


def test_what_a_killed_run_left_is_put_away(volume):
    """The copy of the killed run is still attached to the helper."""
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    left = volume.lab.create_fcd(f"holdfast.backup copy for reading {volume.id}", SIZE)["id"]
    other = volume.lab.create_fcd("holdfast.backup copy for reading", SIZE)["id"]
    volume.lab.attach_fcd(left, volume.helper["moid"])
    (disk,) = volume.copy(snapshot=snapshot)["disks"]
    volume.compare(disk["image"], snapshot)
    assert other in [each["id"] for each in volume.lab.fcds()]
    volume.lab.destroy_fcd(other)


def test_a_disk_that_a_killed_restore_left_on_the_helper(volume):
    """Nobody knows whether it belongs there: it is written, and a warning says that it stays."""
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    (disk,) = volume.copy(snapshot=snapshot)["disks"]
    volume.lab.fcd_delete_snapshot(volume.id, snapshot)
    volume.lab.fcd_write(volume.id, 0, os.urandom(MIB))
    volume.lab.attach_fcd(volume.id, volume.helper["moid"])
    item = {"disk": volume.id, "image": disk["image"], "capacity": SIZE}
    result = volume.copy(direction="restore", image_dir=None, disks=[item])
    assert "is attached to the helper virtual machine" in str(result["warnings"])
    volume.compare(disk["image"])
    volume.lab.detach_fcd(volume.id)


@pytest.mark.parametrize("direction", ["backup", "restore"])
def test_a_copy_that_fails_leaves_nothing(volume, direction):
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    options = {"snapshot": snapshot}
    if direction == "restore":
        (disk,) = volume.copy(snapshot=snapshot)["disks"]
        item = {"disk": volume.id, "image": disk["image"], "capacity": SIZE}
        options = {"direction": "restore", "image_dir": None, "disks": [item]}
    op = "write" if direction == "restore" else "read"
    volume.lab.nfc(faults=[{"op": op, "action": "error", "code": 7, "count": 999}])
    failed = volume.copy(fail=True, **options)
    assert failed["failed_disks"][0]["code"] == 7


def test_an_attachment_that_fails_leaves_nothing(volume, monkeypatch):
    monkeypatch.setattr(nfc_places, "_PAUSES", (0, 0, 0, 0))
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    volume.lab.fault(method="*AttachDisk*", fault="InvalidState", count=99)
    failed = volume.copy(snapshot=snapshot, fail=True)
    assert failed["error_type"] in ("VsphereFault", "TaskFailed")


@pytest.mark.parametrize("api", ["vim", "vslm"])
@pytest.mark.parametrize(("task", "waits"), [("createDiskFromSnapshot", 0), ("attachDisk", 1), ("attachDisk", 0)])
def test_a_task_that_goes_on_is_seen_to_its_end(volume, monkeypatch, api, task, waits):
    """A job that is cancelled waits for vSphere no longer, and what vSphere brings about then must not stay."""
    options = {"snapshot": volume.lab.fcd_snapshot(volume.id, "ours"), "fcd_api": api}
    if task == "attachDisk" and not waits:
        image = volume.copy(**options)["disks"][0]["image"]
        item = {"disk": volume.id, "image": image, "capacity": SIZE}
        options = {"direction": "restore", "image_dir": None, "disks": [item], "fcd_api": api}
    store = {"vim": fcd_store.VimStore, "vslm": fcd_store.VslmStore}[api]
    real, seen = store._wait, []

    def cut_short(self, task, *arguments):
        seen.append(task._GetMoId())
        if len(seen) == waits + 1:
            raise BackupError("The module was asked to stop.")
        return real(self, task, *arguments)

    monkeypatch.setattr(store, "_wait", cut_short)
    volume.lab.fault(task=task, delay_ms=1500)
    assert volume.copy(fail=True, **options)["msg"] == "The module was asked to stop."
    assert volume.stock() == volume.before
    with Connection(Endpoint(**volume.lab.module_args())) as c:
        assert vim.Task(seen[waits], c.stub).info.state in ("success", "error")


def test_whoever_is_gone_needs_no_copy(volume, tmp_path):
    """The end of a playbook is noticed while vSphere makes the copy, which may take hours."""
    snapshot = volume.lab.fcd_snapshot(volume.id, "ours")
    progress = tmp_path / "nobody watches"
    progress.mkdir()
    volume.lab.fault(task="createDiskFromSnapshot", delay_ms=1500)
    failed = volume.copy(snapshot=snapshot, progress_dir=str(progress), fail=True)
    assert "the playbook that started it is gone" in failed["msg"]
    assert volume.lab.nfc()["tickets"] == 0
