# Copyright (c) 2026 the holdfast.backup authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Private to holdfast.backup: what must be on the proxy before a copy or a merge is worth starting."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ansible_collections.holdfast.backup.plugins.module_utils._errors import MissingRequirement

_PROGRAMS = {
    "nbdkit": "nbdkit",
    "nbdcopy": "libnbd-bin (Debian, Ubuntu) or libnbd (Fedora, RHEL)",
    "nbdinfo": "libnbd-bin (Debian, Ubuntu) or libnbd (Fedora, RHEL)",
    "qemu-img": "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)",
    "qemu-nbd": "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)",
    "qemu-io": "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)",
    "setpriv": "util-linux",
}
_FILTERS = ("checkwrite", "extentlist", "log", "noextents", "truncate")


def check_program(program: str) -> None:
    """See that one of the programs is there.

    :raises MissingRequirement: it is not; names the package that has it
    """
    if not shutil.which(program):
        raise MissingRequirement(
            f"The program {program} is not installed on the proxy.", f"Install the package {_PROGRAMS[program]}."
        )


def check_programs(merging: bool = False) -> None:
    """See that all programs are there, and nbdkit's plugin and filters.

    :param merging: for the work on images alone, not for copies of disks
    :raises MissingRequirement: names the first that is not, and the package that has it
    """
    for program in _PROGRAMS:
        if merging or program != "qemu-io":
            check_program(program)
    plugin = "nbd" if merging else "python"
    filters = [f"--filter={name}" for name in (*_FILTERS, *(["rate"] if merging else []))]
    result = subprocess.run(
        ["nbdkit", *filters, plugin, "--dump-plugin"], capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode:
        raise MissingRequirement(
            f"nbdkit lacks a part: {result.stderr.strip() or result.returncode}.",
            f"Install nbdkit-plugin-{plugin} (Debian, Ubuntu) or nbdkit-{plugin}-plugin and nbdkit-basic-filters "
            "(Fedora).",
        )


def check_library(library_dir: str | None) -> None:
    """See that VMware's library is in the directory.

    :raises MissingRequirement: it is not given, or not a directory of the library
    """
    if not library_dir:
        raise MissingRequirement(
            "The directory of VMware's disk library (VDDK) is not given.",
            "Unpack it on the proxy, and name its directory in vddk_libdir or the environment variable VDDK_LIBDIR.",
        )
    if not any(Path(library_dir, "lib64").glob("libvixDiskLib.so*")):
        raise MissingRequirement(
            f"There is no lib64/libvixDiskLib.so in {library_dir} on the proxy.",
            "Give the directory that VDDK was unpacked to, the parent of lib64.",
        )
