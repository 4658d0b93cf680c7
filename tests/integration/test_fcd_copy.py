# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The data of first class disks: changed areas, copies into images and back, bit for bit, by both APIs and VI JSON.

Chains and lives are copied by VDDK and natively in turn, the rest by VDDK. What else is to be known of the native
access to them is in test_nfc_fcd.py.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas

MIB = 1 << 20
SIZE = 24 * MIB
# What chooses the way to the server, as options of both modules.
WAYS = {
    "auto": {},
    "vim": {"fcd_api": "vim"},
    "vslm": {"fcd_api": "vslm"},
    "vi_json": {"api": "vi_json"},
}


def earlier(disk: dict[str, Any]) -> dict[str, Any]:
    """What restore_point would say of a disk that was copied."""
    return {**disk, "reason": None, "parent": disk["image"], "parent_id": "earlier"}


class Volume:
    """A first class disk of the lab, and the shortest way to what tests need of it."""

    def __init__(self, lab, run_module, name: str, directory: Path, tracking: bool = True) -> None:
        self.lab, self.run_module, self.name, self.directory = lab, run_module, name, directory
        self.access, self._helper = "vddk", ""
        self.record = lab.create_fcd(name, SIZE, tracking=tracking, metadata={"cns.k8s.pv": name})
        self.id = self.record["id"]
        self.identity = {key: self.record[key] for key in ("id", "name", "datastore", "datastore_moid")}
        lab.fcd_write(self.id, 0, os.urandom(3 * MIB))
        lab.fcd_write(self.id, 10 * MIB, b"text " * 300_000)
        lab.fcd_write(self.id, SIZE - 7, b"the end")

    def run(self, module: str, check: bool = False, fail: bool = False, diff: bool = False, **options: Any) -> dict:
        args = {**self.lab.module_args(), "fcd_id": self.id, **options}
        args = {key: value for key, value in args.items() if value is not None}
        return self.run_module(module, args, check=check, fail=fail, diff=diff)

    def snapshot(self, description: str = "ours") -> str:
        return self.lab.fcd_snapshot(self.id, description)

    def look(self, **options: Any) -> dict[str, Any]:
        return self.run("disk_changed_areas", **options)

    def natively(self, native: bool) -> None:
        """Which way to the disk is taken from now on."""
        self.access = "native" if native else "vddk"
        if native and not self._helper:
            self._helper = self.lab.create_vm(f"{self.name}-helper", disks=[MIB])["moid"]

    def copy(self, **options: Any) -> dict[str, Any]:
        known: dict[str, Any] = {"image_dir": str(self.directory), "disks": [{"disk": self.id}], "access": self.access}
        if self.access == "vddk":
            known["vddk_libdir"] = self.lab.vddk_libdir
        else:
            known["native_helper_vm"] = self._helper
        return self.run("vddk_copy", **{**known, **options})

    def backup(self, name: str, since: dict[str, Any] | None = None, **way: Any) -> dict[str, Any]:
        """Copy what changed since the earlier backup into a directory of its own, as the role does."""
        directory = self.directory / name
        directory.mkdir()
        snapshot = self.snapshot()
        records = [earlier(since)] if since else []
        found = self.look(snapshot=snapshot, since=records, areas_dir=str(directory), **way)
        way.pop("api", None)
        result = self.copy(snapshot=snapshot, disks=found["disks"], image_dir=str(directory), **way)
        (disk,) = result["disks"]
        assert (disk["fcd_id"], result["fcd"]) == (self.id, self.identity)
        self.compare(disk["image"], snapshot)
        assert disk["access"] == self.access
        if disk["bytes_read"] and self.access == "vddk":
            assert self.lab.vddk()["closed"][-1]["snapshot"] == snapshot
        self.lab.fcd_delete_snapshot(self.id, snapshot)
        return disk

    def restore(self, disk: dict[str, Any], **options: Any) -> dict[str, Any]:
        item = {"disk": self.id, "image": disk["image"], "capacity": disk["capacity"]}
        known = {"direction": "restore", "image_dir": None, "disks": [{**item, **options.pop("item", {})}]}
        return self.copy(**{**known, **options})

    def compare(self, image: str, snapshot: str = "") -> None:
        """See by QEMU that an image with all below it is the disk, at a snapshot or now."""
        raw = str(self.lab.fcd_file(self.id, snapshot))
        command = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, raw]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "Images are identical.\n"), done.stdout + done.stderr

    def content(self, snapshot: str = "") -> bytes:
        return self.lab.fcd_read(self.id, snapshot=snapshot)

    def scribble(self, seed: int) -> None:
        """Write, zero and discard here and there."""
        chance = random.Random(seed)
        for _place in range(6):
            offset = chance.randrange(0, SIZE - MIB, 512)
            length = chance.randrange(512, MIB, 512)
            kind = chance.choice(["write", "zero", "trim"])
            if kind == "trim":
                self.lab.fcd_trim(self.id, offset, length)
            else:
                self.lab.fcd_write(self.id, offset, chance.randbytes(length) if kind == "write" else bytes(length))


