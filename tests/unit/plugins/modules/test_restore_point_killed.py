# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backups killed with SIGKILL at every step of their file work, and two runs at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._repository import files, locks, owners
from ansible_collections.holdfast.backup.plugins.module_utils._repository.owners import Process
from ansible_collections.holdfast.backup.tests.lab.client import REPOSITORY
from ansible_collections.holdfast.backup.tests.unit.repositories import VM, Backup, disk, expected, restored

CHANGING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.link", "os.truncate", "shutil.rmtree"}


@pytest.fixture
def backup(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Backup:
    """A repository with one restore point, whose images are content 1."""
    path = tmp_path / "repository"
    path.mkdir()
    return Backup(run_module, path)


def in_child(steps: int, work: Callable[..., object], *args: Any, **options: Any) -> bool:
    """Run ``work`` in a process that is its own play and is killed at the given step; whether it got to its end."""
    child = os.fork()
    if child == 0:
        here = owners._here()
        assert here is not None
        play = Process(*here, os.getpid(), owners._status(os.getpid())[1])
        owners.running_play = lambda: play
        left = [steps]

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            synced = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_DIRECTORY
            if event in CHANGING or writes or synced:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        failed = 1
        try:
            work(*args, **options)
            failed = 0
        finally:
            os._exit(failed)
    _pid, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the work failed by itself"
    return status == 0


def untidy(backup: Backup) -> list[str]:
    """What is in the VM's directory besides complete points (and locks prepared moments ago)."""
    return [name for name in os.listdir(backup.directory) if not name.endswith("Z") and not name.startswith(".lock-")]


def test_a_killed_backup_is_never_seen_and_the_next_one_works(backup: Backup, tmp_path: Path) -> None:
    """The whole of started, copy and completed, killed before each change that it makes on disk."""
    backup.backup()
    contents, step, finished = [1], 0, False
    while not finished:
        backup.content = step + 2
        finished = in_child(step, backup.backup)
        listed = backup.info(verify="content")
        assert all(one["verified"]["ok"] for one in listed)
        if len(listed) > len(contents):  # complete, although the process was killed right after
            contents.append(step + 3)
        assert len(listed) == len(contents)
        step += 1
    assert len(contents) > 1
    assert step > 30

    newest = backup.info()[-1]
    assert newest["chain_length"] == len(contents)
    assert restored(newest["disks"][0]["path"], tmp_path / "raw") == expected(contents)
    assert untidy(backup) == []


def test_killed_while_aborting(backup: Backup) -> None:
    kept = backup.backup()
    step, finished = 0, False
    while not finished:
        started = backup.start()
        backup.copy(started)
        finished = in_child(step, backup.abort, started)
        backup.abort(started)
        assert [one["id"] for one in backup.info(verify="content")] == [kept["id"]]
        step += 1
    assert step > 3
    assert untidy(backup) == []


def test_killed_while_deleting(backup: Backup) -> None:
    kept = backup.backup()
    step, finished = 0, False
    while not finished:
        doomed = backup.info()[1:] or [backup.backup()]
        finished = in_child(step, backup.module, "absent", id=doomed[0]["id"])
        listed = backup.info(verify="content")
        assert all(one["verified"]["ok"] for one in listed)
        assert listed[0]["id"] == kept["id"]
        step += 1
    assert len(listed) == 1
    assert step > 3
    backup.backup()
    assert untidy(backup) == []


def test_killed_while_making_the_repository(backup: Backup, tmp_path: Path) -> None:
    step, finished = 0, False
    while not finished:
        fresh = tmp_path / f"fresh-{step}"
        fresh.mkdir()
        one = Backup(backup.run_module, fresh)
        finished = in_child(step, one.start)
        if not finished:
            one.backup()
            assert len(one.info(verify="content")) == 1
            assert sorted(name for name in os.listdir(fresh) if name[0] != ".") == [
                VM["instance_uuid"],
                "repository.json",
            ]
        step += 1
    assert step > 5


def test_two_runs_at_once_one_wins_the_other_is_told(backup: Backup) -> None:
    started = backup.start()
    refused = backup.start(fail=True)
    assert refused["error_type"] == "Locked"
    assert started["restore_point"]["run"] in refused["msg"]
    assert refused["holder"]["run"] == started["restore_point"]["run"]
    assert "lock_timeout" in refused["next_step"]
    assert backup.module("started", vm=VM, disks=[disk()], check=True, fail=True)["error_type"] == "Locked"
    assert backup.complete(started, backup.copy(started))["changed"]
    assert backup.start()["since"][0]["parent"] is not None


def test_deleting_waits_for_nobody_while_a_run_writes(backup: Backup) -> None:
    point = backup.backup()
    backup.start()
    assert backup.module("absent", id=point["id"], force=True, fail=True)["error_type"] == "Locked"


def test_a_run_that_was_taken_over_cannot_complete(backup: Backup) -> None:
    late = backup.start(lease=1)
    copied = backup.copy(late)
    time.sleep(2.2)
    winner = backup.start()
    assert winner["swept"] == [os.path.basename(late["restore_point"]["path"])]
    assert backup.complete(late, copied, fail=True)["error_type"] == "NotFound"
    assert not backup.abort(late)["changed"]
    assert backup.complete(winner, backup.copy(winner))["changed"]
    assert len(backup.info(verify="content")) == 1


def test_a_run_taken_over_in_the_last_moment_publishes_nothing(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    started = backup.start()
    copied = backup.copy(started)
    write = files.write

    def write_and_lose(path: str, data: bytes) -> None:
        write(path, data)
        if path.endswith("point.json"):
            locks.release(str(backup.directory), started["restore_point"]["run"])

    monkeypatch.setattr(files, "write", write_and_lose)
    assert backup.complete(started, copied, fail=True)["error_type"] == "Locked"
    assert backup.info() == []


def test_everything_is_on_stable_storage_before_it_is_visible(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    started = backup.start()
    partial, run = Path(started["restore_point"]["path"]), started["restore_point"]["run"]
    (partial / "config.json").write_text("{}")
    copied = backup.copy(started)
    steps: list[str] = []
    sync, rename, unlink = os.fsync, os.rename, os.unlink

    def record(what: str, path: str) -> None:
        steps.append(f"{what} {os.path.relpath(path, backup.directory)}")

    monkeypatch.setattr(os, "fsync", lambda fd: record("sync", os.readlink(f"/proc/self/fd/{fd}")) or sync(fd))
    monkeypatch.setattr(os, "rename", lambda old, new: record("rename", new) or rename(old, new))
    monkeypatch.setattr(os, "unlink", lambda path: record("unlink", path) or unlink(path))
    backup.complete(started, copied)

    name, final = partial.name, partial.stem
    visible = steps.index(f"rename {final}")
    written = steps.index(f"rename {name}/point.json")
    assert {f"sync {name}/{file}" for file in ("disk-2000.qcow2", "config.json", "point.json.new")} <= {
        *steps[:written]
    }
    assert f"sync {name}" in steps[written:visible]
    assert steps.index("sync .", visible) < steps.index(f"unlink .lock/{run}.json")


def test_killing_the_playbook_frees_its_lock_at_once(backup: Backup, tmp_path: Path) -> None:
    """A real ansible-playbook, killed with SIGKILL between two of its tasks."""
    marker, path = tmp_path / "started", tmp_path / "killed.json"
    tasks = [
        {"holdfast.backup.restore_point": {"repository": str(backup.path), "vm": VM, "disks": [disk()]}},
        {"ansible.builtin.copy": {"content": "", "dest": str(marker)}},
        {"ansible.builtin.pause": {"seconds": 60}},
    ]
    path.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", "-c", "local", str(path)]
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build" / "collections")}
    killed = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not marker.exists():
            assert time.monotonic() < deadline
            assert killed.poll() is None
            time.sleep(0.1)
        assert backup.start(fail=True)["error_type"] == "Locked"
    finally:
        killed.kill()
        killed.wait()
    assert len(backup.start()["swept"]) == 1
