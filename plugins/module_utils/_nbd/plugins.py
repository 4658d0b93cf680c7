# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: puts our nbdkit plugins where nbdkit can load them.

A module runs from a zip file that only its own interpreter reads; nbdkit wants files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Imported, not only named: Ansible packs what a module's code imports.
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import (
    nfc_disk,
    nfc_fastlz,
    nfc_interface,
    nfc_plugin,
    nfc_session,
    nfc_wire,
    plugin_interface,
    reopening,
    vddk_disk,
    vddk_interface,
    vddk_library,
    vixdisklib,
)

_SHARED = (plugin_interface, reopening)
_VDDK = (vixdisklib, vddk_interface, vddk_library, vddk_disk)
_NFC = (nfc_plugin, nfc_interface, nfc_wire, nfc_fastlz, nfc_session, nfc_disk)


@dataclass(frozen=True)
class Plugin:
    """A plugin where nbdkit can load it, and what its process needs."""

    script: str
    environment: Mapping[str, str]


def ship(directory: str) -> str:
    """Write the plugin ``vixdisklib`` and what it imports below an own, empty directory.

    :returns: path of the plugin's script
    """
    return _ship(directory, _VDDK)


def ship_nfc(directory: str) -> str:
    """The same with the plugin ``nfc_plugin``."""
    return _ship(directory, _NFC)


def _ship(directory: str, parts: tuple[Any, ...]) -> str:
    plugin = parts[0]
    package = Path(directory)
    # Regular packages at every level: an Ansible installed on the machine would win over mere directories.
    for name in plugin.__name__.split(".")[:-1]:
        package /= name
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    for part in (*_SHARED, *parts):
        source = part.__loader__.get_source(part.__name__)
        (package / Path(part.__file__).name).write_text(source, encoding="utf-8")
    return str(package / Path(plugin.__file__).name)


def environment(directory: str, library_dir: str | None = None) -> dict[str, str]:
    """Variables for the process that runs the script and loads the library; what we inherited stays behind ours."""
    ours = {"PYTHONPATH": directory}
    if library_dir:
        ours["LD_LIBRARY_PATH"] = os.path.join(library_dir, "lib64")
    return {name: ":".join(filter(None, [value, os.environ.get(name)])) for name, value in ours.items()}


def events(status_file: str) -> list[dict[str, Any]]:
    """What a plugin has told until now."""
    try:
        with open(status_file, encoding="utf-8") as stream:
            return [json.loads(line) for line in stream if line.endswith("\n")]
    except FileNotFoundError:
        return []
