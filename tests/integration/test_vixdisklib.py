# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The VDDK plugin under the real nbdkit, read and written by the real tools, over the stand-in."""

from __future__ import annotations

import filecmp
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.lab.vddk.kit import MIB, PIECE, Kit, make_disk
from ansible_collections.holdfast.backup.tests.lab.vddk.server import Server, run

SECRET = "Geheim-1"


def serve(kit: Kit, **changes: Any) -> Server:
    """A server of the kit's disk."""
    document = {
        "library_dir": str(kit.root),
        "server": "vc",
        "username": "backup",
        "password": SECRET,
        "thumbprint": "AA:BB",
        "vm": "vm-1",
        "snapshot": "snapshot-1",
        "path": "[ds] a/a.vmdk",
        "capacity": kit.capacity,
    }
    return Server(kit.root, {**document, **changes})


FCD = {"vm": None, "fcd_id": "1ec1b4a8", "datastore": "datastore-12", "snapshot": "2fd2c5b9"}


def is_copied(kit: Kit) -> bool:
    return filecmp.cmp(kit.disk, kit.root / "copy.raw", shallow=False)


@pytest.fixture
def large(tmp_path: Path, _built_kit: None) -> Kit:
    """Large enough to keep many requests in flight."""
    root = tmp_path / "large"
    root.mkdir()
    return Kit(root, 100 * MIB + 3 * 512)


@pytest.mark.parametrize("callbacks", ["late", "reversed", "inline"])
@pytest.mark.parametrize("size", [64 << 10, 256 << 10, 4 << 20])
def test_reads_are_identical(large, callbacks, size):
    large.behave(callbacks=callbacks, latency_us=200)
    server = serve(large)
    assert server.copy(f"--request-size={size}").stderr == ""
    assert is_copied(large)
    assert large.violations() == []
    (opened,), (closed,) = server.events("opened"), server.events("closed")
    assert (opened["transport"], opened["capacity"]) == ("nbdssl", large.capacity)
    assert (closed["bytes_read"] < large.capacity) == (size < PIECE * 2)  # smaller requests leave the holes out
    assert SECRET not in server.status_file.read_text()


def test_a_first_class_disk_is_named_by_its_storage_object(kit):
    server = serve(kit, **FCD)
    assert server.copy().stderr == ""
    assert is_copied(kit)
    assert kit.violations() == []
    opened = kit.records("open")[0]
    assert (opened["fcd"], opened["datastore"], opened["fcd_snapshot"]) == ("1ec1b4a8", "datastore-12", "2fd2c5b9")
    assert [opened.get(name, "") for name in ("vm", "snapshot", "path")] == ["", "", ""]


def test_a_first_class_disk_is_written_itself(kit):
    source = kit.root / "source.raw"
    make_disk(source, kit.capacity)
    kit.disk.write_bytes(bytes([7]) * kit.capacity)
    server = serve(kit, **{**FCD, "read_only": False, "snapshot": None})
    done = run(["nbdcopy", "--flush", "--", str(source), "[", *server.command(), "]"])
    assert done.stderr == ""
    assert filecmp.cmp(source, kit.disk, shallow=False)
    assert kit.violations() == []
    assert kit.records("open")[0].get("fcd_snapshot", "") == ""


def test_a_library_without_storage_objects_says_so_before_it_connects(kit):
    kit.take("6.5")
    server = serve(kit, **FCD)
    assert server.copy().returncode != 0
    error = server.error()
    assert (error["stage"], error["hint"]) == ("load", "Use VDDK 6.7 or later on the proxy.")
    assert "cannot open first class disks" in error["message"]
    assert kit.records("open") == []


