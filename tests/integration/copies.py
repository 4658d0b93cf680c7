# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM of the lab whose disks are copied night by night, each night's images over those of the one before."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.lab.client import Lab

MIB = 1 << 20
BLOCK = 64 << 10


class Copies:
    """``images`` are the paths of the newest ones by disk key, ``snapshots`` the moids, oldest first.

    :param access: the way to the disks, ``vddk`` or ``native``
    """

    def __init__(self, lab: Lab, directory: Path, *sizes: int, access: str = "vddk") -> None:
        self.lab, self.directory, self.access = lab, directory, access
        vm = lab.create_vm(f"copied-{uuid.uuid4().hex[:8]}", disks=list(sizes), tracking=True, power="poweredOn")
        self.moid, self.name, self.disks = vm["moid"], vm["name"], vm["disks"]
        self.keys = [disk["key"] for disk in self.disks]
        self.snapshots: list[str] = []
        self.last: list[dict[str, Any]] = []
        self.changed: list[dict[str, Any]] = []

    def run(self, module: str, check: bool = False, diff: bool = False, fail: bool = False, **args: Any) -> Any:
        given = {**self.lab.module_args(), "moid": self.moid, **args}
        return modules.run(module, given, check=check, diff=diff, fail=fail)

    def service(self, **knobs: Any) -> dict[str, Any]:
        """The knobs and the report of who gives access to the disks."""
        return (self.lab.vddk if self.access == "vddk" else self.lab.nfc)(**knobs)

    def slow(self, milliseconds: float) -> None:
        """Let every request take so long."""
        self.service(latency_ms=milliseconds)

    def opens(self) -> int:
        """How often a disk was opened."""
        return self.service()["opens" if self.access == "vddk" else "connections"]

    def write(self, offset: int, data: bytes, disk: int = 0) -> None:
        self.lab.write(self.moid, self.keys[disk], offset, data)

    def write_unnoticed(self, offset: int, data: bytes, disk: int = 0) -> None:
        """As the guest would; change tracking misses it."""
        self.lab.tracking(forget=True)
        self.write(offset, data, disk)
        self.lab.tracking(forget=False)

    def look(self) -> list[dict[str, Any]]:
        """Take a snapshot and ask what changed since the last copy; the items to copy."""
        name = uuid.uuid4().hex
        self.snapshots.append(self.run("vm_snapshot", snapshot_name=name)["snapshot"]["moid"])
        before = [{**disk, "parent": disk["image"], "parent_id": f"{disk['key']}/before"} for disk in self.last]
        since = [{**record, "reason": None} for record in before]
        where: dict[str, Any] = {"snapshot": self.snapshots[-1], "areas_dir": str(self.directory / name)}
        self.changed = self.run("disk_changed_areas", since=since, **where)["disks"]
        return self.changed

    def copy(self, check: bool = False, fail: bool = False, **options: Any) -> Any:
        """Copy what :meth:`look` found; remembered as the last one if it was."""
        directory = self.directory / f"images-{len(self.snapshots)}"
        directory.mkdir(exist_ok=True)
        given = {
            "snapshot": self.snapshots[-1],
            "disks": self.changed,
            "image_dir": str(directory),
            "access": self.access,
            "vddk_libdir": self.lab.vddk_libdir if self.access == "vddk" else None,
        }
        result = self.run("vddk_copy", check=check, fail=fail, **{**given, **options})
        if not (check or fail or "direction" in options):
            self.last = result["disks"]
        return result

    def night(self, **options: Any) -> list[dict[str, Any]]:
        """Look and copy; the results of the disks."""
        self.look()
        return self.copy(**options)["disks"]

    def content(self, disk: int = 0) -> bytes:
        """What the disk holds in the newest snapshot."""
        return self.lab.read(self.moid, self.keys[disk], snapshot=self.snapshots[-1])


def image_content(image: str, size: int, scratch: Path) -> bytes:
    """The content of an image with all below it, as qemu-img sees it."""
    raw = scratch / f"{uuid.uuid4().hex}.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    try:
        return raw.read_bytes()[:size]
    finally:
        os.unlink(raw)
