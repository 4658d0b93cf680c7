# Copyright (c) 2026 the holdfast.backup authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a command beside a lab of its own: ``in_lab.py molecule test --all``.

The command finds the lab's vCenter in VMWARE_HOST and its kin, the control interface in LAB_CONTROL
and the stand-in for VDDK in LAB_VDDK.
"""

from __future__ import annotations

import os
import subprocess
import sys

from ansible_collections.holdfast.backup.tests.lab.client import Lab


def main(command: list[str]) -> int:
    with Lab.start() as lab:
        found = {"LAB_CONTROL": lab.control, "LAB_VDDK": lab.vddk_libdir}
        return subprocess.run(command, env={**os.environ, **lab.env(), **found}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
