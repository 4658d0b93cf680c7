# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The benchmarks: runs the sections that are asked for, prints a table of each, writes all numbers as JSON.

``bench [section ...]``; see docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from typing import Any

from ansible_collections.holdfast.backup.tests.benchmarks import (
    api,
    changes,
    full,
    native,
    retention,
    role,
    snapshots,
    verification,
)
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.lab.client import BUILD

SECTIONS = {
    "full": full.section,
    "changes": changes.section,
    "native": native.section,
    "api": api.section,
    "snapshots": snapshots.section,
    "role": role.section,
    "retention": retention.section,
    "verification": verification.section,
}


def main() -> int:
    """Run, print and write; returns the exit status, which tells nothing about targets."""
    parser = argparse.ArgumentParser(prog="tests/benchmarks/run", description=__doc__)
    parser.add_argument("section", nargs="*", help=f"one of {', '.join(SECTIONS)}; all if none is named")
    wanted = parser.parse_args().section or os.environ.get("BENCH", "").replace(",", " ").split() or list(SECTIONS)
    unknown = set(wanted) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}")
    results: dict[str, Any] = {"machine": machine(), "sections": {}}
    print(", ".join(f"{key}: {value}" for key, value in results["machine"].items()))
    for name in wanted:
        print(f"\n{name} ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        section: Section = SECTIONS[name]()
        section.facts["took"] = round(time.monotonic() - started, 1)
        results["sections"][name] = section.as_dict()
        print(f"\n{section}", flush=True)
    path = BUILD / "bench.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nAll numbers: {path}")
    return 0


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cores = len(os.sched_getaffinity(0))
    return {
        "cores": cores,
        "architecture": platform.machine(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)),
        "python": platform.python_version(),
        "busy": f"{os.getloadavg()[0]:.1f} processes ready before the start",
    }


if __name__ == "__main__":
    sys.exit(main())
