# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vddk_copy against the lab by both ways of access, by its main() and in real playbooks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas
from ansible_collections.holdfast.backup.tests.integration.running import wait_for
from ansible_collections.holdfast.backup.tests.lab.client import REPOSITORY

MIB = 1 << 20
COPIERS = ("nbdkit", "qemu-nbd", "nbdcopy")


class Machine:
    """A VM of the lab with two disks, and the shortest way to what tests need of it."""

    def __init__(self, lab, run_module, name: str, directory: Path, access: str) -> None:
        self.lab, self.run_module, self.name, self.directory, self.access = lab, run_module, name, directory, access
        vm = lab.create_vm(name, disks=[40 * MIB, 8 * MIB + 3 * 512], tracking=True, power="poweredOn")
        self.moid, self.disks = vm["moid"], vm["disks"]
        self.keys = [disk["key"] for disk in vm["disks"]]
        lab.write(self.moid, self.keys[0], 0, os.urandom(3 * MIB))
        lab.write(self.moid, self.keys[0], 20 * MIB, b"text " * MIB)
        lab.write(self.moid, self.keys[1], 8 * MIB, b"the end")

    def args(self, **options: Any) -> dict[str, Any]:
        return {**self.lab.module_args(), "moid": self.moid, **options}

    def snapshot(self, name: str = "s") -> str:
        options = {"snapshot_name": name, "stamp": {"job": name}}
        return self.run_module("vm_snapshot", self.args(**options))["snapshot"]["moid"]

    def copy(self, snapshot: str, check=False, diff=False, fail=False, **options: Any) -> dict[str, Any]:
        args = {
            "snapshot": snapshot,
            "access": self.access,
            "vddk_libdir": self.lab.vddk_libdir,
            "image_dir": str(self.directory),
            "disks": [{"disk": key} for key in self.keys],
            **options,
        }
        return self.run_module("vddk_copy", self.args(**args), check=check, diff=diff, fail=fail)

    def content(self, key: int, snapshot: str | None = None) -> bytes:
        return self.lab.read(self.moid, key, snapshot=snapshot)

    def slow(self, milliseconds: float) -> None:
        """Let every request take so long."""
        knobs = self.lab.vddk if self.access == "vddk" else self.lab.nfc
        knobs(latency_ms=milliseconds)

    def opens(self) -> int:
        """How often a disk was opened."""
        return self.lab.vddk()["opens"] if self.access == "vddk" else self.lab.nfc()["connections"]


@pytest.fixture(params=["vddk", "native"])
def access(request):
    return request.param


ONLY_VDDK = pytest.mark.parametrize("access", ["vddk"])


@pytest.fixture
def machine(lab, run_module, tmp_path, access, request):
    directory = tmp_path / "images"
    directory.mkdir()
    return Machine(lab, run_module, re.sub(r"\W+", "-", request.node.name)[:60], directory, access)


def content_of(image: str, size: int, tmp_path: Path) -> bytes:
    """The content of an image with all below it, as qemu-img sees it."""
    raw = tmp_path / "content.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    return raw.read_bytes()[:size]


def test_full(machine, tmp_path):
    snapshot = machine.snapshot()
    machine.lab.write(machine.moid, machine.keys[0], 0, b"after the snapshot")
    result = machine.copy(snapshot)
    assert result["changed"]
    assert result["vm"]["moid"] == machine.moid
    for disk, there in zip(result["disks"], machine.disks):
        assert disk["backing_uuid"] == there["backing_uuid"]
        assert disk["transport"] == "nbdssl"
        assert disk["change_id"]
        where = "library" if machine.access == "vddk" else "change_tracking"
        assert (disk["access"], disk["allocation"]) == (machine.access, where)
        content = content_of(disk["image"], there["capacity"], tmp_path)
        assert content == machine.content(there["key"], snapshot)
    assert result["bytes_read"] < 20 * MIB


def test_changes_over_the_full_copy(machine, tmp_path):
    """The items of disk_changed_areas are taken as they are."""
    first = machine.copy(machine.snapshot("first"))
    key = machine.keys[0]
    machine.lab.write(machine.moid, key, MIB, bytes(MIB))
    machine.lab.write(machine.moid, key, 30 * MIB, b"new")
    second = machine.snapshot("second")
    since = [{**disk, "parent": disk["image"], "parent_id": "one"} for disk in first["disks"]]
    asked = machine.args(snapshot=second, since=since, areas_dir=str(tmp_path))
    changed = machine.run_module("disk_changed_areas", asked)["disks"]
    (machine.directory / "second").mkdir()
    result = machine.copy(second, disks=changed, image_dir=str(machine.directory / "second"))
    for disk, there in zip(result["disks"], machine.disks):
        assert (disk["kind"], disk["parent_id"], disk["parent"]) == (
            "incremental",
            "one",
            str(machine.directory / f"disk-{disk['key']}.qcow2"),
        )
        assert content_of(disk["image"], there["capacity"], tmp_path) == machine.content(there["key"], second)
    assert MIB + 65536 <= result["disks"][0]["bytes_read"] <= 1.1 * (MIB + 65536)
    assert result["disks"][1]["bytes_read"] == 0


