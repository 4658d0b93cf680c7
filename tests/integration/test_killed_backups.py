# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backups of which a part is killed with SIGKILL at a random moment, and backups that run at the same time.

``HOLDFAST_SEED`` chooses other moments, ``HOLDFAST_KILLS`` how often each part is killed, by VDDK and natively in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration import backup_chain, processes
from ansible_collections.holdfast.backup.tests.integration.restore_model import Machine, Repository

SEED = os.environ.get("HOLDFAST_SEED", "1")
KILLS = int(os.environ.get("HOLDFAST_KILLS", "2"))
STEPS = 9  # modules of a backup
MARK = "HOLDFAST_TEST_RUN"


class Run:
    """A backup in processes of its own."""

    def __init__(self, chain: backup_chain.Chain, directory: Path) -> None:
        self.mark = f"{MARK}={uuid.uuid4()}"
        self.temporary = directory
        directory.mkdir(exist_ok=True)
        name, _equals, value = self.mark.partition("=")
        self.play = backup_chain.start(chain, {name: value, "TMPDIR": str(directory)})

    def events(self) -> Iterator[dict[str, Any]]:
        """What the play tells: a module that it starts, and at last how it ended."""
        assert self.play.stdout is not None
        for line in self.play.stdout:
            yield json.loads(line)

    def end(self) -> str | None:
        """Wait; the ID of the restore point, or None if it says that it failed, or says nothing any more."""
        told = list(self.events())
        self.play.wait()
        return told[-1].get("done") if told else None

    def processes(self, name: str = "") -> list[int]:
        """Those of this run that are there, or those of them with that name."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid, name)]

    def _is_ours(self, pid: int, name: str) -> bool:
        with contextlib.suppress(OSError):
            if name and Path(f"/proc/{pid}/comm").read_text().strip() != name:
                return False
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    def assert_gone(self, seconds: float) -> None:
        """All processes end within that time."""
        deadline = time.monotonic() + seconds
        while self.processes():
            assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.processes()]
            time.sleep(0.1)

    def assert_no_secret(self, secret: str, *places: Path) -> None:
        """Neither the processes nor the files show it."""
        for pid in self.processes():
            with contextlib.suppress(OSError):
                assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
                assert secret.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        # What is left of the run may still be cleaning up: os.walk bears directories that vanish.
        for directory, _directories, files in (step for place in (self.temporary, *places) for step in os.walk(place)):
            for file in files:
                with contextlib.suppress(OSError):
                    assert secret.encode() not in Path(directory, file).read_bytes(), file

    def kill(self, victim: str, dice: random.Random) -> str:
        """Kill a part of the run at a random moment; where it was then."""
        copies = victim in ("nbdkit", "nbdcopy", "qemu-nbd")
        step = STEPS - 3 if copies else dice.randrange(STEPS)
        event: dict[str, Any] = {}
        for number, event in enumerate(self.events()):
            if number == step or "failed" in event:
                break
        deadline = time.monotonic() + 5
        while copies and not self.processes(victim) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(dice.choice((0, dice.uniform(0, 0.05), dice.uniform(0, 0.4))))
        chosen = {
            "play": lambda: [self.play.pid],
            "module": lambda: [event["pid"]],
            "everything": self.processes,
        }.get(victim, lambda: self.processes(victim))()
        dice.shuffle(chosen)
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        processes.count("killed backup in the lab")
        if self.play.pid in chosen and dice.random() < 0.5:  # else its parent does not care for it
            self.play.wait()
        return f"{victim} {chosen} in {event}"


class Scene:
    """A machine, its repository, and what is known of them."""

    def __init__(self, lab: Any, seed: str, directory: Path) -> None:
        self.lab, self.dice, self.directory = lab, random.Random(seed), directory
        self.machine = Machine(lab, self.dice)
        for disk in self.machine.disks.values():
            self.machine.fill(disk)
        self.repository = Repository(self.machine, directory / "repository", directory / "scratch")
        self.back_up()

    def chain(self, lock_timeout: int = 60, native: bool | None = None) -> backup_chain.Chain:
        return self.repository.chain(native, restore_point={"lock_timeout": lock_timeout})

    def run(self, lock_timeout: int = 60, native: bool | None = None) -> Run:
        return Run(self.chain(lock_timeout, native), self.directory / "tmp")

    def back_up(self) -> None:
        """A run that must succeed."""
        self.note(self.chain().backup(modules.run)["restore_point"]["id"])

    def note(self, point: str | None) -> None:
        """A restore point holds what the disks are now."""
        if point:
            self.repository.moments[point] = self.machine.moment()

    def note_new(self) -> None:
        """Whatever is visible that was not counted on holds what the disks are now, too."""
        listed = modules.run("restore_point_info", {"repository": str(self.repository.path), "verify": "structure"})
        for point in listed["restore_points"]:
            if point["id"] not in self.repository.moments:
                self.note(point["id"])

    def assert_good(self) -> None:
        """All restore points are whole and right, and nothing is left of what was killed."""
        self.lab.expire_sessions()
        self.repository.prove(self.repository.points(verify="content"))
        self.repository.assert_tidy()
        assert self.repository.own_snapshots() == 0
        library = self.lab.vddk()
        assert (library["prepared"], library["open"], library["violations"]) == ([], [], [])
        hosts = self.lab.nfc()
        assert (hosts["open"], hosts["violations"]) == ([], [])


@pytest.fixture
def slow_lab(lab: Any) -> Iterator[Any]:
    """Copies take long enough to be hit. Who is killed cannot log out, so that is done here."""
    lab.vddk(latency_ms=50, in_flight=1)
    lab.nfc(latency_ms=50, rate=10 << 20)
    yield lab
    lab.expire_sessions()


@pytest.mark.timeout(60 + 60 * KILLS)
@pytest.mark.parametrize("victim", ["play", "module", "everything", "nbdkit", "nbdcopy", "qemu-nbd"])
def test_what_is_killed_leaves_no_half_and_the_next_run_works(slow_lab: Any, victim: str, tmp_path: Path) -> None:
    scene = Scene(slow_lab, f"{SEED} {victim}", tmp_path)
    for number in range(KILLS):
        scene.machine.write()
        killed = scene.run(native=number % 2 == 1)
        print(f"{number}: {killed.kill(victim, scene.dice)}", flush=True)
        killed.assert_no_secret(slow_lab.password, scene.repository.path)
        if scene.dice.random() < 0.5:  # a run comes while something of this one may still be at work
            scene.back_up()
        killed.assert_gone(60)
        killed.end()
        killed.assert_no_secret(slow_lab.password, scene.repository.path)
        scene.note_new()
        scene.repository.prove(scene.repository.points())
        scene.machine.write()
        scene.back_up()
        scene.assert_good()


@pytest.mark.timeout(60 + 60 * KILLS)
def test_of_two_runs_at_once_none_spoils_the_other(slow_lab: Any, tmp_path: Path) -> None:
    scene = Scene(slow_lab, SEED, tmp_path)
    for _number in range(KILLS):
        scene.machine.write()
        first = scene.run(lock_timeout=0, native=False)
        time.sleep(scene.dice.uniform(0, 1.5))
        second = scene.run(lock_timeout=scene.dice.choice((0, 60)), native=True)
        ended = [first.end(), second.end()]
        for point in ended:
            scene.note(point)
        assert any(ended)
        scene.assert_good()
