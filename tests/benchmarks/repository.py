# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore points without a vCenter: a raw file stands for the disk, and we know ourselves where it was written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import areas, jobs, servers
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.backup import backup
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.progress import Watch
from ansible_collections.holdfast.backup.plugins.module_utils._repository import documents, manifest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.benchmarks.machine import MIB, empty

VM = {"name": "web01", "moid": "vm-42", "instance_uuid": "5029c0de-4a5e-4b0c-8d4e-2a1f0d3c9b11"}
KEY = 2000
UUID = "6000C295-0000-0000-0000-000000002000"
CLUSTER = servers.CLUSTER
FIRST = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass
class FileDisk:
    """A disk access of the copy over a raw file."""

    path: Path
    transport: str = "file"
    warnings: list[str] = field(default_factory=list)
    error: BackupError | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[servers.Disk]:
        """The disk for one start of nbdkit."""
        yield servers.Disk(("file", str(self.path)))


class Chain:
    """One VM with one disk and its restore points in a repository, made by the real modules and the real copy.

    :param place: a directory of its own
    :param capacity: bytes of the disk
    """

    def __init__(self, place: Path, capacity: int) -> None:
        self.repository = empty(place / "repository")
        self.capacity = capacity
        self.directory = self.repository / VM["instance_uuid"]
        self._work = empty(place / "work")
        self._disk = place / "disk.raw"
        self._random = random.Random(7)
        self._made = 0
        with open(self._disk, "wb") as disk:
            disk.truncate(capacity)

    def fill(self, size: int) -> None:
        """Data that does not compress, from the start on."""
        with open(self._disk, "r+b") as disk:
            for dummy in range(size // MIB):
                disk.write(self._random.randbytes(MIB))

    def scatter(self, places: int) -> list[areas.Area]:
        """Write to so many different clusters; returns them as change tracking would."""
        starts = [number * CLUSTER for number in self._random.sample(range(self.capacity // CLUSTER), places)]
        with open(self._disk, "r+b") as disk:
            for start in starts:
                disk.seek(start)
                disk.write(self._random.randbytes(CLUSTER))
        return areas.normalise([(start, CLUSTER) for start in starts], self.capacity)

    def backup(self, work: list[areas.Area] | None = None, moment: datetime | None = None) -> str:
        """Make a restore point that shows the moment: of the areas, or of the whole disk. Returns its ID."""
        self._made += 1
        disk = {"key": KEY, "label": "Hard disk 1", "backing_uuid": UUID, "capacity": self.capacity}
        started = self._module("started", disks=[disk], mode="full" if work is None else "auto")
        [since] = started["since"]
        assert work is None or since["parent"], since["reason"]
        task = jobs.Task(
            name="Hard disk 1",
            disk=FileDisk(self._disk),
            image=f"{started['restore_point']['path']}/disk-{KEY}.qcow2",
            capacity=self.capacity,
            work=work,
            parent=since["parent"],
            facts={**disk, "kind": "full" if work is None else "incremental", "change_id": f"52 aa/{self._made}"},
        )
        result = backup(task, jobs.Settings(str(self._work)), Watch())
        point = {name: started["restore_point"][name] for name in ("id", "run")}
        taken = (moment or FIRST + timedelta(days=self._made)).isoformat()
        self._module("completed", **point, disks=[result], snapshot_time=taken)
        return point["id"]

    def repeat(self, times: int, apart: timedelta) -> None:
        """Have the chain that is there so many times, with all its points so far apart.

        Each copy has images of its own, with their own backing names and hashes.
        """
        names = sorted(name for name in os.listdir(self.directory) if manifest.is_time(name))
        points = [json.loads((self.directory / name / "point.json").read_bytes()) for name in names]
        contents = [(self.directory / name / f"disk-{KEY}.qcow2").read_bytes() for name in names]
        for name in names:
            shutil.rmtree(self.directory / name)
        moment = FIRST
        for dummy in range(times):
            before: tuple[str, str] | None = None  # the names of the parent in the original and in this copy
            for name, point, content in zip(names, points, contents):
                time = self._place(moment, point, content, before)
                before = (name, time)
                moment += apart

    def _place(self, moment: datetime, point: dict[str, Any], content: bytes, before: tuple[str, str] | None) -> str:
        time = moment.strftime("%Y%m%dT%H%M%SZ")
        directory = empty(self.directory / time)
        if before:
            assert before[0].encode() in content[:CLUSTER]
            content = content.replace(before[0].encode(), before[1].encode(), 1)
        (directory / f"disk-{KEY}.qcow2").write_bytes(content)
        [disk] = point["disks"]
        disk = {**disk, "sha256": hashlib.sha256(content).hexdigest()}
        if before:
            parent = {"id": f"{VM['instance_uuid']}/{before[1]}", "image": f"../{before[1]}/disk-{KEY}.qcow2"}
            disk["parent"] = parent
        body = {
            **{name: value for name, value in point.items() if name not in ("format", "version", "sha256")},
            "id": f"{VM['instance_uuid']}/{time}",
            "started": manifest.format_time(moment),
            "snapshot_time": None,
            "disks": [disk],
        }
        (directory / "point.json").write_bytes(documents.render(manifest.FORMAT, 1, body))
        return time

    @property
    def images(self) -> list[Path]:
        """All images of complete restore points."""
        return sorted(self.directory.glob("*Z/*.qcow2"))

    def _module(self, state: str, **options: Any) -> dict[str, Any]:
        return modules.run("restore_point", {"repository": str(self.repository), "state": state, "vm": VM, **options})


def size_of(paths: list[Path]) -> int:
    """Bytes of files together."""
    return sum(path.stat().st_size for path in paths)


@contextlib.contextmanager
def reflinking(place: Path, size: int) -> Iterator[Path | None]:
    """A directory on a file system that shares blocks between files: XFS in a file, for root; None if there is none."""
    image, target = place / "xfs", place / "mounted"
    target.mkdir()
    with open(image, "wb") as stream:
        stream.truncate(size)
    try:
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, target], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield Path(tempfile.mkdtemp(dir=target))
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)
