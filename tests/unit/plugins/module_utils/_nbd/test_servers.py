# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Command lines: what must never be missing from them, and nothing that anybody could see and should not."""

from __future__ import annotations

import json

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import servers
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)


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
    assert command[0] == "nbdkit"


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


@pytest.mark.parametrize(("destination", "end"), [(["qemu-nbd", "x"], ["[", "qemu-nbd", "x", "]"]), ([], ["null:"])])
def test_nbdcopy(destination, end):
    command = servers.nbdcopy(["nbdkit", "y"], destination, ["--flush"])
    assert command == ["setpriv", "--pdeathsig=KILL", "nbdcopy", "--flush", "--", "[", "nbdkit", "y", "]", *end]
