# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM in the lab with a twin in memory, and what must be restored of it.

The twin knows the bytes of every disk from the writes alone. At the moment of a backup its bytes are put aside; every
restore point is held against them by QEMU's own tools.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import parse_time
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import tasks
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.sdk import vim
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.backup_chain import Chain
from ansible_collections.holdfast.backup.tests.lab.client import Lab

SECTOR = 512
BLOCK = 65536
MIB = 1 << 20
SIZES = (MIB + 3 * SECTOR, 3 * MIB, 5 * MIB - SECTOR, 64 * SECTOR, 2 * MIB + BLOCK, 9 * MIB + 7 * SECTOR)
MOST_DISKS = 4

_names = itertools.count()


@dataclass
class Disk:
    """The twin of a disk. ``tracking`` is another object after each event that ends its change tracking."""

    key: int
    backing_uuid: str
    content: bytearray
    tracking: object = field(default_factory=object)

    def copy(self) -> Disk:
        return Disk(self.key, self.backing_uuid, bytearray(self.content), self.tracking)


@dataclass(frozen=True)
class Held:
    """One disk at the moment of a backup."""

    content: bytes  # compressed
    capacity: int
    tracking: object

    @classmethod
    def of(cls, disk: Disk) -> Held:
        return cls(zlib.compress(disk.content, 1), len(disk.content), disk.tracking)


Moment = dict[str, Held]  # by backing UUID