@pytest.fixture
def make(lab, run_module, tmp_path, request):
    """Makes first class disks; their VMs go by the name of the test too."""
    name = re.sub(r"\W+", "-", request.node.name)[:60]

    def volume(suffix: str = "", **options: Any) -> Volume:
        directory = tmp_path / f"images{suffix}"
        directory.mkdir()
        return Volume(lab, run_module, name + suffix, directory, **options)

    return volume


@pytest.fixture
def volume(make):
    return make()


def attach(volume: Volume, power: str = "poweredOn", tracking: bool = True) -> str:
    """Attach the disk to a new VM; its managed object ID."""
    vm = volume.lab.create_vm(f"{volume.name}-vm", disks=[MIB], tracking=tracking)["moid"]
    volume.lab.attach_fcd(volume.id, vm)
    volume.lab.power(vm, power)
    return vm


# backup


@pytest.mark.parametrize("where", ["detached", "poweredOff", "poweredOn"])
def test_full(volume, where):
    if where != "detached":
        attach(volume, where)
    snapshot = volume.snapshot()
    volume.lab.fcd_write(volume.id, 0, b"after the snapshot")
    result = volume.copy(snapshot=snapshot)
    (disk,) = result["disks"]
    assert result["changed"]
    assert result["fcd"] == volume.identity
    assert "vm" not in result
    assert (disk["key"], disk["label"], disk["backing_uuid"], disk["fcd_id"]) == (0, volume.name, volume.id, volume.id)
    assert (disk["image"], disk["transport"]) == (str(volume.directory / "disk-0.qcow2"), "nbdssl")
    assert disk["change_id"] == volume.lab.fcd_snapshots(volume.id)[0]["change_id"]
    assert result["bytes_read"] < 8 * MIB
    volume.compare(disk["image"], snapshot)
    assert volume.lab.vddk()["violations"] == []
    assert volume.lab.vddk()["closed"][-1]["fcd"] == volume.id
    assert volume.lab.vddk()["prepared"] == []
    again = volume.copy(snapshot=snapshot)
    assert not again["changed"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["detached", "poweredOn"])
def test_chain(volume, way, where):
    if where == "poweredOn":
        attach(volume)
    disk = volume.backup("0", **WAYS[way])
    assert (disk["kind"], disk["reason"]) == ("full", "no earlier restore point has this disk")
    for number in range(1, 4):
        volume.natively(number % 2 == 1)
        volume.scribble(number)
        disk = volume.backup(str(number), disk, **WAYS[way])
        assert (disk["kind"], disk["reason"]) == ("incremental", None)
        assert disk["bytes_read"] < 8 * MIB
    assert volume.lab.sessions() == []


def test_nothing_changed(volume):
    disk = volume.backup("0")
    assert volume.backup("1", disk)["bytes_read"] == 0


@pytest.mark.parametrize("way", ["vim", "vslm", "vi_json"])
def test_every_page_is_asked_for(volume, way):
    disk = volume.backup("0")
    written = volume.lab.fcd_scatter(volume.id, 10)
    volume.lab.call("knobs", page=3)
    snapshot = volume.snapshot()
    result = volume.look(snapshot=snapshot, since=[earlier(disk)], return_areas=True, **WAYS[way])
    assert result["requests"] == 4
    told = [tuple(area) for area in result["disks"][0]["changed_areas"]]
    assert areas.subtract([tuple(area) for area in written], told) == []
    assert areas.total(told) <= 20 * 65536
    assert result["fcd"] == volume.identity


def test_the_record_is_that_of_a_disk(volume):
    vm = attach(volume)
    (record,) = volume.look()["disks"]
    (other,) = [
        disk for disk in volume.run("disk_changed_areas", fcd_id=None, moid=vm)["disks"] if disk["fcd_id"] == volume.id
    ]
    assert set(record) == set(other)
    expected = {
        "key": 0,
        "label": volume.name,
        "backing_uuid": volume.id,
        "capacity": SIZE,
        "path": volume.record["path"],
        "controller": None,
        "backing": "fcd",
        "protected": True,
        "reason": None,
        "fcd_id": volume.id,
        "tracked": True,
    }
    assert {key: record[key] for key in expected} == expected