def test_second_run_does_nothing(machine):
    snapshot = machine.snapshot()
    first = machine.copy(snapshot)
    before = machine.opens()
    again = machine.copy(snapshot, diff=True)
    assert not again["changed"]
    assert again["diff"] == {"before": {}, "after": {}}
    assert machine.opens() == before
    unchanged = [{**disk, "changed": False} for disk in first["disks"]]
    assert again["disks"] == unchanged


def test_check_mode(machine):
    snapshot = machine.snapshot()
    result = machine.copy(snapshot, check=True, diff=True)
    assert result["changed"]
    assert [disk["bytes_read"] for disk in result["disks"]] == [disk["capacity"] for disk in machine.disks]
    assert result["diff"]["after"] == {
        f"{disk['label']} ({machine.directory}/disk-{disk['key']}.qcow2)": disk["capacity"] for disk in machine.disks
    }
    assert not list(machine.directory.iterdir())
    assert set(machine.copy(snapshot)["disks"][0]) == set(result["disks"][0])


@ONLY_VDDK
def test_logged_out_before_the_copy(machine):
    """Nothing of ours can expire in the middle; what VDDK does is its own login."""
    snapshot = machine.snapshot()
    machine.lab.requests(reset=True)
    machine.lab.vddk(faults=[{"op": "read", "start": 0, "length": 0, "code": 14009, "count": 1}])
    result = machine.copy(snapshot)
    assert machine.lab.requests()["total"] <= 8
    assert machine.lab.sessions() == []
    assert any("14009" in warning or "again" in warning for disk in result["disks"] for warning in disk["warnings"])


@ONLY_VDDK
def test_other_transport_than_wanted_is_told(machine):
    machine.lab.vddk(transport="nbd")
    result = machine.copy(machine.snapshot())
    assert {disk["transport"] for disk in result["disks"]} == {"nbd"}
    assert "nbdssl could not be used, nbd was used" in result["disks"][0]["warnings"][0]
    assert len(result["warnings"]) == 2


@ONLY_VDDK
def test_storage_vmotion_is_forbidden_meanwhile(machine):
    """A run that could not allow it again is made good by the next one."""
    snapshot = machine.snapshot()
    machine.lab.vddk(faults=[{"op": "end", "code": 13, "count": 1}])
    result = machine.copy(snapshot)
    assert f"Storage vMotion of {machine.moid} again" in str(result["warnings"])
    assert f"moref={machine.moid}" in machine.lab.vddk()["prepared"]
    (machine.directory / f"disk-{machine.keys[0]}.qcow2").unlink()
    assert "warnings" not in machine.copy(snapshot)
    assert f"moref={machine.moid}" not in machine.lab.vddk()["prepared"]


@ONLY_VDDK
def test_copies_although_storage_vmotion_cannot_be_forbidden(machine):
    machine.lab.vddk(faults=[{"op": "prepare", "code": 3014, "count": 1}])
    result = machine.copy(machine.snapshot())
    assert result["changed"]
    assert len(result["warnings"]) == 1
    assert "Forbidding Storage vMotion" in str(result["warnings"])


@ONLY_VDDK
def test_what_hotadd_left_is_cleaned_up_first(machine):
    """Disks of a crashed run that are still attached to the proxy would block consolidation."""
    snapshot = machine.snapshot()
    machine.lab.vddk(faults=[{"op": "cleanup", "code": 13, "count": 1}])
    assert "warnings" not in machine.copy(snapshot)  # no hotadd, nothing to clean up
    for image in machine.directory.glob("*"):
        image.unlink()
    result = machine.copy(snapshot, transports=["hotadd", "nbdssl"])
    assert "Cleaning up after earlier runs" in str(result["warnings"])
    assert result["changed"]


