# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What runs on a proxy's Python, by the oldest that we support, without a package installed; skipped where it is not.

That nothing newer is used cannot be seen by looking: what matters is that it runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.nfc_tickets import NfcTickets
from ansible_collections.holdfast.backup.tests.lab.client import REPOSITORY, Lab

MIB = 1 << 20
OLDEST = "3.9"


def _find() -> str | None:
    """Its program: a version manager's one in PATH need not run."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob(f"{OLDEST}.*/bin/python")
    for program in (shutil.which(f"python{OLDEST}"), *map(str, kept)):
        if program and subprocess.run([program, "-V"], capture_output=True, check=False).returncode == 0:
            return program
    return None


@pytest.fixture(scope="module")
def oldest() -> str:
    program = _find()
    if program is None:
        pytest.skip(f"there is no Python {OLDEST}")
    return program


def run(program: str, code: str, *arguments: str, given: str = "") -> str:
    """What the code prints there."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY / ".build" / "collections")}
    command = [program, "-B", "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_compiles(oldest: str):
    code = "import pathlib, sys\nfor f in pathlib.Path(sys.argv[1]).rglob('*.py'): compile(f.read_bytes(), f, 'exec')"
    run(oldest, code, str(REPOSITORY / "plugins"))


def test_images_and_repositories_need_nothing_else(oldest: str):
    """What knows nothing of vSphere is loaded without Ansible."""
    places = ("plugins/module_utils/_nbd", "plugins/module_utils/_repository")
    found = [path.relative_to(REPOSITORY) for place in places for path in (REPOSITORY / place).glob("*.py")]
    names = [".".join(path.with_suffix("").parts) for path in found]
    assert len(names) > 50
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    run(oldest, code, *(f"ansible_collections.holdfast.backup.{name}" for name in names))


@pytest.mark.parametrize("plugin", ["ship", "ship_nfc"])
def test_plugins_are_shipped_and_load(oldest: str, plugin: str, tmp_path: Path):
    code = (
        "import sys\nfrom ansible_collections.holdfast.backup.plugins.module_utils._nbd import plugins\n"
        f"print(plugins.{plugin}(sys.argv[1]))"
    )
    script = run(oldest, code, str(tmp_path / "plugin")).strip()
    load = [oldest, "-W", "error", "-c", "import runpy, sys; runpy.run_path(sys.argv[1])", script]
    subprocess.run(load, env={"PYTHONPATH": str(tmp_path / "plugin")}, cwd=tmp_path, check=True)


@pytest.mark.parametrize("transport", ["nbd", "nbdssl"])
def test_a_disk_is_read(oldest: str, lab: Lab, transport: str):
    """The NFC client with that Python's TLS."""
    vm = lab.create_vm(f"old python {transport}", disks=[8 * MIB + 512])
    lab.write(vm["moid"], vm["disks"][0]["key"], 0, os.urandom(MIB))
    with Connection(Endpoint(**lab.module_args())) as c:
        tickets = NfcTickets(c)
        asked: dict[str, Any] = {
            "ticket": tickets.get(vm["moid"]),
            "transport": transport,
            "path": vm["disks"][0]["path"],
            "capacity": 8 * MIB + 512,
            "length": 8 * MIB,
        }
        code = (
            "import json, sys\nfrom ansible_collections.holdfast.backup.plugins.module_utils._nbd import nfc_check\n"
            "asked = json.load(sys.stdin)\nticket = asked.pop('ticket')\n"
            "print(json.dumps(nfc_check.check(lambda: ticket, **asked)))"
        )
        told = json.loads(run(oldest, code, given=json.dumps(asked)))
    assert (told["works"], told["stage"], told["bytes_read"]) == (True, "read", 8 * MIB), told
    assert lab.nfc()["closed"][0]["orderly"]
