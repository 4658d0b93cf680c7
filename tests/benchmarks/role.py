# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role vm_backup on a VM whose one disk is empty: what a backup costs besides its copying, step by step.

Beside it a playbook that does as many times nothing: what Ansible itself needs for so many modules.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.tests.benchmarks import measure
from ansible_collections.holdfast.backup.tests.benchmarks.machine import MIB, empty, setting, workplace
from ansible_collections.holdfast.backup.tests.benchmarks.report import Section
from ansible_collections.holdfast.backup.tests.lab.client import BUILD, Lab

CALLBACKS = Path(__file__).with_name("callback")
PREFIX = "holdfast.backup."
BACKUP, NOTHING = "playbook holdfast.backup.backup", "a playbook of as many pings"


def section() -> Section:
    """Measure a second backup, which finds no changes; the first one makes the chain."""
    runs = int(setting("RUNS", "3"))
    place = workplace("role", 0, in_memory=False)
    report = Section("The role vm_backup without data", {"runs": runs})
    try:
        with Lab.start() as lab:
            playbooks = Playbooks(lab, place)
            playbooks.backup()
            first = playbooks.backup()
            modules = sum(step["action"].startswith(PREFIX) for step in first["steps"])
            found = measure.alternate(runs, {BACKUP: playbooks.backup, NOTHING: lambda: playbooks.pings(modules)})
    finally:
        shutil.rmtree(place.parent, ignore_errors=True)
    for number, step in enumerate(first["steps"]):
        times = [run["steps"][number]["seconds"] for run in found[BACKUP]]
        report.rows.append({"step": step["task"], "seconds": measure.median(times), "requests": step["requests"]})
    report.raw = found
    report.facts["modules"] = modules
    for name, results in found.items():
        report.facts[name] = f"{measure.median([run['seconds'] for run in results])} s"
    report.facts["requests"] = sum(step["requests"] for step in first["steps"])
    return report


class Playbooks:
    """Runs real playbooks against a lab with one VM."""

    def __init__(self, lab: Lab, place: Path) -> None:
        self.lab, self.place = lab, place
        lab.create_vm("web01", disks=[64 * MIB], power="poweredOn", tools="running")
        variables = {
            "ansible_python_interpreter": sys.executable,
            "vm_backup_repository": str(empty(place / "repository")),
            "vm_backup_vddk_libdir": lab.vddk_libdir,
        }
        self.inventory = place / "inventory.json"
        self.inventory.write_text(json.dumps({"all": {"hosts": {"web01": {}}, "vars": variables}}))

    def backup(self) -> dict[str, Any]:
        """One backup by the collection's own playbook."""
        return self._run("holdfast.backup.backup")

    def pings(self, count: int) -> dict[str, Any]:
        """A playbook of so many modules that do nothing."""
        ping = {"ansible.builtin.ping": {}, "delegate_to": "localhost"}
        path = self.place / "pings.json"
        path.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [ping] * count}]))
        return self._run(str(path))

    def _run(self, playbook: str) -> dict[str, Any]:
        notes = self.place / "steps"
        notes.write_text("")
        environment = {
            **self.lab.env(),
            "BENCH_LAB": self.lab.control,
            "BENCH_STEPS": str(notes),
            "ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS),
            "ANSIBLE_CALLBACKS_ENABLED": "steps",
            "ANSIBLE_COLLECTIONS_PATH": str(BUILD / "collections"),
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_LOCAL_TEMP": str(self.place / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.place / "remote"),
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        cost = measure.run([program, "-i", str(self.inventory), playbook], environment=environment)
        lines = [json.loads(line) for line in notes.read_text().splitlines()]
        steps = [
            {
                **begun,
                "seconds": ended["time"] - begun["time"],
                "requests": ended["requests"] - begun["requests"],
            }
            for begun, ended in zip(lines, lines[1:])
        ]
        return {"seconds": cost.seconds, "cpu": cost.cpu, "steps": steps}
