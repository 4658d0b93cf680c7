# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A spoilt file in the repository of a sequence: what is known of it, what goes on meanwhile, and how it ends."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ansible_collections.holdfast.backup.tests.modules import ModuleFailed

if TYPE_CHECKING:
    from ansible_collections.holdfast.backup.tests.integration.repository_life import Sequence

KINDS = ("flip", "flip", "flip", "cut", "missing", "manifest", "manifest cut", "manifest missing")


class Damage:
    """One spoilt file, from the damage to the repair, or to the end of all that stood on it."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence, self.dice, self.repository = sequence, sequence.dice, sequence.repository
        self.kind = self.dice.choice(KINDS)
        point = self.dice.choice(sorted(self.repository.moments))
        images = sorted(path.name for path in (self.repository.path / point).glob("*.qcow2"))
        name = "point.json" if self.kind.startswith("manifest") else self.dice.choice(images)
        self.file = f"{point}/{name}"
        self.aside = self.repository.scratch / "aside"
        self.needs: dict[str, set[str]] = {}
        self.known = self.kind != "flip"  # whatever looks sees that

    @property
    def path(self) -> Path:
        """The file."""
        return self.repository.path / self.file

    def live(self) -> str:
        """Spoil, look, go on, and repair or clear away."""
        self._learn()
        shutil.copy2(self.path, self.aside)
        told = f"{self.kind} {self.file} {self._spoil()}"
        self._check()
        for _step in range(self.dice.randrange(3)):
            told += (
                f", {self.dice.choice((self._back_up, self._delete, self._verify, self._verify_all, self._retain))()}"
            )
            self._check()
        end = self.dice.choice((self._repair, self._clear))
        return f"{told}, {end.__name__} {end()}"

    def affected(self) -> set[str]:
        """The restore points that cannot be restored now."""
        return {point for point in self.repository.moments if self.file in self.needs[point]}

    def _learn(self) -> None:
        """What each restore point needs; to be asked while manifests can be read."""
        for point in self.repository.moments:
            if point not in self.needs:
                self.needs[point] = self.repository.chain_of(point)

    def _spoil(self) -> str:
        size = self.path.stat().st_size
        if self.kind in ("flip", "manifest"):
            at, bit = self.dice.randrange(size), self.dice.randrange(8)
            with open(self.path, "r+b") as file:
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ (1 << bit)]))
            return f"bit {bit} of byte {at}"
        if self.kind.endswith("cut"):
            keep = self.dice.choice((0, self.dice.randrange(size)))
            os.truncate(self.path, keep)
            return f"to {keep}"
        self.path.unlink()
        return ""

    def _check(self) -> None:
        """The contents tell which restore points are whole, and those are what they were."""
        listed = {point["id"]: point for point in self.repository.listed(verify="content")}
        assert set(listed) == set(self.repository.moments)
        affected = self.affected()
        for point, record in listed.items():
            found = not record["verified"]["ok"]
            assert found == (point in affected), f"{point} {'is' if found else 'is not'} called damaged"
        self.repository.prove(record for point, record in listed.items() if point not in affected)

    def _back_up(self) -> str:
        """A backup goes on, in full where the damage is seen."""
        machine = self.sequence.machine
        machine.write()
        point = self.repository.backup(machine, **self.sequence.some_backup())
        chain = self._chain(point)
        assert not self.known or self.file not in chain, "a backup stands on what is known to be damaged"
        self.needs[point] = chain
        return f"backup {point}"

    def _chain(self, point: str) -> set[str]:
        if self.kind.startswith("manifest"):
            # It is read only if something stands on it, which is what must not be.
            try:
                return self.repository.chain_of(point)
            except (OSError, ValueError) as error:
                raise AssertionError("a backup stands on an unreadable restore point") from error
        return self.repository.chain_of(point)

    def _delete(self) -> str:
        """A whole restore point goes that no other one needs."""
        safe = set(self.repository.moments) - self.affected() - self.sequence.upkeep.pinned
        needed = {file for point in self.repository.moments for file in self.needs[point] - {f"{point}/point.json"}}
        free = [
            point
            for point in sorted(safe)
            if f"{point}/point.json" not in needed and any(other[:36] == point[:36] for other in safe - {point})
        ]
        if not free:
            return "nothing can be deleted"
        doomed = self.dice.choice(free)
        unreadable = self.kind.startswith("manifest") and self.file[:36] == doomed[:36]
        self.sequence.remove(doomed, force=unreadable)
        return f"deleted {doomed}"

    def _verify(self) -> str:
        """A verification tells the damage, and remembers it."""
        point, affected = self.dice.choice(sorted(self.repository.moments)), self.affected()
        done = self.repository.run("restore_point", state="verified", id=point, fail=point in affected)
        if point in affected:
            assert done["error_type"] == "Damaged", done
            assert {lost["restore_point"] for one in done["damage"] for lost in one["lost"]} >= {point}, done["damage"]
            self.known = True
        return f"verified {point}"

    def _verify_all(self) -> str:
        """The nightly job names the file, and all that is lost with it."""
        affected = self.affected()
        done = self.repository.run("repository_verification", fail=bool(affected))
        if affected:
            assert done["error_type"] == "Damaged", done
            lost = {
                one["restore_point"]
                for damage in done["damage"]
                if f"{damage['restore_point']}/{damage['file']}" == self.file
                for one in damage["lost"]
            }
            assert lost == affected, done["damage"]
            self.known = True
        return "verified all"

    def _retain(self) -> str:
        """Retention makes nothing good of what is damaged, and deletes nothing that is known to be."""
        rules = {**self.sequence.upkeep.some_rules(), "remove_damaged": self.dice.random() < 0.2}
        before = self.affected()
        try:
            done = self.repository.run("repository_retention", **rules)
        except ModuleFailed as failure:
            done = failure.result
            kinds = {one["problem"]["error_type"] for one in done["objects"] if one["problem"]}
            assert kinds == {"Damaged"}, done
            self.known = True
        gone = set(self.sequence.upkeep.removed(done))
        self.sequence.upkeep.forget(gone)
        assert not gone & before or not self.known or rules["remove_damaged"], (
            "what was damaged, and known to be, is gone"
        )
        for point in self.repository.moments:
            if point not in before:
                self.needs[point] = self.repository.chain_of(point)
        assert self.affected() == before - gone
        return f"{len(gone)} gone by {rules}"

    def _repair(self) -> str:
        """The file comes back from a copy of the repository, and a verification finds it good again."""
        affected = self.affected()
        if self.path.parent.exists():
            shutil.copy2(self.aside, self.path)
        for point in sorted(affected):
            self.repository.run("restore_point", state="verified", id=point)
        return ""

    def _clear(self) -> str:
        """All that is damaged is deleted with what stands on it, the newest first."""
        gone = self.affected()
        gone |= {point for point in self.needs if self.needs[point] & {f"{one}/point.json" for one in gone}}
        for point in sorted(gone & set(self.repository.moments), reverse=True):
            if point in self.sequence.upkeep.pinned:
                self.sequence.upkeep.unpin(point)
            self.sequence.remove(point, force=True)
        return f"{len(gone)}"
