# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the demo: starts a lab, runs demo.yml and volume.yml against it, ends with the tables of what was proven.

The disks are accessed natively; with ACCESS=vddk in the environment, by the stand-in for VDDK.

The repository stays in .build/demo, to be looked at with qemu-img.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from client import BUILD, Lab  # noqa: E402  pylint: disable=wrong-import-position
from tables import tables  # noqa: E402  pylint: disable=wrong-import-position

ACCESS = os.environ.get("ACCESS") or "native"
VOLUME = "pvc-8a1d2c3e-6a55-4c2e-9d0e-5f3f6f6f2b10"
# Each playbook with its one host.
PARTS = {"demo.yml": "web01", "volume.yml": VOLUME}


def main() -> int:
    """Run the demo; returns the exit status."""
    home = BUILD / "demo"
    shutil.rmtree(home, ignore_errors=True)
    repository = home / "repository"
    repository.mkdir(parents=True)
    with Lab.start() as lab:
        variables = _variables(lab, repository)
        for playbook, host in PARTS.items():
            inventory = home / f"{playbook.partition('.')[0]}.inventory.json"
            inventory.write_text(json.dumps({"all": {"hosts": {host: {}}, "vars": variables}}))
            command = [Path(sys.executable).parent / "ansible-playbook", "-i", inventory, HERE / playbook]
            status = subprocess.run(command, env=_environment(lab, home), cwd=home, check=False).returncode
            if status:
                print("The demo failed; what it left is in", home, file=sys.stderr)
                return status
    proofs = [
        proof for part in ("guest", "volume") for proof in json.loads((home / f"{part}.json").read_text())["proofs"]
    ]
    points = sorted((json.loads(path.read_text()) for path in repository.glob("*/*/point.json")), key=_moment)
    print(tables(proofs, points))
    newest = repository / points[-1]["id"]
    print(
        f"\nThe restore points are plain qcow2 chains; look at one with\n"
        f"  qemu-img info --backing-chain {next(newest.glob('*.qcow2'))}"
    )
    return 0


def _moment(point: dict[str, Any]) -> str:
    return point["started"]


def _variables(lab: Lab, repository: Path) -> dict[str, Any]:
    """What all roles need, and how the playbooks reach the inside of the guest and of the volume."""
    roles = [f"{kind}_{what}" for kind in ("vm", "fcd") for what in ("backup", "restore")]
    # What is attached nowhere, as the volume is, can be reached natively only through a virtual machine.
    helper = lab.create_vm("backup-helper", disks=[1 << 20])["moid"]
    return {
        **{f"{role}_repository": str(repository) for role in roles},
        **{f"{role}_access": ACCESS for role in roles},
        **{f"{role}_vddk_libdir": lab.vddk_libdir if ACCESS == "vddk" else "" for role in roles},
        **{f"fcd_{what}_native_helper_vm": helper for what in ("backup", "restore")},
        **{f"demo_{name}": shlex.join([sys.executable, str(HERE / f"{name}.py")]) for name in ("guest", "volume")},
    }


def _environment(lab: Lab, home: Path) -> dict[str, str]:
    return {
        **os.environ,
        **lab.env(),
        "DEMO_LAB": lab.control,
        "DEMO_HOME": str(home),
        "ANSIBLE_COLLECTIONS_PATH": str(BUILD / "collections"),
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_NOCOWS": "1",
    }


if __name__ == "__main__":
    sys.exit(main())
