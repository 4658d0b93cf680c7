# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random lives of a repository: backups, deletions, damage, kills, runs at the same time, and a clock that jumps.

After each step every restore point that is listed is what the disks were at its moment, bit for bit.

Seeds make the sequences. ``HOLDFAST_REPOSITORY_SEQUENCES`` says how many are run, ``HOLDFAST_REPOSITORY_SEED`` which
is the first, ``HOLDFAST_REPOSITORY_STEPS`` how long each is. What is killed after a time, not at a step, is not killed
at the very same place again.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import BackupError
from ansible_collections.holdfast.backup.tests.integration import processes
from ansible_collections.holdfast.backup.tests.integration.processes import Child
from ansible_collections.holdfast.backup.tests.integration.repository_damage import Damage
from ansible_collections.holdfast.backup.tests.integration.repository_machine import MIB, Machine
from ansible_collections.holdfast.backup.tests.integration.repository_model import Clock, Repository
from ansible_collections.holdfast.backup.tests.integration.repository_upkeep import Upkeep
from ansible_collections.holdfast.backup.tests.modules import ModuleFailed

FIRST = int(os.environ.get("HOLDFAST_REPOSITORY_SEED", "1"))
SEQUENCES = int(os.environ.get("HOLDFAST_REPOSITORY_SEQUENCES", "192"))
STEPS = int(os.environ.get("HOLDFAST_REPOSITORY_STEPS", "20"))
FILES = 4  # of tests, among which the sequences are shared

MOST_POINTS = 14
COMPRESSIONS = ("zstd", "zstd", "zstd", "zlib", "none")
# Steps, and seconds, within which a process of each kind is done.
STEPS_OF = {"back_up": 60, "delete": 14, "restore": 4, "retain": 0, "verify": 12}
SECONDS_OF = {"back_up": 0.3, "delete": 0.02, "restore": 0.15, "retain": 0.6, "verify": 0.2}


def seeds(part: int) -> range:
    """The seeds of one of the files of tests."""
    return range(FIRST + part, FIRST + SEQUENCES, FILES)