@ONLY_VDDK
def test_lost_in_the_middle_then_gone_on_with(machine, tmp_path):
    """The cause is VDDK's own, with a next step; the disk without trouble is copied."""
    snapshot = machine.snapshot()
    machine.lab.vddk(faults=[{"op": "read", "start": 24 * MIB, "length": 65536, "code": 4000, "count": 1000}])
    failed = machine.copy(snapshot, fail=True, request_depth=1)
    assert re.match(r"1 of 2 disks failed\. .* Hard disk 1: ", failed["msg"])
    assert failed["error_type"] == "CopyFailed"
    assert failed["next_step"]
    assert [disk["label"] for disk in failed["disks"]] == ["Hard disk 2"]
    assert failed["failed_disks"][0]["code"] == 4000
    machine.lab.vddk(faults=[])
    result = machine.copy(snapshot)
    assert [disk["changed"] for disk in result["disks"]] == [True, False]
    assert result["disks"][0]["resumed"]
    assert result["disks"][0]["bytes_read"] < 5 * MIB
    content = content_of(result["disks"][0]["image"], 40 * MIB, tmp_path)
    assert content == machine.content(machine.keys[0], snapshot)


def test_restore(machine, tmp_path):
    snapshot = machine.snapshot()
    expected = [machine.content(key, snapshot) for key in machine.keys]
    images = machine.copy(snapshot)["disks"]
    machine.run_module("vm_snapshot", machine.args(state="absent", snapshot_moid=snapshot))
    machine.lab.power(machine.moid, "poweredOff")
    machine.lab.write(machine.moid, machine.keys[0], 0, os.urandom(40 * MIB))
    restored = machine.run_module(
        "vddk_copy",
        machine.args(
            direction="restore",
            access=machine.access,
            vddk_libdir=machine.lab.vddk_libdir,
            disks=[{"disk": disk["key"], "image": disk["image"], "capacity": disk["capacity"]} for disk in images],
            verify=True,
        ),
    )
    assert restored["changed"]
    assert [machine.content(key) for key in machine.keys] == expected
    warned = str(restored["warnings"])
    assert warned.count("tracking=reset") == 2, warned
    assert restored["bytes_written"] <= 48 * MIB + 3 * 512


@pytest.mark.parametrize("state", ["running", "snapshot"])
def test_restore_is_refused(machine, state):
    snapshot = machine.snapshot()
    image = machine.copy(snapshot)["disks"][0]["image"]
    if state == "running":
        machine.run_module("vm_snapshot", machine.args(state="absent", snapshot_moid=snapshot))
    else:
        machine.lab.power(machine.moid, "poweredOff")
    options = {"direction": "restore", "disks": [{"disk": machine.keys[0], "image": image}]}
    failed = machine.copy(None, fail=True, **options)
    assert failed["msg"].startswith(
        f"{machine.name} is not powered off" if state == "running" else f"{machine.name} has snapshots"
    )


@ONLY_VDDK
def test_san_is_not_used_to_write(machine):
    options = {"direction": "restore", "disks": [{"disk": machine.keys[0]}], "transports": ["san", "nbd"]}
    failed = machine.copy(None, fail=True, **options)
    assert failed["error_type"] == "InvalidInput"
    assert "san" in failed["msg"]
    assert machine.lab.vddk()["opens"] == 0


def test_area_of_restore(machine, tmp_path):
    """In place: only what the areas file lists is written."""
    snapshot = machine.snapshot()
    image = machine.copy(snapshot)["disks"][0]
    machine.run_module("vm_snapshot", machine.args(state="absent", snapshot_moid=snapshot))
    machine.lab.power(machine.moid, "poweredOff")
    key = machine.keys[0]
    before = machine.content(key)
    machine.lab.write(machine.moid, key, 0, os.urandom(4 * MIB))
    after = machine.content(key)
    listed = str(tmp_path / "areas")
    areas.write_file(listed, 40 * MIB, [(MIB, MIB)])
    item = {"disk": key, "image": image["image"], "areas_file": listed}
    result = machine.copy(None, direction="restore", disks=[item])
    assert machine.content(key) == after[:MIB] + before[MIB : 2 * MIB] + after[2 * MIB :]
    assert result["bytes_written"] == MIB


BAD_ITEMS = [
    ({"disk": "Hard disk 9"}, "There is no disk Hard disk 9"),
    ({}, "There is no disk None"),
    ({"disk": 2000, "kind": "half"}, "the kind half is unknown"),
    ({"disk": 2000, "kind": "incremental"}, "needs parent and areas_file"),
    ({"disk": 2000, "capacity": 1}, "bytes in the snapshot, not 1"),
    ({"disk": 2000, "change_id": "52 other/1"}, "not 52 other/1"),
    ({"disk": 2000, "image": "/nowhere/at/all.qcow2"}, "There is no directory /nowhere/at"),
]


