# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Retention and pins in the random life of a repository, and what retention must keep by a second reckoning."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from ansible_collections.holdfast.backup.plugins.module_utils._repository.manifest import parse_time
from ansible_collections.holdfast.backup.tests.integration import processes
from ansible_collections.holdfast.backup.tests.integration.processes import Child
from ansible_collections.holdfast.backup.tests.integration.repository_machine import Machine

if TYPE_CHECKING:
    from ansible_collections.holdfast.backup.tests.integration.repository_life import Sequence

LEVELS = ("structure", "content", "restore")
PERIODS: dict[str, Callable[[datetime], Any]] = {
    "keep_hourly": lambda moment: moment.strftime("%Y%m%d%H"),
    "keep_daily": lambda moment: moment.strftime("%Y%m%d"),
    "keep_weekly": lambda moment: moment.isocalendar()[:2],
    "keep_monthly": lambda moment: moment.strftime("%Y%m"),
    "keep_yearly": lambda moment: moment.year,
}


class Upkeep:
    """What an administrator has done with the restore points of a sequence."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence, self.dice, self.repository = sequence, sequence.dice, sequence.repository
        self.pinned: set[str] = set()

    # pins

    def pin(self) -> str:
        """A restore point is pinned, or a pin is taken away."""
        if self.pinned and self.dice.random() < 0.6:
            return f"unpinned {self.unpin(self.dice.choice(sorted(self.pinned)))}"
        point = self.dice.choice(sorted(self.repository.moments))
        self.repository.run("restore_point", state="pinned", id=point, reason="keep it")
        self.pinned.add(point)
        return f"pinned {point}"

    def unpin(self, point: str) -> str:
        """It may go now."""
        self.repository.run("restore_point", state="unpinned", id=point)
        self.pinned.discard(point)
        return point

    # verification

    def verify(self) -> str:
        """A restore point is found to be what it is, and the hash of a disk's content is that of its twin."""
        point, level = self.dice.choice(sorted(self.repository.moments)), self.dice.choice(LEVELS)
        done = self.repository.run("restore_point", state="verified", id=point, level=level)["restore_point"]
        assert done["verified"]["ok"], done["verified"]
        assert done["verification"]["ok"]
        assert LEVELS.index(done["verification"]["level"]) >= LEVELS.index(level)
        if level == "restore":
            self._check_hashes(point)
        return f"{point} {level}"

    def verify_all(self) -> str:
        """The nightly job verifies all of the repository, in so many nights."""
        level, most = self.dice.choice(LEVELS), self.dice.choice((0, 0, 1 << 20))
        nights, left = 0, True
        while left:
            nights += 1
            done = self.repository.run("repository_verification", level=level, max_bytes=most, min_age="1d")
            assert (done["problems"], done["damage"]) == ([], [])
            left = any(done["remaining"].values())
            assert nights < 200
        for point in self.repository.listed():
            assert point["verification"]["ok"]
            assert LEVELS.index(point["verification"]["level"]) >= LEVELS.index(level)
        return f"{level} in {nights} nights"

    def _check_hashes(self, point: str) -> None:
        manifest = json.loads((self.repository.path / point / "point.json").read_text())
        stored = json.loads((self.repository.path / point / "verified.json").read_text())
        hashes = {record["image"]: record["content_hash"] for record in stored["disks"]}
        for disk in manifest["disks"]:
            content = self.repository.moments[point][disk["backing_uuid"]].raw()
            assert hashes[disk["image"]] == content_hash(content), f"{point} {disk['image']}"

    def kill_verify(self) -> str:
        """A verification is killed, which nobody notices afterwards."""
        point, level = self.dice.choice(sorted(self.repository.moments)), self.dice.choice(LEVELS)

        def work() -> dict[str, Any]:
            return self.repository.run("restore_point", state="verified", id=point, level=level)

        told = self.sequence.kill_in_the_middle("verify", None, work)
        self.repository.run("restore_point", state="verified", id=point, level="restore")
        self._check_hashes(point)
        return told

    # retention

    def some_rules(self) -> dict[str, Any]:
        """Options for retention."""
        dice = self.dice
        rules: dict[str, Any] = {name: dice.randint(1, 3) for name in ("keep_last", *PERIODS) if dice.random() < 0.25}
        if dice.random() < 0.15:
            rules["keep_within"] = dice.choice(("2h", "36h", "10d"))
        rules = rules or {"keep_last": dice.randint(1, 5)}
        rules["merge"] = dice.random() < 0.85
        rules["max_chain"] = dice.choice((0, 0, 2, 3, 6, 20))
        rules["timezone"] = dice.choice(("UTC", "Europe/Berlin", "Asia/Kathmandu"))
        rules["semantics"] = dice.choice(("restic", "restic", "proxmox"))
        if self.sequence.mixed and dice.random() < 0.6:
            rules["compression"] = dice.choice(("zstd", "zlib", "none"))
        return rules

    def retain(self) -> str:
        """What was foretold goes, nothing else, and what stays is what it was."""
        rules = self.some_rules()
        going = self.foretell(rules)
        done = self.repository.run("repository_retention", **rules)
        assert set(self.removed(done)) == going
        self.forget(going)
        for one in done["objects"]:
            assert one["problem"] is None
            for what in ("bytes_read", "bytes_written"):
                # What other compression will do to the size nobody knows beforehand.
                assert one["cost"][what] <= one["planned"][what] or self.sequence.mixed, one
        if rules["merge"] and rules["max_chain"]:
            self._check_chains(rules["max_chain"], going)
        images = [image for one in done["objects"] for image in (*one["merges"], *one["synthetic"])]
        return f"{rules}: {len(going)} gone, {sorted(image['way'] for image in images)}"

    def foretell(self, rules: dict[str, Any]) -> set[str]:
        """The IDs of the restore points that will go, by check mode; they must be those that the rules mean."""
        return set(self.removed(self.plan(rules)))

    def plan(self, rules: dict[str, Any]) -> dict[str, Any]:
        """The result of check mode, which must be what the rules mean."""
        plan = self.repository.run("repository_retention", check=True, **rules)
        times = {point["id"]: parse_time(point["time"]) for point in self.repository.listed()}
        going = set(self.removed(plan))
        for machine in self.sequence.machines:
            own = {point: times[point] for point in self.sequence.points_of(machine)}
            stays = set(own) - going
            newest = max(own, key=lambda point: (own[point], point))
            pinned = self.pinned & set(own)
            assert stays >= {newest} | pinned
            if rules["semantics"] == "restic":
                wanted = kept_by(rules, own, self.sequence.clock.now) | {newest} | pinned
                assert stays >= wanted
                assert stays == wanted or not rules["merge"]
        return plan

    @staticmethod
    def removed(result: dict[str, Any]) -> list[str]:
        """All that a result calls gone."""
        return [point for one in result["objects"] for point in one["removed"]]

    def forget(self, points: set[str]) -> None:
        """They are gone."""
        assert not points & self.pinned
        for point in points:
            del self.repository.moments[point]

    def _check_chains(self, longest: int, gone: set[str]) -> None:
        """What the next backup stands on has not too many images, unless its clock was wrong and it has gone too."""
        listed = {point["id"]: point for point in self.repository.listed()}
        for machine in self.sequence.machines:
            newest = self.sequence.points_of(machine)[-1]
            if not any(point > newest for point in gone if point.startswith(machine.id)):
                assert listed[newest]["chain_length"] < max(2, longest), newest

    def kill_retain(self) -> str:
        """Retention is killed; only what was to go may be gone."""
        rules = self.some_rules()
        plan = self.plan(rules)
        doomed = set(self.removed(plan))
        images = sum(len(one["merges"]) + len(one["synthetic"]) for one in plan["objects"])
        if not doomed and not images:
            return "nothing is to be done"

        def work() -> dict[str, Any]:
            return self.repository.run("repository_retention", **rules)

        steps = 12 + 8 * len(doomed) + 30 * images
        told = self.sequence.kill_in_the_middle("retain", None, work, doomed, steps)
        return f"{told} of {images} merges, {len(doomed)} deletions"

    def retain_on_a_filling_disk(self) -> str:
        """The file system fails under retention: an error, or it is done; nothing else is gone."""
        rules, error = self.some_rules(), self.dice.choice((errno.ENOSPC, errno.EIO))
        plan = self.plan(rules)
        doomed = set(self.removed(plan))
        images = sum(len(one["merges"]) + len(one["synthetic"]) for one in plan["objects"])
        step = self.dice.randrange(8 + 4 * len(doomed) + 20 * images)
        moment = processes.failing_at(step, error, self.repository.path, self.dice.random() < 0.5)
        child = Child(lambda: self.repository.run("repository_retention", **rules), moment)
        outcome = self.sequence.settle(child, "retain", None, doomed)
        return f"{errno.errorcode[error]} at {step}: {outcome} {child.result.get('msg', '')}"

    def read_meanwhile(self) -> str:
        """Who reads while retention is at work sees nothing of it."""
        rules = self.some_rules()
        going = self.foretell(rules)
        child = Child(lambda: self.repository.run("repository_retention", **rules))
        rounds = 0
        while not child.has_ended() or not rounds:
            rounds += 1
            for point in self.repository.listed(verify="content"):
                assert point["verified"]["ok"], (point["id"], point["verified"])
        assert child.end() == "done"
        assert set(self.removed(child.result)) == going
        self.forget(going)
        return f"{rules}: {len(going)} gone, read {rounds} times"

    def verify_of(self, machine: Machine, _timeout: int) -> Callable[[], dict[str, Any]]:
        """A verification of one of its restore points, as work for a process."""
        point, level = self.dice.choice(self.sequence.points_of(machine)), self.dice.choice(LEVELS)
        return lambda: self.repository.run("restore_point", state="verified", id=point, level=level)

    def of(self, machine: Machine, timeout: int) -> Callable[[], dict[str, Any]]:
        """Retention of one machine, as work for a process."""
        rules = {**self.some_rules(), **machine.owner, "lock_timeout": timeout}
        return lambda: self.repository.run("repository_retention", **rules)


