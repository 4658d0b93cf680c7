# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The random tests for hours, round after round with new seeds: ``make soak``.

``HOLDFAST_SOAK`` says how many lives of a repository (5000), 0 for no end; ``HOLDFAST_SOAK_SEED`` which is the first.
Ctrl-C ends it, too. Each round has some lives of a VM in the lab, and killed backups, besides. The output of a round
in which something failed stays in ``.build/soak``; a failed test tells how to run it again.
"""

from __future__ import annotations

import collections
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOAK = ROOT / ".build" / "soak"
ROUND = 200  # lives of a repository
IN_LAB = 8  # lives of a VM
KILLS = 4  # of each part of a backup
TESTS = ("repository_model_1", "repository_model_2", "repository_model_3", "repository_model_4")
LAB_TESTS = ("restore_model", "killed_backups")


def run_round(first: int, sequences: int, output: Path, tally: Path) -> int:
    """One round of tests; pytest's exit status."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(ROOT / ".build/venv/bin"), os.environ["PATH"], "/usr/sbin", "/sbin"]),
        "PYTHONPATH": str(ROOT / ".build/collections"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".build/collections"),
        "ANSIBLE_HOME": str(ROOT / ".build/ansible"),
        "HOLDFAST_REPOSITORY_SEED": str(first),
        "HOLDFAST_REPOSITORY_SEQUENCES": str(sequences),
        "HOLDFAST_SEED": str(first),
        "HOLDFAST_SEQUENCES": str(IN_LAB),
        "HOLDFAST_KILLS": str(KILLS),
        "HOLDFAST_TALLY": str(tally),
    }
    # Unlike `make test`, the tests of a file are shared by all workers.
    command = [sys.executable, "-m", "pytest", "-q", "--numprocesses=auto", "--dist=worksteal"]
    command += [f"--basetemp={SOAK / 'tmp'}", "-o", "tmp_path_retention_policy=failed"]
    command += [str(ROOT / f"tests/integration/test_{name}.py") for name in (*TESTS, *LAB_TESTS)]
    with open(output, "w", encoding="utf-8") as log:
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False).returncode


def main() -> int:
    """Round after round; 1 when anything failed."""
    wanted = int(os.environ.get("HOLDFAST_SOAK", "5000"))
    first = int(os.environ.get("HOLDFAST_SOAK_SEED", str(int(time.time()) % 10**9)))
    SOAK.mkdir(parents=True, exist_ok=True)
    tally = SOAK / "tally"
    tally.unlink(missing_ok=True)
    started, begun, failed = time.monotonic(), 0, []
    print(f"from seed {first}; {wanted or 'no end of'} lives of a repository; Ctrl-C ends it", flush=True)
    try:
        while not wanted or begun < wanted:
            count = min(ROUND, wanted - begun) if wanted else ROUND
            output = SOAK / f"seed-{first + begun}.log"
            status = run_round(first + begun, count, output, tally)
            begun += count
            if status:
                failed += re.findall(r"^(?:FAILED|ERROR) (\S+)", output.read_text(), re.MULTILINE) or [
                    f"status {status}"
                ]
                print(f"FAILED, see {output}", flush=True)
            else:
                output.unlink()
            tell(tally, time.monotonic() - started, failed)
    except KeyboardInterrupt:
        tell(tally, time.monotonic() - started, failed)
    return 1 if failed else 0


def tell(tally: Path, seconds: float, failed: list[str]) -> None:
    """A line about all until now, and one for each test that failed."""
    lines = tally.read_text().splitlines() if tally.exists() else []
    counts = collections.Counter(lines)
    kills = {what.partition(" ")[2]: count for what, count in sorted(counts.items()) if what.startswith("killed ")}
    lives = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()) if not what.startswith("killed "))
    by_kind = ", ".join(f"{what} {count}" for what, count in kills.items())
    print(f"{seconds / 3600:.2f} h: {lives}; {sum(kills.values())} kills ({by_kind}); {len(failed)} failed", flush=True)
    for one in failed:
        print(f"    {one}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