def test_the_disk_is_found_by_name_and_datastore(volume):
    chosen = {"fcd_id": None, "fcd_name": volume.name, "fcd_datastore": volume.record["datastore"]}
    assert volume.look(**chosen)["fcd"] == volume.identity
    assert volume.look(**{**chosen, "fcd_datastore": None})["fcd"] == volume.identity


def test_a_disk_attached_to_a_vm_is_copied_with_it(volume):
    vm = attach(volume, "poweredOff")
    snapshot = volume.run_module(
        "vm_snapshot", {**volume.lab.module_args(), "moid": vm, "snapshot_name": "s", "stamp": {"job": "a"}}
    )["snapshot"]
    assert [disk["fcd_id"] for disk in snapshot["disks"]] == [None, volume.id]
    result = volume.copy(
        fcd_id=None, moid=vm, snapshot=snapshot["moid"], disks=[{"disk": volume.lab.fcd(volume.id)["key"]}]
    )
    assert result["disks"][0]["fcd_id"] == volume.id
    volume.compare(result["disks"][0]["image"])


# full copies, and why


def test_grown(volume):
    disk = volume.backup("0")
    volume.run("fcd", fcd_id=None, id=volume.id, state="present", capacity=SIZE + 4 * MIB)
    volume.lab.fcd_write(volume.id, SIZE + 3 * MIB, b"new place")
    grown = volume.backup("1", disk)
    assert (grown["kind"], grown["capacity"]) == ("full", SIZE + 4 * MIB)
    assert grown["reason"] == f"the capacity changed from {SIZE} to {SIZE + 4 * MIB} bytes"


def test_tracking_that_began_anew(volume):
    disk = volume.backup("0")
    volume.lab.fcd_reset_tracking(volume.id)
    again = volume.backup("1", disk)
    assert again["kind"] == "full"
    assert "restarted change tracking" in again["reason"]


def test_reverted_in_between(volume):
    first = volume.snapshot()
    disk = volume.backup("0")
    volume.scribble(1)
    volume.run("fcd_snapshot", fcd_id=None, id=volume.id, state="revert", snapshot_id=first, force=True)
    assert volume.backup("1", disk)["kind"] == "full"


@pytest.mark.parametrize("way", ["vim", "vslm", "vi_json"])
@pytest.mark.parametrize("fault", ["InvalidDatastore", "FileFault", "InvalidState", "InvalidArgument"])
def test_a_query_that_fails(volume, way, fault):
    if fault == "InvalidDatastore" and way == "vslm":
        pytest.skip("the storage lifecycle service is told no datastore")
    disk = volume.backup("0")
    volume.scribble(1)
    volume.lab.fault(method="*QueryChangedDiskAreas*", fault=fault, count=0)
    again = volume.backup("1", disk, **WAYS[way])
    assert again["kind"] == "full"
    assert again["reason"].startswith("the query for changed areas failed: ")


def test_a_snapshot_that_is_gone(volume, make):
    snapshot = volume.snapshot()
    other = make("-other")
    for wrong in (other.snapshot(), "8f0c0f5e-5d0e-4d8b-9a3e-0a4a0e6b7f10"):
        for run in (volume.look, volume.copy):
            assert run(snapshot=wrong, fail=True)["error_type"] == "NotFound"
    assert volume.look(snapshot=snapshot)["disks"][0]["kind"] == "full"


# tracking


@pytest.mark.parametrize("way", ["vim", "vslm"])
def test_tracking_is_switched_on(make, way):
    volume = make(tracking=False)
    before = volume.look(**WAYS[way])
    assert before["tracking"] == {"enabled": False, "active": False, "reason": "change tracking is switched off"}
    assert not before["changed"]
    on = {"enabled": True, "active": True, "reason": None}
    planned = volume.look(tracking="enabled", check=True, diff=True, **WAYS[way])
    assert (planned["changed"], planned["tracking"], planned["diff"]["after"]) == (True, on, on)
    assert not volume.lab.fcd(volume.id)["control_flags"]["enable_changed_block_tracking"]
    done = volume.look(tracking="enabled", **WAYS[way])
    assert (done["changed"], done["tracking"], done["disks"][0]["tracked"]) == (True, on, True)
    assert volume.lab.fcd(volume.id)["control_flags"]["enable_changed_block_tracking"]
    assert not volume.look(tracking="enabled", **WAYS[way])["changed"]
    disk = volume.backup("0", **WAYS[way])
    volume.scribble(1)
    assert volume.backup("1", disk, **WAYS[way])["kind"] in ("incremental", "full")


