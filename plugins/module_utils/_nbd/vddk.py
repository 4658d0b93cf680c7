# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: disks that our nbdkit plugin serves through VMware's library.

The library lives in the plugin's process only, with its own library path: it brings copies of system libraries.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ansible_collections.holdfast.backup.plugins.module_utils._errors import (
    BackupError,
    CopyFailed,
    MissingRequirement,
    NoSpace,
)
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import plugins
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.copy import inheritable
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.plugins import Plugin
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.servers import Disk
from ansible_collections.holdfast.backup.plugins.module_utils._nbd.vddk_interface import DISK_FULL


def ship(directory: str, library_dir: str) -> Plugin:
    """Make the plugin ready in an own, empty directory, for a library installed in ``library_dir``."""
    return Plugin(plugins.ship(directory), plugins.environment(directory, library_dir))


@contextmanager
def prepared(plugin: Plugin, parameters: Mapping[str, Any], warn: Callable[[str], None]) -> Iterator[None]:
    """Forbid Storage vMotion of the VM or FCD meanwhile, as VMware asks of who reads or writes its disks.

    Remains of dead runs are cleared first: a VM that stayed forbidden, and disks that hotadd left on this proxy.
    The copy does not depend on any of it, so what goes wrong is only told.

    :param parameters: those of its disks, ``path`` need not be among them
    :param warn: takes a sentence
    """
    if "hotadd" in parameters["transports"].split(":"):
        _call("cleanup", plugin, parameters, warn)
    forbidden = _call("prepare", plugin, parameters, warn)
    try:
        yield
    finally:
        if forbidden:
            _call("end", plugin, parameters, warn)


def _call(verb: str, plugin: Plugin, parameters: Mapping[str, Any], warn: Callable[[str], None]) -> bool:
    """Run one of the plugin's calls about a whole VM or an FCD; returns whether it did what it should."""
    with _secret(parameters) as descriptor:
        done = subprocess.run(
            [sys.executable, plugin.script, verb, f"parameters=-{descriptor}"],
            env={**os.environ, **plugin.environment},
            pass_fds=(descriptor,),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        warn(done.stderr.strip().rpartition("\n")[2] or f"The library's {verb} ended with status {done.returncode}.")
    return done.returncode == 0


@contextmanager
def _secret(parameters: Mapping[str, Any]) -> Iterator[int]:
    """A descriptor from which a child process can read the plugin's parameters."""
    descriptor = inheritable(os.memfd_create("parameters"))
    try:
        os.write(descriptor, json.dumps(dict(parameters)).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class VddkDisk:
    """One disk behind VMware's library.

    :param parameters: the plugin's parameters (see there) but ``status_file``, secrets included
    :param status_file: of this disk and run only
    """

    plugin: Plugin
    parameters: Mapping[str, Any]
    status_file: str

    @contextmanager
    def open(self) -> Iterator[Disk]:
        """The disk for one start of nbdkit."""
        with _secret({**self.parameters, "status_file": self.status_file}) as secrets:
            yield Disk(("python", self.plugin.script), secrets, self.plugin.environment)

    @property
    def transport(self) -> str | None:
        """The transport that the library really chose, as far as it has opened the disk."""
        return next((event["transport"] for event in reversed(self._events()) if event["event"] == "opened"), None)

    @property
    def hints(self) -> None:
        """The library looks at the disk itself."""

    @property
    def allocation(self) -> str:
        """Where it is known from which areas are in use: the library tells, unless it was seen to fail."""
        asked_in_vain = any(event["event"] == "warning" and event["stage"] == "extents" for event in self._events())
        return "none" if asked_in_vain else "library"

    @property
    def warnings(self) -> list[str]:
        """What went wrong and was got over, and a transport that is not the first one asked for."""
        warnings = [event["message"] for event in self._events() if event["event"] == "warning"]
        wanted, used = self.parameters["transports"].split(":")[0], self.transport
        if used and used != wanted:
            warnings.append(f"The transport {wanted} could not be used, {used} was used instead.")
        return list(dict.fromkeys(warnings))

    @property
    def error(self) -> BackupError | None:
        """What the plugin gave up for, if it did."""
        event = next((event for event in self._events() if event["event"] == "error"), None)
        if event is None:
            return None
        stage, code = event["stage"], event.get("code")
        if code == DISK_FULL:
            kind: type[BackupError] = NoSpace
        else:
            kind = MissingRequirement if stage in ("load", "init") else CopyFailed
        return kind(event["message"], event["hint"], stage=stage, code=code)

    def _events(self) -> list[dict[str, Any]]:
        return plugins.events(self.status_file)