class Machine:
    """The VM and its twin: what the guest and its administrators do to it."""

    def __init__(self, lab: Lab, dice: random.Random, name: str = "") -> None:
        self.lab, self.dice = lab, dice
        sizes = dice.sample(SIZES, dice.randint(1, 3))
        self.name = name or f"model{os.getpid()}-{next(_names)}"
        vm = lab.create_vm(self.name, disks=list(sizes), power="poweredOn", tracking=dice.random() < 0.5)
        self.moid: str = vm["moid"]
        self.disks: dict[int, Disk] = {}
        self.snapshots: dict[str, dict[int, Disk]] = {}  # users' snapshots, by moid
        self.reverted = datetime.fromtimestamp(0, timezone.utc)
        for disk in vm["disks"]:
            self._adopt(disk)

    def _adopt(self, record: dict[str, Any]) -> None:
        self.disks[record["key"]] = Disk(record["key"], record["backing_uuid"], bytearray(record["capacity"]))

    def any_disk(self) -> Disk:
        return self.disks[self.dice.choice(sorted(self.disks))]

    def moment(self) -> Moment:
        """What a snapshot taken now holds."""
        return {disk.backing_uuid: Held.of(disk) for disk in self.disks.values()}

    def check(self) -> None:
        """The lab's disks are those of the twin; else the fault is the lab's or the test's."""
        for key, disk in self.disks.items():
            assert self.lab.read(self.moid, key) == disk.content, f"the lab and the twin differ in disk {key}"

    # the guest

    def write(self) -> str:
        """A few writes of all kinds."""
        return ", ".join(self._write_once() for _write in range(self.dice.randint(1, 5)))

    def _write_once(self) -> str:
        disk, dice = self.any_disk(), self.dice
        size = len(disk.content)
        length = min(size, dice.choice((1, SECTOR, 4096, BLOCK, dice.randrange(1, 3 * BLOCK), dice.randrange(1, MIB))))
        offset = dice.choice((0, size - length, dice.randrange(size - length + 1)))
        if dice.random() < 0.4:
            offset = offset // BLOCK * BLOCK
        kind = dice.choice(("noise", "noise", "text", "zeros"))
        data = {"noise": dice.randbytes, "text": lambda n: (b"%d " % n * n)[:n], "zeros": bytes}[kind](length)
        self.lab.write(self.moid, disk.key, offset, data)
        disk.content[offset : offset + length] = data
        return f"{length} {kind} at {offset} of {disk.key}"

    def fill(self, disk: Disk) -> None:
        """Write to all of it."""
        disk.content = bytearray(self.dice.randbytes(len(disk.content)))
        self.lab.write(self.moid, disk.key, 0, bytes(disk.content))

    def trim(self) -> str:
        """Discard a range."""
        disk, dice = self.any_disk(), self.dice
        offset = dice.randrange(len(disk.content) // SECTOR) * SECTOR
        length = dice.randint(1, (len(disk.content) - offset) // SECTOR) * SECTOR
        self.lab.trim(self.moid, disk.key, offset, length)
        disk.content[offset : offset + length] = bytes(length)
        return f"{length} at {offset} of {disk.key}"

    # the administrators

    def grow(self) -> str:
        """A disk becomes larger; not while there are snapshots."""
        if self.lab.snapshots(self.moid):
            return "not under a snapshot"
        disk = self.any_disk()
        disk.content += bytes(self.dice.choice((SECTOR, BLOCK, 100 * SECTOR, MIB)))
        self.lab.grow_disk(self.moid, disk.key, len(disk.content))
        disk.tracking = object()
        return f"{disk.key} to {len(disk.content)}"

    def add(self) -> str:
        """One more disk."""
        if len(self.disks) >= MOST_DISKS:
            return "enough disks"
        size = self.dice.choice(SIZES)
        record = self.lab.add_disk(self.moid, size)
        self._adopt(record)
        return f"{record['key']} of {size}"

    def remove(self) -> str:
        """One disk fewer."""
        if len(self.disks) == 1:
            return "the last disk stays"
        disk = self.any_disk()
        self.lab.remove_disk(self.moid, disk.key)
        del self.disks[disk.key]
        return f"{disk.key}"

    def replace(self) -> str:
        """An empty disk in the place, and under the key, of another."""
        disk = self.any_disk()
        size = self.dice.choice((len(disk.content), *SIZES))
        self._adopt(self.lab.replace_disk(self.moid, disk.key, size))
        return f"{disk.key} by {size}"

    def snapshot(self) -> str:
        """A user's snapshot, which is not ours to touch."""
        if len(self.snapshots) >= 3:
            return "enough snapshots"
        args = {**self.lab.module_args(), "moid": self.moid, "snapshot_name": f"user's {next(_names)}"}
        moid = modules.run("vm_snapshot", args)["snapshot"]["moid"]
        self.snapshots[moid] = {key: disk.copy() for key, disk in self.disks.items()}
        return moid

    def forget_snapshot(self) -> str:
        """The user deletes a snapshot; its content goes on in the VM."""
        if not self.snapshots:
            return "there is none"
        moid = self.dice.choice(sorted(self.snapshots))
        self._call(moid, "RemoveSnapshot_Task", False)
        del self.snapshots[moid]
        return moid

    def revert(self) -> str:
        """Back to a user's snapshot: bytes, sizes and disks."""
        if not self.snapshots:
            return f"there must be one first: {self.snapshot()}"
        moid = self.dice.choice(sorted(self.snapshots))
        self._call(moid, "RevertToSnapshot_Task")
        self.reverted = datetime.now(timezone.utc)
        self.disks = {key: disk.copy() for key, disk in self.snapshots[moid].items()}
        self._lose_track(self.disks.values())
        return moid

    def disturb_tracking(self) -> str:
        """Another product resets or breaks the change tracking of a disk."""
        disk, lose = self.any_disk(), self.dice.random() < 0.5
        self.lab.reset_tracking(self.moid, disk.key, lose=lose)
        self._lose_track([disk])
        return f"{'lost' if lose else 'reset'} on {disk.key}"

    def crash(self) -> str:
        """The VM's host dies."""
        self.lab.crash_host(self.moid)
        self._lose_track(self.disks.values())
        return "host"

    def power(self) -> str:
        """The VM is switched off or on."""
        state = "poweredOn" if self.lab.vm(self.moid)["power"] == "poweredOff" else "poweredOff"
        self.lab.power(self.moid, state)
        return state

    def _lose_track(self, disks: Iterable[Disk]) -> None:
        for disk in disks:
            disk.tracking = object()

    def _call(self, snapshot: str, method: str, *args: Any) -> None:
        with Connection(Endpoint(**self.lab.module_args())) as c:
            tasks.wait(c, getattr(vim.vm.Snapshot(snapshot, c.stub), method)(*args), timeout=300)


class Repository:
    """The restore points of a machine, and what each of them must hold."""

    def __init__(self, machine: Machine, path: Path, scratch: Path) -> None:
        self.machine, self.path, self.scratch = machine, path, scratch
        path.mkdir()
        scratch.mkdir(exist_ok=True)
        self.moments: dict[str, Moment] = {}  # by the ID of the restore point

    def chain(self, native: bool | None = None, **options: dict[str, Any]) -> Chain:
        """By the one way to the disks or the other; by each in turn if that is not said."""
        lab = self.machine.lab
        if native is None:
            native = bool(len(self.moments) % 2)
        library = None if native else lab.vddk_libdir
        return Chain(lab.module_args(), self.machine.moid, str(self.path), library, options)

    def points(self, verify: str = "structure") -> list[dict[str, Any]]:
        """What restore_point_info lists, all of it whole."""
        listed = modules.run("restore_point_info", {"repository": str(self.path), "verify": verify})["restore_points"]
        for point in listed:
            assert point["verified"]["ok"], point["verified"]
        assert [point["id"] for point in listed] == sorted(self.moments)
        return listed

    def prove(self, points: Iterable[dict[str, Any]]) -> None:
        """These restore points are what was put aside, bit for bit, in the eyes of QEMU's tools."""
        for point in points:
            moment = self.moments[point["id"]]
            assert {disk["backing_uuid"] for disk in point["disks"]} == set(moment), point["id"]
            for disk in point["disks"]:
                held = moment[disk["backing_uuid"]]
                assert disk["capacity"] == held.capacity
                _qemu_img("check", "-q", "-f", "qcow2", disk["path"])
                raw = self.scratch / "disk.raw"
                _qemu_img("convert", "-f", "qcow2", "-O", "raw", disk["path"], str(raw))
                found = raw.read_bytes()
                assert not any(found[held.capacity :])
                differs = difference(found[: held.capacity], zlib.decompress(held.content))
                assert not differs, f"{point['id']} {disk['image']} ({disk['kind']}): {differs}"

    def to_go_on(self, longest: int) -> set[str]:
        """Backing UUIDs of the disks that have every reason to be copied incrementally next.

        :param longest: the most images that a chain may have
        """
        manifests = {name: json.loads((self.path / name / "point.json").read_text()) for name in sorted(self.moments)}

        def record(point: str, uuid: str) -> dict[str, Any]:
            return next(disk for disk in manifests[point]["disks"] if disk["backing_uuid"] == uuid)

        def length(disk: dict[str, Any]) -> int:
            return 1 + (length(record(disk["parent"]["id"], disk["backing_uuid"])) if disk["parent"] else 0)

        found = set()
        for disk in self.machine.disks.values():
            points = [point for point in manifests if disk.backing_uuid in self.moments[point]]
            if not points or self.moments[points[-1]][disk.backing_uuid].tracking is not disk.tracking:
                continue
            newest = record(points[-1], disk.backing_uuid)
            taken = parse_time(manifests[points[-1]]["snapshot_time"])
            if newest["change_id"] and length(newest) < longest and taken > self.machine.reverted:
                found.add(disk.backing_uuid)
        return found

    def assert_tidy(self) -> None:
        """Nothing is in the repository but the restore points, and nobody is logged in.

        A lock that somebody who is dead was about to put in place may lie there for some minutes.
        """
        found = {f"{place.parent.name}/{place.name}" for place in self.path.glob("*/*")}
        found = {name for name in found if "/.lock-" not in name}
        wanted = set(self.moments)
        assert found == wanted, f"unfinished {found - wanted}, lost {wanted - found}"
        assert self.machine.lab.sessions() == [], "somebody is still logged in"

    def own_snapshots(self) -> int:
        """How many snapshots of ours the VM has; those of its users must all be there."""
        there = {one["moid"] for one in self.machine.lab.snapshots(self.machine.moid)}
        assert there >= set(self.machine.snapshots), "a user's snapshot is gone"
        return len(there) - len(self.machine.snapshots)

    def restore(self, point: dict[str, Any]) -> None:
        """Make a new VM of a restore point: its disks are what was put aside."""
        lab = self.machine.lab
        created = self.chain().restore(modules.run, point, f"restored{os.getpid()}-{next(_names)}")
        moment = self.moments[point["id"]]
        assert {disk["source_backing_uuid"] for disk in created["disks"]} == set(moment)
        for disk in created["disks"]:
            held = moment[disk["source_backing_uuid"]]
            found = lab.read(created["vm"]["moid"], disk["key"])
            differs = difference(found, zlib.decompress(held.content))
            assert not differs, f"{point['id']} restored to a new VM: {differs}"
        lab.destroy_vm(created["vm"]["moid"])


def difference(found: bytes, wanted: bytes) -> str | None:
    """Where two contents differ, for a message."""
    if found == wanted:
        return None
    blocks = [
        at for at in range(0, max(len(found), len(wanted)), BLOCK) if found[at : at + BLOCK] != wanted[at : at + BLOCK]
    ]
    return f"{len(found)} bytes for {len(wanted)}; {len(blocks)} blocks differ, at {blocks[:8]}"


def _qemu_img(*arguments: str) -> None:
    done = subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"qemu-img {' '.join(arguments)}: {done.stderr}{done.stdout}"
