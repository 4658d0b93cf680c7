# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Full copies: vddk_copy beside bare nbdcopy and qemu-img, through the same servers.

All read the same snapshot through our nbdkit plugin and the stand-in for VDDK, and end with their result on stable
storage. What the module does before it copies (start, log-in, looking) is told apart; hashing is in its time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import images, servers, vddk
from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.machine import (
    GIB,
    MIB,
    Machine,
    empty,
    setting,
    workplace,
)
from ansible_collections.holdfast.backup.tests.benchmarks.measure import Cost
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.lab.client import Lab

SOURCES = ("/usr/lib", "/usr/share", "/usr/bin")
PROGRAMS = ("python", "nbdkit", "nbdcopy", "qemu-nbd", "qemu-img")
OURS, BARE, CONVERT, RAW = "vddk_copy", "nbdcopy", "qemu-img convert -c -W", "nbdcopy into a raw file"


def section() -> Section:
    """Measure both kinds of data."""
    runs, size = int(setting("RUNS", "3")), int(setting("SIZE_MIB", "1024")) * MIB
    place = workplace("full", 4 * size, in_memory=True)
    report = Section("Full copy", {"runs": runs, "disk": f"{size // MIB} MiB", "images in": place.parent.parent})
    try:
        with Lab.start() as lab:
            for data, fill in {"incompressible": _random, "libraries": _libraries}.items():
                machine = Machine(lab, data, size)
                fill(machine, empty(place / "source"))
                shutil.rmtree(place / "source")
                _measure(report, data, machine, machine.snapshot(), place, runs)
                lab.destroy_vm(machine.moid)
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    return report


def _measure(report: Section, data: str, machine: Machine, snapshot: str, place: Path, runs: int) -> None:
    peers = Peers(machine, snapshot, place)
    results = measure.alternate(
        runs,
        {
            OURS: lambda: _ours(machine, snapshot, place / "ours"),
            BARE: peers.nbdcopy,
            CONVERT: peers.convert,
            RAW: peers.raw,
        },
    )
    read = results[OURS][0]["bytes_read"]
    for name, found in results.items():
        seconds = measure.median([one["seconds"] for one in found])
        processors = {
            program: measure.median([one["processors"].get(program, 0) for one in found]) * GIB / read
            for program in PROGRAMS
        }
        report.rows.append(
            {
                "data": data,
                "copied by": name,
                "seconds": seconds,
                "MiB/s": read / MIB / seconds,
                "stored MiB": measure.median([one["stored"] for one in found]) / MIB,
                "peak MiB": measure.median([one["peak"] for one in found]) / MIB,
                "processor s/GiB": sum(processors.values()),
                **processors,
            }
        )
    report.raw[data] = {"bytes_read": read, "runs": results}
    speed = {name: measure.median([1 / one["seconds"] for one in found]) for name, found in results.items()}
    stored = {name: measure.median([one["stored"] for one in found]) for name, found in results.items()}
    report.facts[f"start-up of the module, {data}"] = (
        f"{measure.median([one['start-up'] for one in results[OURS]])} s beside the time in the table, of which "
        f"{measure.median([one['afterwards'] for one in results[OURS]])} s are fsync, check and hash after the copy"
    )
    report.at_least(f"{data}: speed to that of nbdcopy", speed[OURS] / speed[BARE], 0.9)
    report.at_least(f"{data}: speed to that of {CONVERT}", speed[OURS] / speed[CONVERT], 1)
    report.at_most(f"{data}: stored to that of {CONVERT}", stored[OURS] / stored[CONVERT], 1.05)
    report.facts[f"{data}: speed to the ceiling, {RAW}"] = f"{speed[OURS] / speed[RAW]:.2f}"


def _ours(machine: Machine, snapshot: str, directory: Path) -> dict[str, Any]:
    result, cost = machine.copy(snapshot, directory)
    disk = result["disks"][0]
    found = _outcome(cost, Path(disk["image"]))
    return {
        **found,
        "seconds": result["seconds"],
        "start-up": cost.seconds - result["seconds"],
        "afterwards": result["seconds"] - disk["seconds"],
        "bytes_read": disk["bytes_read"],
    }