@pytest.mark.parametrize("whose", ["its own", "its VM's"])
def test_tracking_is_never_switched_on_above_snapshots(make, whose):
    volume = make(tracking=False)
    if whose == "its own":
        volume.snapshot("of Velero")
    else:
        vm = attach(volume, "poweredOff", tracking=False)
        args = {**volume.lab.module_args(), "moid": vm, "snapshot_name": "s", "stamp": {"job": "a"}}
        volume.run_module("vm_snapshot", args)
    result = volume.look(tracking="enabled")
    assert (result["changed"], result["tracking"]["active"]) == (False, False)
    assert result["tracking"]["reason"].startswith("change tracking can only be started without snapshots, and ")
    assert "copied in full" in str(result["warnings"])
    assert not volume.lab.fcd(volume.id)["control_flags"]["enable_changed_block_tracking"]
    assert volume.backup("0")["change_id"] is None


def test_tracking_that_the_server_refuses(make):
    volume = make(tracking=False)
    volume.lab.fault(method="*SetVStorageObjectControlFlags*", fault="InvalidState", count=1)
    result = volume.look(tracking="enabled")
    assert not result["changed"]
    assert result["tracking"]["reason"].startswith("change tracking cannot be switched on: ")


# snapshots of others


def test_snapshots_of_others_are_neither_read_nor_touched(volume):
    older = volume.snapshot("of Velero")
    volume.scribble(1)
    disk = volume.backup("0")
    younger = volume.snapshot("of the CSI driver")
    volume.scribble(2)
    kept = {one: volume.content(one) for one in (older, younger)}
    volume.lab.vddk(reset=True)
    volume.backup("1", disk)
    now = volume.content()
    volume.restore(disk, verify=True)
    assert now != volume.content()
    volume.compare(disk["image"])
    assert [one["id"] for one in volume.lab.fcd_snapshots(volume.id)] == [older, younger]
    assert {one: volume.content(one) for one in (older, younger)} == kept


# restore


@pytest.mark.parametrize("where", ["detached", "poweredOff"])
def test_restore(volume, where):
    if where != "detached":
        attach(volume, where)
    full = volume.backup("0")
    volume.scribble(1)
    disk = volume.backup("1", full)
    wanted = volume.content()
    volume.lab.fcd_write(volume.id, 0, os.urandom(SIZE))
    result = volume.restore(disk, verify=True)
    assert (result["changed"], result["fcd"]) == (True, volume.identity)
    assert volume.content() == wanted
    volume.restore(full)
    volume.compare(full["image"])
    assert volume.lab.vddk()["violations"] == []


def test_restore_onto_a_new_disk(volume, make):
    disk = volume.backup("0")
    new = make("-new")
    new.lab.fcd_write(new.id, 0, bytes(3 * MIB))
    result = new.restore(disk, verify=True)
    assert new.content() == volume.content()
    assert result["fcd"]["id"] == new.id


def test_restore_of_what_changed_in_between(volume):
    """In place: above a safety snapshot, only the areas that changed since."""
    disk = volume.backup("0")
    wanted = volume.content()
    volume.scribble(1)
    safety = volume.snapshot("safety")
    after = volume.content()
    scratch = volume.directory / "scratch"
    (changed,) = volume.look(snapshot=safety, since=[earlier(disk)], areas_dir=str(scratch))["disks"]
    result = volume.restore(disk, item={"areas_file": changed["areas_file"]}, verify=True)
    assert volume.content() == wanted != after
    assert volume.content(safety) == after
    assert result["bytes_written"] < 8 * MIB


def test_only_the_areas_are_written(volume, tmp_path):
    disk = volume.backup("0")
    before = volume.content()
    volume.lab.fcd_write(volume.id, 0, os.urandom(4 * MIB))
    after = volume.content()
    listed = str(tmp_path / "areas")
    areas.write_file(listed, SIZE, [(MIB, MIB)])
    result = volume.restore(disk, item={"areas_file": listed})
    assert volume.content() == after[:MIB] + before[MIB : 2 * MIB] + after[2 * MIB :]
    assert result["bytes_written"] == MIB


