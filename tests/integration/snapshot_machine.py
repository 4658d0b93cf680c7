# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""A VM of the lab and the snapshot modules run on it, for tests."""

from __future__ import annotations

import time

from ansible_collections.holdfast.backup.plugins.module_utils._vsphere import sdk
from ansible_collections.holdfast.backup.plugins.module_utils._vsphere.connection import Connection, Endpoint

KEYS = {
    "changed",
    "consolidation_needed",
    "current_snapshot",
    "diff",
    "msg",
    "power_state",
    "removed",
    "renamed",
    "result",
    "reverted",
    "seconds",
    "snapshot",
    "snapshot_results",
    "snapshots",
    "task",
    "vm",
}


class Machine:
    """A VM of the lab and the modules run on it."""

    def __init__(self, lab, run_module, **spec):
        given = {"disks": [1 << 20], "power": "poweredOn", "tools": "running", "tracking": True, **spec}
        self.lab = lab
        self.name = f"quiescent-{time.monotonic_ns()}"  # a name is no fault's text
        self.record = lab.create_vm(self.name, **given)
        self.moid = self.record["moid"]
        self.gone = False  # for tests that destroy it
        self._run_module = run_module

    def run(self, module="vm_snapshot", check=False, diff=False, fail=False, **args):
        """Options that are None are left out."""
        given = {**self.lab.module_args(), "moid": self.moid, **args}
        given = {option: value for option, value in given.items() if value is not None}
        return self._run_module(module, given, check=check, diff=diff, fail=fail)

    def take(self, name, **args):
        return self.run(snapshot_name=name, **args)["snapshot"]

    def names(self):
        return sorted(snapshot["name"] for snapshot in self.lab.snapshots(self.moid))

    def current(self):
        """The name of the snapshot that it runs on."""
        return self.run("vm_snapshot_info")["current_snapshot"]["name"]

    def requests(self):
        return self.lab.requests()["total"]

    def is_waiting(self):
        """Whether a run has begun to wait for its task since requests were last counted from zero."""
        return "CreateFilter" in self.lab.requests()["methods"]

    def session(self):
        """A connection of somebody else's."""
        return Connection(Endpoint(**self.lab.module_args()))

    def managed(self, c):
        return sdk.vim.VirtualMachine(self.moid, c.stub)


def planned(result):
    """What check mode can know of a result."""
    return {key: value for key, value in result.items() if key not in ("task", "result", "seconds")}


def machines(lab, run_module):
    """For a fixture: makes machines, and sees to it that they and all sessions are gone."""
    made = []

    def make(**spec):
        made.append(Machine(lab, run_module, **spec))
        lab.requests(reset=True)
        return made[-1]

    yield make
    lab.clear_faults()
    for one in made:
        if not one.gone:
            lab.destroy_vm(one.moid)
    assert lab.sessions() == []


def tree(vm):
    """a - b - c, of which b and c are stamped."""
    a = vm.take("a")
    b = vm.take("b", stamp={"job": "nightly", "run": "r1", "expires_in": "7d"})
    c = vm.take("c", stamp={"job": "nightly", "run": "r2", "expires_in": "0"})
    return a, b, c
