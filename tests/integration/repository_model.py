# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines and first class disks without a vCenter, their twin in memory, and a repository of their restore points.

Disks are files behind nbdkit, change tracking is a list of what was written, and the clock is what the test wants.
What is between them and the repository is the real thing: the modules by their ``main()``, the real copy. The twin is
held against what QEMU's own tools read.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, jobs, restore, servers
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import backup as copying
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.areas import Area
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.jobs import Settings, Task
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.restore_model import difference

SECTOR = 512
BLOCK = 65536
MIB = 1 << 20
SIZES = (MIB + 3 * SECTOR, 2 * MIB, 64 * SECTOR, 3 * MIB - SECTOR, MIB + BLOCK)
MOST_DISKS = 3
NAMED = ("point.json", "config.json", "fcd.json", "pin.json", "verified.json")


class Clock:
    """What the modules take for the time. It jumps as the test likes, backwards too."""

    MODULES = ("restore_point", "restore_point_info", "repository_retention", "repository_verification")

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 5, 2, 15, tzinfo=timezone.utc)

    def forward(self, **delta: float) -> None:
        """Let time pass."""
        self.now += timedelta(**delta)

    @contextmanager
    def ruling(self) -> Iterator[None]:
        """Modules that run inside ask this clock."""
        clock = self

        class Now(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return clock.now

        with ExitStack() as patches:
            for name in self.MODULES:
                if has_module(name) and hasattr(modules.load(name), "datetime"):
                    patches.enter_context(mock.patch.object(modules.load(name), "datetime", Now))
            yield


def has_module(name: str) -> bool:
    """Whether the collection has this module."""
    return (Path(modules.__file__).parents[1] / f"plugins/modules/{name}.py").exists()


@dataclass(frozen=True)
class FileDisk:
    """A disk that is a file; ``faults`` are parameters of nbdkit's error filter."""

    path: str
    faults: tuple[str, ...] = ()
    transport: str | None = None
    error: BackupError | None = None

    @property
    def warnings(self) -> list[str]:
        """None are known."""
        return []

    @contextmanager
    def open(self) -> Iterator[servers.Disk]:
        """The disk for one start of nbdkit."""
        faulty = ("--filter=error",) if self.faults else ()
        yield servers.Disk((*faulty, "file", self.path, *self.faults))


@dataclass
class Disk:
    """The twin of a disk, and its change tracking.

    :param log: the blocks written after each change ID; another ``tracking`` is another beginning
    """

    key: int
    backing_uuid: str
    content: bytearray
    tracking: str = field(default_factory=lambda: str(uuid.uuid4()))
    log: list[set[int]] = field(default_factory=lambda: [set()])
    fcd_id: str | None = None

    def copy(self) -> Disk:
        """As it is now, with a tracking of its own."""
        return Disk(self.key, self.backing_uuid, bytearray(self.content), fcd_id=self.fcd_id)

    def put(self, offset: int, data: bytes) -> None:
        """The guest writes."""
        assert offset + len(data) <= len(self.content)
        self.content[offset : offset + len(data)] = data
        self.log[-1].update(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))

    def lose_track(self) -> None:
        """Something ends the change tracking."""
        self.tracking, self.log = str(uuid.uuid4()), [set()]

    def snapshot(self) -> str:
        """The change ID of a snapshot taken now."""
        self.log.append(set())
        return f"{self.tracking}/{len(self.log) - 1}"

    def changed(self, since: str, until: str) -> list[Area] | None:
        """What was written between two change IDs; None when nobody knows."""
        tracking, _slash, first = since.rpartition("/")
        if tracking != until.rpartition("/")[0]:
            return None
        blocks = set().union(*self.log[int(first) : int(until.rpartition("/")[2])])
        found = [(block * BLOCK, BLOCK) for block in blocks]
        size = len(self.content)
        return areas.normalise([(start, min(length, size - start)) for start, length in found if start < size], size)

    def record(self) -> dict[str, Any]:
        """As disk_changed_areas returns it."""
        return {
            "key": self.key,
            "label": f"Hard disk {self.key - 1999}",
            "backing_uuid": self.backing_uuid,
            "capacity": len(self.content),
            "fcd_id": self.fcd_id,
            "protected": True,
            "reason": None,
        }


