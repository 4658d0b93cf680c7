# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Command lines: what must never be missing from them, and nothing that anybody could see and should not."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
import uuid

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import servers
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)


def bound(how, parent=""):
    """How a command begins that gets this signal when its parent is gone."""
    return ["setpriv", f"--pdeathsig={how}", "sh", "-c", servers._GUARD, parent]


def node(command):
    """The node that a qemu-nbd command opens."""
    assert command[-1].startswith("json:")
    return json.loads(command[-1][5:])


def layers(image):
    """All layers of a qcow2 node, the topmost first."""
    while image:
        yield image
        image = image["backing"]


def test_disk_server():
    disk = servers.Disk(("python", "/t/plugin.py"), 77, {"LD_LIBRARY_PATH": "/l/lib64"})
    filters = [("extentlist", "extentlist=/t/areas"), ("truncate", "round-up=65536")]
    assert servers.disk_server(disk, filters, threads=8, log="/dev/fd/78") == [
        *bound("TERM"),
        "env",
        "LD_LIBRARY_PATH=/l/lib64",
        "nbdkit",
        "--foreground",
        "--exit-with-parent",
        "--threads=8",
        "--readonly",
        "--filter=extentlist",
        "--filter=truncate",
        "--filter=log",
        "python",
        "/t/plugin.py",
        "parameters=-77",
        "extentlist=/t/areas",
        "round-up=65536",
        "logfile=/dev/fd/78",
    ]


def test_disk_to_write_on():
    command = servers.disk_server(servers.Disk(("file", "/d")), read_only=False)
    assert "--readonly" not in command
    assert command[: len(bound("TERM")) + 1] == [*bound("TERM"), "nbdkit"]


@given(st.lists(NAMES, min_size=1, max_size=5))
def test_every_layer_is_opened_as_what_it_is(paths):
    """Any name is a plain file's name, every driver is given, and the last layer has nothing below it."""
    for image in (node(servers.image_writer(paths))["file"], node(servers.image_reader(paths))):
        found = list(layers(image))
        assert [layer["file"]["filename"] for layer in found] == paths
        assert {layer["driver"] for layer in found} == {"qcow2"}
        assert {layer["file"]["driver"] for layer in found} == {"file"}
        assert found[-1]["backing"] is None


def test_writer_compresses_unless_told_otherwise():
    assert node(servers.image_writer(["/i"]))["driver"] == "compress"
    assert node(servers.image_writer(["/i"], compress=False))["driver"] == "qcow2"


def test_reader_serves_the_true_size_and_never_writes():
    command = servers.image_reader(["/i"], 1536)
    assert "--read-only" in command
    assert (node(command)["driver"], node(command)["size"]) == ("raw", 1536)


def test_filtered_server_runs_the_same_command():
    command = servers.filtered(["qemu-nbd", "json:{}"], [("extentlist", "extentlist=/a")])
    assert [part for part in command if part.startswith(("command=", "arg="))] == ["command=qemu-nbd", "arg=json:{}"]
    assert command[: len(bound("TERM"))] == bound("TERM")


@pytest.mark.parametrize(("destination", "end"), [(["qemu-nbd", "x"], ["[", "qemu-nbd", "x", "]"]), ([], ["null:"])])
def test_nbdcopy(destination, end):
    command = servers.nbdcopy(["nbdkit", "y"], destination, ["--flush"])
    assert command == [*bound("KILL", str(os.getpid())), "nbdcopy", "--flush", "--", "[", "nbdkit", "y", "]", *end]


@pytest.fixture
def image(tmp_path):
    path = str(tmp_path / "image")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    return path


def start_and_die(command, late):
    """Have a process start a server and end at once; returns when the server has ended, or after ten seconds.

    :param late: whether the process ends before the command begins, else right after
    :returns: whether it has ended
    """
    reader, writer = os.pipe()  # which the server has open as long as it lives
    address = "\0" + uuid.uuid4().hex
    parent = os.fork()
    if parent == 0:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(address)
            listener.listen()
            starter = os.getpid()
            if os.fork() == 0:
                os.environ.update(HOLDFAST_PARENT=str(starter), LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
                os.dup2(listener.fileno(), 3)
                os.set_inheritable(writer, True)
                while late and os.getppid() == starter:
                    time.sleep(0.01)
                os.execvp(command[0], command)
            if not late:
                client.connect(address)
                client.recv(8)  # its greeting: it works now
            os._exit(0)
    os.close(writer)
    os.waitpid(parent, 0)
    with open(reader, "rb", buffering=0) as pipe:
        return bool(select.select([pipe], [], [], 10)[0])


@pytest.mark.parametrize("late", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("server", ["reader", "writer", "disk", "filtered"])
def test_no_server_outlives_who_starts_it(image, server, late):
    """Also when that is gone before the kernel is asked to see to it."""
    command = {
        "reader": servers.image_reader([image]),
        "writer": servers.image_writer([image]),
        "disk": servers.disk_server(servers.Disk(("memory", "1M"))),
        "filtered": servers.filtered(servers.image_reader([image]), []),
    }[server]
    assert start_and_die(command, late)


def test_who_is_started_by_another_than_us_does_nothing(tmp_path):
    command = servers.bound_to_us(["touch", str(tmp_path / "ours")])
    subprocess.run(command, check=True)
    assert os.listdir(tmp_path) == ["ours"]
    other = servers.bound_to_us(["touch", str(tmp_path / "another")])
    done = subprocess.run(
        [sys.executable, "-c", f"import subprocess; print(subprocess.run({other}).returncode)"],
        capture_output=True,
        check=True,
    )
    assert (done.stdout, os.listdir(tmp_path)) == (b"1\n", ["ours"])
