# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the demo: starts a lab, runs demo.yml against it, ends with the tables of what was proven.

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

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from client import BUILD, Lab  # noqa: E402  pylint: disable=wrong-import-position
from guest import table  # noqa: E402  pylint: disable=wrong-import-position


def main() -> int:
    """Run the demo; returns the exit status."""
    home = BUILD / "demo"
    shutil.rmtree(home, ignore_errors=True)
    repository = home / "repository"
    repository.mkdir(parents=True)
    with Lab.start() as lab:
        inventory = home / "inventory.yml"
        guest = " ".join(shlex.quote(part) for part in (sys.executable, str(HERE / "guest.py")))
        variables = {
            "vm_backup_repository": str(repository),
            "vm_backup_vddk_libdir": lab.vddk_libdir,
            "vm_restore_vddk_libdir": lab.vddk_libdir,
            "demo_guest": guest,
        }
        inventory.write_text(json.dumps({"all": {"hosts": {"web01": {}}, "vars": variables}}))
        environment = {
            **os.environ,
            **lab.env(),
            "DEMO_LAB": lab.control,
            "DEMO_HOME": str(home),
            "ANSIBLE_COLLECTIONS_PATH": str(BUILD / "collections"),
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_NOCOWS": "1",
        }
        playbook = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), str(HERE / "demo.yml")]
        status = subprocess.run(playbook, env=environment, cwd=home, check=False).returncode
    if status:
        print("The demo failed; what it left is in", home, file=sys.stderr)
        return status
    state = json.loads((home / "guest.json").read_text())
    manifests = sorted(repository.glob("*/*/point.json"))
    print(table(state, [json.loads(path.read_text()) for path in manifests]))
    print(
        f"\nThe restore points are plain qcow2 chains; look at one with\n"
        f"  qemu-img info --backing-chain {next(manifests[-1].parent.glob('*.qcow2'))}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
