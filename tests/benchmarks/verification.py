# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Verification: how fast restore points are proven, beside sha256sum of the same files."""

from __future__ import annotations

import shutil
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.machine import MIB, run_module, setting, workplace
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.benchmarks.repository import Chain, size_of

# To read back a thousand points takes as long as to restore them a thousand times.
LEVELS = {"large": ("structure", "content", "restore"), "many": ("structure", "content")}
PEER = "sha256sum of the same files"
LONGEST = 20


def section() -> Section:
    """Measure a chain of large images, and a thousand restore points of small ones."""
    runs, size = int(setting("RUNS", "3")), int(setting("SIZE_MIB", "1024")) * MIB
    places, points = int(setting("MERGED", "512")), int(setting("POINTS", "1000"))
    place = workplace("verification", 6 * size, in_memory=False)
    report = Section("Verification", {"runs": runs, "repository in": str(place)})
    try:
        chains = {"large": _large(place / "large", size, places), "many": _many(place / "many", points)}
        for name, chain in chains.items():
            images = chain.images
            total = size_of(images)
            report.facts[name] = f"{len(images)} restore points, {total // MIB} MiB of images"
            variants: dict[str, Any] = {
                **{level: partial(_verify, chain, level) for level in LEVELS[name]},
                PEER: partial(_sha256sum, images),
            }
            _sha256sum(images)  # everybody finds the files in memory
            found = measure.alternate(runs, variants)
            report.raw[name] = found
            report.rows += [{"points": name, **_row(level, results, total)} for level, results in found.items()]
            _judge(report, name, found)
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    return report


def _large(place: Path, size: int, places: int) -> Chain:
    chain = Chain(place, size)
    chain.fill(size)
    chain.backup()
    for dummy in range(9):
        chain.backup(chain.scatter(places))
    return chain


def _many(place: Path, points: int) -> Chain:
    chain = Chain(place, 64 * MIB)
    chain.fill(2 * MIB)
    chain.backup()
    for dummy in range(LONGEST - 1):
        chain.backup(chain.scatter(4))
    chain.repeat(points // LONGEST, timedelta(hours=6))
    return chain


def _verify(chain: Chain, level: str) -> dict[str, Any]:
    result, cost = run_module("repository_verification", {"repository": str(chain.repository), "level": level})
    assert result["problems"] == [], result["problems"]
    return {"seconds": cost.seconds, "cpu": cost.cpu, "peak": cost.peak, "bytes": result["examined"]["bytes"]}


def _sha256sum(images: list[Path]) -> dict[str, Any]:
    cost = measure.run(["sha256sum", "--", *map(str, images)])
    return {"seconds": cost.seconds, "cpu": cost.cpu, "peak": cost.peak, "bytes": size_of(images)}


def _row(name: str, results: list[dict[str, Any]], total: int) -> dict[str, Any]:
    seconds = measure.median([one["seconds"] for one in results])
    return {
        "proven by": name,
        "seconds": seconds,
        "MiB of images/s": total / MIB / seconds,
        "processor s": measure.median([one["cpu"] for one in results]),
        "peak MiB": measure.median([one["peak"] for one in results]) / MIB,
        "read MiB": measure.median([one["bytes"] for one in results]) / MIB,
    }


def _judge(report: Section, name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    ours, peer = (measure.median([one["seconds"] for one in found[which]]) for which in ("content", PEER))
    limit = 0.9 if name == "large" else 0.25
    report.at_least(f"{name}: speed of the level content to that of sha256sum", peer / ours, limit)
