# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What people see of long work on a repository, in real playbooks; and that it ends when the playbook does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests.unit.repositories import VM, Backup, disk

PLAY = [{"hosts": "all", "gather_facts": False}]


@pytest.fixture
def backup(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> Backup:
    """A repository with three restore points of one disk."""
    path = tmp_path / "repository"
    path.mkdir()
    backup = Backup(run_module, path)
    for dummy in range(3):
        backup.backup([disk()])
    return backup


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Places of the test's own for what Ansible and the module leave."""
    (tmp_path / "tmp").mkdir()
    return {"TMPDIR": str(tmp_path / "tmp"), "ANSIBLE_ASYNC_DIR": str(tmp_path / "async")}


def play(module: str, **options: Any) -> list[dict[str, Any]]:
    return [{**PLAY[0], "tasks": [{f"holdfast.backup.{module}": options, "register": "done"}]}]


def is_tidy(tmp_path: Path) -> bool:
    """Nothing of the job is left."""
    places = [tmp_path / "tmp", tmp_path / "async"]
    left = [path for place in places if place.is_dir() for path in place.rglob("*") if path.is_file()]
    assert left == []
    return True


def lines(stdout: str, module: str) -> list[str]:
    return [line for line in stdout.splitlines() if line.startswith(f"{module} ")]


def test_merges_are_seen(backup: Backup, playbook: Any, env: dict[str, str], tmp_path: Path) -> None:
    done = playbook(play("repository_retention", repository=str(backup.path), keep_last=1), env=env)
    seen = lines(done.stdout, "repository_retention")
    title = rf"repository_retention {VM['name']} \d{{8}}T\d{{6}}Z Hard disk 1: "
    assert seen
    assert all(re.match(title, line) for line in seen)
    assert re.fullmatch(title + r"100 % \d+ of \d+ KiB.*", seen[0])
    assert re.fullmatch(title + r"100 % compared \d+ of \d+ KiB.*", seen[-1])
    assert "changed: [localhost]" in done.stdout
    assert len(backup.info()) == 1
    assert is_tidy(tmp_path)


def test_verifications_are_seen(backup: Backup, playbook: Any, env: dict[str, str], tmp_path: Path) -> None:
    newest, path = backup.info()[-1]["id"], str(backup.path)
    plays = [
        *play("restore_point", repository=path, state="verified", id=newest, level="restore"),
        *play("repository_verification", repository=path, level="content"),
    ]
    done = playbook(plays, env=env)
    seen = lines(done.stdout, "restore_point")
    assert re.match(r"restore_point .*: 100 % [0-9]", seen[-1])
    assert re.match(r"repository_verification verification: 100 % ", lines(done.stdout, "repository_verification")[-1])
    assert is_tidy(tmp_path)


def test_what_takes_no_time_is_not_watched(backup: Backup, playbook: Any, env: dict[str, str], tmp_path: Path) -> None:
    newest = backup.info()[-1]["id"]
    for options in ({"state": "pinned", "id": newest}, {"state": "absent", "id": newest}):
        done = playbook(play("restore_point", repository=str(backup.path), **options), env=env, rc=None)
        assert lines(done.stdout, "restore_point") == []
        assert not (tmp_path / "async").exists()
    check = playbook(play("repository_retention", repository=str(backup.path), keep_last=1), env=env, args=["--check"])
    assert lines(check.stdout, "repository_retention") == []
    assert not (tmp_path / "async").exists()
    assert len(backup.info()) == 3


def test_a_failure_is_told_as_it_is(backup: Backup, playbook: Any, env: dict[str, str], tmp_path: Path) -> None:
    newest = backup.info()[-1]["id"]
    image = backup.path / newest / "disk-2000.qcow2"
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    options = {"repository": str(backup.path), "state": "verified", "id": newest}
    done = playbook(play("restore_point", **options), env=env, rc=2)
    assert "is damaged" in done.stdout
    assert is_tidy(tmp_path)


def test_a_merge_ends_with_its_playbook(backup: Backup, env: dict[str, str], tmp_path: Path) -> None:
    """Killed with SIGTERM in its middle, as AWX does: the merge stops, and all is as it was."""
    before = [one["id"] for one in backup.info()]
    path = tmp_path / "play.yml"
    path.write_text(
        '[{"hosts": "all", "gather_facts": false, "tasks": [{"holdfast.backup.repository_retention": '
        f'{{"repository": "{backup.path}", "keep_last": 1, "rate_limit": "50k"}}}}]}}]',
        encoding="utf-8",
    )
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", "-c", "local", str(path)]
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    settings = {**os.environ, **env, "ANSIBLE_COLLECTIONS_PATH": os.environ["PYTHONPATH"]}
    with subprocess.Popen(
        command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as running:
        deadline = time.monotonic() + 60
        while not list(backup.directory.glob("*.merging")):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGTERM)
        running.wait(60)
    deadline = time.monotonic() + 60
    while list(backup.directory.glob("*.merging")) or (backup.directory / ".lock").exists():
        assert time.monotonic() < deadline, os.listdir(backup.directory)
        time.sleep(0.1)
    assert [one["id"] for one in backup.info(verify="content") if one["verified"]["ok"]] == before
