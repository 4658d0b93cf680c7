# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lock of a VM's directory: by processes that really compete, live, and die."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._errors import Locked, RepositoryError
from ansible_collections.holdfast.backup.plugins.module_utils._repository import locks, owners
from ansible_collections.holdfast.backup.plugins.module_utils._repository.owners import Process


@pytest.fixture
def vm(tmp_path: Path) -> str:
    """A VM's directory."""
    return str(tmp_path)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    started = subprocess.Popen(["sleep", "600"])
    yield started
    started.kill()
    started.wait()


def told(pid: int) -> Process:
    here = owners._here()
    assert here is not None
    return Process(*here, pid, owners._status(pid)[1])


def owned_by(monkeypatch: pytest.MonkeyPatch, play: Process | None) -> None:
    monkeypatch.setattr(owners, "running_play", lambda: play)


def age(vm: str, run: str, seconds: float) -> None:
    """Make the last sign of life of a run older."""
    then = time.time() - seconds
    os.utime(Path(vm, ".lock", f"{run}.json"), (then, then))


def test_one_takes_it_another_is_told_who_has_it(vm: str) -> None:
    locks.acquire(vm, "first")
    with pytest.raises(Locked, match="run first from") as error:
        locks.acquire(vm, "second")
    assert error.value.details["holder"]["run"] == "first"
    assert error.value.next_step
    assert os.listdir(vm) == [".lock"]


def test_it_can_be_taken_again_after_its_release(vm: str) -> None:
    locks.acquire(vm, "first")
    assert locks.release(vm, "first")
    assert not locks.release(vm, "first")
    assert locks.acquire(vm, "second") is None


def test_nobody_releases_the_lock_of_another(vm: str) -> None:
    locks.acquire(vm, "first")
    assert not locks.release(vm, "second")
    locks.check_owner(vm, "first")


def test_a_waiting_one_gets_it_when_it_is_released(vm: str) -> None:
    locks.acquire(vm, "first")
    threading.Timer(0.7, locks.release, (vm, "first")).start()
    begun = time.monotonic()
    locks.acquire(vm, "second", wait=100)
    assert 0.5 < time.monotonic() - begun < 60


def test_waiting_ends(vm: str) -> None:
    locks.acquire(vm, "first")
    begun = time.monotonic()
    with pytest.raises(Locked):
        locks.acquire(vm, "second", wait=1)
    assert time.monotonic() - begun > 0.9


def test_a_silent_owner_elsewhere_is_dead_after_its_lease(vm: str) -> None:
    locks.acquire(vm, "first", lease=100)
    age(vm, "first", 90)
    with pytest.raises(Locked):
        locks.acquire(vm, "second")
    age(vm, "first", 110)
    dead = locks.acquire(vm, "second")
    assert dead is not None
    assert dead.run == "first"
    with pytest.raises(Locked, match="second"):
        locks.renew(vm, "first")
    assert not locks.release(vm, "first")
    locks.check_owner(vm, "second")


def test_renewing_is_a_sign_of_life(vm: str) -> None:
    locks.acquire(vm, "first", lease=100)
    age(vm, "first", 110)
    locks.renew(vm, "first")
    with pytest.raises(Locked):
        locks.acquire(vm, "second")


def test_writing_into_the_partial_directory_is_a_sign_of_life(vm: str) -> None:
    locks.acquire(vm, "first", lease=100)
    partial = Path(vm, "20261120T021500Z.partial")
    partial.mkdir()
    image = partial / "disk-2000.qcow2"
    image.touch()
    then = time.time() - 110
    for path in (image, partial):
        os.utime(path, (then, then))
    age(vm, "first", 110)
    with image.open("wb") as file:
        file.write(b"data")
    with pytest.raises(Locked):
        locks.acquire(vm, "second")
    os.utime(image, (then, then))
    locks.acquire(vm, "second")


def test_an_owner_that_runs_here_is_alive_however_silent(
    vm: str, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    owned_by(monkeypatch, told(process.pid))
    locks.acquire(vm, "first", lease=100)
    age(vm, "first", 10_000)
    with pytest.raises(Locked):
        locks.acquire(vm, "second")


@pytest.mark.parametrize("noticed_by_its_parent", [True, False])
def test_an_owner_that_was_killed_here_is_dead_at_once(
    vm: str, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, noticed_by_its_parent: bool
) -> None:
    owned_by(monkeypatch, told(process.pid))
    locks.acquire(vm, "first")
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | (0 if noticed_by_its_parent else os.WNOWAIT))
    dead = locks.acquire(vm, "second")
    assert dead is not None
    assert dead.run == "first"