def test_calls_about_a_first_class_disk(kit):
    server = serve(kit, **FCD)
    for verb in ("prepare", "end", "cleanup"):
        assert server.call(verb).stderr == ""
    assert [kit.records(verb)[0].get("fcd") for verb in ("prepare", "end", "cleanup")] == ["1ec1b4a8", "1ec1b4a8", None]
    assert kit.violations() == []
    kit.behave("fault=prepare 0 1 6 1")
    assert (
        "Forbidding Storage vMotion of the first class disk 1ec1b4a8 in datastore-12" in server.call("prepare").stderr
    )


@pytest.mark.parametrize("variant", ["no-blocks", "6.5"])
def test_older_libraries_are_read_in_full(kit, variant):
    kit.take(variant)
    server = serve(kit)
    assert server.copy().stderr == ""
    assert is_copied(kit)
    assert kit.violations() == []
    assert server.events("warning")[0]["stage"] == "extents"
    assert server.events("closed")[0]["bytes_read"] == kit.capacity


def test_failing_questions_about_blocks_do_not_fail_the_copy(kit):
    kit.behave("fault=blocks 0 999999999 3 1")
    server = serve(kit)
    assert server.copy().stderr == ""
    assert is_copied(kit)
    assert [(each["stage"], each["code"]) for each in server.events("warning")] == [("extents", 3)]
    assert server.events("closed")[0]["bytes_read"] == kit.capacity


def test_extents_can_be_switched_off(kit):
    server = serve(kit, extents=False)
    assert server.copy().stderr == ""
    assert server.events("warning") == []
    assert server.events("closed")[0]["bytes_read"] == kit.capacity


def test_the_map_shows_the_holes_and_the_tail_as_data(kit):
    with kit.disk.open("r+b") as file:
        os.truncate(file.fileno(), 0)
        os.truncate(file.fileno(), kit.capacity)
        for place in (MIB, MIB + 100000):
            file.seek(place)
            file.write(b"x")
    found = json.loads(run(["nbdinfo", "--map", "--json", "--", "[", *serve(kit).command(), "]"]).stdout)
    assert [(each["offset"], each["length"]) for each in found if each["type"] == 0] == [
        (MIB, 128 << 10),
        (4 * MIB, 3 * 512),
    ]
    assert {each["type"] for each in found} == {0, 3}


def test_qemu_finds_the_same_disk(kit):
    inner = f'qemu-img compare -f raw -F raw "$uri" {shlex.quote(str(kit.disk))}'
    command = [*serve(kit).command()]
    at = command.index("nbdkit")
    done = run([*command[: at + 1], "-U", "-", "--run", inner, *command[at + 1 :]])
    assert "Images are identical." in done.stdout, done.stderr


def test_writes_arrive_and_are_flushed(kit):
    source = kit.root / "source.raw"
    make_disk(source, kit.capacity)
    kit.disk.write_bytes(bytes([7]) * kit.capacity)
    server = serve(kit, read_only=False, snapshot=None)
    done = run(["nbdcopy", "--flush", "--", str(source), "[", *server.command(), "]"])
    assert done.stderr == ""
    assert filecmp.cmp(source, kit.disk, shallow=False)
    assert server.events("closed")[0]["bytes_written"] == kit.capacity
    assert kit.violations() == []


def test_a_failed_flush_is_an_error(kit):
    kit.behave("fault=flush 0 1 14011 1")
    server = serve(kit, read_only=False, snapshot=None)
    done = run(["nbdcopy", "--flush", "--", str(kit.disk), "[", *server.command(), "]"])
    assert done.returncode != 0
    assert server.error()["stage"] == "flush"


def test_a_read_only_disk_cannot_be_written(kit):
    done = run(["nbdcopy", "--", str(kit.disk), "[", *serve(kit).command(), "]"])
    assert done.returncode != 0
    assert kit.records("open")[0]["write"] == "0"


