# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Retention: what it costs to let the oldest restore point go, and to plan and prune a thousand of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.machine import MIB, run_module, setting, workplace
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.benchmarks.repository import CLUSTER, Chain, reflinking, size_of

COPIED, REFLINKED = "repository_retention, copying the oldest image", "repository_retention, sharing its blocks"
PEER = "cp, qemu-img commit, check, SHA-256, sync"
RULES = {"keep_daily": 30, "keep_weekly": 12, "keep_monthly": 24}
LONGEST = 20  # images in a chain


def section() -> Section:
    """Measure both ways of merging beside a peer, then a thousand restore points."""
    runs, size = int(setting("RUNS", "3")), int(setting("SIZE_MIB", "1024")) * MIB
    places, points = int(setting("MERGED", "512")), int(setting("POINTS", "1000"))
    place = workplace("retention", 12 * size, in_memory=False)
    report = Section(
        "Retention",
        {
            "runs": runs,
            "disk": f"{size // MIB} MiB, full of data that does not compress",
            "changed from point to point": f"{places} places of {CLUSTER >> 10} KiB",
            "repository in": str(place),
        },
    )
    try:
        found = _merges(place, runs, size, places)
        report.raw["merges"] = found
        report.rows += [_row(name, results, places * CLUSTER) for name, results in found.items()]
        _thousand(report, place / "many", points)
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    _judge(report, places * CLUSTER)
    return report


def _merges(place: Path, runs: int, size: int, places: int) -> dict[str, list[dict[str, Any]]]:
    """Let the oldest point go, again and again: each time the full image takes in what changed until the next."""
    with reflinking(place, 4 * size + runs * places * CLUSTER + 512 * MIB) as shared:
        variants: dict[str, Any] = {}
        for name, directory in ((COPIED, place / "copied"), (REFLINKED, shared), (PEER, place / "peer")):
            if directory is None:
                continue
            chain = _chain(directory, size, places, runs + 2)
            if name == PEER:
                variants[name] = partial(_commit, chain)
            else:
                variants[name] = partial(_retain, chain, iter(range(runs + 1, 0, -1)))
        return measure.alternate(runs, variants)


def _chain(place: Path, size: int, places: int, points: int) -> Chain:
    chain = Chain(place, size)
    chain.fill(size)
    chain.backup()
    for dummy in range(points - 1):
        chain.backup(chain.scatter(places))
    subprocess.run(["sync", "-f", str(place)], check=True)
    return chain


def _retain(chain: Chain, keep: Iterator[int]) -> dict[str, Any]:
    result, cost = run_module("repository_retention", {"repository": str(chain.repository), "keep_last": next(keep)})
    assert result["removed"] == 1, result
    return {
        "seconds": cost.seconds,
        "cpu": cost.cpu,
        "peak": cost.peak,
        **{name: result[name] for name in ("bytes_read", "bytes_written", "bytes_freed")},
    }


def _commit(chain: Chain) -> dict[str, Any]:
    """The same by hand: a copy of the oldest image, the next one committed into it, and as much proof."""
    oldest, newer = chain.images[:2]
    merged = newer.with_suffix(".merged")
    top = newer.with_suffix(".top")
    script = f"""
        sha256sum {oldest} {newer}
        cp --reflink=never {oldest} {merged}
        cp {newer} {top}
        qemu-img rebase -u -f qcow2 -F qcow2 -b {merged} {top}
        qemu-img commit -q -t writeback -f qcow2 {top}
        qemu-img check -q -f qcow2 {merged}
        sync {merged}
        sha256sum {merged}
        mv {merged} {newer}
        rm {oldest} {top}
        sync {newer.parent}
    """
    cost = measure.run(["bash", "-euc", script])
    oldest.parent.joinpath("point.json").unlink()
    return {"seconds": cost.seconds, "cpu": cost.cpu, "peak": cost.peak}


def _row(name: str, results: list[dict[str, Any]], changed: int) -> dict[str, Any]:
    def middle(key: str, unit: float = 1) -> float | None:
        return measure.median([one[key] / unit for one in results]) if key in results[0] else None

    return {
        "the oldest point goes by": name,
        "seconds": middle("seconds"),
        "processor s": middle("cpu"),
        "peak MiB": middle("peak", MIB),
        "read per changed byte": middle("bytes_read", changed),
        "written per changed byte": middle("bytes_written", changed),
        "freed MiB": middle("bytes_freed", MIB),
    }


def _thousand(report: Section, place: Path, points: int) -> None:
    """Plan for a thousand points, six hours apart and in chains of twenty, then do it."""
    chain = Chain(place, 64 * MIB)
    chain.fill(2 * MIB)
    chain.backup()
    for dummy in range(LONGEST - 1):
        chain.backup(chain.scatter(4))
    chain.repeat(points // LONGEST, timedelta(hours=6))
    before = size_of(chain.images)
    args = {"repository": str(chain.repository), **RULES}
    listed, listing = run_module("restore_point_info", {"repository": str(chain.repository)})
    plan, planning = run_module("repository_retention", {**args, "_ansible_check_mode": True})
    done, doing = run_module("repository_retention", args)
    left = len(chain.images)
    assert left == len(listed["restore_points"]) - plan["removed"], (left, plan["removed"])
    report.facts[f"{points} points"] = (
        f"{before // MIB} MiB; listed in {listing.seconds:.2f} s, planned in {planning.seconds:.2f} s, "
        f"pruned to {left} in {doing.seconds:.1f} s with {done['bytes_read'] // MIB} MiB read, "
        f"{done['bytes_written'] // MIB} MiB written, {done['bytes_freed'] // MIB} MiB freed"
    )
    report.raw["thousand"] = {
        "points": points,
        "bytes": before,
        "left": left,
        **{name: vars(cost) for name, cost in (("listing", listing), ("planning", planning), ("doing", doing))},
    }
    for cost in report.raw["thousand"].values():
        if isinstance(cost, dict):
            cost.pop("output")
            cost["processes"] = {name: vars(usage) for name, usage in cost["processes"].items()}
    report.at_most(f"seconds to plan for {points} points", planning.seconds, 5)


def _judge(report: Section, changed: int) -> None:
    rows = {row["the oldest point goes by"]: row for row in report.rows}
    ours, peer = rows[COPIED], rows[PEER]
    report.at_most("time to that of the same by hand", ours["seconds"] / peer["seconds"], 1.5)
    report.at_most("peak memory of our processes, MiB", ours["peak MiB"], 300)
    if REFLINKED in rows:
        report.at_most(
            "with shared blocks: bytes written per byte changed", rows[REFLINKED]["written per changed byte"], 1.5
        )
    else:
        report.facts["shared blocks"] = "not measured: needs root and mkfs.xfs"
