# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Galaxy would hand out: built, installed elsewhere and used from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from ansible_collections.holdfast.backup.tests.unit.documents import MODULES, ROOT

BIN = Path(sys.executable).parent


def run(*command: str | Path, **environment: str) -> str:
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("artifact")
    run(BIN / "ansible-galaxy", "collection", "build", "--output-path", target)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which only the installed copy is found."""
    target = tmp_path_factory.mktemp("installed")
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(target), "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false"}
    run(BIN / "ansible-galaxy", "collection", "install", artifact, "--collections-path", target, **environment)
    return environment


def test_it_holds_only_what_is_versioned_and_used(artifact: Path):
    with tarfile.open(artifact) as archive:
        packed = {member.name for member in archive if member.isfile()}
    versioned = set(run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines())
    assert packed - versioned == {"MANIFEST.json", "FILES.json"}
    assert {name for name in packed if name.startswith(("tests/", "extensions/", "."))} == {
        "tests/config.yml",
        "extensions/audit/event_query.yml",
    }


def test_its_modules_and_their_documentation_are_found(installed: dict[str, str]):
    listed = json.loads(run(BIN / "ansible-doc", "--list", "--json", "holdfast.backup", **installed))
    assert sorted(listed) == [f"holdfast.backup.{name}" for name in sorted(MODULES)]
    json.loads(run(BIN / "ansible-doc", "--json", *listed, **installed))


@pytest.mark.parametrize("playbook", ["backup", "restore", "fcd_backup", "fcd_restore", "maintenance", "verify"])
def test_its_playbooks_are_found_by_their_full_names(playbook: str, installed: dict[str, str]):
    run(BIN / "ansible-playbook", "--syntax-check", "--inventory", "web01,", f"holdfast.backup.{playbook}", **installed)