class Sequence:
    """One life. Every method that is an action returns a line about it."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed, self.directory = seed, directory
        self.dice = dice = random.Random(seed)
        self.clock = Clock()
        self.mixed = dice.random() < 0.5  # compressions
        self.machines = [Machine(dice, fcd=dice.random() < 0.2)]
        if dice.random() < 0.3:
            self.machines.append(Machine(dice, number=1, fcd=dice.random() < 0.5))
        self.repository = Repository(directory / "repository", directory / "scratch", self.clock, dice)
        self.upkeep = Upkeep(self)
        self.actions: dict[Callable[[], str], int] = {
            self.change: 30,
            self.backup: 20,
            self.backup_on_a_bad_day: 6,
            self.backup_of_a_filling_disk: 4,
            self.delete: 6,
            self.restore: 2,
            self.restore_on_a_bad_day: 1,
            self.kill: 18,
            self.two_at_once: 4,
            self.upkeep.pin: 3,
            self.upkeep.verify: 3,
            self.upkeep.verify_all: 2,
            self.upkeep.retain: 10,
            self.upkeep.retain_on_a_filling_disk: 3,
            self.upkeep.read_meanwhile: 2,
            self.damage: 6,
            self.jump: 3,
            self.move: 1,
        }

    @property
    def machine(self) -> Machine:
        """One of the machines."""
        return self.dice.choice(self.machines)

    def live(self, steps: int) -> None:
        """So many random actions, then the proof of all that is left."""
        for machine in self.machines:
            for _point in range(self.dice.randint(1, 5)):
                say(f"first: {self.repository.backup(machine)}")
                self.clock.forward(hours=self.dice.choice((1, 5, 24, 200)))
                machine.write()
        actions, weights = list(self.actions), list(self.actions.values())
        for number in range(steps):
            self.clock.forward(minutes=self.dice.choice((1, 20, 60, 60 * 7, 60 * 24, 60 * 24 * 9)))
            action = self.dice.choices(actions, weights)[0]
            say(f"{number}: {action.__name__}")
            say(f"    {action()}")
            self.prove()
            self.make_room()
            for machine in self.machines:
                if not self.points_of(machine):
                    say(f"    again: {self.repository.backup(machine)}")
        for machine in self.machines:
            say(f"last: {self.repository.backup(machine)}")
        self.repository.prove(self.repository.points(verify="content"), again=True)
        self.repository.assert_tidy()

    def prove(self) -> None:
        """Everything that must be there is, and nothing else is seen."""
        self.repository.prove(self.repository.points())

    def make_room(self) -> None:
        """Old restore points go, the newest ones first, when there are many."""
        for machine in self.machines:
            points = self.points_of(machine)
            if len(points) > MOST_POINTS:
                for point in reversed(points):
                    if point in self.upkeep.pinned:
                        self.upkeep.unpin(point)
                    self.remove(point, force=True)

    def points_of(self, machine: Machine) -> list[str]:
        """The IDs of its restore points, oldest first."""
        return sorted(point for point in self.repository.moments if point.startswith(machine.id))

    # what changes the disks

    def change(self) -> str:
        """What guests and administrators do."""
        machine = self.machine
        weights = {
            machine.write: 20,
            machine.trim: 4,
            machine.grow: 2,
            machine.add: 2,
            machine.remove: 1,
            machine.snapshot: 2,
            machine.revert: 2,
            machine.reset_tracking: 2,
        }
        action = self.dice.choices(list(weights), list(weights.values()))[0]
        return f"{action.__name__} {action()}"

    def jump(self) -> str:
        """The clock of the machine that backs up goes wrong."""
        self.clock.forward(days=self.dice.choice((-400, -3, -1 / 24, 30)))
        return f"{self.clock.now}"

    def move(self) -> str:
        """The repository is moved to another directory."""
        target = self.directory / f"moved-{self.dice.randrange(1 << 30)}"
        self.repository.path = self.repository.path.rename(target)
        return target.name

    # what changes the repository

    def some_backup(self) -> dict[str, Any]:
        """Options for a backup."""
        dice = self.dice
        mode = dice.choice(("auto", "auto", "auto", "auto", "full"))
        compression = dice.choice(COMPRESSIONS) if self.mixed else "zstd"
        return {"mode": mode, "max_chain": dice.choice((2, 6, 20)), "compression": compression}

    def backup(self) -> str:
        """One that must succeed, whatever was left behind before."""
        machine = self.machine
        if self.dice.random() < 0.8:
            machine.write()
        return self.repository.backup(machine, **self.some_backup())

    def backup_on_a_bad_day(self) -> str:
        """The disk cannot be read everywhere: it succeeds all the same, or leaves nothing."""
        faults = ("error-pread=EIO", f"error-pread-rate={self.dice.choice((1, 10, 50))}%")
        machine = self.machine
        machine.write()
        told = ""
        try:
            return self.repository.backup(machine, faults=faults, **self.some_backup())
        except ModuleFailed as failure:
            told = str(failure)
        assert "Input/output error" in told or "injecting EIO" in told, told
        self.repository.assert_tidy(machine.id)
        return told

    def backup_of_a_filling_disk(self) -> str:
        """The repository's file system fails, once or from some moment on: an error, and nothing is left but dirt."""
        machine, options = self.machine, self.some_backup()
        machine.write()
        error = self.dice.choice((errno.ENOSPC, errno.EIO))
        step, lasting = self.dice.randrange(STEPS_OF["back_up"]), self.dice.random() < 0.5
        moment = processes.failing_at(step, error, self.repository.path, lasting)
        child = Child(lambda: self.repository.back_up(machine, **options)[1], moment)
        outcome = self.settle(child, "back_up", machine)
        return f"{errno.errorcode[error]} at {step}: {outcome} {child.result.get('msg', '')}"

    def delete(self) -> str:
        """A restore point goes, if nothing stands on it."""
        point = self.dice.choice(sorted(self.repository.moments))
        needed = self.is_needed(point)
        self.remove(point, fail=needed)
        return f"{point}{' must stay' if needed else ''}"

    def remove(self, point: str, fail: bool = False, force: bool = False) -> None:
        """Delete a restore point."""
        self.repository.run("restore_point", state="absent", id=point, force=force, fail=fail)
        if not fail:
            del self.repository.moments[point]

    def is_needed(self, point: str) -> bool:
        """Whether it may not be deleted: it is pinned, another one stands on it, or there is no other one."""
        if point in self.upkeep.pinned:
            return True
        others = [one for one in self.repository.moments if one != point and one[:36] == point[:36]]
        return not others or any(f"{point}/point.json" in self.repository.chain_of(other) for other in others)

    def restore(self) -> str:
        """A disk of some restore point is written onto one that held something else."""
        point = self.dice.choice(self.repository.points())
        disk = self.dice.choice(point["disks"])
        target = self.target(point, disk)
        self.repository.restore(point, disk, target)
        self.check_restored(point, disk, target)
        return f"{point['id']} {disk['image']}"

    def restore_on_a_bad_day(self) -> str:
        """The disk cannot be written everywhere: that is told, and the repository does not care."""
        point = self.dice.choice(self.repository.points())
        disk = self.dice.choice(point["disks"])
        target, told, before = self.target(point, disk), "", self.repository.files()
        faults = ("error-pwrite=EIO", "error-zero=EIO", f"error-rate={self.dice.choice((5, 50))}%")
        try:
            self.repository.restore(point, disk, target, faults)
            self.check_restored(point, disk, target)
        except BackupError as failure:
            told = str(failure)
            assert "EIO" in told or "Input/output error" in told, told
        assert self.repository.files() == before
        return told

    def target(self, point: dict[str, Any], disk: dict[str, Any]) -> Path:
        """A file of the size of the disk, full of something."""
        target = self.directory / "target.raw"
        capacity = self.repository.moments[point["id"]][disk["backing_uuid"]].capacity
        target.write_bytes(self.dice.randbytes(min(capacity, MIB)).ljust(capacity, b"x"))
        return target

    def check_restored(self, point: dict[str, Any], disk: dict[str, Any], target: Path) -> None:
        """The file is the disk as it was."""
        held = self.repository.moments[point["id"]][disk["backing_uuid"]]
        assert target.read_bytes() == held.raw(), f"{point['id']} {disk['image']}: not restored"

    # processes

    def kill(self) -> str:
        """Something is killed in its middle; what comes next finds everything whole."""
        kind = self.dice.choice(sorted(STEPS_OF))
        return str(getattr(self.upkeep if kind in ("retain", "verify") else self, f"kill_{kind}")())

    def kill_back_up(self) -> str:
        """A backup."""
        machine, options = self.machine, self.some_backup()
        machine.write()
        return self.kill_in_the_middle("back_up", machine, lambda: self.repository.back_up(machine, **options)[1])

    def kill_delete(self) -> str:
        """A deletion."""
        machine = self.machine
        points = [point for point in self.points_of(machine) if not self.is_needed(point)]
        if not points:
            return "nothing can be deleted"
        doomed = self.dice.choice(points)

        def work() -> dict[str, Any]:
            return {**self.repository.run("restore_point", state="absent", id=doomed), "removed": [doomed]}

        return self.kill_in_the_middle("delete", machine, work, {doomed})

    def kill_restore(self) -> str:
        """A restore; then it is done again, over what the first one has left."""
        point = self.dice.choice(self.repository.points())
        disk = self.dice.choice(point["disks"])
        target = self.target(point, disk)

        def work() -> dict[str, Any]:
            self.repository.restore(point, disk, target)
            return {}

        before = self.repository.files()
        told = self.kill_in_the_middle("restore", None, work)
        assert self.repository.files() == before, "a restore has changed the repository"
        self.repository.restore(point, disk, target)
        self.check_restored(point, disk, target)
        return told

    def kill_in_the_middle(
        self,
        kind: str,
        machine: Machine | None,
        work: Callable[[], Any],
        doomed: set[str] | None = None,
        steps: int = 0,
    ) -> str:
        """Kill the process of some work, at a step or after a time, or a program that it started.

        :param doomed: the restore points that the work deletes
        :param steps: about so many it takes
        """
        dice = self.dice
        if dice.random() < 0.6:
            told = f"at {(step := dice.randrange(steps or STEPS_OF[kind]))}"
            child = Child(work, processes.killed_at(step))
        else:
            what = dice.choice(
                ("itself", "everything", *(("nbdcopy", "nbdkit", "qemu-nbd") if kind != "delete" else ()))
            )
            child = Child(work)
            told = child.kill(what, dice, SECONDS_OF[kind])
        outcome = self.settle(child, kind, machine, doomed)
        return f"{kind} {told}: {outcome}"

    def settle(self, child: Child, kind: str, machine: Machine | None, doomed: set[str] | None = None) -> str:
        """Wait for a process, and take note of what it has done, as far as that may be."""
        outcome = child.end()
        if outcome == "killed":
            processes.count(f"killed {kind}")
        if outcome == "failed":
            assert "error_type" in child.result, child.result  # told in order
        if self.dice.random() < 0.7:
            child.gone()
        moments = self.repository.moments
        found = {point["id"] for point in self.repository.listed()}
        missing = set(moments) - found
        assert missing <= (doomed or set()), "what must not go is gone"
        if outcome == "done" and doomed:
            assert missing == doomed
        self.upkeep.forget(missing)
        new = found - set(moments)
        if machine is not None and kind == "back_up":
            assert len(new) <= 1
            if outcome == "done":
                assert new == {child.result["id"]}
            for point in new:
                moments[point] = machine.moment()
            for disk in machine.disks.values():  # as the process has done
                disk.snapshot()
        else:
            assert not new
        return outcome

    def two_at_once(self) -> str:
        """Two that write at the same time: each does its work, or is told that the other one does."""
        machine = self.machine
        machine.write()
        timeout = self.dice.choice((0, 30))
        children = []
        works = {"back_up": self.backup_of, "retain": self.upkeep.of, "verify": self.upkeep.verify_of}
        pair = [self.dice.choice(("back_up", "retain")), self.dice.choice(("back_up", "back_up", "verify"))]
        for kind in pair:
            work = works[kind](machine, timeout)
            children.append((kind, Child(work)))
            time.sleep(self.dice.choice((0, self.dice.uniform(0, 0.2))))
        told = [f"{kind} {child.end()}" for kind, child in children]
        for kind, child in children:
            if child.outcome == "failed" and kind == "verify":
                assert child.result.get("error_type") == "NotFound", child.result  # retention has deleted it
            elif child.outcome == "failed":
                assert child.result.get("error_type") == "Locked", child.result
                assert not timeout
        self.note_two(children, machine)
        assert any(child.outcome == "done" for kind, child in children)
        if "back_up" in pair:
            for disk in machine.disks.values():
                disk.snapshot()
        if "back_up done" in told:  # only a backup clears up what any other has left
            self.repository.assert_tidy(machine.id)
        return f"{told}"

    def note_two(self, children: list[tuple[str, Child]], machine: Machine) -> None:
        """Take note of what two that worked at the same time have done.

        The clock may be so wrong that retention deletes what the backup has just made, or the backup gives the ID of
        one that retention has deleted once more.
        """
        listed = {point["id"] for point in self.repository.listed()}
        new = {child.result["id"] for kind, child in children if kind == "back_up" and child.outcome == "done"}
        gone = {point for kind, child in children if kind == "retain" for point in self.upkeep.removed(child.result)}
        assert new - listed <= gone
        self.upkeep.forget(gone & set(self.repository.moments))
        for point in new & listed:
            self.repository.moments[point] = machine.moment()

    def backup_of(self, machine: Machine, timeout: int) -> Callable[[], dict[str, Any]]:
        """A backup, as work for a process."""
        options = {**self.some_backup(), "lock_timeout": timeout}
        return lambda: self.repository.back_up(machine, **options)[1]

    # damage

    def damage(self) -> str:
        """Something in the repository is spoilt. All that does not stand on it can be trusted as before."""
        return Damage(self).live()


def say(text: str) -> None:
    """Shown by pytest when the test fails."""
    print(text, flush=True)


def live(seed: int, directory: Path) -> None:
    """Sequence ``seed``, in a directory of its own."""
    say(f"again: HOLDFAST_REPOSITORY_SEED={seed} HOLDFAST_REPOSITORY_SEQUENCES=1 HOLDFAST_REPOSITORY_STEPS={STEPS}")
    Sequence(seed, directory).live(STEPS)
    processes.count("lives of a repository")
    shutil.rmtree(directory)  # many of them together are large
