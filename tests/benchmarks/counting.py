# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Single modules, of ours and of the peers, and what each cost: requests, log-ins, time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ansible_collections.holdfast.backup.tests.benchmarks.machine import OURS, run_module
from ansible_collections.holdfast.backup.tests.lab.client import BUILD, Lab

PEERS = ("community.vmware", "vmware.vmware")  # make setup unpacks them
FOLDER = BUILD / "peers"


class Counter:
    """Runs modules against a lab and remembers what each cost."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.found: dict[tuple[str, str, str], list[dict[str, float]]] = {}

    def step(self, what: str, state: str, module: str, /, **args: Any) -> dict[str, Any]:
        """Run a module of ours, or one whose collection is named; returns its result.

        :param what: the job that is done, the same for all collections
        :param state: ``acting``, ``idle`` or ``info``; of ours, the result must confirm it
        """
        collection = module.rpartition(".")[0] or OURS
        self.lab.requests(reset=True)
        result, cost = run_module(module, args, {"SSL_CERT_FILE": self.lab.ca_file})
        changed = result.get("changed", False)
        assert collection != OURS or state == "info" or changed == (state == "acting"), (module, state, result)
        found = {**requests_of(self.lab), "seconds": cost.seconds, "cpu": cost.cpu}
        self.found.setdefault((what, state, collection), []).append(found)
        return result


def requests_of(lab: Lab) -> dict[str, int]:
    """All requests since the last reset, and of them those that log in, and those that wait for a task: their number
    depends on its progress."""
    seen = lab.requests()
    waits = seen["methods"].get("WaitForUpdatesEx", 0)
    return {"requests": seen["total"], "logins": seen["logins"], "waits": waits}


def versions() -> Iterator[tuple[str, str]]:
    """Name and version of each peer."""
    for collection in PEERS:
        manifest = FOLDER / "ansible_collections" / collection.replace(".", "/") / "MANIFEST.json"
        yield collection, json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"]