@pytest.mark.parametrize("code", [14011, 14014, 15, 13])
@pytest.mark.parametrize("callbacks", ["late", "inline"])
def test_errors_that_pass_are_answered_by_a_new_handle(kit, code, callbacks):
    kit.behave(f"fault=read 2048 128 {code} 1", callbacks=callbacks)
    server = serve(kit, extents=False)
    assert server.copy("--request-size=65536").stderr == ""
    assert is_copied(kit)
    assert [(each["stage"], each["code"]) for each in server.events("warning")] == [("read", code)]
    assert [each["generation"] for each in server.events("opened")] == [1, 2]
    assert server.events("closed")[0]["reopened"] == 1
    assert kit.violations() == []


def test_the_same_request_is_repeated_a_bounded_number_of_times(kit):
    kit.behave("fault=read 2048 128 14011 100")
    server = serve(kit, extents=False, retries=3)
    assert server.copy().returncode != 0
    assert len(server.events("warning")) == 3
    error = server.error()
    assert (error["stage"], error["code"], error["name"]) == ("read", 14011, "VIX_E_NBD_TCP_CONN_LOST")
    assert "902" in error["hint"]


def test_errors_that_stay_are_not_repeated(kit):
    kit.behave("fault=read 2048 128 4 100")
    server = serve(kit, extents=False)
    assert server.copy().returncode != 0
    assert server.events("warning") == []
    assert "[ds] a/a.vmdk of vm-1 on vc" in server.error()["message"]


@pytest.mark.parametrize(("operation", "code"), [("open", 15), ("connect", 18000), ("open", 14014)])
def test_opening_is_repeated(kit, operation, code):
    kit.behave(f"fault={operation} 0 2 {code} 2")
    server = serve(kit)
    assert server.copy().stderr == ""
    assert is_copied(kit)
    assert [(each["stage"], each["code"]) for each in server.events("warning")] == [(operation, code)] * 2


def test_a_disk_that_cannot_be_opened_says_why_once(kit):
    kit.behave("fault=open 0 1000 1 100")
    server = serve(kit)
    assert server.copy().returncode != 0
    assert len(server.events("error")) == 1
    assert "thumbprint" in server.error()["hint"]


def test_opening_is_given_up_once_for_all(kit):
    kit.behave("fault=open 0 1000 15 100")
    server = serve(kit, retries=2)
    assert server.copy().returncode != 0
    assert len(server.events("warning")) == 2
    assert len(server.events("error")) == 1


def test_many_failures_of_one_handle_are_one_loss(large):
    large.behave("fault=read 0 999999 14011 8", latency_us=50000, in_flight=16)
    server = serve(large, extents=False)
    assert server.copy("--request-size=1048576").stderr == ""
    assert is_copied(large)
    assert [each["generation"] for each in server.events("opened")] == [1, 2]
    assert len(server.events("warning")) == 1


def test_a_lost_disk_is_not_asked_for_by_every_request(large):
    large.behave("fault=read 0 999999 14011 8", "fault=open 1 1000 15 1000", latency_us=50000, in_flight=16)
    server = serve(large, extents=False, retries=2)
    assert server.copy("--request-size=1048576").returncode != 0
    assert [each["stage"] for each in server.events("warning")] == ["read", "open", "open"]
    assert [each["stage"] for each in server.events("error")] == ["open"]


def test_less_is_in_flight_when_the_host_runs_out_of_memory(large):
    large.behave(memory=1 << 20, in_flight=64, latency_us=20000)
    server = serve(large, extents=False)
    assert server.copy("--request-size=262144").stderr == ""
    assert is_copied(large)
    depths = [each["depth"] for each in server.events("depth")]
    assert depths[-1] <= 4
    assert depths == sorted(depths, reverse=True)


def test_the_transport_that_was_chosen_is_told(kit):
    kit.behave(transport="hotadd")
    server = serve(kit, transports="san:hotadd:nbdssl")
    assert server.copy().stderr == ""
    assert server.events("opened")[0]["transport"] == "hotadd"


def test_a_disk_of_another_size_is_refused(kit):
    server = serve(kit, capacity=kit.capacity + 512)
    assert server.copy().returncode != 0
    assert server.error()["stage"] == "capacity"
    assert f"has {kit.capacity} bytes instead of {kit.capacity + 512}" in server.error()["message"]
    assert kit.violations() == []


