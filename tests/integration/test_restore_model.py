# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random lives of a VM: whatever happens, each restore point is what the disks were at its moment, bit for bit.

Seeds make the sequences. ``HOLDFAST_SEQUENCES`` says how many are run, ``HOLDFAST_SEED`` which is the first, and
``HOLDFAST_STEPS`` how long each is; ``HOLDFAST_SEED=7 HOLDFAST_SEQUENCES=1`` runs sequence 7 again. In each of them,
backups and restores are made by VDDK and natively in turn, and bad days come to both.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import reverts
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.integration import processes
from ansible_collections.holdfast.backup.tests.integration.backup_chain import Run
from ansible_collections.holdfast.backup.tests.integration.restore_model import MIB, Machine, Moment, Repository
from ansible_collections.holdfast.backup.tests.modules import ModuleFailed

FIRST = int(os.environ.get("HOLDFAST_SEED", "1"))
SEQUENCES = int(os.environ.get("HOLDFAST_SEQUENCES", "8"))
STEPS = int(os.environ.get("HOLDFAST_STEPS", "30"))

TASKS = ("createSnapshot*", "removeSnapshot*", "reconfigVm")
CALLS = ("RetrievePropertiesEx", "CreateSnapshot*_Task", "RemoveSnapshot_Task", "QueryChangedDiskAreas", "Login")


