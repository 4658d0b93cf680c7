# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Torn, altered and half-written small files in the repository of a sequence: none of them costs a restore point."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible_collections.holdfast.backup.tests.integration import processes
from ansible_collections.holdfast.backup.tests.integration.processes import Child

if TYPE_CHECKING:
    from ansible_collections.holdfast.backup.tests.integration.repository_life import Sequence

GARBAGE = (b"", b"{", b"[]", b"null", b"\0" * 4096, b"\xff" * 100)


class Torn:
    """What power cuts and bad sectors make of pins, records of verifications, and manifests of merges."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence, self.dice, self.repository = sequence, sequence.dice, sequence.repository

    def live(self) -> str:
        """One of them."""
        return str(self.dice.choice((self._pin, self._record, self._half_written, self._merge, self._merge))())

    def _spoil(self, path: Path) -> str:
        """Make something else of a file, its directory entry being as it was."""
        data = path.read_bytes()
        how = self.dice.choice(("flip", "flip", "cut", "garbage"))
        if how == "flip":
            at, bit = self.dice.randrange(len(data)), self.dice.randrange(8)
            data = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
        elif how == "cut":
            data = data[: self.dice.randrange(len(data))]
        else:
            data = self.dice.choice(GARBAGE)
        path.write_bytes(data)
        return f"{how} {path.name}"

    def _known(self, point: str) -> dict[str, Any]:
        return next(one for one in self.repository.points(verify="content") if one["id"] == point)

    def _pin(self) -> str:
        """A pin that cannot be read pins."""
        upkeep = self.sequence.upkeep
        if not upkeep.pinned:
            upkeep.pin()
        point = self.dice.choice(sorted(upkeep.pinned))
        told = self._spoil(self.repository.path / point / "pin.json")
        pin = self._known(point)["pinned"]
        assert pin["time"] is None, pin
        assert "cannot be read" in pin["reason"]
        refused = self.repository.run("restore_point", state="absent", id=point, force=True, fail=True)
        assert "pinned" in refused["msg"], refused
        told += f", {upkeep.retain()}"
        if self.dice.random() < 0.5:
            self.repository.run("restore_point", state="pinned", id=point, reason="again")
            pin = self._known(point)["pinned"]
            assert pin["time"] is not None, pin
            assert pin["reason"] == "again", pin
        elif self.dice.random() < 0.5:
            upkeep.unpin(point)
            assert self._known(point)["pinned"] is None
        return told

    def _record(self) -> str:
        """A record of a verification that cannot be read is none: nothing is trusted for it, nothing lost by it."""
        point = self.dice.choice(sorted(self.repository.moments))
        self.repository.run("restore_point", state="verified", id=point)
        told = self._spoil(self.repository.path / point / "verified.json")
        assert self._known(point)["verification"] is None
        end = self.dice.choice((self.sequence.backup, self.sequence.upkeep.retain, self.sequence.upkeep.verify_all))
        told += f", {end()}"
        if point in self.repository.moments:
            done = self.repository.run("restore_point", state="verified", id=point)
            assert done["restore_point"]["verification"]["ok"], done
        return told

    def _half_written(self) -> str:
        """What was being written when the power went never came to its name, and is in nobody's way."""
        point = self.dice.choice(sorted(self.repository.moments))
        upkeep, place = self.sequence.upkeep, self.repository.path / point
        pin, record = place / "pin.json.new", place / f"verified.json.{self.dice.getrandbits(128):032x}.new"
        whole = (place / "point.json").read_bytes()
        for path in (pin, record):
            path.write_bytes(self.dice.choice((*GARBAGE, whole[: self.dice.randrange(len(whole))])))
        lock = place.parent / f".lock-{self.dice.getrandbits(128):032x}"
        lock.mkdir()
        (lock / f"{lock.name[6:]}.json.new").write_bytes(self.dice.choice(GARBAGE))
        known = self._known(point)
        assert (known["pinned"] is not None) == (point in upkeep.pinned)
        told = f"{point}, {self.dice.choice((self.sequence.backup, upkeep.retain, upkeep.verify_all))()}"
        if point not in self.repository.moments:
            assert not place.exists()
            return told
        self.repository.run("restore_point", state="verified", id=point)
        was = point in upkeep.pinned
        self.repository.run("restore_point", state="pinned", id=point, reason="whole")
        assert self._known(point)["pinned"]["reason"] == "whole"
        assert not pin.exists()
        upkeep.pinned.add(point)
        if not was:
            upkeep.unpin(point)
        return told

    def _merge(self) -> str:
        """The manifest of a merge that was killed before its images were put in place is spoilt: it never was."""
        upkeep = self.sequence.upkeep
        rules = {**upkeep.some_rules(), "keep_last": 2, "merge": True, "max_chain": 2}
        plan = upkeep.plan(rules)
        if not any(one["merges"] or one["synthetic"] for one in plan["objects"]):
            return "nothing is to be merged"
        child = Child(lambda: self.repository.run("repository_retention", **rules), before_the_switch)
        outcome = self.sequence.settle(child, "retain", None, set(upkeep.removed(plan)))
        assert outcome == "killed"
        child.gone()
        (path,) = self.repository.path.glob("*/*.merging/merge.json")
        assert list(path.parent.glob("*.qcow2"))
        told = self._spoil(path)
        self.repository.prove(self.repository.points(verify="content"))
        told += f", {self.dice.choice((self.sequence.backup, self.sequence.delete, upkeep.retain))()}"
        self.repository.prove(self.repository.points(verify="content"))
        return told


def before_the_switch(event: str, arguments: tuple[Any, ...]) -> None:
    """The process dies when it is about to put the first merged image in place: a moment for a child."""
    if event == "os.rename" and ".merging/" in str(arguments[0]) and ".merging/" not in str(arguments[1]):
        processes.count("killed before the switch")
        os.kill(os.getpid(), signal.SIGKILL)
