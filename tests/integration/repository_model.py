# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A repository of the restore points of machines without a vCenter, and what each of them must hold.

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
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import backup as copying
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import jobs, restore, servers
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.jobs import Settings, Task
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration.repository_machine import Held, Machine, Moment
from ansible_collections.holdfast.backup.tests.integration.restore_model import difference

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
                if hasattr(modules.load(name), "datetime"):
                    patches.enter_context(mock.patch.object(modules.load(name), "datetime", Now))
            yield


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
    found: list[tuple[int, ...]] = []
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