class Sequence:
    """One life of a machine and its repository. Every method that is an action returns a line about it."""

    def __init__(self, lab: Any, seed: int, directory: Path) -> None:
        self.lab, self.seed, self.directory = lab, seed, directory
        self.dice = random.Random(seed)
        self.machine = Machine(lab, self.dice)
        self.repository = Repository(self.machine, directory / "repository", directory / "scratch")
        self.taken: Moment = {}
        self.spoil = False
        machine = self.machine
        self.actions: dict[Callable[[], str], int] = {
            machine.write: 30,
            machine.trim: 6,
            machine.grow: 3,
            machine.add: 3,
            machine.remove: 2,
            machine.replace: 3,
            machine.snapshot: 4,
            machine.forget_snapshot: 4,
            machine.revert: 5,
            machine.disturb_tracking: 3,
            machine.crash: 2,
            machine.power: 3,
            self.backup: 22,
            self.backup_on_a_bad_day: 8,
            self.backup_twice_at_once: 3,
            self.delete: 5,
            self.retain: 5,
            self.verify: 3,
            self.move: 1,
        }

    def live(self, steps: int) -> None:
        """So many random actions, then the proof of all that is left."""
        say(f"sequence {self.seed}: {self.turn_knobs()}")
        say(f"first: {self.backup()}")
        actions, weights = list(self.actions), list(self.actions.values())
        for number in range(steps):
            action = self.dice.choices(actions, weights)[0]
            say(f"{number}: {action.__name__}")
            say(f"    {action()}")
        say(f"last: {self.backup()}")
        self.prove_all()

    def turn_knobs(self) -> dict[str, Any]:
        """Let the lab be one of the vSpheres that there are."""
        dice = self.dice
        knobs = {
            "page": dice.choice((1, 2, 7, 2000)),
            "inflate": dice.choice((0, 0, 2 * 65536, MIB)),
            "granularity": dice.choice((65536, 65536, 4 * 65536)),
            "untidy": dice.random() < 0.3,
            "bad_change_id": dice.choice(("InvalidArgument", "FileFault")),
            "on_revert": dice.choice(("reset", "silent")),
            "on_crash": dice.choice(("reset", "keep")),
            "first_snapshot": dice.choice(("untracked", "tracked")),
            "live_change_id": dice.choice(("current", "current", "none")),
        }
        self.lab.tracking(**knobs)
        return knobs

    def prove_all(self) -> None:
        """Every restore point of the machine, and one of them as a VM."""
        self.machine.check()
        points = self.repository.points(verify="content")
        self.repository.prove(points)
        self.repository.restore(self.dice.choice(points))
        library = self.lab.vddk()
        assert (library["prepared"], library["open"], library["violations"]) == ([], [], [])
        self.lab.destroy_vm(self.machine.moid)

    # actions

    def backup(self) -> str:
        """One that must succeed, and incrementally where nothing speaks against it."""
        mode = self.dice.choice(("auto", "auto", "auto", "auto", "full"))
        longest = self.dice.choice((2, 5, 20))
        expected = self.repository.to_go_on(longest) if mode == "auto" else set()
        done = self._back_up(self._watch, mode, longest)
        self._assert_clean()
        kinds = {disk["backing_uuid"]: (disk["kind"], disk["reason"]) for disk in done["disks"]}
        for uuid in expected:
            assert kinds[uuid] == ("incremental", None), "copied in full without need"
        return f"{done['id']} {sorted(kinds.values(), key=str)}"

    def backup_on_a_bad_day(self) -> str:
        """With something going wrong: it succeeds all the same, or leaves nothing."""
        undo, told = self._trouble()
        say(f"    {told}")
        try:
            told = f"{told}: {self._back_up(self._watch)['id']}"
        except ModuleFailed as failure:
            told = f"{told}: {failure}"
        finally:
            undo()
        self.repository.assert_tidy()
        self.repository.points()
        return told

    def backup_twice_at_once(self) -> str:
        """Another run comes while one is under way: there is one writer at a time."""
        at, step, other = self.dice.randrange(8), 0, ""

        def run(name: str, args: dict[str, Any]) -> dict[str, Any]:
            nonlocal step, other
            result = self._watch(name, args)
            if step == at:
                mine = self.taken
                if at > 0:
                    with pytest.raises(ModuleFailed, match="are being written by"):
                        self._back_up(self._watch)
                    other = "refused"
                else:
                    other = self._back_up(self._watch)["id"]
                self.taken = mine
            step += 1
            return result

        done = self._back_up(run)
        self._assert_clean()
        return f"{done['id']}, the other after step {at}: {other}"

    def delete(self) -> str:
        """A restore point goes, if nothing stands on it."""
        points = self.repository.points()
        doomed = self.dice.choice(points)
        others = [point for point in points if point is not doomed]
        needed = not others or any(doomed["id"] in point["chain"] for point in others)
        args = {"repository": str(self.repository.path), "state": "absent", "id": doomed["id"]}
        modules.run("restore_point", args, fail=needed)
        if not needed:
            del self.repository.moments[doomed["id"]]
        self.repository.prove(self.repository.points())
        return f"{doomed['id']}{' is needed' if needed else ''}"

    def retain(self) -> str:
        """Old restore points go, and what others need of them is merged."""
        rules = {"keep_last": self.dice.randint(1, 6), "max_chain": self.dice.choice((0, 2, 5, 20))}
        done = modules.run("repository_retention", {"repository": str(self.repository.path), **rules})
        gone = [point for one in done["objects"] for point in one["removed"]]
        for point in gone:
            del self.repository.moments[point]
        assert len(self.repository.moments) <= rules["keep_last"]
        self.repository.assert_tidy()
        self.repository.prove(self.repository.points())
        return f"{rules}: {len(gone)} gone"

    def verify(self) -> str:
        """Everything is found to be what it was."""
        level = self.dice.choice(("structure", "content", "restore"))
        done = modules.run("repository_verification", {"repository": str(self.repository.path), "level": level})
        assert not any(done["remaining"].values())
        return f"{level}: {done['examined']}"

    def move(self) -> str:
        """The repository is moved to another directory."""
        target = self.directory / f"moved-{self.dice.randrange(1 << 30)}" / "repository"
        target.parent.mkdir()
        self.repository.path = self.repository.path.rename(target)
        self.repository.prove(self.repository.points())
        return str(target)

    # their parts

    def _back_up(self, run: Run, mode: str = "auto", longest: int = 20) -> dict[str, Any]:
        """Run the chain; the new restore point must hold the bytes of the moment of its snapshot."""
        api = self.dice.choice(("soap", "vi_json"))
        chain = self.repository.chain(disk_changed_areas={"api": api}, restore_point={"max_chain": longest})
        done = chain.backup(run, mode)["restore_point"]
        self.repository.moments[done["id"]] = self.taken
        self.repository.prove(point for point in self.repository.points() if point["id"] == done["id"])
        return done

    def _watch(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        """Run a module. At the snapshot the disks are put aside, and all the time the guest goes on writing."""
        result = modules.run(name, args)
        if "snapshot_name" in args:
            self.machine.check()
            self.taken = self.machine.moment()
        if name == "vddk_copy" and self.spoil:
            os.truncate(result["disks"][0]["image"], result["disks"][0]["bytes_stored"] - 1)
        if self.dice.random() < 0.3:
            self.machine.write()
        return result

    def _assert_clean(self) -> None:
        self.repository.assert_tidy()
        assert self.repository.own_snapshots() == 0

    def _trouble(self) -> tuple[Callable[[], None], str]:
        """Arrange for something to go wrong; how to end it, and what it is."""
        lab, dice = self.lab, self.dice
        knobs = {**lab.tracking(), "fail_consolidation": 0}
        place = dice.randrange(max(len(disk.content) for disk in self.machine.disks.values()))
        reading = {"op": "read", "start": place, "length": MIB, "count": 1000}
        kind = dice.choice(("task", "call", "drop", "read", "library", "slow", "consolidation", "image"))
        slow = {**reading, "count": 1}
        if kind == "task":
            fault = dice.choice(("FileFault", "TaskInProgress", "GenericVmConfigFault"))
            lab.fault(task=dice.choice(TASKS), fault=fault, count=dice.randint(1, 3))
        elif kind == "call":
            fault = dice.choice(("NotAuthenticated", "HostCommunication", "FileFault"))
            lab.fault(method=dice.choice(CALLS), fault=fault, skip=dice.randrange(6))
            kind = f"call {fault}"
        elif kind == "drop":
            lab.fault(method="*", drop=True, skip=dice.randrange(40))
        elif kind == "read":
            lab.vddk(faults=[{**reading, "code": 4}])
            lab.nfc(faults=[{**reading, "action": "error", "code": 4}])
        elif kind == "library":
            lab.vddk(faults=[{**reading, "code": -1, "count": 1}])
            lab.nfc(faults=[{**reading, "action": dice.choice(("drop", "torn")), "count": 1}])
        elif kind == "slow":
            lab.vddk(latency_ms=20, callbacks="reversed", faults=[{**slow, "code": 36}])
            lab.nfc(latency_ms=20, order="mixed", faults=[{**slow, "action": "error", "code": 5}])
        elif kind == "consolidation":
            lab.tracking(fail_consolidation=dice.randint(1, 2))
        else:
            self.spoil = True

        def undo() -> None:
            self.spoil = False
            assert lab.vddk()["violations"] == []
            lab.clear_faults()
            lab.vddk(reset=True)
            assert lab.nfc()["violations"] == []
            lab.nfc(reset=True)
            lab.tracking(**knobs)
            if "NotAuthenticated" in kind:  # who is told so logs in anew; the lab has not really ended the session
                lab.expire_sessions()

        return undo, kind


def say(text: str) -> None:
    """Shown by pytest when the test fails."""
    print(text, flush=True)


@pytest.mark.timeout(60 + 10 * STEPS)
@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEQUENCES))
def test_whatever_happens_what_is_restored_is_what_was(
    lab: Any, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reverts, "MARGIN", timedelta(0))  # there is one clock here
    say(f"again: HOLDFAST_SEED={seed} HOLDFAST_SEQUENCES=1 HOLDFAST_STEPS={STEPS}")
    Sequence(lab, seed, tmp_path).live(STEPS)
    processes.count("lives of a VM")