def _outcome(cost: Cost, image: Path) -> dict[str, Any]:
    stored = image.stat().st_size if image.suffix == ".qcow2" else image.stat().st_blocks * 512
    image.unlink()
    return {
        "seconds": cost.seconds,
        "processors": {name: usage.cpu for name, usage in cost.processes.items()},
        "memory": {name: usage.peak for name, usage in cost.processes.items()},
        "peak": cost.peak,
        "stored": stored,
    }


class Peers:
    """The same snapshot, copied by bare tools. nbdcopy runs with its own defaults."""

    def __init__(self, machine: Machine, snapshot: str, place: Path) -> None:
        self.machine, self.place = machine, empty(place / "peers")
        self.plugin = vddk.ship(str(empty(place / "plugin")), machine.lab.vddk_libdir)
        lab = machine.lab
        self.parameters = {
            "library_dir": lab.vddk_libdir,
            "server": lab.hostname,
            "port": lab.port,
            "username": lab.username,
            "password": lab.password,
            "thumbprint": lab.thumbprint,
            "vm": machine.moid,
            "snapshot": snapshot,
            "path": machine.path,
        }

    def nbdcopy(self) -> dict[str, Any]:
        """Into the same kind of image as ours."""
        image = self.place / "nbdcopy.qcow2"
        images.create(str(image), self.machine.size)
        return self._nbdcopy(["[", *servers.image_writer([str(image)]), "]"], image, "--destination-is-zero")

    def raw(self) -> dict[str, Any]:
        """Into a raw file."""
        image = self.place / "nbdcopy.raw"
        return self._nbdcopy([str(image)], image)

    def convert(self) -> dict[str, Any]:
        """qemu-img from the same nbdkit, with as many coroutines as it takes."""
        image = self.place / "convert.qcow2"
        convert = f"qemu-img convert -c -W -m 16 -f raw -O qcow2 -o compression_type=zstd $uri {image}"
        return self._run([*self._source("--unix", "-"), "--run", convert], image)

    def _nbdcopy(self, destination: list[str], image: Path, *options: str) -> dict[str, Any]:
        return self._run(["nbdcopy", *options, "--flush", "--", "[", *self._source(), "]", *destination], image)

    def _run(self, command: list[str], image: Path) -> dict[str, Any]:
        return _outcome(measure.run(command, after=lambda: measure.sync(image)), image)

    def _source(self, *options: str) -> list[str]:
        secrets = self.place / "parameters"
        secrets.touch(mode=0o600)
        secrets.write_text(json.dumps(self.parameters))
        variables = [f"{name}={value}" for name, value in self.plugin.environment.items()]
        return ["env", *variables, "nbdkit", "--foreground", "--exit-with-parent", *options, "--readonly", "python",
                self.plugin.script, f"parameters={secrets}"]  # fmt: skip


def _random(machine: Machine, _directory: Path) -> None:
    """Fill the disk with data that does not compress."""
    machine.lab.scatter(machine.moid, machine.key, places=machine.size // MIB, length=MIB)


def _libraries(machine: Machine, directory: Path) -> None:
    """Fill the disk to three quarters with files of this machine, in ext4."""
    for path, _size in _files(machine.size * 3 // 4):
        target = directory / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    machine.lab.format(machine.moid, machine.key, directory)


def _files(limit: int) -> Iterator[tuple[Path, int]]:
    """Files of this machine, up to so many bytes together."""
    for source in SOURCES:
        for top, directories, names in os.walk(source):
            directories.sort()
            for path in (Path(top, name) for name in sorted(names)):
                size = path.stat().st_size if path.is_file() and not path.is_symlink() else 0
                if 0 < size < limit and os.access(path, os.R_OK):
                    limit -= size
                    yield path, size
