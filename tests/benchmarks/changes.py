# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Incremental copies: the same changed bytes, in many places of ever larger disks, beside appending them to a file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.machine import GIB, MIB, Machine, empty, setting, workplace
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.lab.client import Lab

LENGTH = 64 << 10  # bytes of one place
JUDGED = 1024  # GiB; the size of disk that the targets are about
APPEND = "dd, appending as many bytes"


def section() -> Section:
    """Measure all sizes of disk, and the appending in turn with the one that is judged."""
    runs, places = int(setting("RUNS", "3")), int(setting("PLACES", "16384"))
    sizes = [int(size) for size in setting("DISKS_GIB", "16,256,1024,4096").split(",")]
    place = workplace("changes", 4 * places * LENGTH, in_memory=False)
    report = Section(
        "Changed areas",
        {"runs": runs, "changed": f"{places} places of {LENGTH >> 10} KiB, spread evenly", "images in": str(place)},
    )
    source = place / "changed-bytes"
    try:
        with Lab.start() as lab:
            for size in sizes:
                variants = _prepare(lab, size, places, place)
                if size == JUDGED or (size == sizes[-1] and JUDGED not in sizes):
                    _random_file(source, places * LENGTH)
                    variants[APPEND] = lambda: _append(source, place / "appended")
                found = measure.alternate(runs, variants)
                for name, results in found.items():
                    report.rows.append(_row(name, results))
                    report.raw[name] = results
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    _judge(report, sizes)
    return report


def _prepare(lab: Lab, size: int, places: int, place: Path) -> dict[str, Any]:
    """A disk of so many GiB with a full copy and changes after it; how to copy them, by name."""
    machine = Machine(lab, f"disk-{size}", size * GIB)
    first = machine.snapshot()
    parent = machine.copy(first, place / f"parent-{size}")[0]["disks"][0]
    machine.remove_snapshot()
    changed = lab.scatter(machine.moid, machine.key, places=places, length=LENGTH)
    second = machine.snapshot()
    since = [{"disk": machine.key, "change_id": parent["change_id"], "parent": parent["image"]}]
    asked, cost = machine.module("disk_changed_areas", snapshot=second, since=since, areas_dir=str(place))
    disk = asked["disks"][0]
    assert (disk["kind"], disk["changed_bytes"]) == ("incremental", sum(length for _start, length in changed)), disk

    def copy() -> dict[str, Any]:
        empty(place / "ours")
        return {**_copy(machine, second, disk, place / "ours"), "asking": cost.seconds}

    return {f"{size} GiB": copy}


def _copy(machine: Machine, snapshot: str, disk: dict[str, Any], directory: Path) -> dict[str, Any]:
    result, cost = machine.copy(snapshot, directory, **{**disk, "disk": machine.key})
    copied = result["disks"][0]
    return {
        "seconds": cost.seconds,
        "copy": copied["seconds"],
        "afterwards": result["seconds"] - copied["seconds"],
        "read": copied["bytes_read"],
        "stored": copied["bytes_stored"],
        "changed": disk["changed_bytes"],
        "peak": cost.peak,
        "cpu": cost.cpu,
        "processes": {name: vars(usage) for name, usage in cost.processes.items()},
    }


def _append(source: Path, target: Path) -> dict[str, Any]:
    target.write_bytes(b"")
    command = ["dd", f"if={source}", f"of={target}", "bs=1M", "oflag=append", "conv=notrunc,fsync"]
    cost = measure.run(command)
    return {"seconds": cost.seconds, "stored": target.stat().st_size, "peak": cost.peak, "cpu": cost.cpu}


def _random_file(path: Path, size: int) -> None:
    with open("/dev/urandom", "rb") as source, open(path, "wb") as target:
        for dummy in range(size // MIB):
            target.write(source.read(MIB))
    measure.run(["sync", str(path)])


def _row(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    def middle(key: str, unit: float = 1) -> float | None:
        values = [one[key] / unit for one in results if key in one]
        return measure.median(values) if values else None

    return {
        "disk": name,
        "seconds": middle("seconds"),
        "copy": middle("copy"),
        "fsync, check, hash": middle("afterwards"),
        "asking for the areas": middle("asking"),
        "read per changed byte": middle("read", middle("changed") or 1),
        "stored MiB": middle("stored", MIB),
        "peak MiB": middle("peak", MIB),
        "processor s": middle("cpu"),
    }


def _judge(report: Section, sizes: list[int]) -> None:
    rows = {row["disk"]: row for row in report.rows}
    ours = rows.get(f"{JUDGED} GiB") or rows[f"{sizes[-1]} GiB"]
    report.at_most("bytes read per byte changed", ours["read per changed byte"], 1.1)
    report.at_most("time to that of appending", ours["seconds"] / rows[APPEND]["seconds"], 3)
    report.at_most("peak memory of our processes, MiB", ours["peak MiB"], 300)
    first, last = (rows[f"{size} GiB"]["seconds"] for size in (sizes[0], sizes[-1]))
    report.facts[f"time on {sizes[-1]} GiB to that on {sizes[0]} GiB"] = f"{last / first:.2f}"