@pytest.mark.parametrize(("item", "message"), BAD_ITEMS)
def test_items_that_contradict_the_disk(machine, item, message):
    failed = machine.copy(machine.snapshot(), disks=[item], fail=True)
    assert message in failed["msg"]
    assert not list(machine.directory.iterdir())


def test_areas_of_another_disk(machine):
    snapshot = machine.snapshot()
    listed = str(machine.directory / "areas")
    areas.write_file(listed, 41 * MIB, [(0, 1)])
    item = {"disk": 2000, "kind": "incremental", "parent": "/p", "areas_file": listed}
    assert "is of a disk of" in machine.copy(snapshot, disks=[item], fail=True)["msg"]


def test_two_disks_one_image(machine):
    image = str(machine.directory / "one.qcow2")
    items = [{"disk": key, "image": image} for key in machine.keys]
    assert "Several disks have the image" in machine.copy(machine.snapshot(), disks=items, fail=True)["msg"]


@pytest.mark.parametrize("option", ["parallel", "request_depth"])
def test_numbers_below_one(machine, option):
    assert f"The option {option} is 0" in machine.copy("snapshot-1", fail=True, **{option: 0})["msg"]


def test_an_image_of_another_is_not_overwritten(machine):
    """Not even foretold: what is there may be all that is left of a disk."""
    image = machine.directory / f"disk-{machine.keys[0]}.qcow2"
    image.write_bytes(b"of a complete restore point")
    for check in (True, False):
        failed = machine.copy(machine.snapshot(f"s{check}"), check=check, fail=True)
        assert "exists already" in failed["msg"]
    assert [path.name for path in machine.directory.iterdir()] == [image.name]
    assert image.read_bytes() == b"of a complete restore point"


def test_snapshot_of_another_vm(machine, lab, run_module, tmp_path):
    other = Machine(lab, run_module, f"{machine.name}-other", tmp_path, machine.access)
    failed = machine.copy(other.snapshot(), fail=True)
    assert "is not one of" in failed["msg"]


def test_independent_disk_is_refused(machine):
    disk = machine.lab.add_disk(machine.moid, MIB, mode="independent_persistent")
    failed = machine.copy(machine.snapshot(), disks=[{"disk": disk["key"]}], fail=True)
    assert "cannot be copied: " in failed["msg"]


@ONLY_VDDK
@pytest.mark.parametrize(
    ("library", "message"), [(None, "is not given"), ("/nowhere", "no lib64/libvixDiskLib.so in /nowhere")]
)
def test_missing_library(machine, monkeypatch, library, message):
    monkeypatch.delenv("VDDK_LIBDIR", raising=False)
    failed = machine.copy("snapshot-1", vddk_libdir=library, fail=True)
    assert message in failed["msg"]
    assert failed["error_type"] == "MissingRequirement"


@ONLY_VDDK
def test_broken_library(machine, tmp_path):
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/libvixDiskLib.so.8").write_text("no library")
    failed = machine.copy(machine.snapshot(), vddk_libdir=str(tmp_path), fail=True)
    assert failed["error_type"] == "MissingRequirement"
    assert "libvixDiskLib" in failed["msg"]


