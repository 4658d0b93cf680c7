# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: puts our nbdkit plugins where nbdkit can load them.

A module runs from a zip file that only its own interpreter reads; nbdkit wants files.
"""

from __future__ import annotations

import os
from pathlib import Path

# Imported, not only named: Ansible packs what a module's code imports.
from ansible_collections.holdfast.backup.plugins.module_utils._nbd import (
    vddk_disk,
    vddk_interface,
    vddk_library,
    vixdisklib,
)

_PARTS = (vddk_interface, vddk_library, vddk_disk, vixdisklib)


def ship(directory: str) -> str:
    """Write the plugin ``vixdisklib`` and what it imports below an own, empty directory.

    :returns: path of the plugin's script
    """
    package = Path(directory, *vixdisklib.__name__.split(".")[:-1])
    package.mkdir(parents=True)
    # Regular packages at every level: an Ansible installed on the machine would win over mere directories.
    for parent in (package, *package.parents[: len(package.relative_to(directory).parts) - 1]):
        (parent / "__init__.py").touch()
    for part in _PARTS:
        source = part.__loader__.get_source(part.__name__)  # type: ignore[union-attr]
        (package / Path(part.__file__).name).write_text(source, encoding="utf-8")
    return str(package / Path(vixdisklib.__file__).name)


def environment(directory: str, library_dir: str) -> dict[str, str]:
    """Variables for the process that runs the script and loads the library; what we inherited stays behind ours."""
    ours = {"PYTHONPATH": directory, "LD_LIBRARY_PATH": os.path.join(library_dir, "lib64")}
    return {name: ":".join(filter(None, [value, os.environ.get(name)])) for name, value in ours.items()}