def test_parts_of_sectors_are_refused(kit):
    command = serve(kit).command("offset=100")
    command.insert(command.index("python"), "--filter=offset")
    done = run(["nbdcopy", "--", "[", *command, "]", "null:"])
    assert "Invalid argument" in done.stderr


@pytest.mark.parametrize("missing", ["root", "libraries", "path"])
def test_a_wrong_library_directory_is_explained(kit, missing):
    server = serve(kit, library_dir=str(kit.root / {"root": "nowhere", "path": "lib64", "libraries": ""}[missing]))
    if missing == "libraries":
        (kit.root / "lib64" / "libvixDiskLibVim.so.8").unlink()
    assert server.copy().returncode != 0
    error = server.error()
    assert error["stage"] == ("init" if missing == "libraries" else "load")
    expected = {"root": "does not exist", "path": "is not the root of VDDK", "libraries": "code 16053"}
    assert expected[missing] in error["message"]
    assert error["hint"]


def test_requests_wait_beside_each_other(large):
    large.behave(latency_us=20000, in_flight=64)
    most = {}
    for threads in (1, 16):
        server = serve(large, extents=False)
        command = server.command(program=("nbdkit", f"--threads={threads}", "python"))
        assert run(["nbdcopy", "--request-size=1048576", "--", "[", *command, "]", "null:"]).returncode == 0
        most[threads] = int(large.records("close")[-1]["most_in_flight"])
    assert most[1] == 1
    assert 8 < most[16] <= 16


def test_calls_about_the_whole_vm(kit):
    server = serve(kit)
    for verb, event in (("prepare", "prepared"), ("end", "ended"), ("cleanup", "cleaned")):
        assert server.call(verb).stderr == ""
        assert len(server.events(event)) == 1
    assert kit.records("prepare")[0]["identity"] == "holdfast.backup"
    assert "vm" not in kit.records("cleanup")[0]
    assert kit.violations() == []


def test_what_a_crashed_run_forbade_is_freed_first(kit):
    kit.behave("fault=prepare 0 1 20005 1")
    server = serve(kit)
    assert server.call("prepare").returncode == 0
    assert len(kit.records("end")) == 1


def test_a_failed_call_is_told(kit):
    kit.behave("fault=prepare 0 1 20005 2")
    server = serve(kit)
    done = server.call("prepare")
    assert (done.returncode, server.error()["code"]) == (1, 20005)
    assert "already forbidden" in done.stderr


def test_nbdkits_own_plugin_reads_the_same(kit):
    """Somebody else's client accepts the stand-in."""
    if run(["nbdkit", "--dump-plugin", "vddk"]).returncode:
        pytest.skip("nbdkit's vddk plugin is not installed (Debian: nbdkit-plugin-vddk, from version 13 on)")
    kit.behave(check_thread=0)
    (kit.root / "password").write_text(SECRET)
    values = {
        "libdir": kit.root,
        "file": "[ds] a/a.vmdk",
        "server": "vc",
        "user": "backup",
        "password": f"+{kit.root / 'password'}",
        "thumbprint": "AA:BB",
        "vm": "moref=vm-1",
        "snapshot": "snapshot-1",
    }
    # Its questions about blocks go past the end of such a disk, which the stand-in refuses. And socket activation
    # does not survive the restart by which it sets the library path.
    library_path = f"LD_LIBRARY_PATH={kit.root / 'lib64'}"
    options = [f"{key}={value}" for key, value in values.items()]
    command = ["env", library_path, "nbdkit", "-r", "--filter=noextents", "vddk", *options]
    done = run(["nbdcopy", "--", "[", *command, "]", str(kit.root / "copy.raw")])
    assert done.returncode == 0, done.stderr
    assert is_copied(kit)
    assert kit.violations() == []
