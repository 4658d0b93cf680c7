# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""vddk_copy against the lab and the stand-in for VDDK, by its main() and in real playbooks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas

MIB = 1 << 20


class Machine:
    """A VM of the lab with two disks, and the shortest way to what tests need of it."""

    def __init__(self, lab, run_module, name: str, directory: Path) -> None:
        self.lab, self.run_module, self.directory = lab, run_module, directory
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
            "vddk_libdir": self.lab.vddk_libdir,
            "image_dir": str(self.directory),
            "disks": [{"disk": key} for key in self.keys],
            **options,
        }
        return self.run_module("vddk_copy", self.args(**args), check=check, diff=diff, fail=fail)

    def content(self, key: int, snapshot: str | None = None) -> bytes:
        return self.lab.read(self.moid, key, snapshot=snapshot)


@pytest.fixture
def machine(lab, run_module, tmp_path, request):
    directory = tmp_path / "images"
    directory.mkdir()
    return Machine(lab, run_module, request.node.name[:60], directory)


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
        content = content_of(disk["image"], there["capacity"], tmp_path)
        assert content == machine.content(there["key"], snapshot)
    assert result["bytes_read"] < 20 * MIB