def test_restore_onto_a_disk_in_use_is_refused(volume):
    disk = volume.backup("0")
    vm = attach(volume)
    opens = volume.lab.vddk()["opens"]
    failed = volume.restore(disk, fail=True)
    name = f"{volume.name}-vm"
    assert failed["msg"].startswith(f"{volume.name} ({volume.id}) is attached to {name}, which is not powered off.")
    assert failed["error_type"] == "NotSupported"
    assert volume.lab.vddk()["opens"] == opens
    volume.lab.power(vm, "poweredOff")
    volume.restore(disk)


def test_restore_below_snapshots_of_its_vm_is_refused(volume):
    disk = volume.backup("0")
    vm = attach(volume, "poweredOff")
    args = {**volume.lab.module_args(), "moid": vm, "snapshot_name": "s", "stamp": {"job": "a"}}
    volume.run_module("vm_snapshot", args)
    failed = volume.restore(disk, fail=True)
    assert failed["msg"].startswith(
        f"{volume.name} ({volume.id}) is attached to {volume.name}-vm, which has snapshots."
    )
    assert failed["error_type"] == "NotSupported"


def test_a_consumer_that_nobody_knows_is_taken_for_one_in_use(lab, run_module, tmp_path, volume):
    disk = volume.backup("0")
    unknown = "8f0c0f5e-5d0e-4d8b-9a3e-0a4a0e6b7f10"
    used = lab.create_fcd("in-use", SIZE, consumers=[unknown])
    failed = volume.restore(disk, fcd_id=used["id"], item={"disk": used["id"]}, fail=True)
    assert f"is attached to {unknown}" in failed["msg"]


def test_a_larger_image_is_refused(volume, make):
    disk = volume.backup("0")
    failed = volume.restore(disk, item={"capacity": SIZE + MIB}, fail=True)
    assert f"has {SIZE} bytes, the image is of {SIZE + MIB}" in failed["msg"]


# the library


def test_a_library_that_is_too_old(volume):
    volume.lab.vddk(variant="6.5")
    failed = volume.copy(snapshot=volume.snapshot(), fail=True)
    assert failed["error_type"] == "MissingRequirement"
    assert "cannot open first class disks. Use VDDK 6.7 or later" in failed["msg"]
    assert volume.lab.vddk()["opens"] == 0


def test_copies_although_storage_vmotion_cannot_be_forbidden(volume):
    volume.lab.vddk(faults=[{"op": "prepare", "code": 6, "count": 1}])
    snapshot = volume.snapshot()
    result = volume.copy(snapshot=snapshot)
    assert len(result["warnings"]) == 1
    assert f"Forbidding Storage vMotion of the first class disk {volume.id}" in str(result["warnings"])
    volume.compare(result["disks"][0]["image"], snapshot)


def test_errors_of_the_library_name_the_disk(volume):
    volume.lab.vddk(faults=[{"op": "read", "start": 0, "length": 0, "code": 4, "count": 1000}])
    failed = volume.copy(snapshot=volume.snapshot(), fail=True)
    assert f"of the first class disk {volume.id} in {volume.record['datastore_moid']}" in failed["msg"]
    assert failed["failed_disks"][0]["disk"] == volume.name


# options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"moid": "vm-1"}, "mutually exclusive"),
        ({"fcd_name": "a"}, "mutually exclusive"),
        ({"fcd_id": None}, "one of the following is required"),
    ],
)
@pytest.mark.parametrize("module", ["disk_changed_areas", "vddk_copy"])
def test_one_thing_is_chosen(volume, module, options, words):
    failed = volume.run(module, disks=[{"disk": 0}], snapshot="s", fail=True, **options)
    assert words in failed["msg"]


def test_vi_json_knows_no_storage_lifecycle_service(volume):
    disk = volume.backup("0")
    failed = volume.look(snapshot=volume.snapshot(), since=[earlier(disk)], api="vi_json", fcd_api="vslm", fail=True)
    assert failed["error_type"] == "NotSupported"
    assert "fcd_api auto or vim" in failed["msg"]


def test_check_mode(volume):
    snapshot = volume.snapshot()
    planned = volume.copy(snapshot=snapshot, check=True, diff=True)
    assert planned["diff"]["after"] == {f"{volume.name} ({volume.directory}/disk-0.qcow2)": SIZE}
    assert not list(volume.directory.iterdir())
    assert set(volume.copy(snapshot=snapshot)["disks"][0]) == set(planned["disks"][0])


