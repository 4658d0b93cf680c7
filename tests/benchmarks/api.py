# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Requests and wall time of each of our modules, idle and acting, in small and large inventories.

Every module runs in a process of its own, from Python's start to its end; the lab counts the requests. What others have
of it too, is in ``snapshots``.
"""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.counting import Counter
from ansible_collections.holdfast.backup.tests.benchmarks.machine import MIB, Machine, empty, setting, workplace
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.lab.client import Lab

MOST_IDLE = 8  # requests


def section() -> Section:
    """Measure all sizes of inventory."""
    runs, sizes = int(setting("RUNS", "3")), [int(size) for size in setting("VMS", "10,2000").split(",")]
    report = Section("Requests and time of each module", {"runs": runs})
    place = workplace("api", 0, in_memory=False)
    found: dict[tuple[str, str, str], dict[int, Any]] = {}
    try:
        for size in sizes:
            with Lab.start(vms=size) as lab:
                counter = Counter(lab)
                for run in range(runs):
                    _ours(counter, Machine(lab, f"bench-{run}", 64 * MIB), empty(place / f"repository-{size}-{run}"))
                for step, results in counter.found.items():
                    found.setdefault(step, {})[size] = results
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    for (what, state, _ours_all), by_size in sorted(found.items()):
        report.rows.append({"what": what, "state": state, **_columns(by_size)})
    report.raw = {" / ".join(step): results for step, results in found.items()}
    _judge(report, found)
    return report


def _ours(counter: Counter, machine: Machine, repository: Path) -> None:
    """Every module of ours, acting and idle, in the order of a backup."""
    lab = machine.lab
    vm = {**lab.module_args(), "moid": machine.moid}
    untracked = {**lab.module_args(), "moid": lab.create_vm(f"{machine.vm['name']}-untracked", disks=[MIB])["moid"]}
    for state in ("acting", "idle"):
        counter.step("switch change tracking on", state, "disk_changed_areas", tracking="enabled", **untracked)
    disks = counter.step("look whether changes are tracked", "idle", "disk_changed_areas", **vm)["disks"]

    begin = {"repository": str(repository), "vm": machine.vm, "disks": disks}
    point = counter.step("begin a restore point", "acting", "restore_point", **begin)["restore_point"]
    begin.update(id=point["id"], run=point["run"])
    counter.step("begin a restore point", "idle", "restore_point", **begin)

    for state in ("acting", "idle"):
        taken = counter.step("create a snapshot", state, "vm_snapshot", snapshot_name="bench", **vm)
    snapshot = taken["snapshot"]["moid"]
    counter.step("list snapshots", "info", "vm_snapshot_info", **vm)
    by_name = {**lab.module_args(), "name": machine.vm["name"]}
    counter.step("list snapshots, VM by name", "info", "vm_snapshot_info", **by_name)
    for state in ("acting", "idle"):
        counter.step("save the configuration", state, "vm_config", state="captured", path=point["path"], **vm)
    lab.write(machine.moid, machine.key, 0, b"x" * MIB)
    since = [{"disk": machine.key, "change_id": "*", "parent": "none"}]
    counter.step("ask for changed areas", "info", "disk_changed_areas", snapshot=snapshot, since=since, **vm)
    copy = {"snapshot": snapshot, "vddk_libdir": lab.vddk_libdir, "image_dir": point["path"]}
    for state in ("acting", "idle"):
        copied = counter.step("copy a disk", state, "vddk_copy", disks=[{"disk": machine.key}], **copy, **vm)
    absent = {"state": "absent", "snapshot_name": "bench"}
    for state in ("acting", "idle"):
        counter.step("remove a snapshot", state, "vm_snapshot", **absent, **vm)

    end = {**begin, "state": "completed", "disks": copied["disks"]}
    for state in ("acting", "idle"):
        counter.step("complete a restore point", state, "restore_point", **end)
    counter.step("list restore points", "info", "restore_point_info", repository=str(repository))
    _make_anew(counter, machine, Path(point["path"].removesuffix(".partial")) / "config.json")


def _make_anew(counter: Counter, machine: Machine, config: Path) -> None:
    """What a restore does besides copying."""
    name = {**machine.lab.module_args(), "name": f"{machine.vm['name']}-anew"}
    anew = {**name, "state": "present", "config": str(config), "restore_id": "bench"}
    for state in ("acting", "idle"):
        counter.step("create a VM from its configuration", state, "vm_config", **anew)
    for state in ("acting", "idle"):
        counter.step("remove an unfinished VM", state, "vm_config", state="absent", **name)


def _columns(by_size: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    def middle(key: str) -> dict[int, float]:
        return {size: measure.median([one[key] for one in found]) for size, found in by_size.items()}

    requests = {f"requests, {size} VMs": int(count) for size, count in middle("requests").items()}
    seconds = {f"seconds, {size} VMs": value for size, value in middle("seconds").items()}
    return {**requests, **seconds, "CPU s": middle("cpu")[max(by_size)]}


def _judge(report: Section, found: dict[tuple[str, str, str], dict[int, list[dict[str, float]]]]) -> None:
    idle = [
        one["requests"] for step, by_size in found.items() if step[1] != "acting" for one in chain(*by_size.values())
    ]
    report.at_most("most requests of a module that changes nothing", max(idle), MOST_IDLE)
    growth = [_acts(by_size[max(by_size)]) - _acts(by_size[min(by_size)]) for by_size in found.values()]
    report.at_most("most requests more in the largest inventory, waiting aside", max(growth), 0)


def _acts(found: list[dict[str, float]]) -> float:
    return measure.median([one["requests"] - one["waits"] for one in found])
