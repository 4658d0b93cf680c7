# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the VDDK plugin under the real nbdkit."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._nbd import plugins


class Server:
    """The command line of an nbdkit that serves one disk, and what it told.

    :param root: directory for everything that the server needs; disks are copied to ``copy.raw`` there
    :param document: the plugin's parameters, but for the status file
    """

    def __init__(self, root: Path, document: dict[str, Any]) -> None:
        self.root = root
        self.status_file = root / "status"
        self._document = {"status_file": str(self.status_file), "retry_delay": 0.01, **document}
        self._directory = tempfile.mkdtemp(dir=root)
        self._script = plugins.ship(self._directory)

    def command(self, *arguments: str, program: Sequence[str] = ("nbdkit", "--threads=8", "python")) -> list[str]:
        """For one start; arguments come behind the plugin's name."""
        parameters = Path(self._directory, "parameters.json")
        parameters.write_text(json.dumps(self._document))
        variables = plugins.environment(self._directory, self._document["library_dir"])
        pairs = [f"{name}={value}" for name, value in {**variables, "XDG_CACHE_HOME": str(self.root)}.items()]
        return ["env", *pairs, *program, self._script, *arguments, f"parameters={parameters}"]

    def copy(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Copy the served disk by nbdcopy."""
        return run(["nbdcopy", *options, "--", "[", *self.command(), "]", str(self.root / "copy.raw")])

    def call(self, verb: str) -> subprocess.CompletedProcess[str]:
        """Run the script for one of its calls."""
        return run(self.command(verb, program=["python3"]))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Status lines of one kind."""
        if not self.status_file.exists():
            return []
        lines = [json.loads(line) for line in self.status_file.read_text().splitlines()]
        return [line for line in lines if line["event"] == kind]

    def error(self) -> dict[str, Any]:
        """The first error: the cause."""
        return self.events("error")[0]


def run(command: Sequence[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