def content_hash(content: bytes) -> str:
    """As docs/repository-format.md tells how to make it."""
    blocks = (content[at : at + (4 << 20)] for at in range(0, len(content), 4 << 20))
    return hashlib.sha256(b"".join(hashlib.sha256(block).digest() for block in blocks)).hexdigest()


def kept_by(rules: dict[str, Any], points: dict[str, datetime], now: datetime) -> set[str]:
    """What restic's rules keep, reckoned simply: for each rule the newest of each period, as many as it says."""
    zone = ZoneInfo(rules["timezone"])
    ordered = sorted(points, key=lambda point: (points[point], point), reverse=True)
    kept: set[str] = set(ordered[: rules.get("keep_last", 0)])
    for rule, period in PERIODS.items():
        newest: dict[Any, str] = {}
        for point in ordered:
            newest.setdefault(period(points[point].astimezone(zone)), point)
        count = rules.get(rule, 0)
        kept |= set(list(newest.values())[:count])
        if 0 < len(newest) <= count - (newest[list(newest)[-1]] != ordered[-1]):
            kept.add(ordered[-1])  # the oldest stays as long as the rule has not found enough
    if "keep_within" in rules:
        length = {"h": timedelta(hours=1), "d": timedelta(days=1)}[rules["keep_within"][-1]]
        length *= int(rules["keep_within"][:-1])
        past = [points[point] for point in ordered if points[point] <= now]
        kept |= {point for point in ordered if not past or points[point] > past[0] - length}
    return kept