def test_another_process_with_the_number_of_the_dead_is_not_taken_for_it(
    vm: str, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    play = told(process.pid)
    owned_by(monkeypatch, Process(play.boot, play.namespace, play.pid, play.start - 1))
    locks.acquire(vm, "first")
    assert locks.acquire(vm, "second") is not None


def test_nothing_is_concluded_about_processes_of_another_machine(
    vm: str, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    owned_by(monkeypatch, Process("another boot", told(process.pid).namespace, 4_000_000, 1))
    locks.acquire(vm, "first")
    with pytest.raises(Locked):
        locks.acquire(vm, "second")


def test_a_run_whose_play_was_killed_takes_it_anew(
    vm: str, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    owned_by(monkeypatch, told(process.pid))
    locks.acquire(vm, "first")
    assert locks.rejoin(vm, "first")
    process.kill()
    process.wait()
    assert not locks.rejoin(vm, "first")
    assert locks.holder(vm) is None


def test_an_unreadable_record_still_locks_until_the_lease_is_over(vm: str) -> None:
    locks.acquire(vm, "first")
    Path(vm, ".lock", "first.json").write_text("{")
    with pytest.raises(Locked, match="unknown host"):
        locks.acquire(vm, "second")
    age(vm, "first", locks.DEFAULT_LEASE + 10)
    locks.acquire(vm, "second")


def test_an_empty_lock_of_a_run_that_died_while_releasing_is_free(vm: str) -> None:
    Path(vm, ".lock").mkdir()
    locks.acquire(vm, "first")


def test_what_is_no_lock_is_not_removed(vm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_POLL", 0.01)
    Path(vm, ".lock").write_text("mine")
    with pytest.raises(RepositoryError, match="no lock of this collection"):
        locks.acquire(vm, "first")
    assert Path(vm, ".lock").read_text() == "mine"


def test_what_a_dead_contender_prepared_is_swept(vm: str) -> None:
    for name, seconds in (("old", 700), ("new", 1)):
        prepared = Path(vm, f".lock-{name}")
        prepared.mkdir()
        then = time.time() - seconds
        os.utime(prepared, (then, then))
    locks.acquire(vm, "first")
    assert sorted(os.listdir(vm)) == [".lock", ".lock-new"]


def compete(vm: str, number: int, rounds: int, broken: multiprocessing.Queue[str]) -> None:
    """Take and release; while holding it, nobody else may. Sometimes die holding it, by looking dead."""
    for turn in range(rounds):
        run = f"run-{number}-{turn}"
        locks.acquire(vm, run, lease=5, wait=60)
        witness = Path(vm, "witness")
        try:
            witness.touch(exist_ok=False)
        except FileExistsError:
            broken.put(run)
        time.sleep(0.001)
        witness.unlink(missing_ok=True)
        if turn % 4 == 3:
            age(vm, run, 1000)
        else:
            locks.release(vm, run)


def test_many_compete_and_never_two_have_it(vm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_POLL", 0.001)
    context = multiprocessing.get_context("fork")
    broken: multiprocessing.Queue[str] = context.Queue()
    runners = [context.Process(target=compete, args=(vm, number, 40, broken)) for number in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(60)
        assert runner.exitcode == 0
    assert broken.empty()
    assert [name for name in os.listdir(vm) if name.startswith(".lock-")] == []


# --- whose run it is -------------------------------------------------------------------------------------------------


def test_the_play_is_found_through_its_worker_and_a_shell(tmp_path: Path) -> None:
    """ansible-playbook forks a worker, which starts a shell, which starts the module."""
    ask = tmp_path / "ask.py"
    ask.write_text(
        "from ansible_collections.holdfast.backup.plugins.module_utils._repository import owners\n"
        "print(owners.running_play().pid)\n"
    )
    play = tmp_path / "ansible-playbook"
    play.write_text(
        "import os, subprocess, sys\n"
        "print(os.getpid(), flush=True)\n"
        "worker = os.fork()\n"
        "if worker == 0:\n"
        "    os.setsid()\n"
        f"    sys.exit(subprocess.run('{sys.executable} {ask}; true', shell=True).returncode)\n"
        "os.waitpid(worker, 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, play], capture_output=True, text=True, check=True, env=environment).stdout
    first, second = said.split()
    assert first == second


def test_without_a_play_nobody_is_named() -> None:
    assert owners.running_play() is None