@dataclass(frozen=True)
class Held:
    """One disk at the moment of a backup."""

    content: bytes  # compressed
    capacity: int

    @classmethod
    def of(cls, disk: Disk) -> Held:
        """What it holds now."""
        return cls(zlib.compress(disk.content, 1), len(disk.content))

    def raw(self) -> bytes:
        """All of its bytes."""
        return zlib.decompress(self.content)


Moment = dict[str, Held]  # by backing UUID


class Machine:
    """A virtual machine, or a first class disk, and its twin: what its guest and its administrators do to it."""

    def __init__(self, dice: random.Random, number: int = 0, fcd: bool = False) -> None:
        self.dice = dice
        self.id = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        name = f"{'pvc' if fcd else 'web'}-{number}"
        self.owner: dict[str, Any] = (
            {"fcd": {"id": self.id, "name": name, "datastore": "ds1"}}
            if fcd
            else {"vm": {"name": name, "moid": f"vm-{number}", "instance_uuid": self.id}}
        )
        self.disks: dict[int, Disk] = {}
        self.snapshots: list[dict[int, Disk]] = []
        for _disk in range(1 if fcd else dice.randint(1, 2)):
            self.add()
        for disk in self.disks.values():
            disk.put(0, dice.randbytes(len(disk.content) // 2))

    @property
    def is_fcd(self) -> bool:
        """Whether it is a first class disk."""
        return "fcd" in self.owner

    def moment(self) -> Moment:
        """What a snapshot taken now holds."""
        return {disk.backing_uuid: Held.of(disk) for disk in self.disks.values()}

    def _any(self) -> Disk:
        return self.disks[self.dice.choice(sorted(self.disks))]

    def write(self) -> str:
        """A few writes of all kinds."""
        return ", ".join(self._write_once() for _write in range(self.dice.randint(1, 4)))

    def _write_once(self) -> str:
        disk, dice = self._any(), self.dice
        size = len(disk.content)
        length = min(size, dice.choice((1, SECTOR, 4096, BLOCK, dice.randrange(1, 3 * BLOCK), dice.randrange(1, MIB))))
        offset = dice.choice((0, size - length, dice.randrange(size - length + 1)))
        if dice.random() < 0.4:
            offset = offset // BLOCK * BLOCK
        kind = dice.choice(("noise", "noise", "text", "zeros"))
        data = {"noise": dice.randbytes, "text": lambda n: (b"%d " % n * n)[:n], "zeros": bytes}[kind](length)
        disk.put(offset, data)
        return f"{length} {kind} at {offset} of {disk.key}"

    def trim(self) -> str:
        """The guest discards a range."""
        disk = self._any()
        offset = self.dice.randrange(len(disk.content) // SECTOR) * SECTOR
        length = self.dice.randint(1, (len(disk.content) - offset) // SECTOR) * SECTOR
        disk.put(offset, bytes(length))
        return f"{length} at {offset} of {disk.key}"

    def grow(self) -> str:
        """A disk becomes larger."""
        disk = self._any()
        if len(disk.content) > 4 * MIB:
            return "large enough"
        disk.content += bytes(self.dice.choice((SECTOR, BLOCK, 100 * SECTOR, MIB)))
        disk.lose_track()
        return f"{disk.key} to {len(disk.content)}"

    def add(self) -> str:
        """One more disk."""
        if len(self.disks) >= (1 if self.is_fcd else MOST_DISKS):
            return "enough disks"
        key = next(key for key in range(2000, 2010) if key not in self.disks)
        size = self.dice.choice(SIZES)
        if self.is_fcd:
            self.disks[0] = Disk(0, self.id, bytearray(size), fcd_id=self.id)
        else:
            identity = str(uuid.UUID(int=self.dice.getrandbits(128), version=4))
            self.disks[key] = Disk(key, identity, bytearray(size))
        return f"{key} of {size}"

    def remove(self) -> str:
        """One disk fewer."""
        if len(self.disks) == 1:
            return "the last disk stays"
        return f"{self.disks.pop(self._any().key).key}"

    def snapshot(self) -> str:
        """A user's snapshot."""
        self.snapshots = [*self.snapshots[-2:], {key: disk.copy() for key, disk in self.disks.items()}]
        return f"{len(self.snapshots)}"

    def revert(self) -> str:
        """Back to a user's snapshot: bytes, sizes and disks."""
        if not self.snapshots:
            return f"there must be one first: {self.snapshot()}"
        self.disks = {key: disk.copy() for key, disk in self.dice.choice(self.snapshots).items()}
        return f"{sorted(self.disks)}"

    def reset_tracking(self) -> str:
        """Another product resets the change tracking of a disk."""
        disk = self._any()
        disk.lose_track()
        return f"{disk.key}"


class Repository:
    """Restore points of machines, and what each of them must hold."""

    def __init__(self, path: Path, scratch: Path, clock: Clock, dice: random.Random) -> None:
        self.path, self.scratch, self.clock, self.dice = path, scratch, clock, dice
        path.mkdir()
        scratch.mkdir(exist_ok=True)
        self.moments: dict[str, Moment] = {}  # by the ID of the restore point
        self._proven: dict[tuple[str, str], Any] = {}

    def run(self, name: str, fail: bool = False, check: bool = False, **args: Any) -> dict[str, Any]:
        """Run a module on the repository."""
        with self.clock.ruling():
            return modules.run(name, {"repository": str(self.path), **args}, fail=fail, check=check)

    # backup and restore

    def backup(self, machine: Machine, **options: Any) -> str:
        """Back up as the role does; the ID of the restore point, which holds what the disks were at the snapshot.

        :param options: ``faults`` for reading the disks, ``compression``; others go to restore_point
        :raises ModuleFailed: there is none; what was begun was given up
        """
        held, done = self.back_up(machine, **options)
        self.moments[done["id"]] = held
        return str(done["id"])

    def back_up(
        self, machine: Machine, faults: tuple[str, ...] = (), compression: str = "zstd", **options: Any
    ) -> tuple[Moment, dict[str, Any]]:
        """The same without taking note of it."""
        owner, disks = machine.owner, [disk.record() for disk in machine.disks.values()]
        started = self.run("restore_point", state="started", **owner, disks=disks, **options)
        point = {name: started["restore_point"][name] for name in ("id", "run")}
        held, taken = machine.moment(), self.clock.now
        try:
            copied = self._copy(machine, started, faults, compression)
            done = self.run(
                "restore_point",
                state="completed",
                **point,
                **owner,
                disks=copied,
                snapshot_time=taken.isoformat(),
                consistency="crash",
            )
        except (modules.ModuleFailed, BackupError, OSError) as failure:
            self.run("restore_point", state="aborted", **point)
            if isinstance(failure, modules.ModuleFailed):
                raise
            kind = type(failure).__name__
            raise modules.ModuleFailed({"msg": str(failure), "error_type": kind}) from failure
        return held, done["restore_point"]

    def _copy(
        self, machine: Machine, started: dict[str, Any], faults: tuple[str, ...], compression: str
    ) -> list[dict[str, Any]]:
        directory = Path(started["restore_point"]["path"])
        (directory / ("fcd.json" if machine.is_fcd else "config.json")).write_text(json.dumps(machine.owner))
        with tempfile.TemporaryDirectory(dir=self.scratch) as private:
            tasks = [self._task(machine, since, directory, Path(private), faults) for since in started["since"]]
            settings = Settings(private, compression=compression)
            return jobs.run_all(copying.backup, tasks, settings, Watch(), parallel=2)

    @staticmethod
    def _task(machine: Machine, since: dict[str, Any], directory: Path, private: Path, faults: tuple[str, ...]) -> Task:
        disk, reason = machine.disks[since["key"]], since["reason"]
        source = private / f"{disk.key}.raw"
        source.write_bytes(disk.content)
        change_id, work = disk.snapshot(), None
        if not reason and since["capacity"] != len(disk.content):
            reason = "the capacity changed"
        if not reason:
            work = disk.changed(since["change_id"], change_id)
            reason = None if work is not None else "the change ID does not hold"
        facts = {name: since[name] for name in ("key", "label", "backing_uuid", "parent_id")}
        return Task(
            name=since["label"],
            disk=FileDisk(str(source), faults),
            image=str(directory / f"disk-{disk.key}.qcow2"),
            capacity=len(disk.content),
            work=work,
            parent=None if work is None else since["parent"],
            identity={"disk": disk.backing_uuid, "change_id": change_id},
            facts={
                **facts,
                "kind": "full" if work is None else "incremental",
                "reason": reason,
                "change_id": change_id,
                "fcd_id": disk.fcd_id,
            },
        )

    def restore(self, point: dict[str, Any], disk: dict[str, Any], target: Path, faults: tuple[str, ...] = ()) -> None:
        """Write a disk of a restore point, as restore_point_info lists it, onto a file of its size.

        :raises BackupError: it did not work
        """
        held = self.moments[point["id"]][disk["backing_uuid"]]
        with tempfile.TemporaryDirectory(dir=self.scratch) as private:
            task = Task(disk["label"], FileDisk(str(target), faults), disk["path"], held.capacity)
            restore.restore(task, Settings(private), Watch())

    # proofs

    def listed(self, verify: str = "none") -> list[dict[str, Any]]:
        """What restore_point_info lists, whatever it is."""
        return list(self.run("restore_point_info", verify=verify)["restore_points"])

    def points(self, verify: str = "none") -> list[dict[str, Any]]:
        """What restore_point_info lists: all that must be there, all of it whole."""
        listed = self.listed(verify)
        for point in listed:
            assert point["verified"]["ok"], (point["id"], point["verified"])
            assert not point["broken"], point["id"]
        assert [point["id"] for point in listed] == sorted(self.moments)
        return listed

    def prove(self, points: Iterable[dict[str, Any]], again: bool = False) -> None:
        """These restore points are what was put aside, bit for bit, in the eyes of QEMU's tools.

        :param again: also those whose files are the same, untouched since the last proof
        """
        for point in points:
            moment = self.moments[point["id"]]
            assert {disk["backing_uuid"] for disk in point["disks"]} == set(moment), point["id"]
            for disk in point["disks"]:
                key, state = (point["id"], disk["image"]), chain_state(Path(disk["path"]))
                if again or self._proven.get(key) != state:
                    self._prove(point, disk, moment[disk["backing_uuid"]])
                    self._proven[key] = state

    def _prove(self, point: dict[str, Any], disk: dict[str, Any], held: Held) -> None:
        assert disk["capacity"] == held.capacity
        raw = self.scratch / f"{os.getpid()}.raw"
        qemu_img("convert", "-f", "qcow2", "-O", "raw", disk["path"], raw)
        found = raw.read_bytes()
        assert not any(found[held.capacity :])
        differs = difference(found[: held.capacity], held.raw())
        assert not differs, f"{point['id']} {disk['image']} ({disk['kind']}): {differs}"

    def assert_tidy(self, machine: str = "*") -> None:
        """Nothing is in the repository but the restore points and their files.

        What somebody who is dead was about to rename, a lock or the record of a verification, may lie there for some
        minutes.
        """
        found = {f"{place.parent.name}/{place.name}" for place in self.path.glob(f"{machine}/*")}
        found = {name for name in found if "/.lock-" not in name}
        wanted = {point for point in self.moments if machine in ("*", point[: len(machine)])}
        assert found == wanted, f"unfinished {found - wanted}, lost {wanted - found}"
        for place in self.path.glob(f"{machine}/*/*"):
            known = place.name in NAMED or place.suffix == ".qcow2"
            assert known or "/.lock-" in str(place) or place.match("verified.json.*.new"), place

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file with its size and time."""
        found = {path: path.stat() for path in self.path.rglob("*")}
        return {str(path): (status.st_size, status.st_mtime_ns) for path, status in found.items()}

    def chain_of(self, point: str) -> set[str]:
        """The files, relative to the repository, that a restore point cannot do without."""
        found = set()
        for first in self._disks_of(point):
            owner, disk = point, first
            while True:
                found |= {f"{owner}/{disk['image']}", f"{owner}/point.json"}
                if disk["parent"] is None:
                    break
                owner, image = disk["parent"]["id"], disk["parent"]["image"].rpartition("/")[2]
                disk = next(one for one in self._disks_of(owner) if one["image"] == image)
        return found

    def _disks_of(self, point: str) -> list[dict[str, Any]]:
        return list(json.loads((self.path / point / "point.json").read_text())["disks"])


def chain_state(image: Path) -> list[tuple[int, ...]]:
    """What changes when a file of a chain is written, replaced or renamed, from the topmost image down."""
    found = []
    while True:
        status = image.stat()
        found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        with open(image, "rb") as file:
            offset, length = struct.unpack(">8xQI", file.read(20))
            if not offset:
                return found
            file.seek(offset)
            image = image.parent / os.fsdecode(file.read(length))


def qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img; it must succeed."""
    command = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
