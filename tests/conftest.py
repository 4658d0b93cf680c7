# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures that all tests share: the lab, modules run in-process, playbooks run for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.tests import modules
from ansible_collections.holdfast.backup.tests.lab.client import REPOSITORY, Lab
from hypothesis import HealthCheck, settings

COLLECTION = "ansible_collections.holdfast.backup"

# For what tests start: it finds the collection and Ansible's programs as in an activated environment.
os.environ["PYTHONPATH"] = str(REPOSITORY / ".build" / "collections")
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

# How fast a machine is while it runs other tests says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# Files that take long, the longest first. A worker takes a file at a time (--dist loadfile), and the last ones should
# be short ones, so that no worker is left alone with much to do.
LONGEST_FIRST = (
    "roles/test_",
    "test_killed_backups",
    "test_repository_model",
    "test_restore_model",
    "test_broken_storage",
    "test_merging",
    "test_repository_retention",
    "test_vddk_copy",
    "test_fcd_copy",
    "test_merged_images",
    "test_hostile_repository",
    "test_copy_engine",
    "test_retention_rules",
    "test_restore_point",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long; within a file the order stays."""

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((place for place, part in enumerate(LONGEST_FIRST) if part in path), len(LONGEST_FIRST))

    items.sort(key=rank)


@pytest.fixture(scope="module")
def _lab_of_file() -> Iterator[Lab]:
    with Lab.start(vms=2, datastores=2) as lab:
        yield lab


@pytest.fixture
def lab(_lab_of_file: Lab) -> Iterator[Lab]:
    """The lab of this file of tests: no faults, counters at zero. VMs and sessions of its other tests remain.

    No test may break the rules of NFC.
    """
    _lab_of_file.clear_faults()
    _lab_of_file.vddk(reset=True)
    _lab_of_file.nfc(reset=True)
    _lab_of_file.requests(reset=True)
    yield _lab_of_file
    assert _lab_of_file.nfc()["violations"] == []


@pytest.fixture
def fresh_lab() -> Iterator[Callable[..., Lab]]:
    """Starts labs of the test's own: ``fresh_lab(vms=10)``; they end with the test."""
    started: list[Lab] = []

    def start(**flags: Any) -> Lab:
        started.append(Lab.start(**flags))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def run_module() -> Callable[..., dict[str, Any]]:
    """Runs a module's ``main()`` in this process: ``run_module("vm_snapshot", args, check=True, diff=True)``."""
    return modules.run


@dataclass(frozen=True)
class PlaybookRun:
    """What ansible-playbook answered."""

    rc: int
    stdout: str
    stderr: str


@pytest.fixture
def playbook(tmp_path: Path) -> Callable[..., PlaybookRun]:
    """Runs real ansible-playbook: ``playbook(path or list of plays, extra_vars={}, env={}, args=[], rc=0)``.

    ``rc`` is the status expected; None accepts any.
    """

    def run(
        plays: str | os.PathLike[str] | list[dict[str, Any]],
        extra_vars: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        args: list[str] | None = None,
        inventory: str = "localhost,",
        rc: int | None = 0,
        timeout: float = 300,
    ) -> PlaybookRun:
        if isinstance(plays, list):
            path = tmp_path / "playbook.yml"
            path.write_text(json.dumps(plays), encoding="utf-8")
            plays = path
        variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **(extra_vars or {})}
        command = [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            inventory,
            os.fspath(plays),
            "-e",
            json.dumps(variables),
            *(args or []),
        ]
        settings = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(REPOSITORY / ".build" / "collections"),
            "ANSIBLE_LOCAL_TEMP": str(tmp_path / "local"),
            "ANSIBLE_REMOTE_TEMP": str(tmp_path / "remote"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            **(env or {}),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=timeout, check=False)
        if rc is not None and done.returncode != rc:
            raise AssertionError(f"ansible-playbook: {done.returncode}, not {rc}\n{done.stdout}\n{done.stderr}")
        return PlaybookRun(done.returncode, done.stdout, done.stderr)

    return run
