# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Full copies: vddk_copy beside nbdcopy and qemu-img convert, of the same snapshot through the same servers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.machine import GIB, MIB, Machine, empty, setting, workplace
from ansible_collections.holdfast.backup.tests.benchmarks.peers import Copied, Copier
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.lab.client import Lab

SOURCES = ("/usr/lib", "/usr/share", "/usr/bin")
PROGRAMS = {
    "module": "python",
    "nbdkit": "nbdkit",
    "nbdcopy": "nbdcopy",
    "qemu-nbd": "qemu-nbd",
    "qemu-img": "qemu-img",
}
OURS, BARE, CONVERT, RAW = "vddk_copy", "nbdcopy", "qemu-img convert -c -W", "nbdcopy into a raw file"


def section() -> Section:
    """Measure both kinds of data."""
    runs, size = int(setting("RUNS", "3")), int(setting("SIZE_MIB", "1024")) * MIB
    place = workplace("full", 4 * size, in_memory=True)
    report = Section("Full copy", {"runs": runs, "disk": f"{size // MIB} MiB", "images in": str(place)})
    try:
        with Lab.start() as lab:
            for data, fill in {"incompressible": _random, "libraries": _libraries}.items():
                machine = Machine(lab, data, size)
                fill(machine, empty(place / "source"))
                shutil.rmtree(place / "source")
                copier = Copier(machine, machine.snapshot(), place)
                variants = {OURS: copier.module, BARE: copier.nbdcopy, CONVERT: copier.convert, RAW: copier.raw}
                found: dict[str, list[Copied]] = measure.alternate(runs, variants)
                lab.destroy_vm(machine.moid)
                report.rows += [{"data": data, **_row(name, found[name], copier.bytes_read)} for name in found]
                report.raw[data] = {name: [one.as_dict() for one in copies] for name, copies in found.items()}
                _judge(report, data, found)
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    return report


def _middle(copies: list[Copied], what: str) -> float:
    return measure.median([getattr(one, what) for one in copies])


def _row(name: str, copies: list[Copied], read: int) -> dict[str, float | str]:
    cpu = {
        label: measure.median([one.cost.cpu_of(program) * GIB / read for one in copies])
        for label, program in PROGRAMS.items()
    }
    return {
        "copied by": name,
        "start-up s": _middle(copies, "start_up"),
        "copy s": _middle(copies, "copy"),
        "proof s": _middle(copies, "proof"),
        "copy MiB/s": read / MIB / _middle(copies, "copy"),
        "stored MiB": _middle(copies, "stored") / MIB,
        "peak MiB": measure.median([one.cost.peak for one in copies]) / MIB,
        "CPU s/GiB": sum(cpu.values()),
        **{f"of {label}": seconds for label, seconds in cpu.items()},
    }


def _judge(report: Section, data: str, found: dict[str, list[Copied]]) -> None:
    def speed(name: str, what: str = "copy") -> float:
        return 1 / _middle(found[name], what)

    report.at_least(f"{data}: speed of the copy to that of nbdcopy", speed(OURS) / speed(BARE), 0.9)
    proven = speed(OURS, "whole") / speed(BARE, "whole")
    report.at_least(f"{data}: speed with the proof to that of nbdcopy, sync, hash and check", proven, 0.9)
    report.at_least(f"{data}: speed of the copy to that of {CONVERT}", speed(OURS) / speed(CONVERT), 1)
    stored = _middle(found[OURS], "stored") / _middle(found[CONVERT], "stored")
    report.at_most(f"{data}: stored to what {CONVERT} stores", stored, 1.05)
    report.facts[f"{data}: speed with the proof to that of nbdcopy without"] = (
        f"{speed(OURS, 'whole') / speed(BARE):.2f}"
    )
    report.facts[f"{data}: speed of the copy to the ceiling, {RAW}"] = f"{speed(OURS) / speed(RAW):.2f}"


def _random(machine: Machine, _directory: Path) -> None:
    """Fill the disk with data that does not compress."""
    machine.lab.scatter(machine.moid, machine.key, places=machine.size // MIB, length=MIB)


def _libraries(machine: Machine, directory: Path) -> None:
    """Fill the disk to three quarters with files of this machine, in ext4."""
    for path in _files(machine.size * 3 // 4):
        target = directory / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    machine.lab.format(machine.moid, machine.key, directory)


def _files(limit: int) -> Iterator[Path]:
    """Files of this machine, up to so many bytes together."""
    for source in SOURCES:
        for top, directories, names in os.walk(source):
            directories.sort()
            for path in (Path(top, name) for name in sorted(names)):
                size = path.stat().st_size if path.is_file() and not path.is_symlink() else 0
                if 0 < size < limit and os.access(path, os.R_OK):
                    limit -= size
                    yield path
