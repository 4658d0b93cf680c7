# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of retention against the real restic: the same times and rules keep the same.

Replay or enlarge: HOLDFAST_RETENTION_SEED, HOLDFAST_RETENTION_RULES (how many sets of rules).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._repository import retention
from ansible_collections.holdfast.backup.plugins.module_utils._repository.retention import PERIODS, Candidate, Rules

ZONE = "Europe/Berlin"
SEED = int(os.environ.get("HOLDFAST_RETENTION_SEED", random.randrange(10**6)))
SETS = int(os.environ.get("HOLDFAST_RETENTION_RULES", "24"))

# Steps in minutes from one point to the one before it, per history: dense over a night with 25 hours, daily, and long.
HISTORIES = {
    "hourly": ("2026-10-26T09:10", [20, 45, 60, 60, 90, 200], 14),
    "daily": ("2026-04-02T02:15", [1440, 1440, 1430, 30, 2880, 4000], 14),
    "long": ("2026-01-04T23:50", [10, 7 * 1440, 15 * 1440, 31 * 1440, 200 * 1440], 14),
}


def times(history: str, chance: random.Random) -> list[datetime]:
    newest, steps, count = HISTORIES[history]
    moment = datetime.fromisoformat(newest).replace(tzinfo=timezone.utc)
    found = []
    for _number in range(count):
        found.append(moment)
        moment -= timedelta(minutes=chance.choice(steps) + chance.randrange(5), seconds=chance.randrange(60))
        if moment.astimezone(ZoneInfo(ZONE)).replace(fold=1) != moment:  # restic's --time cannot say which of the two
            moment -= timedelta(hours=1)
    return found


def random_rules(chance: random.Random) -> Rules:
    counts = {period: chance.choice([0, 0, 1, 2, 3, 5, 9, -1]) for period in chance.sample(PERIODS, 3)}
    lengths = [f"{chance.randrange(1, 60)}h", f"{chance.randrange(1, 40)}d", f"{chance.randrange(1, 14)}m", "1y1m1d1h"]
    within = retention.span(chance.choice(lengths)) if chance.random() < 0.4 else None
    inside = {chance.choice(PERIODS[1:]): retention.span(chance.choice(lengths))} if chance.random() < 0.4 else {}
    rules = Rules(counts, within, inside, zone=retention.zone(ZONE))
    return rules if not rules.are_none else Rules({"last": 1}, zone=rules.zone)


def options(rules: Rules) -> list[str]:
    # The -1 of newer releases is no number for restic 0.14; more than there are is the same.
    found = [f"--keep-{period}={1000 if count < 0 else count}" for period, count in rules.counts.items() if count]
    found += [f"--keep-within={rules.within.text}"] if rules.within else []
    return found + [f"--keep-within-{period}={length.text}" for period, length in rules.within_periods.items()]


class Restic:
    """A repository of restic that nobody else sees."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = {
            **os.environ,
            "TZ": ZONE,
            "RESTIC_REPOSITORY": str(path / "repository"),
            "RESTIC_CACHE_DIR": str(path / "cache"),
            "RESTIC_PASSWORD": "not secret",
        }
        self("init", "--quiet")
        version = self("version").split()[1].split(".")
        self.release = (int(version[0]), int(version[1]))

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        command = ["restic", *arguments]
        done = subprocess.run(command, env=self.environment, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def backup(self, history: str, moment: datetime) -> None:
        text = moment.astimezone(ZoneInfo(ZONE)).strftime("%Y-%m-%d %H:%M:%S")
        self("backup", "--quiet", "--stdin", f"--host={history}", f"--time={text}", stdin=text)

    def knows(self, reason: str) -> bool:
        """Whether this release of restic keeps a point for such a reason: old ones leave out the oldest."""
        return self.release >= ((0, 17) if ", the oldest within" in reason else (0, 16)) or ", the oldest" not in reason

    def kept(self, rules: Rules) -> dict[str, set[datetime]]:
        answer = self("forget", "--dry-run", "--json", "--no-lock", "--group-by=host", *options(rules))
        return {
            group["host"]: {datetime.fromisoformat(one["time"]).astimezone(timezone.utc) for one in group["keep"] or ()}
            for group in json.loads(answer)
        }


@pytest.mark.timeout(1800)
def test_rules_are_those_of_restic(tmp_path: Path) -> None:
    print(f"HOLDFAST_RETENTION_SEED={SEED}")
    chance = random.Random(SEED)
    restic = Restic(tmp_path)
    histories = {history: times(history, chance) for history in HISTORIES}
    sets = [random_rules(chance) for _number in range(SETS)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: restic.backup(*one), [(name, at) for name, all in histories.items() for at in all]))
        answers = list(pool.map(restic.kept, sets))
    now = datetime(2026, 11, 1, tzinfo=timezone.utc)
    some_go = 0
    for rules, answer in zip(sets, answers, strict=True):
        for history, moments in histories.items():
            ours = retention.judge([Candidate(str(moment), moment) for moment in moments], rules, now)
            kept = {moment for moment in moments if any(restic.knows(why) for why in ours[str(moment)])}
            assert kept == answer[history], f"seed {SEED}, {history}, {options(rules)}"
            some_go += len(kept) < len(moments)
    assert some_go > SETS