def test_requests(volume, make):
    """However many disks and datastores there are; logging in and out are three of them."""

    def cost(**options: Any) -> int:
        volume.lab.requests(reset=True)
        volume.look(**options)
        return volume.lab.requests()["total"]

    place = {"fcd_datastore": volume.record["datastore"]}
    disk = volume.backup("0")
    snapshot = volume.snapshot()
    asked = {"snapshot": snapshot, "since": [earlier(disk)]}
    ways = [{**place, **WAYS[way]} for way in WAYS] + [{}]
    before = [cost(**asked, **way) for way in ways]
    for number in range(3):
        make(f"-{number}")
    assert [cost(**asked, **way) for way in ways] == before
    assert max(before) <= 12
    assert cost(tracking="enabled", **place) <= 8
    assert volume.lab.sessions() == []


# restore points


def test_restore_points_of_a_first_class_disk(volume, run_module, tmp_path):
    """Two nights, as the role runs them, and back."""
    repository = tmp_path / "repository"
    repository.mkdir()

    def point(state: str, **options: Any) -> dict[str, Any]:
        return run_module("restore_point", {"repository": str(repository), "state": state, **options})

    made, contents = [], []
    for night in range(2):
        examined = volume.look(tracking="enabled")
        started = point("started", fcd=examined["fcd"], disks=examined["disks"])
        place = started["restore_point"]
        snapshot = volume.snapshot()
        found = volume.look(snapshot=snapshot, since=started["since"], areas_dir=place["path"])
        copied = volume.copy(snapshot=snapshot, disks=found["disks"], image_dir=place["path"])
        contents.append(volume.content(snapshot))
        volume.lab.fcd_delete_snapshot(volume.id, snapshot)
        done = point("completed", id=place["id"], run=place["run"], fcd=copied["fcd"], disks=copied["disks"])
        made.append(done["restore_point"])
        volume.scribble(night)
    assert [one["disks"][0]["kind"] for one in made] == ["full", "incremental"]
    listed = run_module(
        "restore_point_info", {"repository": str(repository), "fcd_id": volume.id, "verify": "content"}
    )["restore_points"]
    assert [one["id"] for one in listed] == [one["id"] for one in made]
    assert all(one["verified"]["ok"] for one in listed)
    for one, content in zip(listed, contents):
        disk = one["disks"][0]
        volume.restore({"image": disk["path"], "capacity": disk["capacity"]}, verify=True)
        assert volume.content() == content


@pytest.mark.parametrize("seed", range(3))
def test_any_life(make, seed):
    """Whatever happens to a disk between its backups: each can be restored to exactly what the disk held then."""
    chance = random.Random(seed)
    volume = make(tracking=chance.random() < 0.8)
    lab, vm = volume.lab, None
    made: list[tuple[dict[str, Any], bytes]] = []
    foreign: dict[str, bytes] = {}

    def backup() -> None:
        volume.natively(chance.random() < 0.5)
        volume.look(tracking="enabled")
        disk = volume.backup(str(len(made)), made[-1][0] if made else None, **WAYS[chance.choice(list(WAYS))])
        made.append((disk, volume.content()))

    def restore() -> None:
        disk, content = chance.choice(made)
        if vm is not None and lab.fcd(volume.id)["vm"]:
            lab.power(vm, "poweredOff")
        volume.restore(disk)
        assert volume.content() == content
        volume.lab.fcd_reset_tracking(volume.id)  # as the role does by the control flag

    def move() -> None:
        nonlocal vm
        if lab.fcd(volume.id)["vm"]:
            lab.detach_fcd(volume.id)
        elif vm is None:
            vm = attach(volume)
        else:
            lab.attach_fcd(volume.id, vm)

    def snapshot_of_others() -> None:
        if foreign and chance.random() < 0.5:
            gone = chance.choice(list(foreign))
            lab.fcd_delete_snapshot(volume.id, gone)
            del foreign[gone]
        else:
            one = volume.snapshot("of others")
            foreign[one] = volume.content(one)

    steps = [lambda: volume.scribble(chance.randrange(1 << 30)), backup, restore, move, snapshot_of_others]
    backup()
    for _step in range(14):
        chance.choices(steps, [4, 4, 1, 1, 1])[0]()
        assert {one: volume.content(one) for one in foreign} == foreign
    if vm is not None:
        lab.power(vm, "poweredOff")
    for disk, content in made:
        volume.restore(disk)
        assert volume.content() == content
    assert {one["id"] for one in lab.fcd_snapshots(volume.id)} == set(foreign)
    assert lab.vddk()["violations"] == []