def test_missing_program(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    failed = machine.copy("snapshot-1", fail=True)
    assert failed["msg"] == "The program nbdkit is not installed on the proxy. Install the package nbdkit."


def copiers(mark: str) -> dict[int, Path]:
    """The processes of copies that have this in their environment."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "comm").read_text().strip() in COPIERS and mark in (entry / "environ").read_text():
                found[int(entry.name)] = entry
    return found


def test_password_is_nowhere_to_be_seen(machine, monkeypatch, tmp_path):
    """Neither in arguments nor environments of any process of the copy, nor in what is left behind."""
    monkeypatch.setenv("HOLDFAST_TEST", str(tmp_path))
    machine.slow(30)
    password = machine.lab.password
    monkeypatch.setenv("VMWARE_PASSWORD", password)
    seen = []

    def look():
        wait_for(lambda: len(copiers(str(tmp_path))) >= 3)
        for entry in copiers(str(tmp_path)).values():
            seen.append((entry / "cmdline").read_text() + (entry / "environ").read_text())

    watcher = threading.Thread(target=look)
    watcher.start()
    result = machine.copy(machine.snapshot(), request_depth=1)
    watcher.join()
    assert len(seen) >= 3
    assert password not in "".join(seen)
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert password.encode() not in b"".join(left)
    del result["invocation"]
    assert password not in json.dumps(result)


def play(machine, snapshot, **options: Any) -> list[dict[str, Any]]:
    copy = {
        "moid": machine.moid,
        "snapshot": snapshot,
        "disks": [{"disk": key} for key in machine.keys],
        "image_dir": str(machine.directory),
        "access": machine.access,
        "vddk_libdir": machine.lab.vddk_libdir,
        **options.pop("copy", {}),
    }
    task = {"name": "Copy", "holdfast.backup.vddk_copy": copy, "register": "copied", **options}
    shown = {"name": "Show", "ansible.builtin.debug": {"msg": "read {{ copied.bytes_read | default('nothing') }}"}}
    return [{"hosts": "localhost", "gather_facts": False, "tasks": [task, shown]}]


@pytest.fixture
def env(machine, tmp_path):
    """Environment of a playbook whose temporary files are below tmp_path."""
    (tmp_path / "tmp").mkdir()
    return {**machine.lab.env(), "TMPDIR": str(tmp_path / "tmp"), "ANSIBLE_ASYNC_DIR": str(tmp_path / "async")}


def is_tidy(tmp_path: Path) -> bool:
    """Nothing of the job is left: no progress, no job file, no temporary directory."""
    places = [tmp_path / "tmp", tmp_path / "async"]
    left = [path for place in places if place.is_dir() for path in place.rglob("*") if path.is_file()]
    assert left == []
    return True


def test_playbook_shows_progress(machine, playbook, env, tmp_path):
    """Lines for people at least every ten seconds, and the module's result at the end."""
    snapshot = machine.snapshot()
    machine.slow(100)
    slow = {"request_size": 65536, "request_depth": 1}
    done = playbook(play(machine, snapshot, copy=slow), env=env)
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"vddk_copy {machine.name} Hard disk 1: ")]
    assert re.fullmatch(r".*: \d+ % \d+ of 40 MiB, \d+ KiB/s, \d+:\d\d left", lines[0])
    assert re.fullmatch(r".*: 100 % 40 of 40 MiB, \d+ [KM]iB/s", lines[-1])
    ended = re.findall(r"^vddk_copy .* (Hard disk \d): 100 %", done.stdout, re.MULTILINE)
    assert sorted(ended) == ["Hard disk 1", "Hard disk 2"]
    assert "read 8390144" in done.stdout
    assert "changed: [localhost]" in done.stdout
    assert is_tidy(tmp_path)


@pytest.mark.parametrize("how", ["check", "async", "loop"])
def test_playbook_ways_of_running(machine, playbook, env, how, tmp_path):
    snapshot = machine.snapshot()
    options: dict[str, Any] = {}
    if how == "async":
        options = {"async": 60, "poll": 1}
    if how == "loop":
        options = {"loop": machine.keys, "copy": {"disks": [{"disk": "{{ item }}"}]}}
    done = playbook(play(machine, snapshot, **options), env=env, args=["--check"] if how == "check" else [])
    assert "changed: [localhost]" in done.stdout
    images = sorted(path.name for path in machine.directory.glob("*.qcow2"))
    assert images == ([] if how == "check" else ["disk-2000.qcow2", "disk-2001.qcow2"])
    if how != "async":
        assert is_tidy(tmp_path)


def test_playbook_that_fails(machine, playbook, env, tmp_path):
    done = playbook(play(machine, "snapshot-404"), env=env, rc=2)
    assert "snapshot-404" in done.stdout
    assert is_tidy(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_playbook_interrupted(machine, env, tmp_path, number):
    """Nothing runs on, and the next run goes on with what there is."""
    snapshot = machine.snapshot()
    machine.slow(50)
    slow = {"request_size": 65536, "request_depth": 1, "disks": [{"disk": machine.keys[0]}]}
    path = tmp_path / "play.yml"
    path.write_text(json.dumps(play(machine, snapshot, copy=slow)))
    variables = json.dumps({"ansible_connection": "local", "ansible_python_interpreter": sys.executable})
    run = subprocess.Popen(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", str(path), "-e", variables],
        env={
            **os.environ,
            **env,
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build" / "collections"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
        },
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    image = machine.directory / f"disk-{machine.keys[0]}.qcow2"
    wait_for(lambda: image.exists() and image.stat().st_size > MIB)
    os.killpg(run.pid, number)
    assert run.wait(timeout=30) != 0
    wait_for(lambda: not copiers(str(tmp_path / "tmp")))
    machine.slow(0)
    wait_for(lambda: "interrupted" in Path(f"{image}.state").read_text())
    result = machine.copy(snapshot, disks=[{"disk": machine.keys[0]}])
    assert result["disks"][0]["resumed"]
    assert content_of(str(image), 40 * MIB, tmp_path) == machine.content(machine.keys[0], snapshot)
